"""Which positions of a map decide the rest: a coarse lattice, refined where the map changes.

:class:`SignRefinement` follows the border between right and wrong by the margins at either side, :class:`Refinement` a
real-valued score to within a tolerance.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Maps = NDArray[np.float64]


def _halved(lines: NDArray[np.int64]) -> NDArray[np.int64]:
    """Lattice lines with one more in the middle of each gap of at least 2."""
    middles = (lines[:-1] + lines[1:]) // 2
    return np.union1d(lines, middles)


@dataclass(frozen=True)
class _Axis:
    """One axis of a lattice: the grid rows (or columns) that it visits, the first and the last among them."""

    lines: NDArray[np.int64]

    @classmethod
    def coarse(cls, count: int, step: int) -> _Axis:
        return cls(np.union1d(np.arange(0, count, step), [count - 1]))

    @property
    def cells(self) -> int:
        return max(1, len(self.lines) - 1)

    @cached_property
    def weights(self) -> NDArray[np.float64]:
        """[count, lines]: linear interpolation from the lines to every grid row."""
        eye = np.eye(len(self.lines))
        at = np.arange(self.lines[-1] + 1)
        return np.stack([np.interp(at, self.lines, column) for column in eye], 1)

    @cached_property
    def cell_of(self) -> NDArray[np.int64]:
        """[count]: the cell that each grid row lies in; a row on a line belongs to the cell that begins there."""
        inside = np.searchsorted(self.lines, np.arange(self.lines[-1] + 1), "right") - 1
        return np.minimum(inside, self.cells - 1)

    def pooled(self, values: Maps, axis: int) -> Maps:
        """The largest value in each closed cell, both border lines included."""
        if len(self.lines) == 1:
            return values
        half_open = np.maximum.reduceat(values, self.lines[:-1], axis=axis)
        return np.maximum(half_open, values.take(self.lines[1:], axis=axis))

    def children(self, finer: _Axis) -> NDArray[np.int64]:
        """The cell of this axis that each cell of the finer one lies in."""
        return self.cell_of[finer.lines[: finer.cells]]


def _corner_reduce(values: Maps, operation: np.ufunc) -> Maps:
    """Over the four corners of each cell of lattice values [n, rows, columns]."""
    for axis in (1, 2):
        count = values.shape[axis]
        if count > 1:
            values = operation(values.take(range(count - 1), axis), values.take(range(1, count), axis))
    return values


def _bends(values: Maps) -> Maps:
    """What linear interpolation may miss in each cell: half the second differences, the two axes added, [n, cells].

    That is what it misses of a jump, whose height the second difference is; of a parabola it misses a quarter of that.
    """
    total = np.zeros_like(_corner_reduce(values, np.maximum))
    for axis in (1, 2):
        if values.shape[axis] > 2:
            bend = np.abs(np.diff(values, 2, axis)) / 2
            edge = [(1, 1) if k == axis else (0, 0) for k in range(3)]
            total = total + _corner_reduce(np.pad(bend, edge, mode="edge"), np.maximum)
    return total


def _levels(rows: int, columns: int, spacing: tuple[int, int]) -> list[tuple[_Axis, _Axis]]:
    """Lattices whose step halves from ``spacing`` to 1."""
    axes = _Axis.coarse(rows, spacing[0]), _Axis.coarse(columns, spacing[1])
    levels = [axes]
    while any(np.diff(axis.lines).max(initial=1) > 1 for axis in axes):
        axes = _Axis(_halved(axes[0].lines)), _Axis(_halved(axes[1].lines))
        levels.append(axes)
    return levels


def _lattice(shape: tuple[int, int], axes: tuple[_Axis, _Axis]) -> Mask:
    mask = np.zeros(shape, bool)
    mask[np.ix_(*(axis.lines for axis in axes))] = True
    return mask


class Refinement:
    """Tells which positions of some real-valued maps to evaluate next, and fills in the others.

    The lattices halve their step from ``spacing`` to 1.  A cell of a lattice whose four corners are known is
    refined, i.e. the corners of its children are wanted, where a known position in it is more than ``tolerance`` from
    the bilinear interpolation of its corners, or that is to be expected: from the second differences of the coarse
    lattice, below it from what the interpolation of the parent cell missed.  (That of a smooth score would be a
    quarter, but a jump is as high in every cell.)

    What a neighbour finds on a shared edge counts, so that a region that one lattice point has hit is followed around
    its whole boundary.

    Args:
        rows, columns: of the grid of positions.
        spacing: of the coarsest lattice, in grid (rows, columns).
    """

    def __init__(self, rows: int, columns: int, spacing: tuple[int, int]) -> None:
        self.shape, self.levels = (rows, columns), _levels(rows, columns, spacing)

    def first(self) -> Mask:
        """The coarse lattice, [rows, columns]."""
        return _lattice(self.shape, self.levels[0])

    def wanted(self, known: Mask, values: Maps, tolerance: Maps | float) -> Mask:
        """Positions that must be evaluated next; none where the maps are done.

        Args:
            known, values: [n, rows, columns].
            tolerance: of each map [n] or of all.
        """
        wanted = np.zeros_like(known)
        allowed = np.reshape(tolerance, (-1, 1, 1))
        missed: Maps | None = None  # by the parents' interpolation
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
        """The maps with every unknown position interpolated from the smallest cell about it with known corners."""
        result = values.copy()
        for r, c in self.levels:
            lattice = np.ix_(np.arange(len(values)), r.lines, c.lines)
            whole = _corner_reduce(known[lattice].astype(float), np.minimum) > 0
            guess = r.weights @ np.where(known[lattice], values[lattice], 0.0) @ c.weights.T
            inside = whole[np.ix_(np.arange(len(values)), r.cell_of, c.cell_of)]
            result = np.where(inside, guess, result)
        return np.where(known, values, result)


# What interpolation misses on a lattice, of what it missed on the one before (whose step is sqrt(2) times as long):
# 0.73 to 0.76 on occlusion maps of W1 on LFW; more, to be on the safe side.
_DECAY = 0.8
_PRIOR = 4.0  # misses that what is expected beforehand counts as


@dataclass
class _Stage:
    """Points between those of a lattice, and how each is interpolated from its neighbours.

    Attributes:
        rows, columns: lines of the lattice that the points belong to.
        new: [lines, lines]: which of its points.
        weights: [4, lines, lines]: of the neighbours below, above, right and left, or of the four diagonal ones.
        diagonal: which of both.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    new: Mask
    weights: Maps
    diagonal: bool

    _STRAIGHT = ((1, 0), (-1, 0), (0, 1), (0, -1))
    _DIAGONAL = ((1, 1), (1, -1), (-1, 1), (-1, -1))

    @classmethod
    def between(cls, axes: tuple[_Axis, _Axis], finer: tuple[_Axis, _Axis]) -> list[_Stage]:
        """First the middles of the cells, then those of the edges, which have middles of cells beside them."""
        rows, columns = finer[0].lines, finer[1].lines
        old = [np.isin(b.lines, a.lines) for a, b in zip(axes, finer, strict=True)]
        middles = np.outer(~old[0], ~old[1])
        edges = np.outer(~old[0], old[1]) | np.outer(old[0], ~old[1])
        there = np.outer(old[0], old[1])
        stages = []
        for new, diagonal in ((middles, True), (edges, False)):
            if new.any():
                weights = np.stack([cls._weight(rows, columns, there, *step) for step in cls._steps(diagonal)])
                stages.append(cls(rows, columns, new, weights / np.maximum(weights.sum(0), 1e-300), diagonal))
            there = there | new
        return stages

    @classmethod
    def _steps(cls, diagonal: bool) -> tuple[tuple[int, int], ...]:
        return cls._DIAGONAL if diagonal else cls._STRAIGHT

    @staticmethod
    def _weight(rows: NDArray[np.int64], columns: NDArray[np.int64], there: Mask, down: int, right: int) -> Maps:
        """1 / distance along each axis of the neighbour so many lines away, 0 where there is none."""
        weight = _moved(there.astype(float), down, right)
        for axis, (lines, by) in enumerate(((rows, down), (columns, right))):
            if by:
                gap = np.abs(_moved(lines[None].astype(float), 0, by)[0] - lines)
                shape = (-1, 1) if axis == 0 else (1, -1)
                weight = weight * np.reshape(1.0 / np.maximum(gap, 1.0), shape)
        return weight

    def at(self, n: int) -> tuple[NDArray[np.int64], ...]:
        """Index of the lattice in n maps."""
        return np.ix_(np.arange(n), self.rows, self.columns)

    def interpolate(self, maps: Maps) -> Maps:
        """[n, lines, lines] on the lattice, NaN where nothing is known yet."""
        at = np.nan_to_num(maps[self.at(len(maps))])
        steps = self._steps(self.diagonal)
        found: Maps = np.sum([w * _moved(at, *step) for w, step in zip(self.weights, steps, strict=True)], axis=0)
        return found

    def whole(self, part: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
        """A lattice's values on the whole grid, 0 elsewhere."""
        full: NDArray[Any] = np.zeros((len(part), *shape), part.dtype)
        full[self.at(len(part))] = part
        return full


def _moved(values: Maps, down: int, right: int) -> Maps:
    """The value so many lines further on in the last two axes, 0 beyond the end."""
    for axis, by in ((-2, down), (-1, right)):
        if by:
            values = np.roll(values, -by, axis)
            edge: list[slice | int] = [slice(None)] * values.ndim
            edge[axis] = -1 if by > 0 else 0
            values[tuple(edge)] = 0.0
    return values


class SignRefinement:
    """Tells which positions decide where some maps of margins are above 0, and fills in the others.

    A margin (the largest other class's output less the label's) tells more than right or wrong: how far it is to the
    border.  The lattices halve their step from ``spacing`` to 1, in two stages each, middles of cells and middles of
    edges.  A point of a stage is interpolated from its four neighbours, and evaluated only if the interpolated
    margin could as well be on the other side: if it lies within ``quantile`` standard errors of 0.  The error of
    interpolation is measured on the points that are evaluated, nearby (a Gaussian as wide as the spacing) and in the
    stage at hand; what the stage before leads to expect counts as four of them.  At first it is what every other line
    of the coarse lattice misses of the lines between.

    Args:
        rows, columns: of the grid of positions.
        spacing: of the coarsest lattice, in grid (rows, columns).
        quantile: of the normal distribution; more visits more and errs less.
        n: maps.
    """

    def __init__(self, rows: int, columns: int, spacing: tuple[int, int], quantile: float, n: int) -> None:
        self.shape, self.quantile, self._widths = (rows, columns), quantile, spacing
        levels = _levels(rows, columns, spacing)
        self._stages = [stage for pair in itertools.pairwise(levels) for stage in _Stage.between(*pair)]
        self._lines = levels[0]
        self.known = np.zeros((n, rows, columns), bool)
        self._maps = np.full((n, rows, columns), np.nan)
        self._error: Maps | None = None  # to be expected of interpolation in the stage at hand
        self._carried = np.zeros((n, rows, columns))
        self._wanted, self._looks = np.repeat(_lattice(self.shape, levels[0])[None], n, 0), 0

    def wanted(self) -> Mask:
        """Positions [n, rows, columns] to evaluate next; none where the maps are done."""
        return self._wanted

    def take(self, margins: Maps) -> None:
        """Go on from the margins [n, rows, columns] of the positions that were wanted."""
        self._maps = np.where(self._wanted, margins, self._maps)
        self.known |= self._wanted
        if self._error is None:
            self._error = self._carried = self._first_error()
        elif self._stages:
            self._learn(self._stages[0])
        while self._stages:
            # Twice, since the first points of a stage may show that its error is larger than expected.
            if self._looks < 2 and self._look(self._stages[0]):
                return
            self._finish(self._stages.pop(0))
        self._wanted = np.zeros_like(self.known)

    def labels(self) -> Maps:
        """1 where the margin is, or is taken to be, above 0, else 0."""
        return (self._maps > 0).astype(np.float64)

    # -- a stage -----------------------------------------------------------------------------------------

    def _look(self, stage: _Stage) -> bool:
        """Want the points that are too close to 0; False if there are none (any more)."""
        assert self._error is not None
        margin = stage.interpolate(self._maps)
        at = stage.at(len(margin))
        unsure = stage.new & ~self.known[at] & ~(np.abs(margin) >= self.quantile * self._error[at])
        self._wanted, self._looks = stage.whole(unsure, self.shape), self._looks + 1
        return bool(unsure.any())

    def _learn(self, stage: _Stage) -> None:
        """What interpolation misses in this stage, from all of its points that are known."""
        at = stage.at(len(self.known))
        seen = stage.new & self.known[at]
        missed = np.where(seen, stage.interpolate(self._maps) - self._maps[at], 0.0)
        self._error = self._smoothed(stage.whole(missed**2, self.shape), stage.whole(seen * 1.0, self.shape))

    def _finish(self, stage: _Stage) -> None:
        """Take what was not evaluated for what interpolation says."""
        at = stage.at(len(self.known))
        guessed = stage.whole(stage.new & ~self.known[at], self.shape)
        self._maps = np.where(guessed, stage.whole(stage.interpolate(self._maps), self.shape), self._maps)
        assert self._error is not None
        self._error = self._carried = _DECAY * self._error
        self._looks = 0

    # -- its error ---------------------------------------------------------------------------------------

    def _first_error(self) -> Maps:
        every_other = [np.union1d(axis.lines[::2], axis.lines[-1:]) for axis in self._lines]
        r, c = (_Axis(lines) for lines in every_other)
        guess = r.weights @ self._maps[np.ix_(np.arange(len(self._maps)), r.lines, c.lines)] @ c.weights.T
        between = self.known.copy()
        between[np.ix_(np.arange(len(between)), r.lines, c.lines)] = False
        count = between.sum((1, 2), keepdims=True)
        missed = np.where(between, guess - self._maps, 0.0) ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = np.where(count > 0, missed.sum((1, 2), keepdims=True) / count, math.inf)
        # The lattice's step is half of that which was tried: two stages.
        self._carried = np.broadcast_to(_DECAY**2 * np.sqrt(mean), self.known.shape)
        return self._smoothed(missed * _DECAY**4, between * 1.0)

    def _smoothed(self, squares: Maps, count: Maps) -> Maps:
        """Root of the local mean of squared misses, with what was carried over from before."""
        widths = (0.0, *map(float, self._widths))
        area = 2 * math.pi * widths[1] * widths[2]
        from scipy.ndimage import gaussian_filter  # twice occfast's own import time

        total, number = (area * gaussian_filter(a, widths, mode="constant") for a in (squares, count))
        with np.errstate(invalid="ignore"):
            error: Maps = np.sqrt((total + _PRIOR * self._carried**2) / (number + _PRIOR))
        return error
