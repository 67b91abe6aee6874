"""Face masks, drawn by the package or read from photographed templates."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import checks
from ..errors import DataError
from ..files import read_bytes, read_json
from .base import LUMA, Occlusion, OcclusionResult, paint, uniform
from .frame import FaceFrame


@dataclass(frozen=True, eq=False)
class MaskTemplate:
    """A flat picture of a face mask with six anchor points.

    Attributes:
        rgba: float64 [4, H, W] in [0, 1].
        anchors: float64 [6, 2], (row, column) in pixels: a, b, c from left to right along the upper edge and d, e, f
            along the lower edge.
        name: name of the template.
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
        """Read a template from a folder that holds ``<name>.png`` (RGBA) and ``anchors.json``.

        ``anchors.json`` maps names to anchors, ``{"name": {"a": [x, y], ..., "f": [x, y]}}``, in pixels with x to the
        right and y downward.

        Raises:
            DataError: if a file is missing or malformed.
        """
        anchors = _read_anchors(Path(folder))
        if name not in anchors:
            raise DataError(
                f"{Path(folder) / 'anchors.json'}: expected the template {name!r}, got {', '.join(anchors)}"
            )
        return cls(_read_rgba(Path(folder) / f"{name}.png"), anchors[name], name)

    @classmethod
    def read_all(cls, folder: str | os.PathLike[str]) -> list[MaskTemplate]:
        """Read all templates of a folder, in the order of ``anchors.json``."""
        return [cls.read(folder, name) for name in _read_anchors(Path(folder))]

    @classmethod
    def drawn(cls, kind: str = "surgical") -> MaskTemplate:
        """Draw a template; ``kind`` is one of :data:`DRAWN_MASKS`."""
        if kind not in DRAWN_MASKS:
            raise ValueError(f"kind: expected one of {', '.join(DRAWN_MASKS)}, got {kind!r}")
        return _draw_mask(kind)

    @cached_property
    def levels(self) -> list[Tensor]:
        """Image pyramid of the picture with premultiplied alpha, float32 [4, h, w]; each level halves the size."""
        premultiplied = torch.cat([self.rgba[:3] * self.rgba[3:], self.rgba[3:]]).float()
        levels = [premultiplied]
        while min(levels[-1].shape[1:]) >= 16:
            levels.append(F.avg_pool2d(levels[-1][None], 2, ceil_mode=True, count_include_pad=False)[0])
        return levels


#: Face masks that the package draws.
DRAWN_MASKS = ("surgical", "cloth", "respirator")


@dataclass(frozen=True)
class FaceMask(Occlusion):
    """A face mask, warped to the face by a thin-plate spline through its six anchors.

    :func:`mask_points` estimates the corresponding points on the face from the five landmarks.

    Attributes:
        template: one of :data:`DRAWN_MASKS`, a :class:`MaskTemplate`, or a sequence of them, from which one is drawn at
            random for each sample. None draws from all of :data:`DRAWN_MASKS`.
        seed: seed of the random templates.
    """

    template: str | MaskTemplate | Sequence[str | MaskTemplate] | None = "surgical"
    seed: int = 0

    def __post_init__(self) -> None:
        checks.seed(self.seed)
        _ = self.templates

    @cached_property
    def templates(self) -> list[MaskTemplate]:
        """The templates to draw from."""
        given = self.template
        several = list(DRAWN_MASKS) if given is None else [given] if isinstance(given, str | MaskTemplate) else given
        if not several:
            raise ValueError("template: expected at least one, got none")
        return [MaskTemplate.drawn(t) if isinstance(t, str) else t for t in several]

    def about(self) -> dict[str, Any]:
        """Return the settings, with the templates by name."""
        return {**super().about(), "template": [template.name for template in self.templates]}

    def _occlude(self, images: Tensor, landmarks: Tensor | None, sample_ids: Tensor) -> OcclusionResult:
        assert landmarks is not None
        FaceFrame.of(landmarks).check()  # the six points of a flat face span no area
        points = mask_points(landmarks)
        choice = (uniform(self.seed, sample_ids, 1)[:, 0] * len(self.templates)).long()
        size = (images.shape[2], images.shape[3])
        layers = torch.zeros(len(images), 4, *size, device=images.device)
        for number, template in enumerate(self.templates):
            anchors = template.anchors.to(images.device, torch.float64)
            # Choose the pyramid level whose pixels are about as large as those of the face, by the upper edge's width.
            shrink = (anchors[2] - anchors[0]).norm() / (points[:, 2] - points[:, 0]).norm(dim=1).clamp(min=1)
            level = shrink.clamp(min=1).log2().round().long().clamp(max=len(template.levels) - 1)
            for chosen in level[choice == number].unique().tolist():
                rows = ((choice == number) & (level == chosen)).nonzero()[:, 0]
                picture = template.levels[chosen].to(images.device)
                layers[rows] = _bend(picture, anchors / 2**chosen, points[rows], size)
        alpha = layers[:, 3]
        alpha = torch.where(alpha < 0.01, 0.0, alpha).clamp(max=1)
        color = layers[:, :3] / layers[:, 3:].clamp(min=1e-6)
        if images.shape[1] == 1:
            weights = torch.tensor(LUMA, device=images.device)
            color = (color * weights[:, None, None]).sum(1, keepdim=True)
        return paint(images, alpha, color.clamp(0, 1))


def mask_points(landmarks: Tensor) -> Tensor:
    """Estimate the positions of a face mask's six anchors on faces.

    The five landmarks do not include chin and jaw. Their positions follow from average proportions in the frame of
    the eyes and the mouth, whose half that is turned away is narrower (:class:`~occfast.occlude.frame.FaceFrame`).

    Args:
        landmarks: float [N, 5, 2].

    Returns:
        float64 [N, 6, 2], (row, column): cheek, bridge of the nose, cheek (a, b, c), and jaw, chin, jaw (d, e, f).
    """
    frame = FaceFrame.of(landmarks)
    eyes, x, down, left, right = frame.eyes, frame.across, frame.down, frame.left, frame.right
    nose = landmarks[:, 2].double()
    cheek, jaw = eyes + 0.38 * down, eyes + 1.12 * down
    return torch.stack(
        [
            cheek - left * x,
            eyes + 0.62 * (nose - eyes),
            cheek + right * x,
            jaw - 0.80 * left * x,
            eyes + 1.66 * down + 0.5 * frame.turn * frame.size * x,
            jaw + 0.80 * right * x,
        ],
        1,
    )


def _bend(picture: Tensor, anchors: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
    """Warp a picture [4, h, w] by the thin-plate spline that maps its anchors [6, 2] to points [N, 6, 2]."""
    n = len(points)
    # Normalizing by the mask's size keeps the system well conditioned. It is solved in float64, evaluated in float32.
    middle, scale = points.mean(1, keepdim=True), (points[:, 2] - points[:, 0]).norm(dim=1)[:, None, None].clamp(min=1)
    centers = (points - middle) / scale
    system = torch.zeros(n, 9, 9, dtype=torch.float64, device=points.device)
    system[:, :6, :6] = _plate((centers[:, :, None] - centers[:, None]).square().sum(-1))
    system[:, :6, 6], system[:, :6, 7:] = 1, centers
    system[:, 6:, :6] = system[:, :6, 6:].mT
    target = torch.cat([anchors, anchors.new_zeros(3, 2)]).expand(n, 9, 2)
    # Positions in the picture in [-1, 1], with the centers of its outer pixels half a pixel inside.
    span = torch.tensor([picture.shape[1], picture.shape[2]], dtype=torch.float64, device=points.device)
    weights = torch.linalg.solve(system, target) * 2 / span
    weights[:, 6] += 1 / span - 1
    w, c = weights.float(), centers.float()
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
        content = read_json(path)
        points = {name: [[entry[key][1], entry[key][0]] for key in "abcdef"] for name, entry in content.items()}
        anchors = {name: torch.tensor(p, dtype=torch.float64) for name, p in points.items()}
        if any(p.shape != (6, 2) or not bool(p.isfinite().all()) for p in anchors.values()):
            raise ValueError("not six points")
    except DataError:
        raise
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(f"{path}: expected {{name: {{a: [x, y], …, f: [x, y]}}}} ({error!r})") from error
    return anchors


def _read_rgba(path: Path) -> Tensor:
    from PIL import Image

    content = read_bytes(path, 1 << 30)
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            if image.size[0] * image.size[1] > checks.MAX_PIXELS:
                raise DataError(f"{path}: expected at most {checks.MAX_PIXELS:,} pixels, got {image.size}")
            if image.mode != "RGBA":
                raise DataError(f"{path}: expected an RGBA image, got mode {image.mode}")
            pixels = np.asarray(image)
    except DataError:
        raise
    except Exception as error:  # Pillow raises exceptions of many classes on damaged files
        raise DataError(f"{path}: can't be read as an image ({error})") from error
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).double() / 255


def _draw_mask(kind: str) -> MaskTemplate:
    # x runs across the mask from -1 to 1, y from about 0 (bridge of the nose) to 1 (chin).
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
    color = {"surgical": (0.62, 0.80, 0.88), "cloth": (0.16, 0.17, 0.22), "respirator": (0.93, 0.92, 0.89)}[kind]
    shade = 1 - 0.22 * np.abs(x) ** 2 - 0.10 * np.clip(y, 0, 1)
    if kind == "surgical":
        for pleat in (0.36, 0.52, 0.68):
            shade = shade - 0.14 * np.exp(-(((y - pleat - 0.05 * (1 - x**2)) / 0.012) ** 2))
    elif kind == "cloth":
        shade = shade + 0.35 * np.exp(-((x / 0.012) ** 2))
    else:
        shade = shade - 0.12 * np.exp(-(((y - 0.45) / 0.012) ** 2)) - 0.10 * np.exp(-(((y - 0.85) / 0.05) ** 2))
    hem = np.clip(1 - inside / 7, 0, 1) * (0.10 if kind == "cloth" else -0.08)
    rgb = np.clip(np.array(color)[:, None, None] * (shade + hem), 0, 1)
    # Straps from the four corners to the ears.
    for start, end in ((side, side - 0.12), (corner - 0.04, corner - 0.30)):
        t = (np.abs(x) - 0.8) / (width / 2 / unit - 0.8)
        line = np.abs(y - (start + (end - start) * t)) * (height - 40)
        strap = np.clip(3.5 - line, 0, 1) * (np.abs(x) > 0.8) * (alpha < 0.5)
        rgb = np.where(strap > 0, 0.9 if kind != "cloth" else 0.15, rgb)
        alpha = np.maximum(alpha, strap)
    places = [(side, -1.0), (0.0, 0.0), (side, 1.0), (corner, -0.9), (1.0, 0.0), (corner, 0.9)]
    anchors = [[r * (height - 40) + 20, c * unit + (width - 1) / 2] for r, c in places]
    return MaskTemplate(torch.from_numpy(np.concatenate([rgb, alpha[None]])), torch.tensor(anchors), kind)
