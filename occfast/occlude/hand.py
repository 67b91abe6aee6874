"""A hand before the face."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import checks
from .base import Color, Occlusion, OcclusionResult, color_of, paint, uniform
from .frame import FaceFrame

#: Places of a hand: over the mouth, over an eye, or on a cheek.
HAND_PLACES = ("mouth", "eye", "cheek")

# A hand seen from its back, of 18 by 8.5 cm beside eyes that are 6.3 cm apart. x runs across it, from the little finger
# to the thumb; y from the fingertips (negative) to the wrist; the middle of the knuckles is at 0. Units of the distance
# between the eyes. Of each finger: x of the knuckle, y of the knuckle, length, radius, and direction relative to the
# middle finger's as the fingers spread.
_FINGERS = (
    (-0.47, 0.06, 0.92, 0.125, -1.0),
    (-0.16, -0.03, 1.16, 0.14, -0.35),
    (0.15, -0.04, 1.24, 0.145, 0.25),
    (0.46, 0.03, 1.10, 0.14, 0.9),
)
# Both ends (x, y) of the other limbs, and the radii there.
_BACK = (
    ((-0.38, 0.16), (-0.30, 1.02), 0.24, 0.26),
    ((-0.10, 0.12), (-0.06, 1.10), 0.27, 0.28),
    ((0.20, 0.12), (0.16, 1.06), 0.27, 0.28),
    ((0.38, 0.16), (0.30, 0.92), 0.24, 0.28),
)
_Point = tuple[Tensor | float, Tensor | float]
_FOREARM = ((0.0, 1.3), (0.0, 4.6), 0.42, 0.62)


@dataclass(frozen=True)
class Hand(Occlusion):
    """A hand before the face, seen from its back, with soft shading.

    Which hand it is, its direction, bend, spread of the fingers and exact place are drawn for each sample.

    Attributes:
        place: "mouth", "eye" or "cheek". None draws the place of each sample at random.
        color: color of the skin. None takes that of the face, its mean between eyes and mouth.
        scale: size relative to that of an average hand, in [0.1, 10].
        seed: seed of the random draws.
    """

    place: str | None = None
    color: Color | None = None
    scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.place is not None and self.place not in HAND_PLACES:
            raise ValueError(f"place: expected one of {', '.join(HAND_PLACES)} or None, got {self.place!r}")
        if self.color is not None:
            color_of(self.color, 1, "color")
        checks.number(self.scale, "scale", 0.1, 10.0)
        checks.seed(self.seed)

    def _occlude(self, images: Tensor, landmarks: Tensor | None, sample_ids: Tensor) -> OcclusionResult:
        assert landmarks is not None
        frame = FaceFrame.of(landmarks).check()
        draws = uniform(self.seed, sample_ids, 12)
        if self.place is None:
            place = (draws[:, 0] * len(HAND_PLACES)).long()
        else:
            place = torch.full_like(sample_ids, HAND_PLACES.index(self.place))
        side = torch.where(draws[:, 1] < 0.5, -1.0, 1.0)  # the half of the image that the hand comes from
        x, y, pixel = self._on_hand(images, landmarks, frame, place, side, draws)
        edge, shade = self._parts(x, y, draws)
        alpha = (edge * pixel + 0.5).clamp(0, 1)
        # Less than a hundredth of a pixel is a rounding error, not an edge.
        alpha = torch.where(alpha < 0.01, 0.0, alpha)
        skin = frame.skin(images) if self.color is None else color_of(self.color, images.shape[1], "color")
        light = (0.85 + 0.3 * draws[:, 11]).float()[:, None, None]
        return paint(images, alpha, (skin.to(images.device).float() * (light * shade)[:, None]).clamp(0, 1))

    def _on_hand(
        self, images: Tensor, landmarks: Tensor, frame: FaceFrame, place: Tensor, side: Tensor, draws: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the place on the hand of each pixel, x and y [N, H, W], and pixels for each unit, [N, 1, 1]."""
        n = torch.arange(len(place), device=place.device)
        own = (side > 0).long()
        eye, corner = landmarks[n, own], landmarks[n, 3 + own]
        outline = torch.where(side > 0, frame.right[:, 0], -frame.left[:, 0])[:, None] * frame.across
        targets = torch.stack([landmarks[:, 3:].mean(1), eye, 0.5 * (eye + corner) + 0.25 * outline], 1)
        shift = 0.12 * frame.size[..., None] * (2 * draws[:, 2:4, None] - 1)
        target = targets[n, place] + shift[:, 0] * frame.across + shift[:, 1] * frame.normal
        # Direction of the fingers, from straight up towards the middle of the face, in degrees; and the point of the
        # hand that lies on the target.
        low = torch.tensor([10.0, 5.0, -15.0], dtype=torch.float64, device=place.device)[place]
        high = torch.tensor([75.0, 45.0, 25.0], dtype=torch.float64, device=place.device)[place]
        angle = (low + (high - low) * draws[:, 4]) * (math.pi / 180) * -side
        reach = torch.tensor([-0.35, -0.1, 0.2], dtype=torch.float64, device=place.device)[place]
        reach = reach + 0.3 * (2 * draws[:, 5] - 1)
        u, v = frame.placed(images, target)
        size = (self.scale * (0.92 + 0.16 * draws[:, 6])).float()[:, None, None]
        c, s = (f(angle).float()[:, None, None] for f in (torch.cos, torch.sin))
        # A palm that lies on the face has its thumb on the outer side when the fingers point up.
        x = (u * c + v * s) / size * side.float()[:, None, None]
        y = (v * c - u * s) / size + reach.float()[:, None, None]
        return x, y, frame.size.float()[..., None] * size

    def _parts(self, x: Tensor, y: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distance inside the outline, negative outside, and the shading, [N, H, W] each."""
        spread, bend = (draws[:, k].float()[:, None, None] for k in (7, 8))
        # The back of the hand and the arm: one surface, whose parts meet without an edge.
        smooth = 0.06
        parts = torch.stack([_limb(x, y, *part)[0] for part in (*_BACK, _FOREARM)])
        edge = smooth * torch.logsumexp(parts / smooth, 0)
        round_ = (1 - (1 - (edge / 0.3).clamp(0, 1)) ** 2).sqrt()
        height, shade = torch.where(edge > 0, 0.2 * round_, -1.0), 0.66 + 0.34 * round_
        for start, end, first, last in _fingers(spread, 0.72 + 0.28 * bend):
            inside, radius = _limb(x, y, start, end, first, last)
            round_ = (1 - (1 - inside / radius).clamp(max=1) ** 2).sqrt()
            higher = (inside > 0) & (radius * round_ > height) | (edge < inside) & (edge <= 0)
            height = torch.where(higher, radius * round_, height)
            shade = torch.where(higher, 0.66 + 0.34 * round_, shade)
            edge = torch.maximum(edge, inside)
        return edge, shade


def _limb(x: Tensor, y: Tensor, start: _Point, end: _Point, first: float, last: float) -> tuple[Tensor, Tensor]:
    """Return the distance inside a rounded limb between two points, negative outside, and its radius there."""
    across, down = end[0] - start[0], end[1] - start[1]
    along = ((x - start[0]) * across + (y - start[1]) * down) / (across * across + down * down)
    along = along.clamp(0, 1)
    away = ((x - start[0] - along * across) ** 2 + (y - start[1] - along * down) ** 2).sqrt()
    radius = first + (last - first) * along
    return radius - away, radius


def _fingers(spread: Tensor, fold: Tensor) -> Iterator[tuple[_Point, _Point, float, float]]:
    """Yield the limbs of fingers and thumb: both ends and the radii there.

    Args:
        spread: [N, 1, 1], 0 for closed fingers to 1 for spread ones.
        fold: [N, 1, 1], length of the fingers as seen, relative to their own.
    """
    for knuckle_x, knuckle_y, length, radius, away in _FINGERS:
        angle = (0.05 + 0.16 * spread) * away
        tip = (knuckle_x + torch.sin(angle) * length * fold, knuckle_y - torch.cos(angle) * length * fold)
        yield (knuckle_x, knuckle_y), tip, radius * 1.08, radius * 0.86
    angle = 0.35 + 0.5 * spread
    joint = (0.42 + 0.55 * torch.sin(angle), 0.92 - 0.62 * torch.cos(angle))
    yield (0.42, 0.92), joint, 0.24, 0.18
    yield joint, (joint[0] + 0.45 * torch.sin(angle - 0.2), joint[1] - 0.45 * torch.cos(angle - 0.2)), 0.18, 0.14
