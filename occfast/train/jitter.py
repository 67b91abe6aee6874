"""Small random changes of a face that leave the person the same."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Jitter:
    """Mirrors, shifts, scales, turns and relights each image of a batch at random.

    Attributes:
        flip: probability of mirroring left and right.
        shift: largest shift along each axis, in fractions of the image's size.
        scale: largest enlargement or reduction, in fractions.
        turn: largest rotation, in degrees.
        gain: largest change of contrast about the middle gray, in fractions.
        offset: largest change of brightness, on the scale where black is 0 and white 1.

    All but ``flip`` are drawn uniformly between minus and plus the largest.  Pixels from beyond the edge repeat it.
    """

    #: Random numbers that an image takes.
    draws: ClassVar[int] = 7

    flip: float = 0.5
    shift: float = 0.05
    scale: float = 0.1
    turn: float = 8.0
    gain: float = 0.2
    offset: float = 0.1

    def __call__(self, images: Tensor, uniform: Tensor | torch.Generator) -> Tensor:
        """Change images at random.

        Args:
            images: float [N, C, H, W] in [0, 1].
            uniform: random numbers in [0, 1), [N, 7], or a generator on the CPU to draw them from.

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
        gain, offset = (v.view(-1, 1, 1, 1) for v in (1 + self.gain * gain, self.offset * offset))
        return ((out - 0.5) * gain + 0.5 + offset).clamp(0, 1)

    def _moved(
        self, images: Tensor, mirror: Tensor, angle: Tensor, size: Tensor, down: Tensor, right: Tensor
    ) -> Tensor:
        height, width = images.shape[-2:]
        angle = angle * (self.turn * math.pi / 180)
        size = 1 + self.scale * size
        side = torch.where((mirror + 1) / 2 < self.flip, -1.0, 1.0)
        cosine, sine = angle.cos() / size, angle.sin() / size
        # affine_grid works in coordinates from -1 to 1 along each axis; the ratios keep a turn a turn.
        matrix = torch.stack(
            [
                torch.stack([side * cosine, -sine * height / width, 2 * self.shift * right], 1),
                torch.stack([side * sine * width / height, cosine, 2 * self.shift * down], 1),
            ],
            1,
        )
        grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
