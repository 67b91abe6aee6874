"""Sunglasses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import checks
from .base import Color, Occlusion, OcclusionResult, color_of, paint, pixel_grid, uniform

# Lens shapes: half width, half height, exponent of the superellipse, offset below the eye, and how much wider the upper
# end is than the middle. Lengths are in units of the distance between the eyes.
_LENSES = {
    "round": (0.37, 0.36, 2.0, 0.06, 0.0),
    "square": (0.43, 0.31, 5.0, 0.07, 0.0),
    "aviator": (0.42, 0.38, 2.6, 0.12, 0.0),
    "wayfarer": (0.39, 0.37, 3.2, 0.06, 0.12),
}
# Width of the frame round the lenses. With it, "wayfarer" has the outline of the AR faces' real sunglasses, and it was
# chosen so that all styles together cost a recognizer about what those do (bench/drawn_real.py).
_RIM = 0.03
#: Styles of sunglasses.
STYLES = tuple(_LENSES)
_FLAT_STYLES = 3  # drawn at random by flat ones; later styles came with shading


@dataclass(frozen=True)
class Sunglasses(Occlusion):
    """Sunglasses with two lenses, a bridge and the ends of the temples, scaled and rotated to fit the eyes.

    A frame surrounds the lenses. They reflect what is before them: a lamp in each lens, and the brighter upper part of
    the room. Where, how large and how bright, is drawn for each sample.

    Attributes:
        style: "round", "square", "aviator" or "wayfarer". None draws the style of each sample at random.
        color: color of lenses and frame.
        opacity: opacity of the lenses, in [1 / 255, 1].
        scale: size, in [0.1, 10]; 1.0 covers the eyebrows and eye sockets of a frontal face.
        seed: seed of the random draws.
        flat: lenses of one color, without a frame round them or reflections; a style of None then draws from the first
            three.
    """

    style: str | None = None
    color: Color = (0.05, 0.05, 0.06)
    opacity: float = 1.0
    scale: float = 1.0
    seed: int = 0
    flat: bool = False

    def __post_init__(self) -> None:
        if self.style is not None and self.style not in _LENSES:
            raise ValueError(f"style: expected one of {', '.join(_LENSES)} or None, got {self.style!r}")
        color_of(self.color, 1, "color")
        checks.number(self.opacity, "opacity", 1 / 255, 1.0)
        checks.number(self.scale, "scale", 0.1, 10.0)
        checks.seed(self.seed)

    def _occlude(self, images: Tensor, landmarks: Tensor | None, sample_ids: Tensor) -> OcclusionResult:
        assert landmarks is not None
        device = images.device
        if self.style is None:
            among = _FLAT_STYLES if self.flat else len(_LENSES)
            style = (uniform(self.seed, sample_ids, 1)[:, 0] * among).long()
        else:
            style = torch.full((len(images),), list(_LENSES).index(self.style), device=device)
        lens = torch.tensor(list(_LENSES.values()), dtype=torch.float64, device=device)[style]
        a, b, power, drop, flare = (v[:, None, None] for v in lens.unbind(1))
        left, right = landmarks[:, 0], landmarks[:, 1]
        middle, across = (left + right) / 2, right - left
        d = across.norm(dim=1)
        rows, columns = pixel_grid(images)
        r, c = rows - middle[:, 0, None, None], columns - middle[:, 1, None, None]
        # Coordinates in units of the distance between the eyes: x along the line of the eyes, y downward from it.
        u = (across / d[:, None] / d[:, None] / self.scale)[..., None, None]
        x, y = c * u[:, 1] + r * u[:, 0], r * u[:, 1] - c * u[:, 0]
        pixel = (d * self.scale)[:, None, None]

        def box(left: float | Tensor, right: float | Tensor, top: float, bottom: float) -> Tensor:
            # The share of each pixel that lies inside; left and right bound |x|.
            edges = (x.abs() - left, right - x.abs(), y - top, bottom - y)
            inside: Tensor = torch.stack(edges).amin(0) * pixel
            return (inside + 0.5).clamp(0, 1)

        lens_x, lens_y = (x.abs() - 0.5 / self.scale), y - drop
        width = a * (1 - flare * (lens_y / b).clamp(-1, 1))
        norm = ((lens_x / width).abs() ** power + (lens_y / b).abs() ** power) ** (1 / power)
        inside = (1 - norm) * torch.minimum(a, b)
        lenses = (inside * pixel + 0.5).clamp(0, 1)
        bridge = box(-1.0, 0.5 / self.scale - a + 0.06, -0.13, -0.02)
        temples = box(0.5 / self.scale + a - 0.06, 1.05, -0.17, -0.06)
        frame = torch.maximum(bridge, temples)
        glass = lenses * self.opacity
        color = color_of(self.color, images.shape[1], "color").to(device)
        if not self.flat:
            shine = lenses * self._reflections(lens_x, lens_y / b, torch.where(x < 0, -1.0, 1.0), pixel, sample_ids)
            color = color + shine[:, None] * (1 - color)
            glass = torch.maximum(glass, shine) + ((inside + _RIM) * pixel + 0.5).clamp(0, 1) - lenses
        # Less than a hundredth of a pixel is a rounding error, not an edge.
        alpha = torch.maximum(glass, frame)
        alpha = torch.where(alpha < 0.01, 0.0, alpha)
        return paint(images, alpha, color)

    def _reflections(self, x: Tensor, y: Tensor, side: Tensor, pixel: Tensor, sample_ids: Tensor) -> Tensor:
        """Return how bright each pixel of the lenses reflects the room, from 0 to 1, [N, H, W].

        Args:
            x: outward distance from the middle of the lens, in units of the distance between the eyes.
            y: distance below the middle of the lens, in units of its half height.
            side: -1 for the left lens, 1 for the right.
            pixel: pixels for each unit of x, [N, 1, 1].
            sample_ids: [N].
        """
        draws = [v[:, None, None] for v in uniform(self.seed, sample_ids, 8, stream=1).unbind(1)]
        room = 0.3 * draws[0] * (-y).clamp(0, 1)
        # One lamp before the face shows at the same place of both lenses; two beside it show towards the nose in each.
        beside = draws[1] < 0.5
        at = torch.where(beside, -0.28 + 0.12 * draws[2], side * (0.4 * draws[2] - 0.2))
        radius = 0.08 + 0.09 * draws[4]
        away = ((x - at) ** 2 + (0.36 * (y - 0.6 * (draws[3] - 0.4))) ** 2).sqrt()
        lamp = ((radius - away) * pixel.clamp(max=25) + 0.5).clamp(0, 1) * (0.6 + 0.4 * draws[5])
        return torch.maximum(room, lamp)
