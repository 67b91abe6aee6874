"""Search for the border where a map of margins crosses 0: kriging, evaluated where the sign is uncertain.

Active learning of a level set (Bryan et al., "Active learning for identifying function threshold boundaries", NIPS
2005), several positions at a time (Ginsbourger et al., "Kriging is well-suited to parallelize optimization", 2010).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .refinement import coarse_lattice

Mask = NDArray[np.bool_]
Maps = NDArray[np.float64]

# Prior: amplitude relative to the first component's, and lengths along rows and columns in pixels, of a smooth
# component, of ridges along rows and of ridges along columns (an occluder's edge that crosses the pooling grid makes
# ridges); then the noise.
_EXPECTED = ((1.0, 20.0, 20.0), (0.1, 1.5, 15.0), (0.1, 15.0, 1.5))
_NOISE = 0.02
_SPREAD = 1.5  # standard deviation of the prior of their logarithms
_FURTHEST = 3.0  # largest distance of the logarithms from the prior
_STEPS = 8  # of L-BFGS-B
_LEARNED_FROM = 250  # points at most
_FEW = 12  # points; fewer teach nothing
_JITTER = 1e-6
_TILE = 8  # lattice steps
_AT_ONCE = 24  # positions of a tile in a round
_SURE = 4.0  # standard errors from 0 at least, from which on a position is dropped


@contextmanager
def _one_thread() -> Iterator[int]:
    """Compute with one thread, so that the positions visited do not depend on their number; yields that number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def _matern(distance: Tensor) -> Tensor:
    """Return Matérn's correlation with smoothness 3/2."""
    scaled = math.sqrt(3) * distance
    return (1 + scaled) * torch.exp(-scaled)


@dataclass(frozen=True)
class _Covariance:
    """Sum over components of rows[k][|i - i'|] * columns[k][|j - j'|], 1 at distance 0, and independent noise.

    Attributes:
        rows, columns: Float64 [components, distances].
        noise: Variance of the noise, float64 scalar.
    """

    rows: Tensor
    columns: Tensor
    noise: Tensor

    @staticmethod
    def expected(stride: tuple[int, int]) -> Tensor:
        """Return the prior logarithms of amplitudes, lengths (in grid steps) and the noise, float64 [10]."""
        rows = [[a, max(0.5, h / stride[0]), max(0.5, w / stride[1])] for a, h, w in _EXPECTED]
        return torch.tensor([*(v for row in rows for v in row), _NOISE], dtype=torch.float64).log()

    @classmethod
    def of(cls, logarithms: Tensor, shape: tuple[int, int]) -> _Covariance:
        values = logarithms.exp()
        amplitudes, heights, widths = values[:-1].view(-1, 3).T
        rows, columns = (torch.arange(count, dtype=torch.float64) for count in shape)
        variances = amplitudes**2 / (amplitudes**2).sum()
        return cls(
            variances[:, None] * _matern(rows / heights[:, None]),
            _matern(columns / widths[:, None]),
            values[-1] ** 2 + _JITTER,
        )

    def among(self, at: Tensor) -> Tensor:
        """Return the covariance between points [n, 2], with the noise of each: [n, n]."""
        i, j = ((at[:, None, axis] - at[None, :, axis]).abs() for axis in (0, 1))
        return (self.rows[:, i] * self.columns[:, j]).sum(0) + self.noise * torch.eye(len(at), dtype=torch.float64)

    def across(self, at: Tensor) -> Tensor:
        """Return the covariance between points [n, 2] and all positions: [n, rows * columns]."""
        shape = self.rows.shape[1], self.columns.shape[1]
        i, j = ((at[:, axis, None] - torch.arange(shape[axis])).abs() for axis in (0, 1))
        return torch.einsum("knr,knc->nrc", self.rows[:, i], self.columns[:, j]).flatten(1)

    @classmethod
    def learned(cls, at: Tensor, values: Tensor, expected: Tensor) -> Tensor:
        """Return the most probable logarithms for values [n] at points [n, 2], of any scale."""
        centered = (values - values.mean())[:, None]
        if len(at) < _FEW or not bool(centered.any()):
            return expected
        from scipy.optimize import minimize  # takes a while to import

        shape = int(at[:, 0].max()) + 1, int(at[:, 1].max()) + 1

        def loss(moved: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            """Return the negative logarithm of likelihood and prior, and its gradient."""
            with torch.enable_grad():
                logarithms = (expected + torch.from_numpy(moved)).requires_grad_()
                factor = torch.linalg.cholesky(cls.of(logarithms, shape).among(at))
                white = torch.linalg.solve_triangular(factor, centered, upper=False)
                found = len(at) / 2 * (white**2).mean().log() + factor.diagonal().log().sum()
                found = found + ((logarithms - expected) ** 2).sum() / (2 * _SPREAD**2)
                (slope,) = torch.autograd.grad(found, logarithms)
            return found.item(), slope.numpy()

        bounds = [(-_FURTHEST, _FURTHEST)] * len(expected)
        try:
            moved = minimize(loss, np.zeros(len(expected)), jac=True, bounds=bounds, options={"maxiter": _STEPS}).x
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            return expected
        return expected + torch.from_numpy(moved) if np.isfinite(moved).all() else expected


class _Kriged:
    """Kriging of one window of one map.

    The positions of a round are chosen one after the other, each the one whose sign is most uncertain once those
    before it are known. Their effect on the other positions' variances follows from the covariance alone, without
    their values. The inverse Cholesky factor times the covariance grows by a row for each; only the columns of
    uncertain positions are kept.

    Args:
        covariance: Covariance for the window's shape.
        at, values: Known points of the window, [n, 2] and [n].
        own: Positions that may be chosen, bool [rows, columns].
        quantile: Standard errors from 0 within which a sign is uncertain.
    """

    def __init__(self, covariance: _Covariance, at: Tensor, values: Tensor, own: Tensor, quantile: float) -> None:
        self._covariance, self._quantile, self._sure = covariance, quantile, max(_SURE, quantile + 1)
        self._noise = float(covariance.noise)
        triangle = torch.linalg.cholesky(covariance.among(at))
        level = values.mean()
        factor = torch.linalg.solve_triangular(triangle, covariance.across(at), upper=False)
        white = torch.linalg.solve_triangular(triangle, (values - level)[:, None], upper=False)[:, 0]
        self._squares, self._count = float((white**2).sum()), len(at)
        self._mean: Tensor = level + white @ factor
        unknown = own.flatten().clone()
        unknown[at[:, 0] * own.shape[1] + at[:, 1]] = False
        self._width = own.shape[1]
        # Uncertain positions, their margins, the variances of these (for a scale of 1), and whether they are unchosen.
        self._places = torch.nonzero(unknown)[:, 0]
        self._variance = (1 + self._noise - (factor**2).sum(0))[self._places]
        self._margin = self._mean[self._places]
        self._open = torch.ones(len(self._places), dtype=torch.bool)
        self._factor, self._rows = factor[:, self._places].float(), len(at)
        self._asked: list[tuple[int, float]] = []
        self._forget(0.0)

    def ask(self) -> Tensor:
        """Return the positions, numbered within the window, to evaluate next; none if all signs are certain."""
        scale, self._asked = self._scale(), []
        i, j = self._places // self._width, self._places % self._width
        across, along = self._covariance.rows, self._covariance.columns
        while len(self._asked) < _AT_ONCE and len(self._places):
            doubt = torch.where(self._open, self._margin**2 / (scale * self._variance), math.inf)
            k = int(doubt.argmin())
            if not float(doubt[k]) < self._quantile**2:
                break
            between = (across[:, (i - i[k]).abs()] * along[:, (j - j[k]).abs()]).sum(0)
            before = self._factor[: self._rows]
            error = math.sqrt(float(self._variance[k]))
            row = (between.float() - before[:, k] @ before) / error
            row[k] = error
            if self._rows == len(self._factor):
                self._factor = torch.cat([self._factor, torch.empty(4 * _AT_ONCE, len(row))])
            self._factor[self._rows] = row
            self._rows += 1
            self._variance = (self._variance - row.double() ** 2).clamp_min(self._noise)
            self._open[k] = False
            self._asked.append((k, error))
        return self._places[[k for k, _ in self._asked]]

    def tell(self, margins: Tensor) -> None:
        """Take the window's margins; those of the chosen positions are read."""
        first = self._rows - len(self._asked)
        for row, (k, error) in enumerate(self._asked, first):
            white = float(margins[self._places[k]] - self._margin[k]) / error
            self._margin += white * self._factor[row]
            self._squares, self._count = self._squares + white**2, self._count + 1
        self._forget(0.25)

    def filled(self) -> Tensor:
        """Return the margins, known or kriged, of all positions of the window."""
        self._mean[self._places] = self._margin
        return self._mean

    def _scale(self) -> float:
        return max(self._squares / self._count, 1e-300)

    def _forget(self, share: float) -> None:
        """Drop the positions that are certain, if they are more than this share."""
        self._variance.clamp_(min=self._noise)
        kept = self._open & ~(self._margin**2 > self._sure**2 * self._scale() * self._variance)
        if int(kept.sum()) < (1 - share) * len(kept):
            self.filled()
            self._factor = self._factor[: self._rows, kept]
            self._places, self._margin = self._places[kept], self._margin[kept]
            self._variance, self._open = self._variance[kept], self._open[kept]


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


class BorderSearch:
    """Choice of the positions that decide where maps of margins are above 0, and interpolation of the others.

    A margin is the largest other class's output minus the label's; it measures the distance to the border. Each map is
    kriged by itself, at first from a lattice and four short runs of neighbors. Its covariance is that of a smooth
    component and of ridges along rows and along columns, with amplitudes and lengths learned from these points (maximum
    a posteriori). A position is evaluated while its kriged margin lies within ``quantile`` standard errors of 0.

    Large maps are cut into tiles of 8 by 8 lattice steps. A map with a margin that is not finite is evaluated in full.

    Args:
        rows, columns: Size of the grid of positions.
        spacing: Steps of the lattice in grid (rows, columns).
        stride: Pixels between grid (rows, columns).
        quantile: Quantile of the normal distribution, at least 0; a higher one visits more and errs less.
        n: Number of maps.
    """

    def __init__(
        self, rows: int, columns: int, spacing: tuple[int, int], stride: tuple[int, int], quantile: float, n: int
    ) -> None:
        self.shape, self._quantile, self._expected = (rows, columns), quantile, _Covariance.expected(stride)
        self._tiles = _Tile.cut(self.shape, spacing)
        self._middle = self._tiles[len(self._tiles) // 2]
        lattice, self._runs = coarse_lattice(self.shape, spacing), _runs(self._middle, self.shape, spacing)
        self.known = np.zeros((n, rows, columns), bool)
        self._maps = np.full((n, rows, columns), np.nan)
        self._kriged: list[list[_Kriged]] = [[] for _ in range(n)]
        self._wanted = np.repeat((lattice | self._runs)[None], n, 0)

    def wanted(self) -> Mask:
        """Return a mask [n, rows, columns] of the positions to evaluate next; none if the maps are finished."""
        return self._wanted

    def take(self, margins: Maps) -> None:
        """Take the margins [n, rows, columns] of the positions that :meth:`wanted` returned."""
        self._maps = np.where(self._wanted, margins, self._maps)
        self.known |= self._wanted
        with _one_thread() as threads, ThreadPoolExecutor(threads) as executor:
            self._wanted = np.stack(list(executor.map(self._next, range(len(margins)))))

    def labels(self) -> Maps:
        """Return 1 where the margin, known or kriged, is above 0, else 0."""
        maps = np.zeros_like(self._maps)
        for one, parts in zip(maps, self._kriged, strict=True):
            if parts:
                for tile, part in zip(self._tiles, parts, strict=True):
                    inside = tile.inside()
                    one[tile.own] = part.filled().view(tile.shape).numpy()[inside].reshape(one[tile.own].shape)
        return (np.where(self.known, self._maps, maps) > 0).astype(np.float64)

    def _next(self, image: int) -> Mask:
        """Return the positions of one map to evaluate next."""
        wanted: Mask = np.zeros(self.shape, bool)
        known, margins = self.known[image], self._maps[image]
        if not np.isfinite(margins[known]).all():
            wanted[~known] = True
            return wanted
        with torch.no_grad():
            if self._kriged[image]:
                for tile, part in zip(self._tiles, self._kriged[image], strict=True):
                    part.tell(torch.from_numpy(margins[tile.window].flatten()))
            else:
                self._kriged[image] = self._begun(known, margins)
            for tile, part in zip(self._tiles, self._kriged[image], strict=True):
                wanted[tile.window].put(part.ask().numpy(), True)
        return wanted

    def _begun(self, known: Mask, margins: Maps) -> list[_Kriged]:
        middle = self._middle.window
        runs, others = (np.argwhere(mask[middle]) for mask in (self._runs, known & ~self._runs))
        at = np.concatenate([runs, others[:: len(others) // _LEARNED_FROM + 1]])
        values = margins[middle][tuple(at.T)]
        learned = _Covariance.learned(torch.from_numpy(at), torch.from_numpy(values), self._expected)
        parts = []
        for tile in self._tiles:
            at, own = np.argwhere(known[tile.window]), torch.from_numpy(tile.inside())
            values = torch.from_numpy(margins[tile.window][tuple(at.T)])
            covariance = _Covariance.of(learned, tile.shape)
            parts.append(_Kriged(covariance, torch.from_numpy(at), values, own, self._quantile))
        return parts
