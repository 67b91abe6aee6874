"""Choice of the positions of maps to evaluate, by kriging, and interpolation of the others.

Positions are evaluated where the sign of a margin is in doubt (active learning of a level set, Bryan et al., "Active
learning for identifying function threshold boundaries", NIPS 2005) or where the standard error of a value is too large
(sequential design, Sacks et al., "Design and analysis of computer experiments", 1989).
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .kriging import Covariance, ErrorGoal, Goal, Kriged, SignGoal

Mask = NDArray[np.bool_]
Maps = NDArray[np.float64]

_LEARNED_FROM = 250  # points at most, from which a covariance is learned
_TILE = 8  # lattice steps


@contextmanager
def _one_thread() -> Iterator[int]:
    """Compute with one thread, so that the positions visited do not depend on their number; yields that number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def coarse_lattice(shape: tuple[int, int], spacing: tuple[int, int]) -> Mask:
    """Return a mask of every ``spacing``-th position of a grid [rows, columns], and of the last ones."""
    mask = np.zeros(shape, bool)
    mask[np.ix_(*(np.union1d(np.arange(0, n, step), [n - 1]) for n, step in zip(shape, spacing, strict=True)))] = True
    return mask


@dataclass(frozen=True)
class _Tile:
    """Part of the grid, and the surrounding window of points that it is kriged from, as slices of the grid."""

    own: tuple[slice, slice]
    window: tuple[slice, slice]

    @staticmethod
    def cut(shape: tuple[int, int], spacing: tuple[int, int]) -> list[_Tile]:
        axes = []
        for count, step in zip(shape, spacing, strict=True):
            parts = -(-count // (_TILE * step))
            ends = [count * part // parts for part in range(parts + 1)]
            axes.append(
                [(slice(a, b), slice(max(0, a - step), min(count, b + step))) for a, b in itertools.pairwise(ends)]
            )
        return [_Tile((r, c), (wide_r, wide_c)) for r, wide_r in axes[0] for c, wide_c in axes[1]]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the window."""
        rows, columns = self.window
        return rows.stop - rows.start, columns.stop - columns.start

    def inside(self) -> Mask:
        """Return a mask of the window's positions that belong to the tile."""
        mask = np.zeros(self.shape, bool)
        rows, columns = (slice(a.start - b.start, a.stop - b.start) for a, b in zip(self.own, self.window, strict=True))
        mask[rows, columns] = True
        return mask


def _runs(tile: _Tile, shape: tuple[int, int], spacing: tuple[int, int]) -> Mask:
    """Return a mask of runs of neighbors: two in rows and two in columns, at a third and two thirds of the tile."""
    mask = np.zeros(shape, bool)
    (top, bottom), (left, right) = ((s.start, s.stop) for s in tile.own)
    for third in (1, 2):
        i, j = top + (bottom - top) * third // 3, left + (right - left) * third // 3
        other = left + (right - left) * (3 - third) // 3
        mask[i, max(left, other - spacing[1]) : min(right, other + spacing[1])] = True
        mask[max(top, i - spacing[0]) : min(bottom, i + spacing[0]), j] = True
    return mask


class _Search(ABC):
    """Rounds of positions of some maps to evaluate.

    Attributes:
        most: Share of a map, from which on the rest is evaluated, which is then cheaper than kriging it.

    Each map is kriged by itself, at first from a lattice and four short runs of neighbors. Its covariance is that of a
    smooth component and of ridges along rows and along columns, with amplitudes and lengths learned from these points
    (maximum a posteriori). Large maps are cut into tiles of 8 by 8 lattice steps. A map with a value that is not finite
    is evaluated in full.

    Args:
        rows, columns: Size of the grid of positions.
        spacing: Steps of the lattice in grid (rows, columns).
        stride: Pixels between grid (rows, columns).
        n: Number of maps.
    """

    most = 1.0

    def __init__(self, rows: int, columns: int, spacing: tuple[int, int], stride: tuple[int, int], n: int) -> None:
        self.shape, self._expected = (rows, columns), Covariance.expected(stride)
        self._tiles = _Tile.cut(self.shape, spacing)
        self._middle = self._tiles[len(self._tiles) // 2]
        lattice, self._runs = coarse_lattice(self.shape, spacing), _runs(self._middle, self.shape, spacing)
        self.known = np.zeros((n, rows, columns), bool)
        self._maps = np.full((n, rows, columns), np.nan)
        self._kriged: list[list[Kriged]] = [[] for _ in range(n)]
        self._wanted = np.repeat((lattice | self._runs)[None], n, 0)

    def wanted(self) -> Mask:
        """Return a mask [n, rows, columns] of the positions to evaluate next; none if the maps are finished."""
        return self._wanted

    def take(self, values: Maps) -> None:
        """Take the values [n, rows, columns] of the positions that :meth:`wanted` returned."""
        self._maps = np.where(self._wanted, values, self._maps)
        self.known |= self._wanted
        with _one_thread() as threads, ThreadPoolExecutor(threads) as executor:
            self._wanted = np.stack(list(executor.map(self._next, range(len(values)))))

    def values(self) -> Maps:
        """Return the values, known or kriged."""
        maps = np.zeros_like(self._maps)
        for one, parts in zip(maps, self._kriged, strict=True):
            if parts:
                for tile, part in zip(self._tiles, parts, strict=True):
                    inside = tile.inside()
                    one[tile.own] = part.filled().view(tile.shape).numpy()[inside].reshape(one[tile.own].shape)
        return np.where(self.known, self._maps, maps)

    @abstractmethod
    def _goal(self, image: int) -> Goal:
        """Return what the positions of a map are evaluated for."""

    def _next(self, image: int) -> Mask:
        """Return the positions of one map to evaluate next."""
        wanted: Mask = np.zeros(self.shape, bool)
        known, values = self.known[image], self._maps[image]
        if not np.isfinite(values[known]).all() or known.mean() > self.most:
            wanted[~known] = True
            return wanted
        with torch.no_grad():
            if self._kriged[image]:
                for tile, part in zip(self._tiles, self._kriged[image], strict=True):
                    part.tell(torch.from_numpy(values[tile.window].flatten()))
            else:
                self._kriged[image] = self._begun(image, known, values)
            for tile, part in zip(self._tiles, self._kriged[image], strict=True):
                wanted[tile.window].put(part.ask().numpy(), True)
        return wanted

    def _begun(self, image: int, known: Mask, values: Maps) -> list[Kriged]:
        middle = self._middle.window
        runs, others = (np.argwhere(mask[middle]) for mask in (self._runs, known & ~self._runs))
        at = np.concatenate([runs, others[:: len(others) // _LEARNED_FROM + 1]])
        seen = values[middle][tuple(at.T)]
        learned = Covariance.learned(torch.from_numpy(at), torch.from_numpy(seen), self._expected)
        goal, parts = self._goal(image), []
        for tile in self._tiles:
            at, own = np.argwhere(known[tile.window]), torch.from_numpy(tile.inside())
            seen = torch.from_numpy(values[tile.window][tuple(at.T)])
            parts.append(Kriged(Covariance.of(learned, tile.shape), torch.from_numpy(at), seen, own, goal))
        return parts


class BorderSearch(_Search):
    """Search for where maps of margins are above 0.

    A margin is the largest other class's output minus the label's; it measures the distance to the border. A position
    is evaluated while its kriged margin lies within ``quantile`` standard errors of 0.

    Args:
        rows, columns, spacing, stride, n: See :class:`_Search`.
        quantile: Quantile of the normal distribution, at least 0; a higher one visits more and errs less.
    """

    def __init__(
        self, rows: int, columns: int, spacing: tuple[int, int], stride: tuple[int, int], quantile: float, n: int
    ) -> None:
        super().__init__(rows, columns, spacing, stride, n)
        self._of_all = SignGoal(quantile)

    def labels(self) -> Maps:
        """Return 1 where the margin, known or kriged, is above 0, else 0."""
        return (self.values() > 0).astype(np.float64)

    def _goal(self, image: int) -> Goal:
        return self._of_all


class ValueSearch(_Search):
    """Search for the values of maps with a standard error of at most half the tolerance.

    A map is evaluated in full once 40 % of it are known.

    Args:
        rows, columns, spacing, stride, n: See :class:`_Search`.
        tolerance: Error of a skipped value that one in twenty may exceed, above 0; None: ``share`` of the range of the
            first positions of each map.
        share: See ``tolerance``.
    """

    most = 0.4

    def __init__(
        self,
        rows: int,
        columns: int,
        spacing: tuple[int, int],
        stride: tuple[int, int],
        tolerance: float | None,
        share: float,
        n: int,
    ) -> None:
        super().__init__(rows, columns, spacing, stride, n)
        self.tolerance: NDArray[np.float64] = np.full(n, np.nan if tolerance is None else tolerance)
        self._share = None if tolerance is not None else share

    def take(self, values: Maps) -> None:
        """Take values; those of the first round set the tolerances, also of maps that are then known whole."""
        if self._share is not None and not self.known.any():
            self.tolerance = self._share * np.ptp(values[:, self._wanted[0]], axis=1)
        super().take(values)

    def _goal(self, image: int) -> Goal:
        # A map that is the same wherever it was looked at is taken to be the same everywhere.
        return ErrorGoal(self.tolerance[image] / 2 or np.inf)
