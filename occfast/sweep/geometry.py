"""Geometry of a sweep: the grid of the occluder's centers over an image.

All sizes are (height, width) in pixels and all coordinates (row, column). An occluder of height h centered at row i
covers rows i - h // 2 to i - h // 2 + h - 1: with an even size there is one more pixel before the center than after it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import Pair, choice, integer, pair
from .shapes import OccluderMask, checked_occluder
from .types import Border, Region, Shape


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
        mask: The pixels of its box that the occluder covers; None: all.
        region: Top, left, bottom and right of the part of the image in which centers lie; None: all of it.
    """

    image: tuple[int, int]
    occluder: tuple[int, int]
    stride: tuple[int, int]
    border: Border
    first: tuple[int, int]
    rows: int
    columns: int
    mask: OccluderMask | None = None
    region: tuple[int, int, int, int] | None = None

    @classmethod
    def over(
        cls, image: Pair, occluder: Shape, *, stride: Pair = 1, border: Border = "clip", region: Region | None = None
    ) -> SweepGrid:
        """Return the grid for images of a size.

        Args:
            image: (height, width) in pixels, or one int for both.
            occluder: (height, width) in pixels, one int for both, or a mask bool [height, width].
            stride: Pixels between neighboring centers, an int or (rows, columns).
            border: "clip": centers at 0, stride, 2 stride, ... below the image's size, the occluder cut at the edge
                (trigueros2018 has a center on every pixel). "valid": whole occluders only, the first center at h // 2.

        Raises:
            TypeError, ValueError: An argument is wrong, or the occluder is larger than the image.
        """
        size, step = pair(image, "image"), pair(stride, "stride")
        box, mask = checked_occluder(occluder)
        choice(border, "border", ("clip", "valid"))
        if box[0] > size[0] or box[1] > size[1]:
            raise ValueError(
                f"occluder: expected at most the image's {size[0]}x{size[1]} pixels, got {box[0]}x{box[1]}"
            )
        within = None if region is None else checked_region(region)
        top, left, bottom, right = within or (0, 0, *size)
        if bottom > size[0] or right > size[1]:
            raise ValueError(f"region: expected a part of the image's {size[0]}x{size[1]} pixels, got {within}")
        lows, highs = [top, left], [bottom, right]
        if border == "valid":
            lows = [max(low, b // 2) for low, b in zip(lows, box, strict=True)]
            highs = [min(high, s - b + b // 2 + 1) for high, s, b in zip(highs, size, box, strict=True)]
        counts = [-(-(high - low) // t) for low, high, t in zip(lows, highs, step, strict=True)]
        if min(counts) < 1:
            raise ValueError(
                f"region: expected room for a whole occluder of {box[0]}x{box[1]} around a center, got {within}"
            )
        return cls(size, box, step, border, (lows[0], lows[1]), counts[0], counts[1], mask, within)

    @property
    def positions(self) -> int:
        """Number of centers."""
        return self.rows * self.columns

    @property
    def occluder_text(self) -> str:
        """The occluder as people write it: "20x40", or "mask 20x40" if it is no rectangle."""
        return ("" if self.mask is None else "mask ") + f"{self.occluder[0]}x{self.occluder[1]}"

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


def checked_region(region: Region) -> tuple[int, int, int, int]:
    """Return top, left, bottom and right. Raises TypeError or ValueError for anything else."""
    if isinstance(region, (str, bytes)) or not hasattr(region, "__len__") or len(region) != 4:
        raise TypeError(f"region: expected (top, left, bottom, right), got {region!r}")
    top, left, bottom, right = (integer(value, "region", 0) for value in region)
    if top >= bottom or left >= right:
        raise ValueError(f"region: expected top < bottom and left < right, got {(top, left, bottom, right)}")
    return top, left, bottom, right
