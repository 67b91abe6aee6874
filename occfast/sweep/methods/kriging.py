"""Kriging of windows of a map: a Gaussian process conditioned on the known positions, and which to evaluate next.

Several positions are chosen at a time (Ginsbourger et al., "Kriging is well-suited to parallelize optimization", 2010).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Prior: amplitude relative to the first component's, and lengths along rows and columns in pixels, of a smooth
# component, of ridges along rows and of ridges along columns (an occluder's edge that crosses the pooling grid makes
# ridges); then the noise.
_EXPECTED = ((1.0, 20.0, 20.0), (0.1, 1.5, 15.0), (0.1, 15.0, 1.5))
_NOISE = 0.02
_SPREAD = 1.5  # standard deviation of the prior of their logarithms
_FURTHEST = 3.0  # largest distance of the logarithms from the prior
_STEPS = 8  # of L-BFGS-B
_FEW = 12  # points; fewer teach nothing
_JITTER = 1e-6
_AT_ONCE = 24  # positions of a window in a round
_SURE = 4.0  # standard errors from 0 at least, from which on the sign of a position is certain


def _matern(distance: Tensor) -> Tensor:
    """Return Matérn's correlation with smoothness 3/2."""
    scaled = math.sqrt(3) * distance
    return (1 + scaled) * torch.exp(-scaled)


@dataclass(frozen=True)
class Covariance:
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
    def of(cls, logarithms: Tensor, shape: tuple[int, int]) -> Covariance:
        """Return the covariance for windows of a shape, with the parameters that :meth:`expected` lists."""
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


class Goal(Protocol):
    """What the positions of a map are evaluated for."""

    def doubt(self, means: Tensor, variances: Tensor) -> Tensor:
        """Return how much each position is in doubt, [n]: it may be chosen where that is above 0, the largest first.

        Args:
            means, variances: Kriged values and their squared standard errors, float64 [n].
        """

    def certain(self, means: Tensor, variances: Tensor) -> Tensor | None:
        """Return the positions that will never be chosen, whatever comes, bool [n]; None if nothing tells."""


@dataclass(frozen=True)
class SignGoal:
    """Know the sign of every value: a sign is in doubt within ``quantile`` standard errors of 0."""

    quantile: float

    def doubt(self, means: Tensor, variances: Tensor) -> Tensor:
        """See :class:`Goal`."""
        return self.quantile**2 - means**2 / variances

    def certain(self, means: Tensor, variances: Tensor) -> Tensor:
        """See :class:`Goal`."""
        return means**2 > max(_SURE, self.quantile + 1) ** 2 * variances


@dataclass(frozen=True)
class ErrorGoal:
    """Know every value with a standard error of at most ``error``."""

    error: float

    def doubt(self, means: Tensor, variances: Tensor) -> Tensor:
        """See :class:`Goal`."""
        return variances - self.error**2

    def certain(self, means: Tensor, variances: Tensor) -> None:
        """See :class:`Goal`: a value that is known well enough still gets better with its neighbors'."""


class Kriged:
    """Kriging of one window of one map.

    The positions of a round are chosen one after the other, each the one that is most in doubt once those before it
    are known. Their effect on the other positions' variances follows from the covariance alone, without their values.
    The inverse Cholesky factor times the covariance grows by a row for each; columns of certain positions are dropped.

    Args:
        covariance: Covariance for the window's shape.
        at, values: Known points of the window, [n, 2] and [n].
        own: Positions that may be chosen, bool [rows, columns].
        goal: What they are chosen for.
    """

    def __init__(self, covariance: Covariance, at: Tensor, values: Tensor, own: Tensor, goal: Goal) -> None:
        self._covariance, self._goal = covariance, goal
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
        # Open positions, their kriged values, the variances of these (for a scale of 1), and whether they are unchosen.
        self._places = torch.nonzero(unknown)[:, 0]
        self._variance = (1 + self._noise - (factor**2).sum(0))[self._places]
        self._value = self._mean[self._places]
        self._open = torch.ones(len(self._places), dtype=torch.bool)
        self._factor, self._rows = factor[:, self._places].float(), len(at)
        self._asked: list[tuple[int, float]] = []
        self._forget(0.0)

    def ask(self) -> Tensor:
        """Return the positions, numbered within the window, to evaluate next; none if the goal is reached."""
        scale, self._asked = self._scale(), []
        i, j = self._places // self._width, self._places % self._width
        across, along = self._covariance.rows, self._covariance.columns
        while len(self._asked) < _AT_ONCE and len(self._places):
            doubt = torch.where(self._open, self._goal.doubt(self._value, scale * self._variance), -math.inf)
            k = int(doubt.argmax())
            if not float(doubt[k]) > 0:
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

    def tell(self, values: Tensor) -> None:
        """Take the window's values; those of the chosen positions are read."""
        first = self._rows - len(self._asked)
        for row, (k, error) in enumerate(self._asked, first):
            white = float(values[self._places[k]] - self._value[k]) / error
            self._value += white * self._factor[row]
            self._squares, self._count = self._squares + white**2, self._count + 1
        self._forget(0.25)

    def filled(self) -> Tensor:
        """Return the values, known or kriged, of all positions of the window."""
        self._mean[self._places] = self._value
        return self._mean

    def _scale(self) -> float:
        return max(self._squares / self._count, 1e-300)

    def _forget(self, share: float) -> None:
        """Drop the positions that are certain, if they are more than this share."""
        self._variance.clamp_(min=self._noise)
        certain = self._goal.certain(self._value, self._scale() * self._variance)
        if certain is None:
            return
        kept = self._open & ~certain
        if int(kept.sum()) < (1 - share) * len(kept):
            self.filled()
            self._factor = self._factor[: self._rows, kept]
            self._places, self._value = self._places[kept], self._value[kept]
            self._variance, self._open = self._variance[kept], self._open[kept]
