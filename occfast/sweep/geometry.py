"""Geometry of a sweep: the grid of the occluder's centers over an image.

All sizes are (height, width) in pixels and all coordinates (row, column). An occluder of height h centered at row i
covers rows i - h // 2 to i - h // 2 + h - 1: with an even size there is one more pixel before the center than after it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import Pair, choice, pair
from .types import Border


@dataclass(frozen=True)
class SweepGrid:
    """Regular grid of occluder centers over an image.

    Position p (0 <= p < ``positions``) has its center in grid row p // ``columns`` and grid column p % ``columns``.

    Attributes:
        image, occluder: (height, width) in pixels.
        stride: Pixels between neighboring centers, (rows, columns).
        border: "clip" or "valid", see :meth:`over`.
        first: Row and column of the first center, in pixels.
        rows, columns: Number of centers along each axis.
    """

    image: tuple[int, int]
    occluder: tuple[int, int]
    stride: tuple[int, int]
    border: Border
    first: tuple[int, int]
    rows: int
    columns: int

    @classmethod
    def over(cls, image: Pair, occluder: Pair, *, stride: Pair = 1, border: Border = "clip") -> SweepGrid:
        """Return the grid for images of a size.

        Args:
            image, occluder: (height, width) in pixels, or one int for both.
            stride: Pixels between neighboring centers, an int or (rows, columns).
            border: "clip": centers at 0, stride, 2 stride, ... below the image's size, the occluder cut at the edge
                (trigueros2018 has a center on every pixel). "valid": whole occluders only, the first center at h // 2.

        Raises:
            TypeError, ValueError: An argument is wrong, or the occluder is larger than the image.
        """
        size, box, step = pair(image, "image"), pair(occluder, "occluder"), pair(stride, "stride")
        choice(border, "border", ("clip", "valid"))
        if box[0] > size[0] or box[1] > size[1]:
            raise ValueError(
                f"occluder: expected at most the image's {size[0]}x{size[1]} pixels, got {box[0]}x{box[1]}"
            )
        if border == "clip":
            first = (0, 0)
            counts = [(s + t - 1) // t for s, t in zip(size, step, strict=True)]
        else:
            first = (box[0] // 2, box[1] // 2)
            counts = [(s - b) // t + 1 for s, b, t in zip(size, box, step, strict=True)]
        return cls(size, box, step, border, first, counts[0], counts[1])

    @property
    def positions(self) -> int:
        """Number of centers."""
        return self.rows * self.columns

    @property
    def centers(self) -> tuple[Tensor, Tensor]:
        """Row and column coordinates of the centers, in pixels: int64 [rows], [columns]."""
        return (
            self.first[0] + self.stride[0] * torch.arange(self.rows),
            self.first[1] + self.stride[1] * torch.arange(self.columns),
        )

    def native(self) -> list[int]:
        """Return the eight numbers that the native ops take."""
        return [self.rows, self.columns, *self.first, *self.stride, *self.occluder]

    def window(self, position: int) -> tuple[int, int, int, int]:
        """Return top, left, bottom and right of the occluder at a position, cut at the image's edge."""
        if not 0 <= position < self.positions:
            raise ValueError(f"position: expected a number in [0, {self.positions}), got {position}")
        row, column = divmod(position, self.columns)
        top = self.first[0] + row * self.stride[0] - self.occluder[0] // 2
        left = self.first[1] + column * self.stride[1] - self.occluder[1] // 2
        return (
            max(top, 0),
            max(left, 0),
            min(top + self.occluder[0], self.image[0]),
            min(left + self.occluder[1], self.image[1]),
        )
