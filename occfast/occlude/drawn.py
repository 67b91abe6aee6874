"""Synthetic occlusions for evaluation: blocks, and bands over parts of the face."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import checks
from .base import Color, Occlusion, OcclusionResult, color_of, paint, pixel_grid, uniform


@dataclass(frozen=True)
class Block(Occlusion):
    """A rectangle of one color or of uniform noise.

    Attributes:
        size: (height, width) in pixels.
        at: the center: (row, column) in pixels, or one of :data:`PLACES`, located by the landmarks. None draws the
            center uniformly over the image. As in an occlusion map, a block of height h at row i covers the rows
            i - h // 2 to i - h // 2 + h - 1, clipped to the image.
        fill: a color, or "noise" for independent uniform noise in each channel of each pixel.
        seed: seed of the random centers and of the noise.
    """

    size: tuple[int, int] = (20, 40)
    at: tuple[float, float] | str | None = None
    fill: Color | str = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        checks.pair(self.size, "size")
        checks.seed(self.seed)
        if isinstance(self.at, str) and self.at not in PLACES:
            raise ValueError(f"at: expected (row, column) or one of {', '.join(PLACES)}, got {self.at!r}")
        if self.fill != "noise":
            color_of(self.fill, 1, "fill")

    @property
    def needs_landmarks(self) -> bool:  # type: ignore[override]
        """Whether the block is placed by a landmark."""
        return isinstance(self.at, str)

    def _occlude(self, images: Tensor, landmarks: Tensor | None, sample_ids: Tensor) -> OcclusionResult:
        n, channels, height, width = images.shape
        if self.at is None:
            extent = torch.tensor([height, width], dtype=torch.float64, device=images.device)
            center = (uniform(self.seed, sample_ids, 2) * extent).floor()
        elif isinstance(self.at, str):
            assert landmarks is not None
            center = landmarks[:, PLACES[self.at]].mean(1).round()
        else:
            center = torch.tensor(self.at, dtype=torch.float64, device=images.device).round().expand(n, 2)
        start = center - torch.tensor([s // 2 for s in self.size], device=images.device)
        rows, columns = pixel_grid(images)
        top, left = start[:, 0, None, None], start[:, 1, None, None]
        mask = (rows >= top) & (rows < top + self.size[0]) & (columns >= left) & (columns < left + self.size[1])
        if self.fill == "noise":
            noise = uniform(self.seed, sample_ids, channels * height * width, stream=1).reshape(images.shape)
            return paint(images, mask.float(), noise)
        return paint(images, mask.float(), color_of(self.fill, channels, "fill"))


#: Named centers of a block, and the landmarks whose mean each one is.
PLACES: dict[str, list[int]] = {
    "left_eye": [0],
    "right_eye": [1],
    "eyes": [0, 1],
    "nose": [2],
    "mouth": [3, 4],
    "left_mouth": [3],
    "right_mouth": [4],
}

#: First and last row of each band, in units of the distance from the row of the eyes (0) to the row of the mouth (1).
#: The bands do not overlap, and together they cover the whole image.
BANDS: dict[str, tuple[float, float]] = {
    "forehead": (-float("inf"), -0.35),
    "eyes": (-0.35, 0.3),
    "nose": (0.3, 0.72),
    "mouth": (0.72, 1.28),
    "chin": (1.28, float("inf")),
}


@dataclass(frozen=True)
class Band(Occlusion):
    """A band over one part of the face, across the full width of the image (pdsn-landmarks).

    Attributes:
        region: one of :data:`BANDS`, positioned by the mean row of the eyes and the mean row of the mouth's corners.
        fill: the color; white in the paper.
    """

    region: str = "eyes"
    fill: Color = 1.0

    def __post_init__(self) -> None:
        if self.region not in BANDS:
            raise ValueError(f"region: expected one of {', '.join(BANDS)}, got {self.region!r}")
        color_of(self.fill, 1, "fill")

    def _occlude(self, images: Tensor, landmarks: Tensor | None, sample_ids: Tensor) -> OcclusionResult:
        assert landmarks is not None
        eyes, mouth = landmarks[:, :2, 0].mean(1), landmarks[:, 3:, 0].mean(1)
        if bool((mouth - eyes < 1).any()):
            k = int((mouth - eyes < 1).nonzero()[0])
            raise ValueError(f"landmarks: expected the mouth below the eyes, not in image {k}")
        start, end = (eyes + (mouth - eyes) * edge for edge in BANDS[self.region])
        rows, columns = pixel_grid(images)
        mask = ((rows >= start[:, None, None]) & (rows < end[:, None, None])).expand(-1, -1, columns.shape[-1])
        return paint(images, mask.float(), color_of(self.fill, images.shape[1], "fill"))
