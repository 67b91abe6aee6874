"""Random coverings of face crops, drawn and pasted, with the covered pixels.

Every accessory of :mod:`occfast.occlude` takes part, with random sizes, places and materials, and shapes that are no
accessory: blobs, bars, and everything beyond a curve from one side. Half of all coverings are filled with another
material than their own, among them pieces of other photographs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from occfast.occlude import FaceMask, Hand, MaskTemplate, Occlusion, Scarf, Sunglasses

from .crops import MARGIN, SCALE, SIZE

#: Share of each kind among the images.
SHARES = {"none": 0.2, "sunglasses": 0.17, "mask": 0.17, "scarf": 0.14, "hand": 0.1, "shape": 0.16, "two": 0.06}


class RandomCoverings:
    """Covers batches of crops at random.

    Args:
        pool: Crops whose pieces become materials, uint8 [N, 3, SIZE, SIZE].
        templates: Folder of photographed mask templates, used beside the drawn masks; None: drawn masks only.
        random: Source of all draws.
        only: The one kind to draw; default: all, by their shares.
    """

    def __init__(
        self, pool: Tensor, templates: Path | None, random: torch.Generator, *, only: str | None = None
    ) -> None:
        self._pool, self._random = pool, random
        self._shares = [float(kind == only) if only else share for kind, share in SHARES.items()]
        kinds: list[str | MaskTemplate] = ["surgical", "cloth", "respirator"]
        self._masks = [*kinds, *(MaskTemplate.read_all(templates) if templates else [])]

    def __call__(self, images: Tensor, landmarks: Tensor) -> tuple[Tensor, Tensor]:
        """Cover crops, uint8 [N, 3, SIZE, SIZE] with landmarks float64 [N, 5, 2].

        Returns:
            The covered crops, uint8, and the opacity of the covering at each pixel, float32 [N, SIZE, SIZE].
        """
        n = len(images)
        kinds = list(SHARES)
        drawn = torch.multinomial(torch.tensor(self._shares), n, replacement=True, generator=self._random)
        out, alpha = images.clone(), torch.zeros(n, SIZE, SIZE)
        for number, kind in enumerate(kinds):
            rows = (drawn == number).nonzero()[:, 0]
            if kind == "none" or len(rows) == 0:
                continue
            parts = ["sunglasses", self._one(["mask", "scarf", "hand", "shape"])] if kind == "two" else [kind]
            for part in parts:
                points = landmarks[rows] + torch.randn(len(rows), 5, 2, generator=self._random).double() * 1.2
                draw = getattr(self, f"_{part}")
                before = out[rows]
                covered, opacity = draw(before, points)
                out[rows] = self._material(before, covered, opacity)
                alpha[rows] = torch.maximum(alpha[rows], opacity)
        return out, alpha

    # -- draws ---------------------------------------------------------------------------------------------

    def _uniform(self, n: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(n, generator=self._random) * (high - low) + low

    def _one(self, options: list[str]) -> str:
        return options[int(torch.randint(len(options), (1,), generator=self._random))]

    def _by(self, occlusion: Occlusion, images: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        ids = torch.randint(1 << 40, (len(images),), generator=self._random)
        covered, mask = occlusion(images, points, ids)
        return covered, mask.float()

    def _seed(self) -> int:
        return int(torch.randint(1 << 40, (1,), generator=self._random))

    def _split(
        self, images: Tensor, points: Tensor, make: Callable[[], Occlusion], groups: int = 4
    ) -> tuple[Tensor, Tensor]:
        """Cover by several occlusions with different settings, each a part of the images."""
        parts = [
            self._by(make(), images[rows], points[rows])
            for rows in torch.arange(len(images)).chunk(min(groups, len(images)))
        ]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    # -- kinds ---------------------------------------------------------------------------------------------

    def _sunglasses(self, images: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        def make() -> Occlusion:
            tint = self._uniform(3, 0.0, 0.35) * self._uniform(1)
            return Sunglasses(
                None,
                color=tuple(tint.tolist()),
                opacity=float(self._uniform(1, 0.72, 1.0)),
                scale=float(self._uniform(1, 0.88, 1.3)),
                seed=self._seed(),
            )

        return self._split(images, points, make)

    def _mask(self, images: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        return self._by(FaceMask(self._masks, seed=self._seed()), images, points)

    def _scarf(self, images: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        return self._split(images, points, lambda: Scarf(seed=self._seed()), 2)

    def _hand(self, images: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        return self._split(images, points, lambda: Hand(seed=self._seed()), 2)

    def _shape(self, images: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Cover by a blob, a bar or a side of the image; the material is always another photograph's or a pattern."""
        n = len(images)
        opacity = torch.empty(n, SIZE, SIZE)
        choice = torch.randint(3, (n,), generator=self._random)
        for k in range(n):
            opacity[k] = (self._blob, self._bar, self._side)[int(choice[k])]()
        # All of it is replaced by _material, which sees that nothing was painted.
        return images, opacity

    def _grid(self, center: Tensor, turn: float) -> tuple[Tensor, Tensor]:
        """Return coordinates of the pixels about a center, turned by an angle; (down, across)."""
        rows = torch.arange(SIZE)[:, None] - center[0]
        columns = torch.arange(SIZE)[None] - center[1]
        return rows * math.cos(turn) - columns * math.sin(turn), rows * math.sin(turn) + columns * math.cos(turn)

    def _center(self) -> Tensor:
        return self._uniform(2, MARGIN, SIZE - MARGIN)

    def _blob(self) -> Tensor:
        down, across = self._grid(self._center(), 0.0)
        angle, radius = torch.atan2(down, across), (down.square() + across.square()).sqrt()
        limit = self._uniform(1, 8, 30).expand(1, 1)
        for wave in range(1, 6):
            limit = limit * (
                1 + self._uniform(1, 0, 0.25) / wave**0.5 * torch.cos(wave * angle + self._uniform(1, 0, 2 * math.pi))
            )
        return ((limit - radius) / 1.5 + 0.5).clamp(0, 1)

    def _bar(self) -> Tensor:
        down, across = self._grid(self._center(), float(self._uniform(1, -math.pi, math.pi)))
        half, length = self._uniform(1, 4, 20), self._uniform(1, 12, 60)
        inside = torch.minimum(half - down.abs(), length - across.abs())
        return (inside + 0.5).clamp(0, 1)

    def _side(self) -> Tensor:
        """Everything beyond a curved line: from below, from above (as a hat does) or from one side."""
        turn = (0.0, math.pi, math.pi / 2, -math.pi / 2)[int(torch.randint(4, (1,), generator=self._random))]
        middle = torch.tensor([SIZE / 2, SIZE / 2])
        down, across = self._grid(middle, turn + float(self._uniform(1, -0.3, 0.3)))
        curve = self._uniform(1, -0.006, 0.006) * across.square()
        curve = curve + self._uniform(1, 0, 2) * torch.sin(across * self._uniform(1, 0.02, 0.2))
        start = self._uniform(1, 5, 34)
        return (down - start - curve + 0.5).clamp(0, 1)

    # -- materials -----------------------------------------------------------------------------------------

    def _material(self, before: Tensor, covered: Tensor, opacity: Tensor) -> Tensor:
        """Fill half of the coverings, and those that painted nothing, with another material."""
        n = len(before)
        other = (self._uniform(n) < 0.5) | (covered == before).flatten(1).all(1)
        if not bool(other.any()):
            return covered
        rows = other.nonzero()[:, 0]
        fill = self._materials(len(rows))
        soft = (
            F.avg_pool2d(opacity[rows][:, None], 3, 1, 1) if float(self._uniform(1)) < 0.5 else opacity[rows][:, None]
        )
        painted = before[rows].float() * (1 - soft) + 255 * fill * soft
        out = covered.clone()
        out[rows] = painted.round_().clamp_(0, 255).to(torch.uint8)
        return out

    def _smooth(self, n: int, channels: int, cells: int) -> Tensor:
        """Return smooth noise in [0, 1], [n, channels, SIZE, SIZE]."""
        coarse = torch.rand(n, channels, cells, cells, generator=self._random)
        return F.interpolate(coarse, size=(SIZE, SIZE), mode="bilinear", align_corners=True)

    def _materials(self, n: int) -> Tensor:
        """Return materials in [0, 1], float32 [n, 3, SIZE, SIZE]: cloth, stripes, noise, or a piece of a photograph."""
        color, second = torch.rand(2, n, 3, 1, 1, generator=self._random)
        gray = (self._uniform(n) < 0.4)[:, None, None, None]
        color = torch.where(gray, color.mean(1, keepdim=True).expand_as(color), color)
        kind = torch.randint(5, (n,), generator=self._random)
        rows, columns = torch.arange(SIZE)[:, None], torch.arange(SIZE)[None]
        out = torch.empty(n, 3, SIZE, SIZE)
        for k in range(n):
            if kind[k] == 0:
                out[k] = color[k]
            elif kind[k] == 1:
                angle, period = self._uniform(1, 0, math.pi), self._uniform(1, 3, 24)
                wave = torch.sin((rows * torch.cos(angle) + columns * torch.sin(angle)) * 2 * math.pi / period)
                out[k] = torch.lerp(color[k], second[k], (wave * self._uniform(1, 1, 6)).clamp(-1, 1) / 2 + 0.5)
            elif kind[k] == 2:
                cells = int(self._uniform(1, 6, 56))
                out[k] = color[k] + (self._smooth(1, 3, cells)[0] - 0.5) * self._uniform(1, 0.1, 0.8)
            else:
                out[k] = self._piece()
        shade = 1 + (self._smooth(n, 1, 4) - 0.5) * self._uniform(n, 0, 0.9)[:, None, None, None]
        return (out * shade).clamp_(0, 1)

    def _piece(self) -> Tensor:
        """Return a piece of another photograph, enlarged to the whole crop."""
        photograph = self._pool[int(torch.randint(len(self._pool), (1,), generator=self._random))]
        size = int(self._uniform(1, 24, 80))
        top, left = (int(v) for v in torch.randint(SIZE - size, (2,), generator=self._random))
        piece = photograph[None, :, top : top + size, left : left + size].float() / 255
        if float(self._uniform(1)) < 0.5:
            piece = piece.flip(int(torch.randint(2, 4, (1,), generator=self._random)))
        return F.interpolate(piece, size=(SIZE, SIZE), mode="bilinear", align_corners=False)[0]


def photographed(
    images: Tensor, opacity: Tensor, random: torch.Generator, *, gentle: bool = False
) -> tuple[Tensor, Tensor]:
    """Turn covered crops into inputs as cameras, detectors and files make them.

    Turns, shifts and sizes stand for wrong landmarks, which are common on covered faces; then light, gray photographs,
    low resolution, blur, noise and borders.

    Args:
        images: uint8 [N, 3, SIZE, SIZE].
        opacity: float32 [N, SIZE, SIZE].
        random: Source of all draws.
        gentle: Only cut the crops to the template, without any change.

    Returns:
        uint8 [N, 3, 64, 64], and covered pixels, bool [N, 64, 64].
    """
    n = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=random) * (high - low) + low

    def normal(deviation: float) -> Tensor:
        return torch.randn(n, generator=random) * deviation

    far = torch.where(uniform(0, 1) < 0.2, 2.2, 1.0)
    angle, stretch, aspect = normal(0.1) * far, normal(0.08) * far, normal(0.04)
    shift = torch.randn(n, 2, generator=random) * (0.06 * far)[:, None]
    mirrored = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    if gentle:
        angle, stretch, aspect, shift, mirrored = (torch.zeros(n),) * 3 + (torch.zeros(n, 2), torch.ones(n))
    part = 64 * SCALE / SIZE
    across, down = part * (stretch + aspect).exp(), part * (stretch - aspect).exp()
    theta = torch.stack(
        [
            torch.stack([mirrored * across * angle.cos(), -down * angle.sin(), part * shift[:, 0]], 1),
            torch.stack([mirrored * across * angle.sin(), down * angle.cos(), part * shift[:, 1]], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, [n, 3, 64, 64], align_corners=False)
    if not gentle:  # photographs that end within the template, as tight crops do
        tight = (uniform(0, 1) < 0.2).float()
        for axis in (0, 1):
            limit = part * (1 - tight * uniform(0.05, 0.35))
            grid[..., axis] = torch.minimum(torch.maximum(grid[..., axis], -limit[:, None, None]), limit[:, None, None])
    both = torch.cat([images.float() / 255, opacity[:, None]], 1)
    both = F.grid_sample(both, grid, padding_mode="border", align_corners=False)
    x, covered = both[:, :3], both[:, 3] > 0.5
    if not gentle:
        x = _lit(x, random)
        x = _recorded(x, random)
    return (x.clamp(0, 1) * 255).round().to(torch.uint8), covered


def _lit(x: Tensor, random: torch.Generator) -> Tensor:
    """Vary contrast, brightness, color and the direction of light; make a quarter gray."""
    n = len(x)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *(shape or (1, 1, 1)), generator=random) * (high - low) + low

    x = x.clamp(0, 1) ** uniform(-0.45, 0.45).exp()
    x = (x - 0.5) * uniform(0.6, 1.25) + 0.5 + uniform(-0.14, 0.14)
    x = x * uniform(0.9, 1.1, 3, 1, 1)
    ramp = torch.linspace(-1, 1, 64)
    light = 1 + uniform(-0.45, 0.45) * ramp * (uniform(0, 1) < 0.35)
    light = light + uniform(-0.25, 0.25) * ramp[:, None] * (uniform(0, 1) < 0.2)
    x = x * light
    gray = x.mean(1, keepdim=True).expand_as(x)
    return torch.where(uniform(0, 1) < 0.3, gray, x)


def _recorded(x: Tensor, random: torch.Generator) -> Tensor:
    """Lose resolution in a third, blur a fifth, and add noise."""
    out = []
    for one in x.split(8):
        size = int(torch.randint(22, 64, (1,), generator=random))
        if float(torch.rand(1, generator=random)) < 0.4:
            small = F.interpolate(one, size=(size, size), mode="area")
            one = F.interpolate(small, size=(64, 64), mode="bilinear", align_corners=False)
        elif float(torch.rand(1, generator=random)) < 0.3:
            one = F.avg_pool2d(F.pad(one, (1, 1, 1, 1), "replicate"), 3, 1)
        out.append(one)
    x = torch.cat(out)
    amount = torch.rand(len(x), 1, 1, 1, generator=random).square() * 0.06
    return x + amount * torch.randn(x.shape, generator=random)
