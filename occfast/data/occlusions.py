"""Occlusions for tests: blocks, landmark bands, sunglasses and face masks, drawn on batches of faces.

Each is called with images, their landmarks and sample ids, and returns new images with the mask of covered pixels.
Pixels outside the mask are the given ones to the bit.  What is drawn at random depends on (seed, sample id) alone, not
on the batch or its order.

Landmarks are float [N, 5, 2], (row, column) in pixels: left eye, right eye, nose, left and right corner of the mouth,
as seen in the image.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import checks
from ..errors import DataError
from .images import MAX_PIXELS

#: A grey or an RGB colour within [0, 1].
Colour = float | tuple[float, float, float]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601
_CHUNK = 16  # images that a CPU draws at a time, to stay in its cache


class Covered(NamedTuple):
    """What an occlusion returns.

    Attributes:
        images: as given, covered; same shape, dtype and device.
        mask: bool [N, H, W], where pixels are covered (wholly, or in part at a soft edge).
    """

    images: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Occlusion(ABC):
    """What all occlusions share; see :meth:`__call__`."""

    #: Whether :meth:`__call__` needs landmarks.
    needs_landmarks = True

    def __call__(self, images: Any, landmarks: Any = None, sample_ids: Any = None) -> Covered:
        """Cover a batch.

        Args:
            images: uint8, or floating point with values in [0, 1] (checked on the CPU alone: elsewhere that would wait
                for the device), [N, C, H, W] with C 1 or 3 (RGB).
            landmarks: float [N, 5, 2]; not used by occlusions without ``needs_landmarks``.
            sample_ids: int64 [N] that key what is drawn at random; by default 0 … N − 1.

        Raises:
            TypeError, ValueError: naming the argument; also for NaN landmarks, and eyes that coincide.
        """
        batch = checks.as_tensor(images, "images")
        if batch.dim() != 4 or batch.shape[1] not in (1, 3) or 0 in batch.shape:
            raise ValueError(f"images: expected shape [N, 1 or 3, H, W], got {list(batch.shape)}")
        if batch.dtype != torch.uint8 and not batch.is_floating_point():
            raise TypeError(f"images: expected uint8 or floating point, got {str(batch.dtype).removeprefix('torch.')}")
        if batch.is_floating_point() and batch.device.type == "cpu":
            low, high = (float(v) for v in batch.aminmax())
            if not (low >= 0 and high <= 1):
                raise ValueError(f"images: expected values in [0, 1], got {low:g} to {high:g}")
        points = self._landmarks(landmarks, batch) if self.needs_landmarks else None
        ids = _sample_ids(sample_ids, batch)
        if batch.device.type != "cpu" or len(batch) <= _CHUNK:
            return self._cover(batch, points, ids)
        chunks = [slice(k, k + _CHUNK) for k in range(0, len(batch), _CHUNK)]
        parts = [self._cover(batch[c], None if points is None else points[c], ids[c]) for c in chunks]
        return Covered(torch.cat([part.images for part in parts]), torch.cat([part.mask for part in parts]))

    @abstractmethod
    def _cover(self, images: Tensor, landmarks: Tensor | None, ids: Tensor) -> Covered: ...

    def _landmarks(self, landmarks: Any, images: Tensor) -> Tensor:
        if landmarks is None:
            raise ValueError(f"landmarks: expected [{len(images)}, 5, 2] for {type(self).__name__}, got none")
        points = checks.as_tensor(landmarks, "landmarks").to(images.device, torch.float64)
        if tuple(points.shape) != (len(images), 5, 2):
            raise ValueError(f"landmarks: expected shape [{len(images)}, 5, 2], got {list(points.shape)}")
        bad = ~points.isfinite().flatten(1).all(1)
        if bool(bad.any()):
            raise ValueError(f"landmarks: expected finite numbers, image {int(bad.nonzero()[0])} has none")
        flat = (points[:, 1] - points[:, 0]).norm(dim=1) < 1e-6
        if bool(flat.any()):
            raise ValueError(f"landmarks: expected two eyes apart, not in image {int(flat.nonzero()[0])}")
        return points


@dataclass(frozen=True)
class Block(Occlusion):
    """A rectangle.

    Attributes:
        size: (height, width) in pixels.
        at: its centre: (row, column) in pixels; one of :data:`PLACES`, found by the landmarks; None: drawn uniformly
            over the image.  As in an occlusion map, a block of height h about row i covers rows i − h // 2 to
            i − h // 2 + h − 1; it is cut at the image's edge.
        fill: a colour, or "noise": uniform noise in every channel of every pixel.
        seed: of ``at=None`` and of the noise.
    """

    size: tuple[int, int] = (20, 40)
    at: tuple[float, float] | str | None = None
    fill: Colour | str = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        checks.pair(self.size, "size")
        checks.seed(self.seed)
        if isinstance(self.at, str) and self.at not in PLACES:
            raise ValueError(f"at: expected (row, column) or one of {', '.join(PLACES)}, got {self.at!r}")
        if self.fill != "noise":
            _colour(self.fill, 1, "fill")

    @property
    def needs_landmarks(self) -> bool:  # type: ignore[override]
        return isinstance(self.at, str)

    def _cover(self, images: Tensor, landmarks: Tensor | None, ids: Tensor) -> Covered:
        n, channels, height, width = images.shape
        if self.at is None:
            extent = torch.tensor([height, width], dtype=torch.float64, device=images.device)
            centre = (uniform(self.seed, ids, 2) * extent).floor()
        elif isinstance(self.at, str):
            assert landmarks is not None
            centre = landmarks[:, PLACES[self.at]].mean(1).round()
        else:
            centre = torch.tensor(self.at, dtype=torch.float64, device=images.device).round().expand(n, 2)
        start = centre - torch.tensor([s // 2 for s in self.size], device=images.device)
        rows, columns = _pixels(images)
        top, left = start[:, 0, None, None], start[:, 1, None, None]
        mask = (rows >= top) & (rows < top + self.size[0]) & (columns >= left) & (columns < left + self.size[1])
        if self.fill == "noise":
            noise = uniform(self.seed, ids, channels * height * width, stream=1).reshape(images.shape)
            return _paint(images, mask.float(), noise)
        return _paint(images, mask.float(), _colour(self.fill, channels, "fill"))


#: Places of a block by the landmarks whose mean they are.
PLACES: dict[str, list[int]] = {
    "left_eye": [0],
    "right_eye": [1],
    "eyes": [0, 1],
    "nose": [2],
    "mouth": [3, 4],
    "left_mouth": [3],
    "right_mouth": [4],
}

#: Bands across the width, from and to, in distances from the row of the eyes (0) to the row of the mouth (1).  Without
#: overlap, together they are the whole image.
BANDS: dict[str, tuple[float, float]] = {
    "forehead": (-float("inf"), -0.35),
    "eyes": (-0.35, 0.3),
    "nose": (0.3, 0.72),
    "mouth": (0.72, 1.28),
    "chin": (1.28, float("inf")),
}


@dataclass(frozen=True)
class Band(Occlusion):
    """A band across the whole width at a part of the face, as the landmark occlusions of pdsn-landmarks.

    Attributes:
        region: one of :data:`BANDS`, by the mean row of the eyes and that of the mouth's corners.
        fill: a colour; the paper's is white.
    """

    region: str = "eyes"
    fill: Colour = 1.0

    def __post_init__(self) -> None:
        if self.region not in BANDS:
            raise ValueError(f"region: expected one of {', '.join(BANDS)}, got {self.region!r}")
        _colour(self.fill, 1, "fill")

    def _cover(self, images: Tensor, landmarks: Tensor | None, ids: Tensor) -> Covered:
        assert landmarks is not None
        eyes, mouth = landmarks[:, :2, 0].mean(1), landmarks[:, 3:, 0].mean(1)
        if bool((mouth - eyes < 1).any()):
            k = int((mouth - eyes < 1).nonzero()[0])
            raise ValueError(f"landmarks: expected the mouth below the eyes, not in image {k}")
        start, end = (eyes + (mouth - eyes) * edge for edge in BANDS[self.region])
        rows, columns = _pixels(images)
        mask = ((rows >= start[:, None, None]) & (rows < end[:, None, None])).expand(-1, -1, columns.shape[-1])
        return _paint(images, mask.float(), _colour(self.fill, images.shape[1], "fill"))


#: Of a lens: half width, half height, exponent of the superellipse, drop below the eye; in distances between the eyes.
_LENSES = {"round": (0.37, 0.36, 2.0, 0.06), "square": (0.43, 0.31, 5.0, 0.07), "aviator": (0.42, 0.38, 2.6, 0.12)}


@dataclass(frozen=True)
class Sunglasses(Occlusion):
    """Sunglasses, sized and turned by the eyes: two lenses, a bridge and the ends of the temples.

    Attributes:
        style: "round", "square", "aviator", or None: drawn for each sample.
        colour: of lenses and frame.
        opacity: of the lenses, in (0, 1].
        scale: 1.0 covers the brows and the sockets of a frontal face.
        seed: of the style.
    """

    style: str | None = None
    colour: Colour = (0.05, 0.05, 0.06)
    opacity: float = 1.0
    scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.style is not None and self.style not in _LENSES:
            raise ValueError(f"style: expected one of {', '.join(_LENSES)} or None, got {self.style!r}")
        _colour(self.colour, 1, "colour")
        checks.in_range(self.opacity, "opacity", 1 / 255, 1.0)
        checks.in_range(self.scale, "scale", 0.1, 10.0)
        checks.seed(self.seed)

    def _cover(self, images: Tensor, landmarks: Tensor | None, ids: Tensor) -> Covered:
        assert landmarks is not None
        device = images.device
        if self.style is None:
            style = (uniform(self.seed, ids, 1)[:, 0] * len(_LENSES)).long()
        else:
            style = torch.full((len(images),), list(_LENSES).index(self.style), device=device)
        lens = torch.tensor(list(_LENSES.values()), dtype=torch.float64, device=device)[style]
        a, b, power, drop = (v[:, None, None] for v in lens.unbind(1))
        left, right = landmarks[:, 0], landmarks[:, 1]
        middle, across = (left + right) / 2, right - left
        d = across.norm(dim=1)
        rows, columns = _pixels(images)
        r, c = rows - middle[:, 0, None, None], columns - middle[:, 1, None, None]
        # Coordinates in distances between the eyes: x along the line of the eyes, y down from it.
        u = (across / d[:, None] / d[:, None] / self.scale)[..., None, None]
        x, y = c * u[:, 1] + r * u[:, 0], r * u[:, 1] - c * u[:, 0]
        pixel = (d * self.scale)[:, None, None]

        def box(left: Any, right: Any, top: float, bottom: float) -> Tensor:
            # Of |x|: how much of a pixel lies inside.
            edges = (x.abs() - left, right - x.abs(), y - top, bottom - y)
            inside: Tensor = torch.stack(edges).amin(0) * pixel
            return (inside + 0.5).clamp(0, 1)

        lens_x, lens_y = (x.abs() - 0.5 / self.scale), y - drop
        norm = ((lens_x / a).abs() ** power + (lens_y / b).abs() ** power) ** (1 / power)
        lenses = ((1 - norm) * torch.minimum(a, b) * pixel + 0.5).clamp(0, 1)
        bridge = box(-1.0, 0.5 / self.scale - a + 0.06, -0.13, -0.02)
        temples = box(0.5 / self.scale + a - 0.06, 1.05, -0.17, -0.06)
        frame = torch.maximum(bridge, temples)
        # A part that covers less than a hundredth of a pixel is rounding, not an edge.
        alpha = torch.maximum(lenses * self.opacity, frame)
        alpha = torch.where(alpha < 0.01, 0.0, alpha)
        return _paint(images, alpha, _colour(self.colour, images.shape[1], "colour"))


@dataclass(frozen=True, eq=False)
class MaskTemplate:
    """A flat picture of a face mask and where it touches the face.

    Attributes:
        rgba: float64 [4, H, W] in [0, 1].
        anchors: float64 [6, 2], (row, column): a, b, c from left to right along the upper edge, d, e, f along the
            lower.
        name: of the template.
    """

    rgba: Tensor
    anchors: Tensor
    name: str

    def __post_init__(self) -> None:
        if self.rgba.dim() != 3 or self.rgba.shape[0] != 4 or not self.rgba.is_floating_point():
            raise ValueError(f"rgba: expected floating point [4, H, W], got {self.rgba.dtype} {list(self.rgba.shape)}")
        if tuple(self.anchors.shape) != (6, 2) or not bool(self.anchors.isfinite().all()):
            raise ValueError(f"anchors: expected finite numbers [6, 2], got {list(self.anchors.shape)}")

    @classmethod
    def read(cls, folder: str | os.PathLike[str], name: str) -> MaskTemplate:
        """The template ``name`` of a folder with ``<name>.png`` (RGBA) and ``anchors.json``.

        ``anchors.json`` has {"name": {"a": [x, y], …, "f": [x, y]}} in pixels, x to the right, y down.

        Raises:
            DataError: a file is missing or something else; it says which.
        """
        anchors = _read_anchors(Path(folder))
        if name not in anchors:
            raise DataError(
                f"{Path(folder) / 'anchors.json'}: expected the template {name!r}, got {', '.join(anchors)}"
            )
        return cls(_read_rgba(Path(folder) / f"{name}.png"), anchors[name], name)

    @classmethod
    def read_all(cls, folder: str | os.PathLike[str]) -> list[MaskTemplate]:
        """All templates of a folder, in the order of ``anchors.json``."""
        return [cls.read(folder, name) for name in _read_anchors(Path(folder))]

    @classmethod
    def drawn(cls, kind: str = "surgical") -> MaskTemplate:
        """A template that the package draws: one of :data:`DRAWN_MASKS`."""
        if kind not in DRAWN_MASKS:
            raise ValueError(f"kind: expected one of {', '.join(DRAWN_MASKS)}, got {kind!r}")
        return _draw_mask(kind)

    @cached_property
    def levels(self) -> list[Tensor]:
        """The picture with colours times opacity, float32 [4, h, w], each half as large as the one before."""
        premultiplied = torch.cat([self.rgba[:3] * self.rgba[3:], self.rgba[3:]]).float()
        levels = [premultiplied]
        while min(levels[-1].shape[1:]) >= 16:
            levels.append(F.avg_pool2d(levels[-1][None], 2, ceil_mode=True, count_include_pad=False)[0])
        return levels


#: Face masks that the package draws.
DRAWN_MASKS = ("surgical", "cloth", "respirator")


@dataclass(frozen=True)
class FaceMask(Occlusion):
    """A face mask warped to the face by six points along its edges.

    The points on the face follow from the five landmarks (:func:`mask_points`); between them the picture is bent as a
    thin plate.

    Attributes:
        template: one of :data:`DRAWN_MASKS`, a :class:`MaskTemplate`, or several to draw from for each sample; None:
            all drawn ones.
        seed: of that draw.
    """

    template: str | MaskTemplate | Sequence[str | MaskTemplate] | None = "surgical"
    seed: int = 0

    def __post_init__(self) -> None:
        checks.seed(self.seed)
        _ = self.templates

    @cached_property
    def templates(self) -> list[MaskTemplate]:
        """Those to draw from."""
        given = self.template
        several = list(DRAWN_MASKS) if given is None else [given] if isinstance(given, str | MaskTemplate) else given
        if not several:
            raise ValueError("template: expected at least one, got none")
        return [MaskTemplate.drawn(t) if isinstance(t, str) else t for t in several]

    def _cover(self, images: Tensor, landmarks: Tensor | None, ids: Tensor) -> Covered:
        assert landmarks is not None
        points = mask_points(landmarks)
        across, down = landmarks[:, 1] - landmarks[:, 0], landmarks[:, 3:].mean(1) - landmarks[:, :2].mean(1)
        flat = (across[:, 0] * down[:, 1] - across[:, 1] * down[:, 0]).abs() < across.norm(dim=1)
        if bool(flat.any()):  # the mouth is less than a pixel from the line of the eyes: six points without an area
            k = int(flat.nonzero()[0])
            raise ValueError(f"landmarks: expected the mouth apart from the eyes, not in image {k}")
        choice = (uniform(self.seed, ids, 1)[:, 0] * len(self.templates)).long()
        size = (images.shape[2], images.shape[3])
        layers = torch.zeros(len(images), 4, *size, device=images.device)
        for number, template in enumerate(self.templates):
            anchors = template.anchors.to(images.device, torch.float64)
            # The level whose pixels are about as large as the face's, chosen by the width of the upper edge.
            shrink = (anchors[2] - anchors[0]).norm() / (points[:, 2] - points[:, 0]).norm(dim=1).clamp(min=1)
            level = shrink.clamp(min=1).log2().round().long().clamp(max=len(template.levels) - 1)
            for chosen in level[choice == number].unique().tolist():
                rows = ((choice == number) & (level == chosen)).nonzero()[:, 0]
                picture = template.levels[chosen].to(images.device)
                layers[rows] = _bend(picture, anchors / 2**chosen, points[rows], size)
        alpha = layers[:, 3]
        alpha = torch.where(alpha < 0.01, 0.0, alpha).clamp(max=1)
        colour = layers[:, :3] / layers[:, 3:].clamp(min=1e-6)
        if images.shape[1] == 1:
            weights = torch.tensor(_LUMA, device=images.device)
            colour = (colour * weights[:, None, None]).sum(1, keepdim=True)
        return _paint(images, alpha, colour.clamp(0, 1))


def mask_points(landmarks: Tensor) -> Tensor:
    """Where the six anchors of a face mask lie on faces.

    Chin and jaw are not among five landmarks: they are taken from average proportions, in the frame of the eyes and the
    mouth.  The nose's offset from the middle tells how far the head is turned; the half turned away gets narrower.

    Args:
        landmarks: float [N, 5, 2].

    Returns:
        float64 [N, 6, 2], (row, column): a, b, c (cheek, bridge of the nose, cheek), d, e, f (jaw, chin, jaw).
    """
    points = landmarks.double()
    eyes, mouth, nose = points[:, :2].mean(1), points[:, 3:].mean(1), points[:, 2]
    across, down = points[:, 1] - points[:, 0], mouth - eyes
    distance = across.norm(dim=1, keepdim=True)
    x = across / distance
    # Turning shortens the distance between the eyes but not that to the mouth, and the other way round for nodding.
    size = torch.maximum(distance, down.norm(dim=1, keepdim=True))
    along = ((nose - eyes) * down).sum(1, keepdim=True) / (down * down).sum(1, keepdim=True).clamp(min=1e-12)
    turn = ((nose - eyes - along * down) * x).sum(1, keepdim=True) / size
    # The nose sticks out by about 0.35, the middle of eyes and mouth by about 0.7 of half the head's width: as the head
    # turns, its outline shifts against that middle by about twice what the nose does.
    left, right = (size * (1.02 + sign * 2 * turn).clamp(0.45, 1.4) for sign in (1, -1))
    cheek, jaw = eyes + 0.38 * down, eyes + 1.12 * down
    return torch.stack(
        [
            cheek - left * x,
            eyes + 0.62 * (nose - eyes),
            cheek + right * x,
            jaw - 0.80 * left * x,
            eyes + 1.66 * down + 0.5 * turn * size * x,
            jaw + 0.80 * right * x,
        ],
        1,
    )


@dataclass(frozen=True)
class Together(Occlusion):
    """Several occlusions, one over the other; the mask is where any of them covers."""

    parts: tuple[Occlusion, ...] = ()

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("parts: expected at least one occlusion, got none")

    @property
    def needs_landmarks(self) -> bool:  # type: ignore[override]
        return any(part.needs_landmarks for part in self.parts)

    def _cover(self, images: Tensor, landmarks: Tensor | None, ids: Tensor) -> Covered:
        mask = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool, device=images.device)
        for part in self.parts:
            images, covered = part(images, landmarks, ids)
            mask = mask | covered
        return Covered(images, mask)


def occlusion(text: str, seed: int = 0) -> Occlusion:
    """An occlusion from its name, as the command line takes it.

    - ``forehead``, ``eyes``, ``nose``, ``mouth``, ``chin``: a white band;
    - ``sunglasses``, ``sunglasses:round`` (``square``, ``aviator``);
    - ``mask`` (drawn masks in turn by sample), ``mask:surgical`` (``cloth``, ``respirator``), ``mask:FOLDER`` (all
      templates of a folder, drawn by sample) or ``mask:FOLDER/NAME``;
    - ``block:20x40`` (anywhere), ``block:20x40@50,30`` (row, column), ``block:20x40@nose`` (see :data:`PLACES`);
    - several joined by ``+``: ``nose+mouth+chin``.

    Raises:
        ValueError: none of these.
    """
    if "+" in text:
        return Together(tuple(occlusion(part, seed) for part in text.split("+")))
    kind, _, rest = text.partition(":")
    if kind in BANDS and not rest:
        return Band(kind)
    if kind == "sunglasses":
        return Sunglasses(rest or None, seed=seed)
    if kind == "mask":
        if not rest or rest in DRAWN_MASKS:
            return FaceMask(rest or None, seed=seed)
        path = Path(rest)
        found = MaskTemplate.read_all(path) if path.is_dir() else [MaskTemplate.read(path.parent, path.name)]
        return FaceMask(found, seed=seed)
    if kind == "block":
        size, at = parse_block(text)
        return Block(size, at, seed=seed)
    raise ValueError(
        f"occlusion: expected {', '.join(BANDS)}, sunglasses[:STYLE], mask[:KIND or FOLDER[/NAME]] or "
        f"block:HEIGHTxWIDTH[@ROW,COLUMN], got {text!r}"
    )


def parse_block(text: str) -> tuple[tuple[int, int], tuple[float, float] | str | None]:
    """Size and place of ``name:20x40``, ``name:20x40@50,30`` or ``name:20x40@nose``."""
    size, _, at = text.partition(":")[2].partition("@")
    place: tuple[float, float] | str | None = at or None
    try:
        height, width = (int(v) for v in size.split("x"))
        if "," in at:
            row, column = (float(v) for v in at.split(","))
            place = row, column
    except ValueError:
        raise ValueError(
            f"occlusion: expected HEIGHTxWIDTH and perhaps @ROW,COLUMN after the colon, got {text!r}"
        ) from None
    return (height, width), place


def describe(cover: Occlusion) -> dict[str, Any]:
    """The settings of an occlusion, for JSON."""
    about: dict[str, Any] = {"kind": type(cover).__name__}
    for field in fields(cover):
        value = getattr(cover, field.name)
        if isinstance(cover, FaceMask) and field.name == "template":
            value = [template.name for template in cover.templates]
        elif isinstance(cover, Together):
            value = [describe(part) for part in cover.parts]
        about[field.name] = value
    return about


def uniform(seed: int, ids: Tensor, count: int, stream: int = 0) -> Tensor:
    """Numbers in [0, 1) that depend on (seed, sample id, stream, number) alone, float64 [N, count]: SplitMix64."""

    def mixed(z: Tensor) -> Tensor:
        for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
            z = (z ^ ((z >> shift) & (2 ** (64 - shift) - 1))) * factor
        return z ^ ((z >> 31) & (2**33 - 1))

    golden = torch.tensor(-0x61C8864680B583EB, device=ids.device)
    key = mixed(seed + golden * (stream + 1))
    z = mixed(ids * golden + key)[:, None] + golden * torch.arange(1, count + 1, device=ids.device)
    return ((mixed(z) >> 11) & (2**53 - 1)).double() / 2**53


# -- drawing -----------------------------------------------------------------------------------------------------


def _sample_ids(given: Any, images: Tensor) -> Tensor:
    if given is None:
        return torch.arange(len(images), device=images.device)
    ids = checks.as_tensor(given, "sample_ids")
    if ids.dtype != torch.int64:
        raise TypeError(f"sample_ids: expected dtype int64, got {str(ids.dtype).removeprefix('torch.')}")
    if tuple(ids.shape) != (len(images),):
        raise ValueError(f"sample_ids: expected shape [{len(images)}], got {list(ids.shape)}")
    return ids.to(images.device)


def _pixels(images: Tensor) -> tuple[Tensor, Tensor]:
    rows = torch.arange(images.shape[2], dtype=torch.float64, device=images.device).view(1, -1, 1)
    return rows, torch.arange(images.shape[3], dtype=torch.float64, device=images.device).view(1, 1, -1)


def _colour(value: Any, channels: int, name: str) -> Tensor:
    """[C, 1, 1]."""
    several = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if len(several) not in (1, 3):
        raise ValueError(f"{name}: expected a number or three (red, green, blue), got {value!r}")
    colour = torch.tensor([checks.in_range(v, name, 0.0, 1.0) for v in several], dtype=torch.float64)
    if channels == 1 and len(several) == 3:
        colour = (colour * torch.tensor(_LUMA, dtype=torch.float64)).sum()[None]
    return colour.expand(channels)[:, None, None]


def _paint(images: Tensor, alpha: Tensor, colour: Tensor) -> Covered:
    """Mix a colour in, as much as ``alpha`` [N, H, W] says; outside ``alpha > 0`` the images stay to the bit."""
    mask = alpha > 0
    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
    alpha, colour, before = alpha.to(dtype), colour.to(images.device, dtype), images.to(dtype)
    if images.dtype == torch.uint8:
        colour = colour * 255
    painted = before + alpha[:, None] * (colour - before)
    if images.dtype == torch.uint8:
        painted = painted.round_()
    return Covered(torch.where(mask[:, None], painted.to(images.dtype), images), mask)


def _bend(picture: Tensor, anchors: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
    """A picture [4, h, w] bent as a thin plate so that its anchors [6, 2] come to lie at points [N, 6, 2]."""
    n = len(points)
    # In units of the mask's size, for a well-conditioned system; solved in float64, evaluated in float32.
    middle, scale = points.mean(1, keepdim=True), (points[:, 2] - points[:, 0]).norm(dim=1)[:, None, None].clamp(min=1)
    centres = (points - middle) / scale
    system = torch.zeros(n, 9, 9, dtype=torch.float64, device=points.device)
    system[:, :6, :6] = _plate((centres[:, :, None] - centres[:, None]).square().sum(-1))
    system[:, :6, 6], system[:, :6, 7:] = 1, centres
    system[:, 6:, :6] = system[:, :6, 6:].mT
    target = torch.cat([anchors, anchors.new_zeros(3, 2)]).expand(n, 9, 2)
    # Places in the picture from -1 to 1, the centres of its outer pixels half a pixel inside.
    span = torch.tensor([picture.shape[1], picture.shape[2]], dtype=torch.float64, device=points.device)
    weights = torch.linalg.solve(system, target) * 2 / span
    weights[:, 6] += 1 / span - 1
    w, c = weights.float(), centres.float()
    axes = [
        (torch.arange(length, dtype=torch.float64, device=points.device) - middle[:, :, k]) / scale[:, 0]
        for k, length in enumerate(size)
    ]
    rows, columns = axes[0].float()[:, :, None], axes[1].float()[:, None, :]
    places = [
        (w[:, 6, k, None, None] + w[:, 7, k, None, None] * rows) + w[:, 8, k, None, None] * columns for k in (0, 1)
    ]
    for a in range(6):
        bump = _plate((rows - c[:, a, 0, None, None]).square() + (columns - c[:, a, 1, None, None]).square())
        for k in (0, 1):
            places[k].addcmul_(bump, w[:, a, k, None, None])
    grid = torch.stack([places[1], places[0]], -1)
    return F.grid_sample(picture.expand(n, *picture.shape), grid, padding_mode="zeros", align_corners=False)


def _plate(square: Tensor) -> Tensor:
    return square * square.clamp(min=1e-30).log()


def _read_anchors(folder: Path) -> dict[str, Tensor]:
    path = folder / "anchors.json"
    try:
        content = json.loads(path.read_bytes())
        points = {name: [[entry[key][1], entry[key][0]] for key in "abcdef"] for name, entry in content.items()}
        anchors = {name: torch.tensor(p, dtype=torch.float64) for name, p in points.items()}
        if any(p.shape != (6, 2) or not bool(p.isfinite().all()) for p in anchors.values()):
            raise ValueError("not six points")
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from error
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: expected {{name: {{a: [x, y], …, f: [x, y]}}}} ({error!r})") from error
    return anchors


def _read_rgba(path: Path) -> Tensor:
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.size[0] * image.size[1] > MAX_PIXELS:
                raise DataError(f"{path}: expected at most {MAX_PIXELS:,} pixels, got {image.size}")
            if image.mode != "RGBA":
                raise DataError(f"{path}: expected an RGBA image, got mode {image.mode}")
            pixels = np.asarray(image)
    except DataError:
        raise
    except Exception as error:  # what Pillow raises on damaged files is not one class
        raise DataError(f"{path}: can't be read as an image ({error})") from error
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).double() / 255


def _draw_mask(kind: str) -> MaskTemplate:
    # In a frame where the mask reaches from -1 to 1 across and from about 0 (bridge) to 1 (chin) down.
    height, width, margin = 320, 480, 60
    unit = (width - 2 * margin) / 2
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    x, y = (columns - (width - 1) / 2) / unit, (rows - 20) / (height - 40)
    side = {"surgical": 0.16, "cloth": 0.20, "respirator": 0.26}[kind]
    corner = {"surgical": 0.70, "cloth": 0.66, "respirator": 0.60}[kind]
    top = side * (1 - np.exp(-2.2 * np.abs(x))) / (1 - np.exp(-2.2))
    bottom = 1 - (1 - corner) * np.abs(x) ** 2.4
    edge = {"surgical": 1.0, "cloth": 1.0, "respirator": 0.98}[kind] - 0.2 * np.clip(y - side, 0, 1)
    inside = np.minimum.reduce([(y - top) * (height - 40), (bottom - y) * (height - 40), (edge - np.abs(x)) * unit])
    alpha = np.clip(inside + 0.5, 0, 1)
    colour = {"surgical": (0.62, 0.80, 0.88), "cloth": (0.16, 0.17, 0.22), "respirator": (0.93, 0.92, 0.89)}[kind]
    shade = 1 - 0.22 * np.abs(x) ** 2 - 0.10 * np.clip(y, 0, 1)
    if kind == "surgical":
        for pleat in (0.36, 0.52, 0.68):
            shade = shade - 0.14 * np.exp(-(((y - pleat - 0.05 * (1 - x**2)) / 0.012) ** 2))
    elif kind == "cloth":
        shade = shade + 0.35 * np.exp(-((x / 0.012) ** 2))
    else:
        shade = shade - 0.12 * np.exp(-(((y - 0.45) / 0.012) ** 2)) - 0.10 * np.exp(-(((y - 0.85) / 0.05) ** 2))
    hem = np.clip(1 - inside / 7, 0, 1) * (0.10 if kind == "cloth" else -0.08)
    rgb = np.clip(np.array(colour)[:, None, None] * (shade + hem), 0, 1)
    # Straps to the ears from the four corners.
    for start, end in ((side, side - 0.12), (corner - 0.04, corner - 0.30)):
        t = (np.abs(x) - 0.8) / (width / 2 / unit - 0.8)
        line = np.abs(y - (start + (end - start) * t)) * (height - 40)
        strap = np.clip(3.5 - line, 0, 1) * (np.abs(x) > 0.8) * (alpha < 0.5)
        rgb = np.where(strap > 0, 0.9 if kind != "cloth" else 0.15, rgb)
        alpha = np.maximum(alpha, strap)
    places = [(side, -1.0), (0.0, 0.0), (side, 1.0), (corner, -0.9), (1.0, 0.0), (corner, 0.9)]
    anchors = [[r * (height - 40) + 20, c * unit + (width - 1) / 2] for r, c in places]
    return MaskTemplate(torch.from_numpy(np.concatenate([rgb, alpha[None]])), torch.tensor(anchors), kind)
