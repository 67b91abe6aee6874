"""A scarf over mouth and chin."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import checks
from .base import LUMA, Color, Occlusion, OcclusionResult, color_of, paint, uniform
from .frame import FaceFrame

#: Patterns of scarves.
PATTERNS = ("plain", "striped", "checked")
_FOLDS = 3


@dataclass(frozen=True)
class Scarf(Occlusion):
    """A scarf wound round mouth, jaw and neck, with folds, shading and a pattern.

    Its upper edge crosses the face at a height, tilt and bend that are drawn for each sample, as are folds, pattern and
    colors. Details finer than a pixel fade out.

    Attributes:
        pattern: "plain", "striped" or "checked". None draws the pattern of each sample at random.
        color: main color. None draws the colors of each sample at random.
        height: upper edge in the middle of the face, in [0, 1.5]: 0 is the line of the eyes, 1 that of the mouth. None
            draws it for each sample from 0.5 (on the tip of the nose) to 0.85 (below the nose).
        seed: seed of the random draws.
    """

    pattern: str | None = None
    color: Color | None = None
    height: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pattern is not None and self.pattern not in PATTERNS:
            raise ValueError(f"pattern: expected one of {', '.join(PATTERNS)} or None, got {self.pattern!r}")
        if self.color is not None:
            color_of(self.color, 1, "color")
        if self.height is not None:
            checks.number(self.height, "height", 0.0, 1.5)
        checks.seed(self.seed)

    def _occlude(self, images: Tensor, landmarks: Tensor | None, sample_ids: Tensor) -> OcclusionResult:
        assert landmarks is not None
        frame = FaceFrame.of(landmarks).check()
        u, v = frame.coordinates(images)
        pixels = frame.down.norm(dim=1).float()[:, None, None]  # pixels for each step of v
        shape = _Draws(self.seed, sample_ids, 0)
        height = shape(0.5, 0.85) if self.height is None else torch.full_like(pixels, self.height)
        tilt, bend = shape(-0.12, 0.12), shape(-0.1, 0.14)
        wave = 0.02 * torch.sin(shape(3, 7) * u + shape(0, 2 * math.pi))
        below = v - (height + tilt * u + bend * u**2 + wave)  # distance below the upper edge
        # Cloth stands off from the cheeks, and more from the neck; it ends on the chest.
        side = 1.08 + 0.14 * ((v - 0.8) / 0.9).clamp(0, 1) - u.abs()
        widths = torch.where(u < 0, frame.left[..., None].float(), frame.right[..., None].float())
        bottom = shape(2.3, 2.8) - 0.3 * u**2 - v
        inside = torch.minimum(torch.minimum(below, bottom) * pixels, side * widths)
        alpha = (inside + 0.5).clamp(0, 1)
        # Less than a hundredth of a pixel is a rounding error, not an edge.
        alpha = torch.where(alpha < 0.01, 0.0, alpha)

        folds = _Draws(self.seed, sample_ids, 1)
        shade = 0.95 - 0.3 * u**2
        for _ in range(_FOLDS):
            along = v + folds(-0.2, 0.3) * u**2 + folds(-0.35, 0.35) * u + 0.05 * torch.sin(4 * u + folds(0, 6.28))
            shade = shade + folds(0.04, 0.1) * _wave(along, folds(0.25, 0.9), folds(0, 1), pixels)
        hem = 0.018
        width = (hem**2 + (0.4 / pixels) ** 2).sqrt()
        shade = shade - 0.2 * hem / width * torch.exp(-(((below - 0.07) / width) ** 2))
        thread = torch.full_like(pixels, 0.045)
        shade = shade + 0.06 * _wave(v, thread, 0.0, pixels) * _wave(u, thread, 0.0, pixels)
        color = self._colors(below, u, pixels, sample_ids) * shade[:, None]
        if images.shape[1] == 1:
            color = (color * torch.tensor(LUMA, device=images.device)[:, None, None]).sum(1, keepdim=True)
        return paint(images, alpha, color.clamp(0, 1))

    def _colors(self, below: Tensor, u: Tensor, pixels: Tensor, sample_ids: Tensor) -> Tensor:
        """Return the colors of the unshaded cloth, float32 [N, 3, H, W]."""
        draws = _Draws(self.seed, sample_ids, 2)
        first, second = (_hue(draws(0, 1), draws(0.05, 0.7), draws(0.15, 0.85)) for _ in range(2))
        if self.color is not None:
            first = color_of(self.color, 3, "color").float().to(first.device).expand_as(first)
        if self.pattern is None:
            choice = (draws(0, 1) * len(PATTERNS)).long()
        else:
            choice = torch.full_like(pixels, PATTERNS.index(self.pattern)).long()
        across = _stripes(below, draws(0.2, 0.6), draws(0, 1), pixels)
        along = _stripes(u, draws(0.3, 0.7), draws(0, 1), pixels)
        share = torch.where(choice == 1, across, torch.where(choice == 2, (across + along) / 2, 0.0))
        return first + share[:, None] * (second - first)


class _Draws:
    """Uniform numbers of each sample, one after the other, float32 [N, 1, 1]."""

    def __init__(self, seed: int, sample_ids: Tensor, stream: int) -> None:
        self._values = iter(uniform(seed, sample_ids, 32, stream).float().unbind(1))

    def __call__(self, low: float, high: float) -> Tensor:
        return (low + (high - low) * next(self._values))[:, None, None]


def _wave(at: Tensor, period: Tensor, phase: Tensor | float, pixels: Tensor) -> Tensor:
    """Return a sine, as pixels of 1 / ``pixels`` show it: blurred by a Gaussian of half a pixel."""
    return torch.sin(2 * math.pi * (at / period + phase)) * torch.exp(-((math.pi / (period * pixels)) ** 2) / 2)


def _stripes(at: Tensor, period: Tensor, phase: Tensor, pixels: Tensor) -> Tensor:
    """Return stripes of 0 and 1, with edges at least a pixel wide; those finer than pixels fade to one half."""
    sharp = (period * pixels / math.pi).clamp(max=8)
    return 0.5 + 0.5 * (torch.sin(2 * math.pi * (at / period + phase)) * sharp).clamp(-1, 1)


def _hue(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Return colors given by hue, saturation and value, [N, 1, 1] each, as red, green and blue, [N, 3, 1, 1]."""
    parts = [value * (1 - saturation * (((hue * 6 + n) % 6 - 3).abs() - 1).neg().add(1).clamp(0, 1)) for n in (0, 4, 2)]
    return torch.stack(parts, 1)
