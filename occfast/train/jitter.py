"""Small random changes of face images that keep the person recognizable."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import checks


@dataclass(frozen=True)
class Jitter:
    """Random mirroring, shift, scale, rotation, contrast and brightness of each image of a batch.

    Attributes:
        flip: Probability of mirroring left and right, in [0, 1].
        shift: Largest shift along each axis, as a fraction of the image's size.
        scale: Largest enlargement or reduction, as a fraction; below 1.
        turn: Largest rotation, in degrees.
        gain: Largest change of contrast about the middle gray, as a fraction.
        offset: Largest change of brightness, where black is 0 and white is 1.

    All but ``flip`` are drawn uniformly between minus and plus the largest value. Pixels beyond the edge repeat it.

    Raises:
        TypeError, ValueError: If a value is no number, negative or too large.
    """

    #: Number of random numbers per image.
    draws: ClassVar[int] = 7

    flip: float = 0.5
    shift: float = 0.05
    scale: float = 0.1
    turn: float = 8.0
    gain: float = 0.2
    offset: float = 0.1

    def __post_init__(self) -> None:
        for item in fields(self):
            checks.number(getattr(self, item.name), item.name, 0.0)
        checks.number(self.flip, "flip", 0.0, 1.0)
        if self.scale >= 1:
            raise ValueError(f"scale: expected a number in [0, 1), got {self.scale!r}")

    def __call__(self, images: Tensor, uniform: Tensor | torch.Generator) -> Tensor:
        """Change images at random.

        Args:
            images: Float [N, C, H, W] in [0, 1].
            uniform: Random numbers in [0, 1), [N, 7], or a generator on the CPU to draw them from.

        Returns:
            The changed images, in [0, 1].
        """
        if isinstance(uniform, torch.Generator):
            uniform = torch.rand(images.shape[0], self.draws, generator=uniform)
        mirror, angle, size, down, right, gain, offset = (2 * uniform - 1).to(images.device, images.dtype).unbind(1)
        if self.shift == self.scale == self.turn == 0:
            out = torch.where(((mirror + 1) / 2 < self.flip).view(-1, 1, 1, 1), images.flip(3), images)
        else:
            out = self._moved(images, mirror, angle, size, down, right)
        gain = 1 + self.gain * gain
        bias = 0.5 - 0.5 * gain + self.offset * offset  # the change of contrast is about the middle gray
        gain, bias = (v.view(-1, 1, 1, 1) for v in (gain, bias))
        return out.mul_(gain).add_(bias).clamp_(0, 1)

    def _moved(
        self, images: Tensor, mirror: Tensor, angle: Tensor, size: Tensor, down: Tensor, right: Tensor
    ) -> Tensor:
        height, width = images.shape[-2:]
        angle = angle * (self.turn * math.pi / 180)
        size = 1 + self.scale * size
        side = torch.where((mirror + 1) / 2 < self.flip, -1.0, 1.0)
        cosine, sine = angle.cos() / size, angle.sin() / size
        # Coordinates go from -1 to 1 along each axis; the ratios prevent shear.
        across = torch.stack([side * cosine, side * sine * width / height], 1)
        along = torch.stack([-sine * height / width, cosine], 1)
        start = 2 * self.shift * torch.stack([right, down], 1)
        columns, rows = (
            (2 * torch.arange(n, dtype=images.dtype, device=images.device) + 1) / n - 1 for n in (width, height)
        )
        # [N, (column, row), H, W]: passes over contiguous planes are faster than affine_grid's products.
        places = (across[..., None] * columns)[:, :, None] + (along[..., None] * rows + start[..., None])[..., None]
        return F.grid_sample(images, places.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)
