"""Interpolation of real-valued maps from a coarse lattice that is refined where the map bends."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Maps = NDArray[np.float64]


def _halved(lines: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return lattice lines with one more in the middle of each gap of at least 2."""
    middles = (lines[:-1] + lines[1:]) // 2
    return np.union1d(lines, middles)


@dataclass(frozen=True)
class _Axis:
    """One axis of a lattice: the grid rows (or columns) on it, including the first and the last."""

    lines: NDArray[np.int64]

    @classmethod
    def coarse(cls, count: int, step: int) -> _Axis:
        return cls(np.union1d(np.arange(0, count, step), [count - 1]))

    @property
    def cells(self) -> int:
        return max(1, len(self.lines) - 1)

    @cached_property
    def weights(self) -> NDArray[np.float64]:
        """Weights [count, lines] of linear interpolation from the lines to every grid row."""
        eye = np.eye(len(self.lines))
        at = np.arange(self.lines[-1] + 1)
        return np.stack([np.interp(at, self.lines, column) for column in eye], 1)

    @cached_property
    def cell_of(self) -> NDArray[np.int64]:
        """Cell of each grid row, [count]; a row on a line belongs to the cell that begins there."""
        inside = np.searchsorted(self.lines, np.arange(self.lines[-1] + 1), "right") - 1
        return np.minimum(inside, self.cells - 1)

    def pooled(self, values: Maps, axis: int) -> Maps:
        """Return the largest value in each closed cell, both border lines included."""
        if len(self.lines) == 1:
            return values
        half_open = np.maximum.reduceat(values, self.lines[:-1], axis=axis)
        return np.maximum(half_open, values.take(self.lines[1:], axis=axis))

    def children(self, finer: _Axis) -> NDArray[np.int64]:
        """Return the cell of this axis around each cell of a finer one."""
        return self.cell_of[finer.lines[: finer.cells]]


def _corner_reduce(values: Maps, operation: np.ufunc) -> Maps:
    """Reduce lattice values [n, rows, columns] over the four corners of each cell."""
    for axis in (1, 2):
        count = values.shape[axis]
        if count > 1:
            values = operation(values.take(range(count - 1), axis), values.take(range(1, count), axis))
    return values


def _bends(values: Maps) -> Maps:
    """Return the expected error of linear interpolation in each cell: half the second differences, summed over axes.

    This is its error at a jump, where the second difference is the height; at a parabola the error is a quarter of it.
    """
    total = np.zeros_like(_corner_reduce(values, np.maximum))
    for axis in (1, 2):
        if values.shape[axis] > 2:
            bend = np.abs(np.diff(values, 2, axis)) / 2
            edge = [(1, 1) if k == axis else (0, 0) for k in range(3)]
            total = total + _corner_reduce(np.pad(bend, edge, mode="edge"), np.maximum)
    return total


def _levels(rows: int, columns: int, spacing: tuple[int, int]) -> list[tuple[_Axis, _Axis]]:
    """Return lattices with steps that halve from ``spacing`` to 1."""
    axes = _Axis.coarse(rows, spacing[0]), _Axis.coarse(columns, spacing[1])
    levels = [axes]
    while any(np.diff(axis.lines).max(initial=1) > 1 for axis in axes):
        axes = _Axis(_halved(axes[0].lines)), _Axis(_halved(axes[1].lines))
        levels.append(axes)
    return levels


def coarse_lattice(shape: tuple[int, int], spacing: tuple[int, int]) -> Mask:
    """Return a mask of every ``spacing``-th position of a grid [rows, columns], and of the last ones."""
    mask = np.zeros(shape, bool)
    mask[np.ix_(*(_Axis.coarse(count, step).lines for count, step in zip(shape, spacing, strict=True)))] = True
    return mask


class Refinement:
    """Choice of the positions of real-valued maps to evaluate next, and interpolation of the others.

    The steps of the lattices halve from ``spacing`` to 1. A cell whose four corners are known is refined (the corners
    of its children are evaluated) where bilinear interpolation of its corners is wrong by more than ``tolerance`` at a
    known position, or where that is expected: from the second differences of the coarse lattice, and below it from the
    error of the parent cell. (For a smooth score the error would be a quarter of the parent's, but a jump is equally
    high in every cell.)

    Positions on an edge count for both cells, so that the boundary of a region is followed once a lattice point has
    hit it.

    Args:
        rows, columns: Size of the grid of positions.
        spacing: Steps of the coarsest lattice in grid (rows, columns).
    """

    def __init__(self, rows: int, columns: int, spacing: tuple[int, int]) -> None:
        self.shape, self._spacing = (rows, columns), spacing
        self.levels = _levels(rows, columns, spacing)

    def first(self) -> Mask:
        """Return the coarse lattice, [rows, columns]."""
        return coarse_lattice(self.shape, self._spacing)

    def wanted(self, known: Mask, values: Maps, tolerance: Maps | float) -> Mask:
        """Return the positions to evaluate next, none if the maps are finished.

        Args:
            known, values: Evaluated positions and their scores, [n, rows, columns].
            tolerance: For each map [n] or for all.
        """
        wanted = np.zeros_like(known)
        allowed = np.reshape(tolerance, (-1, 1, 1))
        missed: Maps | None = None  # error of the parents' interpolation
        for level, (r, c) in enumerate(self.levels[:-1]):
            lattice = np.ix_(np.arange(len(values)), r.lines, c.lines)
            whole = _corner_reduce(known[lattice].astype(float), np.minimum) > 0
            if not whole.any():
                break
            corners = np.where(known[lattice], values[lattice], 0.0)
            off = np.where(known, np.abs(values - r.weights @ corners @ c.weights.T), 0.0)
            off = np.where(whole, c.pooled(r.pooled(off, 1), 2), 0.0)
            if missed is None:
                expected = _bends(corners)
            else:
                above = self.levels[level - 1]
                expected = missed[np.ix_(np.arange(len(values)), above[0].children(r), above[1].children(c))]
            restless = whole & ((off > allowed) | (expected > allowed))
            missed = off
            wanted |= self._corners_of_children(restless, level)
        return wanted & ~known

    def _corners_of_children(self, cells: Mask, level: int) -> Mask:
        (r, c), (finer_r, finer_c) = self.levels[level], self.levels[level + 1]
        inner = cells[np.ix_(np.arange(len(cells)), r.children(finer_r), c.children(finer_c))]
        points = np.zeros((len(cells), len(finer_r.lines), len(finer_c.lines)), bool)
        for i in range(min(2, len(finer_r.lines))):
            for j in range(min(2, len(finer_c.lines))):
                points[:, i : i + inner.shape[1], j : j + inner.shape[2]] |= inner
        mask = np.zeros((len(cells), *self.shape), bool)
        mask[np.ix_(np.arange(len(cells)), finer_r.lines, finer_c.lines)] = points
        return mask

    def filled(self, known: Mask, values: Maps) -> Maps:
        """Return the maps with unknown positions interpolated from the smallest surrounding cell with known corners."""
        result = values.copy()
        for r, c in self.levels:
            lattice = np.ix_(np.arange(len(values)), r.lines, c.lines)
            whole = _corner_reduce(known[lattice].astype(float), np.minimum) > 0
            guess = r.weights @ np.where(known[lattice], values[lattice], 0.0) @ c.weights.T
            inside = whole[np.ix_(np.arange(len(values)), r.cell_of, c.cell_of)]
            result = np.where(inside, guess, result)
        return np.where(known, values, result)
