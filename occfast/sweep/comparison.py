"""Comparison of two maps of the same images, with a test over images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import checks
from ..plots import draw_map, extent, new_figure, png
from .difference import MapDifference

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .maps import OcclusionMap

_CHUNK = 2**22  # numbers of a block of statistics
_SAME = 1 - 1e-9  # statistics that differ by rounding alone are equal


@dataclass(frozen=True, eq=False)
class MapComparison:
    """Difference of two maps of the same images, and the positions at which it is significant.

    The test is paired: under the null hypothesis, the difference of an image's two scores is as likely as its negative.
    The signs of the images' differences are flipped at random, and the largest statistic over all positions is
    recorded each time. A p-value is the share of flips whose largest statistic reaches that of the position. It thus
    holds for all positions together: if the maps do not differ, the probability that any position falls below the
    level is at most the level (Nichols and Holmes 2002).

    Attributes:
        difference: Mean over ``image_indices`` of the first map's scores minus the second's, paired.
        statistic: Mean difference over its standard error (a paired t), float64 [rows, columns]; 0 where no image
            differs, infinite where all differ alike.
        p_values: Float64 [rows, columns] in (0, 1], adjusted for the number of positions.
        image_indices: Numbers of the images that both maps used, int64 [n].
        n_groups: Number of groups of images whose signs flip together; that of the images if each is its own.
        flips: Number of sign flips, the identity included.
        exact: Whether these are all possible ones.
        level: Probability of a false alarm anywhere.
    """

    difference: MapDifference
    statistic: NDArray[np.float64]
    p_values: NDArray[np.float64]
    image_indices: NDArray[np.int64]
    n_groups: int
    flips: int
    exact: bool
    level: float

    @property
    def p_value(self) -> float:
        """The smallest adjusted p-value: that of the hypothesis that the maps differ nowhere."""
        return float(self.p_values.min())

    @property
    def significant(self) -> NDArray[np.bool_]:
        """Positions where the maps differ (adjusted p-value of at most the level), bool [rows, columns]."""
        return self.p_values <= self.level

    def counts(self) -> tuple[int, int]:
        """Return the numbers of positions at which the first map is significantly higher and lower."""
        found = self.significant
        return int((found & (self.statistic > 0)).sum()), int((found & (self.statistic < 0)).sum())

    def about(self) -> dict[str, Any]:
        """Return the result of the test as JSON can hold it."""
        higher, lower = self.counts()
        return {
            "p_value": self.p_value,
            "level": self.level,
            "higher": higher,
            "lower": lower,
            "positions": self.p_values.size,
            "images": len(self.image_indices),
            "groups": self.n_groups,
            "flips": self.flips,
            "exact": self.exact,
            "mean": float(self.difference.values.mean()),
        }

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Draw the difference, with a line around the positions at which it is significant.

        Args:
            ax: Matplotlib axes; None: those of a new figure of pyplot.

        Returns:
            The axes.
        """
        ax = self.difference.plot(ax=ax)
        rows, columns = (centers.numpy() for centers in self.difference.grid.centers)
        inside = np.pad(self.significant.astype(float), 1)
        if inside.any():
            y, x = (np.concatenate((c[:1] - _step(c), c, c[-1:] + _step(c))) for c in (rows, columns))
            ax.contour(x, y, inside, levels=[0.5], colors="black", linewidths=1.2)
        return ax

    def plot_p_values(self, *, ax: Axes | None = None) -> Axes:
        """Draw the adjusted p-values, dark where they are small, and return the axes (see :meth:`plot`)."""
        where = extent(*(centers.numpy() for centers in self.difference.grid.centers))
        return draw_map(self.p_values, where, ax=ax, label="adjusted p-value", limits=(0.0, 1.0))

    def _repr_png_(self) -> bytes:
        figure, ax = new_figure()
        self.plot(ax=ax)
        return png(figure)

    def __str__(self) -> str:
        higher, lower = self.counts()
        kind = "all" if self.exact else "random"
        over = f"{len(self.image_indices)} images" + (
            f" in {self.n_groups} groups" if self.n_groups < len(self.image_indices) else ""
        )
        return (
            f"the first map is higher at {higher:,} and lower at {lower:,} of {self.p_values.size:,} positions (level "
            f"{100 * self.level:g} % for all positions together; smallest p {self.p_value:.2g}; {self.flips:,} {kind} "
            f"sign flips over {over})"
        )

    def __repr__(self) -> str:
        return f"MapComparison({self})"


def compared(
    first: OcclusionMap,
    second: OcclusionMap,
    *,
    level: float = 0.05,
    flips: int = 5000,
    seed: int = 0,
    groups: ArrayLike | None = None,
) -> MapComparison:
    """Return the comparison; see :meth:`OcclusionMap.compare`."""
    level = checks.number(level, "level", above=0.0, high=0.5)
    flips = checks.integer(flips, "flips", 2)
    seed = checks.seed(seed)
    plain = MapDifference.of(first, second)  # checks the grids and the scores
    indices, apart = _paired_scores(first, second)
    group = _groups(groups, indices)
    n_groups = len(np.unique(group))
    if n_groups < 2:
        raise ValueError(f"other: expected maps with at least 2 images or groups in common, got {n_groups}")
    shape = plain.values.shape
    summed = np.zeros((n_groups, apart.shape[1]))
    np.add.at(summed, group, apart)
    largest, mine, exact = _largest_statistics(summed, flips, seed)
    reached = len(largest) - np.searchsorted(np.sort(largest), mine * _SAME, side="left")
    n = len(apart)
    difference = MapDifference(
        values=apart.mean(0).reshape(shape),
        standard_error=(apart.std(0, ddof=1) / np.sqrt(n)).reshape(shape) if n > 1 else np.full(shape, np.nan),
        paired=True,
        grid=first.grid,
        score=first.score,
    )
    return MapComparison(
        difference=difference,
        statistic=_t(summed).reshape(shape),
        p_values=(reached / len(largest)).reshape(shape),
        image_indices=indices,
        n_groups=n_groups,
        flips=len(largest),
        exact=exact,
        level=level,
    )


def _paired_scores(first: OcclusionMap, second: OcclusionMap) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the numbers of the images of both maps and their differences, float64 [n, positions]."""
    for name, m in (("this map", first), ("other", second)):
        if m.per_image is None or m.image_indices is None:
            raise ValueError(
                f"other: expected maps with the scores of single images to compare, {name} has none; a sampled map "
                "has none, and neither have those of more than 1 GiB"
            )
    assert first.per_image is not None and second.per_image is not None
    assert first.image_indices is not None and second.image_indices is not None
    of_all = [m.n_images + m.n_skipped for m in (first, second)]
    same = np.array_equal(first.image_indices, second.image_indices)
    alike = first.mean_image.shape == second.mean_image.shape
    alike = alike and (not same or np.array_equal(first.mean_image, second.mean_image))
    hashes = [m.fingerprint.images if m.fingerprint and m.fingerprint.whole else "" for m in (first, second)]
    if of_all[0] != of_all[1] or not alike or (all(hashes) and hashes[0] != hashes[1]):
        raise ValueError("other: expected a map of the same images in the same order, got one of other images")
    indices, rows, others = np.intersect1d(first.image_indices, second.image_indices, return_indices=True)
    apart = first.per_image[rows].astype(np.float64) - second.per_image[others].astype(np.float64)
    return indices, apart.reshape(len(indices), first.values.size)


def _groups(groups: ArrayLike | None, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the group of each image, from 0 on."""
    if groups is None:
        return np.arange(len(indices))
    given = np.asarray(groups)
    if given.ndim != 1 or given.dtype.kind not in "iu":
        got = f"{given.dtype} {list(given.shape)}"
        raise TypeError(f"groups: expected integers [N], one for each image given, got {got}")
    if len(indices) and len(given) <= indices.max():
        raise ValueError(f"groups: expected one for each image given, at least {indices.max() + 1}, got {len(given)}")
    found: NDArray[np.int64] = np.unique(given[indices], return_inverse=True)[1].reshape(-1)
    return found


def _largest_statistics(
    apart: NDArray[np.float64], flips: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], bool]:
    """Return the largest statistic for each sign flip (the first one flips nothing), the statistics, and exactness.

    The statistic is |sum| / sqrt(n * sum of squares) in [0, 1]. It increases with the absolute value of t, and flips
    change its numerator alone.

    Args:
        apart: Differences [n, positions].
        flips: Largest number of sign flips. Fewer are made if there are fewer: all of them.
        seed: Of random flips.
    """
    n = len(apart)
    exact = n - 1 < 62 and 2 ** (n - 1) <= flips
    if exact:  # the negative of a flip has the same statistic, so that one sign stays
        numbers = np.arange(2 ** (n - 1), dtype=np.int64)[:, None] >> np.arange(n)
        signs = 1.0 - 2.0 * (numbers & 1)
    else:
        generator = np.random.default_rng([seed, 0xF11D])
        signs = 1.0 - 2.0 * generator.integers(0, 2, (flips, n))
        signs[0] = 1.0
    length = np.sqrt(n * np.square(apart).sum(0))
    scale = np.divide(1.0, length, out=np.zeros_like(length), where=length > 0)
    largest = np.zeros(len(signs))
    rows = max(1, _CHUNK // max(1, apart.shape[1]))
    for start in range(0, len(signs), rows):
        part = np.abs(signs[start : start + rows] @ apart) * scale
        largest[start : start + rows] = part.max(1)
        if start == 0:
            mine = part[0].copy()
    return largest, mine, exact


def _t(apart: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the t of each position; 0 where no image differs, infinite where all differ alike."""
    n = len(apart)
    mean, error = apart.mean(0), apart.std(0, ddof=1) / np.sqrt(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(mean == 0, 0.0, mean / error)


def _step(centers: NDArray[np.int64]) -> float:
    return float(centers[1] - centers[0]) if len(centers) > 1 else 1.0
