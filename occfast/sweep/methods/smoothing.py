"""Estimation of a mean map from a few scores of each image: interpolation, a measured correction, standard errors.

This module does not depend on networks: it turns scores into a map with its uncertainty.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_CHUNK = 64  # images with maps in memory at a time
_PRIOR = 8  # weight, in images, of the common variance
_NARROW = 0.14  # of the lattice's spacing: width of the kernel that finds detail lost by smoothing
_BESIDE = 1.25  # variance of a value minus the mean of four values like it, relative to its own
_ONE_SIDED = 1.645  # standard errors to the upper end of a one-sided 95 % interval
_CHECKS = 9  # lattice positions for each check


@dataclass(frozen=True)
class Design:
    """Positions to visit in each image: a shifted lattice, and a few random positions that check it.

    The shifts are a Kronecker sequence in the plane (steps 1/g and 1/g^2 with g^3 = g + 1): those of consecutive
    images fill the lattice's cell evenly. ``seed`` moves the sequence as a whole. In each image all positions are
    equally likely.

    Attributes:
        shape: Rows and columns of the grid.
        spacing: Steps of the lattice in grid (rows, columns), at least 1.
        seed: Random seed.
    """

    shape: tuple[int, int]
    spacing: tuple[float, float]
    seed: int

    @cached_property
    def _start(self) -> NDArray[np.float64]:
        return np.random.default_rng([self.seed, 0x5A3F]).random(2)

    @property
    def checks(self) -> int:
        """Number of random positions in each image, at least 2."""
        lattice = (count / step for count, step in zip(self.shape, self.spacing, strict=True))
        return max(2, round(float(np.prod([max(1.0, c) for c in lattice])) / _CHECKS))

    @lru_cache(maxsize=4096)  # noqa: B019 - designs are small, and equal ones share their entries
    def lattice(self, image: int) -> tuple[Tensor, Tensor]:
        """Return the grid rows and columns of an image's lattice, increasing, at least one of each, int64."""
        g = 1.324717957244746
        shift = (self._start + image * np.array([1 / g, 1 / g**2])) % 1.0
        lines = []
        for count, step, u in zip(self.shape, self.spacing, shift, strict=True):
            at = np.floor((np.arange(int(count / step) + 2) + u) * step).astype(np.int64)
            at = at[at < count]
            lines.append(torch.from_numpy(at if len(at) else np.array([int(u * count)])))
        return lines[0], lines[1]

    def anywhere(self, image: int) -> Tensor:
        """Return the random positions of an image, int64 [checks]."""
        generator = np.random.default_rng([self.seed, image, 0xC4EC])
        return torch.from_numpy(generator.integers(0, self.shape[0] * self.shape[1], self.checks))

    @lru_cache(maxsize=4096)  # noqa: B019
    def positions(self, image: int) -> Tensor:
        """Return all positions of an image, int64: the lattice row by row, then the checks."""
        rows, columns = self.lattice(image)
        return torch.cat([(rows[:, None] * self.shape[1] + columns).flatten(), self.anywhere(image)])


def interpolation(count: int, lines: Tensor) -> Tensor:
    """Return the weights [count, lines] of linear interpolation from some grid rows to all, constant beyond them."""
    at, to = lines.numpy(), np.arange(count)
    place = np.interp(to, at, np.arange(len(at)))[:, None]  # 2.25: a quarter of the way from line 2 to line 3
    return torch.from_numpy(np.maximum(0.0, 1 - np.abs(place - np.arange(len(at)))))


class Kernel:
    """Gaussian weights between the positions of a grid, for Nadaraya-Watson regression.

    Args:
        shape: Rows and columns of the grid.
        width: Standard deviation in grid steps, (rows, columns).
    """

    def __init__(self, shape: tuple[int, int], width: tuple[float, float]) -> None:
        self.shape, self.width = shape, width
        self._axes = []
        for count, sigma in zip(shape, width, strict=True):
            at = torch.arange(count, dtype=torch.float64)
            self._axes.append(torch.exp(-((at[:, None] - at) / sigma).square() / 2))

    def spread(self, values: Tensor) -> Tensor:
        """Return the sum of the positions' kernels times their values [..., rows, columns], at every location."""
        return self._axes[0] @ values @ self._axes[1].T

    def each(self, values: Tensor, positions: Tensor) -> Tensor:
        """Return this sum for a few positions of each of n images, both [n, J]: [n, rows, columns]."""
        rows, columns = positions // self.shape[1], positions % self.shape[1]
        down = self._axes[0][:, rows].transpose(0, 1) * values[:, None]
        return down @ self._axes[1][:, columns].permute(1, 2, 0)

    def sums(self, values: Tensor, positions: Tensor) -> Tensor:
        """Return this sum over all images: [rows, columns]."""
        at = torch.zeros(self.shape[0] * self.shape[1], dtype=torch.float64)
        return self.spread(at.index_add_(0, positions.flatten(), values.flatten()).view(self.shape))


def beside(maps: Tensor, steps: tuple[int, int]) -> Tensor:
    """Return the mean of the four diagonal neighbors ``steps`` away at each location of maps [n, rows, columns].

    Neighbors outside the map do not count; without any the mean is 0.
    """
    total, count = torch.zeros_like(maps), torch.zeros_like(maps[0])
    for to_row, to_column in product((-steps[0], steps[0]), (-steps[1], steps[1])):
        here, there = [], []
        for size, shift in zip(maps.shape[1:], (to_row, to_column), strict=True):
            here.append(slice(max(0, -shift), max(0, min(size, size - shift))))
            there.append(slice(max(0, shift), max(0, min(size, size + shift))))
        total[:, here[0], here[1]] += maps[:, there[0], there[1]]
        count[here[0], here[1]] += 1
    return total / count.clamp_min(1)


class MeanMap:
    """Estimate of the mean map of a set of images from a few scores of each image.

    Image i has the map s_i; O, the result of a full sweep, is the mean of s_i over the whole set.

    - t_i is the map that bilinear interpolation makes of the lattice of image i, and e_ij = s_i(q_ij) - t_i(q_ij) is
      its error at the checks q_ij. The mean of t_i is smoothed by the lattice's cells; the kernel regression c of all
      e_ij estimates by how much.  m = mean t_i + c is the estimate.
    - With l(x, q) the regression's weights, y_i(x) = t_i(x) + n sum_j l(x, q_ij) (e_ij - c(q_ij)) is the contribution
      of image i. Images are independent and the positions of one image are not, so images are resampled:
      A = sum_i (y_i - mean y)^2 / n^2 (the jackknife in its linear form) is the variance of m about the mean of the
      population that the images come from.
    - The variance about the mean of the images used is B = E (y_i - s_i)^2 / n. At a check, e_ij - c is s_i - t_i, and
      the image's other checks give its contribution to c: both squares and their product are regressed on all checks.
    - For n images of a set of N, f = n / N, the variance is V = (1 - f) A + f B.
    - Few images determine A where errors are rare. So A of a proportion shrinks towards its value elsewhere: a common
      factor times m (1 - m), with the weight of ``_PRIOR`` images beside those that carry A (Satterthwaite's number).
    - The smoothing bias b = E m - O is detail finer than the lattice and the kernel. The residuals s_i - m on the
      lattice, each minus the mean of its four diagonal neighbors in the same lattice (which removes the level of the
      image; diagonal, since occluders' edges make ridges along rows and columns), are summed over images with a narrow
      kernel. The square of that sum minus its variance over images (jackknife again, including m's part in the
      residuals) is unbiased for the square of the detail; the neighbors' own detail adds a quarter. At one location it
      is nearly all noise. So its mean over the map is used, 0 if negative (as DerSimonian and Laird truncate the
      variance between studies), and distributed in proportion to the regression of e_ij^2.

    Args:
        design: Positions of the images.
        scores: Scores of each image at ``design.positions(k)``, k from 0.
        width: Standard deviation of the regression's kernel, in grid steps.
        part: f in [0, 1]; 0 if the set is a sample of a population.
        share: Whether scores are 0 or 1.

    Attributes:
        values: m, float64 [rows, columns].
        population_error: sqrt(A), float64 [rows, columns].
        standard_error: sqrt(V), float64 [rows, columns].
        bias: Root mean square of b at similar locations, float64 [rows, columns].
        bias_below: Upper limit of the root mean square of b over the map, with 95 % confidence.

    Raises:
        ValueError: The kernel is too narrow to reach every location.
    """

    def __init__(
        self, design: Design, scores: list[Tensor], width: tuple[float, float], part: float, share: bool
    ) -> None:
        self.design, self._share, n = design, share, len(scores)
        shape, checks = design.shape, design.checks
        self._at = [design.positions(k) for k in range(n)]
        self._lines = [design.lattice(k) for k in range(n)]
        self._scores = [each.double() for each in scores]
        kernel = Kernel(shape, width)
        narrow = Kernel(shape, (_NARROW * design.spacing[0], _NARROW * design.spacing[1]))
        checked = torch.stack([at[-checks:] for at in self._at])

        # Interpolated maps, and their errors at the checks.
        mean = torch.zeros(shape, dtype=torch.float64)
        missed = []
        for images, maps in self._interpolated():
            mean += maps.sum(0) / n
            there = maps.flatten(1).gather(1, checked[images])
            missed.append(torch.stack([each[-checks:] for each in self._scores[images]]) - there)
        error = torch.cat(missed)
        counts = kernel.sums(torch.ones_like(error), checked)
        if not bool((counts > 0).all()):
            raise ValueError(
                "bandwidth: expected a kernel that reaches a visited position from every location, got standard "
                f"deviations of {width[0]:g} and {width[1]:g} grid steps for {n} images; take a larger one"
            )
        correction = kernel.sums(error, checked) / counts
        self.values = mean + correction
        rest = error - correction.flatten()[checked]

        # Variances over images.
        lattices = torch.cat([at[:-checks] for at in self._at])
        near = narrow.sums(torch.ones(len(lattices), dtype=torch.float64), lattices)
        step = round(design.spacing[0]), round(design.spacing[1])
        a, fourth, own, detail, apart = torch.zeros(5, *shape, dtype=torch.float64)
        together = torch.zeros_like(rest)
        for images, maps in self._interpolated():
            parts = n * kernel.each(rest[images], checked[images]) / counts  # of the correction
            z = (maps - mean + parts) / n
            a += z.square().sum(0)
            fourth += z.square().square().sum(0)
            own += parts.square().sum(0) / n
            # Correction at each check by the other checks of its image.
            others = parts.flatten(1).gather(1, checked[images]) - n * rest[images] / counts.flatten()[checked[images]]
            together[images] = rest[images] * others * checks / (checks - 1)
            residuals = torch.zeros_like(maps)
            for k, residual in enumerate(residuals, images.start):
                rows, columns = self._lines[k]
                off = self._on_lattice(k) - self.values[rows][:, columns]
                residual[rows[:, None], columns] = off - beside(off[None], (1, 1))[0]
            sharp = narrow.spread(residuals)
            detail += sharp.sum(0)
            apart += (sharp - near * (z - beside(z, step))).square().sum(0)
        jackknife = n / max(1, n - 1)
        a *= jackknife
        spread = kernel.sums(rest.square(), checked) / counts + 1e-12
        b = (spread + own - 2 * kernel.sums(together, checked) / counts).clamp_min(0) / n
        self._level = torch.ones_like(a)
        if share:
            self._level = (self.values * (1 - self.values)).clamp_min(1e-6)
            carrying = a.square() / fourth.clamp_min(1e-300)
            common = self._level * (a.sum() / self._level.sum())
            a = (carrying * a + _PRIOR * common) / (carrying + _PRIOR)
        apart *= jackknife
        weight = _BESIDE * near.square().mean()
        # The map has as many independent locations as kernels fit into it.
        places = shape[0] * shape[1] / max(1.0, 4 * np.pi * narrow.width[0] * narrow.width[1])
        squared = ((detail.square() - apart).mean() / weight).clamp_min(0)
        error = apart.square().mean().sqrt() * np.sqrt(2 / max(1.0, places)) / weight
        self.bias = (spread * squared / spread.mean()).sqrt()
        self.bias_below = float((squared + _ONE_SIDED * error).sqrt())
        self._of_images, self._of_positions = (1 - part) * a, part * b
        self.population_error, self.standard_error = a.sqrt(), (self._of_images + self._of_positions).sqrt()
        if n < 2:  # one image has no variance
            self.population_error = self.standard_error = torch.full_like(a, torch.nan)

    def _interpolated(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield some images at a time, and the maps that their lattices give: [images, rows, columns]."""
        rows, columns = self.design.shape
        for first in range(0, len(self._scores), _CHUNK):
            images = slice(first, min(first + _CHUNK, len(self._scores)))
            maps = torch.empty(images.stop - first, rows, columns, dtype=torch.float64)
            for k in range(first, images.stop):
                r, c = self._lines[k]
                maps[k - first] = interpolation(rows, r) @ self._on_lattice(k) @ interpolation(columns, c).T
            yield images, maps

    def _on_lattice(self, image: int) -> Tensor:
        """Return the scores at the lattice of an image, [its rows, its columns]."""
        rows, columns = self._lines[image]
        return self._scores[image][: len(rows) * len(columns)].view(len(rows), len(columns))

    def interval(self, quantile: float) -> tuple[Tensor, Tensor]:
        """Return the lower and upper ends of the interval of O at each location, each [rows, columns].

        Three uncertainties are independent: (1 - f) A from the choice of images, f B from their positions, and the
        mean square bias. The squares of their distances from the estimate to the end of the interval add up (MOVER, Zou
        and Donner 2008). The first is skewed for a proportion near 0 or 1: its ends are those of Wilson's interval for
        the number of independent draws that have this variance. The others are ``quantile`` standard deviations.
        """
        z, values = quantile, self.values
        other = z * z * (self._of_positions + self.bias.square())
        below = above = z * self._of_images.sqrt()
        if self._share:
            values = values.clamp(0, 1)
            each = self._of_images / self._level  # 1 / draws
            middle = (values + z * z / 2 * each) / (1 + z * z * each)
            half = z / (1 + z * z * each) * (values * (1 - values) * each + (z * each).square() / 4).sqrt()
            below, above = values - middle + half, middle + half - values
        low, high = values - (below.square() + other).sqrt(), values + (above.square() + other).sqrt()
        return (low.clamp(0, 1), high.clamp(0, 1)) if self._share else (low, high)
