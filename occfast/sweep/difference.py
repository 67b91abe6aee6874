"""Differences of occlusion maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..plots import draw_map, extent, new_figure, png
from .geometry import SweepGrid

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .maps import OcclusionMap


@dataclass(frozen=True, eq=False)
class MapDifference:
    """Difference of two maps of one grid and score: ``m - n``.

    Attributes:
        values: Float64 [rows, columns], the first map's values minus the second's.
        standard_error: Float64 [rows, columns]. Where both maps hold the scores of the same images it is that of the
            mean of the paired differences, else the root of the sum of squares, as for independent images.
        paired: Whether the images are paired.
        grid, score: Of both maps.
    """

    values: NDArray[np.float64]
    standard_error: NDArray[np.float64]
    paired: bool
    grid: SweepGrid
    score: str

    @classmethod
    def of(cls, first: OcclusionMap, second: OcclusionMap) -> MapDifference:
        """Subtract maps.

        Raises:
            ValueError: Their grids or scores differ.
        """
        if first.further != second.further:
            boxes = first.occluder_text, second.occluder_text
            raise ValueError(
                f"occluder: expected maps with the same occluders to subtract, got {boxes[0]} and {boxes[1]}"
            )
        for name, one, other in (("grid", first.grid, second.grid), ("score", first.score, second.score)):
            if one != other:
                raise ValueError(f"{name}: expected maps with the same {name} to subtract, got {one} and {other}")
        error = np.hypot(first.standard_error, second.standard_error)
        paired = _paired(first, second)
        if paired:
            assert first.per_image is not None and second.per_image is not None
            apart = first.per_image.astype(np.float64) - second.per_image.astype(np.float64)
            n = len(apart)
            error = apart.std(0, ddof=1) / np.sqrt(n) if n > 1 else np.full(first.values.shape, np.nan)
        return cls(first.values - second.values, error, paired, first.grid, first.score)

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Draw the difference: red where the first map is higher, blue where it is lower.

        Args:
            ax: Matplotlib axes; None: those of a new figure of pyplot.

        Returns:
            The axes.
        """
        rows, columns = (centers.numpy() for centers in self.grid.centers)
        return draw_map(self.values, extent(rows, columns), ax=ax, label=f"difference of {self.score}")

    def _repr_png_(self) -> bytes:
        figure, ax = new_figure()
        self.plot(ax=ax)
        return png(figure)

    def __repr__(self) -> str:
        kind = "paired" if self.paired else "unpaired"
        mean, low, high = (f"{value:+.4g}" for value in (self.values.mean(), self.values.min(), self.values.max()))
        size = f"{self.grid.rows}x{self.grid.columns}"
        return f"MapDifference({size} centers, {self.score}, mean {mean}, from {low} to {high}, {kind})"


def _paired(first: OcclusionMap, second: OcclusionMap) -> bool:
    return (
        first.per_image is not None
        and second.per_image is not None
        and first.image_indices is not None
        and second.image_indices is not None
        and np.array_equal(first.image_indices, second.image_indices)
        and np.array_equal(first.mean_image, second.mean_image)
    )
