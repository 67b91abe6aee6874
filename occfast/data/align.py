"""Faces are turned, scaled and shifted so that their landmarks come to lie where a network expects them.

A :class:`Template` is a size and five places.  For each face the transform that takes the places to its landmarks in
least squares is found, and every pixel of the result is looked up in the image: bilinear, one call for a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DataError
from .faces import EncodedFaces, Face, FaceDataset
from .images import recolor

TRANSFORMS = ("similarity", "affine", "box")
BORDERS = ("repeat", "black")
#: Where the five landmarks of an aligned 100×100 face lie, (row, column).
TEMPLATE_100 = ((40.0, 31.0), (40.0, 69.0), (60.5, 50.0), (79.0, 33.5), (79.0, 66.5))


@dataclass(frozen=True)
class Template:
    """Where the landmarks of an aligned face lie.

    Attributes:
        name: of the template.
        size: (height, width) in pixels.
        points: five (row, column): left eye, right eye, nose, left and right corner of the mouth.
        transform: "similarity" (turn, scale, shift), "affine" (any linear map and a shift) or "box" (upright; rows and
            columns scaled apart, as a face box is resized).
    """

    name: str
    size: tuple[int, int]
    points: tuple[tuple[float, float], ...]
    transform: str = "similarity"

    def scaled(self, size: tuple[int, int]) -> Template:
        """The same places, at another size, (height, width)."""
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"size: expected (height, width) of at least a pixel, got {tuple(size)}")
        return replace(
            self, size=(int(size[0]), int(size[1])), points=tuple((r, c) for r, c in self.places(size).tolist())
        )

    def places(self, size: tuple[int, int] | None = None) -> Tensor:
        """The points, float64 [5, 2], scaled to ``size``."""
        points = torch.tensor(self.points, dtype=torch.float64)
        if size is None or tuple(size) == self.size:
            return points
        scale = torch.tensor(size, dtype=torch.float64) / torch.tensor(self.size, dtype=torch.float64)
        return points * scale


# The points of ArcFace (insightface) and SphereFace (its example code) as published, (x, y) there.
_SPHEREFACE = ((51.6963, 30.2946), (51.5014, 65.5318), (71.7366, 48.0252), (92.3655, 33.5493), (92.2041, 62.7299))
TEMPLATES = {
    template.name: template
    for template in (
        Template("paper-100", (100, 100), TEMPLATE_100),
        Template("arcface-112", (112, 112), tuple((row, column + 8.0) for row, column in _SPHEREFACE)),
        Template("sphereface-112x96", (112, 96), _SPHEREFACE),
        # pdsn-landmarks resizes MTCNN's face box; these are the mean places of MTCNN's landmarks in its boxes on 160
        # images of LFW, made symmetric.
        Template(
            "pdsn-128x96", (128, 96), ((49.4, 26.4), (49.4, 69.6), (74.4, 48.0), (96.5, 29.1), (96.5, 66.9)), "box"
        ),
    )
}


def template_named(template: str | Template) -> Template:
    """A :class:`Template` by its name, or itself."""
    if isinstance(template, Template):
        return template
    if template not in TEMPLATES:
        raise ValueError(f"template: expected one of {', '.join(TEMPLATES)}, got {template!r}")
    return TEMPLATES[template]


def similarity(source: Tensor, target: Tensor) -> Tensor:
    """The rotation, scaling and shift that takes ``target`` points to ``source`` points in least squares.

    Args:
        source, target: [..., K, 2] points, (row, column), K at least 2; leading dimensions broadcast.

    Returns:
        float64 [..., 2, 3]: ``source ≈ matrix @ (row, column, 1)`` of the target, the way :func:`warp` looks
        pixels up.
    """
    s, t, s0, t0 = _centred(source, target)
    spread = (t * t).sum((-2, -1))
    a = (s * t).sum((-2, -1)) / spread
    b = (s[..., 0] * t[..., 1] - s[..., 1] * t[..., 0]).sum(-1) / spread
    turn = torch.stack([torch.stack([a, b], -1), torch.stack([-b, a], -1)], -2)
    return _with_shift(turn, s0, t0)


def affine(source: Tensor, target: Tensor) -> Tensor:
    """The affine map that takes ``target`` points to ``source`` points in least squares; as :func:`similarity`.

    K is at least 3, the target points are not on one line.
    """
    s, t, s0, t0 = _centred(source, target)
    turn = torch.linalg.solve(t.mT @ t, t.mT @ s).mT
    return _with_shift(turn, s0, t0)


def upright(source: Tensor, target: Tensor) -> Tensor:
    """Shifts and scales of rows and columns apart that take ``target`` points to ``source`` points in least squares.

    As :func:`similarity`, without any turn.
    """
    s, t, s0, t0 = _centred(source, target)
    return _with_shift(torch.diag_embed((s * t).sum(-2) / (t * t).sum(-2)), s0, t0)


def _centred(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    source, target = source.double(), target.double().to(source.device)
    s0, t0 = source.mean(-2), target.mean(-2)
    return source - s0[..., None, :], target - t0[..., None, :], s0, t0


def _with_shift(turn: Tensor, s0: Tensor, t0: Tensor) -> Tensor:
    return torch.cat([turn, (s0 - (turn @ t0[..., None])[..., 0])[..., None]], -1)


_SOLVERS = {"similarity": similarity, "affine": affine, "box": upright}


def warp(images: Tensor | Sequence[Tensor], matrices: Tensor, size: tuple[int, int], border: str = "repeat") -> Tensor:
    """Look up, for each pixel of the result, its place in the image: bilinear.

    Args:
        images: uint8 [C, H, W] with matrix [2, 3], or N of them, of any sizes but one C, as [N, C, H, W] or a
            sequence, with matrices [N, 2, 3].
        matrices: as from :func:`similarity`: places in the image of pixel (row, column) of the result.
        size: (height, width) of the result.
        border: "repeat" repeats the edge beyond it, "black" is 0 there.

    Returns:
        uint8 [C, height, width] or [N, C, height, width], on the images' device.
    """
    if border not in BORDERS:
        raise ValueError(f"border: expected one of {BORDERS}, got {border!r}")
    if isinstance(images, Tensor) and images.ndim == 3:
        return warp(images[None], matrices[None], size, border)[0]
    for k, image in enumerate(images):
        if image.ndim != 3 or image.shape[0] != images[0].shape[0] or 0 in image.shape:
            raise ValueError(
                f"images: expected [C, H, W] of one C, got {list(image.shape)} at {k} after {list(images[0].shape)}"
            )
        if image.dtype != torch.uint8:
            raise TypeError(f"images: expected uint8, got {image.dtype} at {k}")
    if len(images) == 0:
        raise ValueError("images: expected at least one, got none")
    if matrices.shape != (len(images), 2, 3):
        raise ValueError(f"matrices: expected shape [{len(images)}, 2, 3], got {list(matrices.shape)}")
    device = images[0].device
    rows = matrices.double().tolist()
    if not all(math.isfinite(v) for matrix in rows for row in matrix for v in row):
        raise ValueError("matrices: expected finite numbers, got others")
    if device.type != "cpu":
        return _sample(*_canvas(images), rows, size, border)
    # On a CPU an image after the other, and of each the part that is looked at, stays in the cache.
    parts = [_sample(*_cut(image, matrix, size), size, border) for image, matrix in zip(images, rows, strict=True)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


Matrix = list[list[float]]


def _cut(image: Tensor, matrix: Matrix, size: tuple[int, int]) -> tuple[Tensor, None, list[Matrix]]:
    """The part [1, C, h, w] of an image that is looked at, and the matrix for it; all if that is more than half."""
    spans = []
    for (down, across, start), length in zip(matrix, image.shape[1:], strict=True):
        ends = (down * (size[0] - 1), across * (size[1] - 1))
        low = min(max(math.floor(start + min(0.0, ends[0]) + min(0.0, ends[1])), 0), length - 1)
        high = min(math.ceil(start + max(0.0, ends[0]) + max(0.0, ends[1])), length - 1)
        spans.append((low, max(low, high) + 1))
    (top, bottom), (left, right) = spans
    if 2 * (bottom - top) * (right - left) > image.shape[1] * image.shape[2]:
        return image[None], None, [matrix]
    moved = [[*row[:2], row[2] - first] for row, first in zip(matrix, (top, left), strict=True)]
    return image[None, :, top:bottom, left:right], None, [moved]


def _canvas(images: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Images [N, C, H, W] and, where their sizes differ, each one's last row and column, [N, 2]; zeros beyond."""
    if isinstance(images, Tensor):
        return images, None
    shapes = [image.shape[1:] for image in images]
    if len(set(shapes)) == 1:
        return torch.stack(list(images)), None
    height, width = (max(shape[axis] for shape in shapes) for axis in (0, 1))
    canvas = images[0].new_zeros(len(images), images[0].shape[0], height, width)
    for place, image in zip(canvas, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return canvas, torch.tensor(shapes, dtype=torch.float64, device=canvas.device) - 1


@lru_cache(maxsize=64)
def _steps(length: int, device: torch.device) -> Tensor:
    return torch.arange(length, dtype=torch.float64, device=device)


def _sample(images: Tensor, last: Tensor | None, matrices: list[Matrix], size: tuple[int, int], border: str) -> Tensor:
    """One ``grid_sample``, in float64: in float32 some pixels round the other way."""
    if 1 in images.shape[-2:]:  # grid_sample's coordinates can't leave an axis of one pixel
        images = F.pad(images, (0, 1, 0, 1), "replicate" if border == "repeat" else "constant")
    half_height, half_width = ((n - 1) / 2 for n in images.shape[-2:])
    terms = torch.tensor(
        [[[*column, half_width], [*row, half_height]] for row, column in matrices],
        dtype=torch.float64,
        device=images.device,
    )
    a, b, c, half = terms[..., None, None].unbind(2)
    # places[n, (column, row), row, column]: planes, since most of the time goes into passes over them.
    places = (_steps(size[0], images.device)[:, None] * a + _steps(size[1], images.device) * b).add_(c)
    if last is not None and border == "repeat":
        last = last.flip(1)[..., None, None]
        places = places.clamp(torch.zeros_like(last), last)
    grid = places.div_(half).sub_(1).permute(0, 2, 3, 1)
    padding = "border" if border == "repeat" else "zeros"
    out = F.grid_sample(images.double(), grid, padding_mode=padding, align_corners=True)
    return out.round_().to(torch.uint8)


@dataclass(frozen=True)
class Alignment:
    """How images were aligned; stored with data, features and weights, since a mismatch silently costs accuracy.

    Attributes:
        template: name of the template.
        size: (height, width) of the images.
        points: places of the five landmarks, (row, column), at that size.
        transform, border: as in :func:`align_faces`.
        color: "RGB" or "grey"; None: either, as the images came.
    """

    template: str
    size: tuple[int, int]
    points: tuple[tuple[float, float], ...]
    transform: str
    border: str
    color: str | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Alignment:
        """What :meth:`as_dict` gave, also by way of JSON; KeyError, TypeError or ValueError for anything else."""
        points = tuple((float(r), float(c)) for r, c in values["points"])
        height, width = values["size"]
        return cls(**{**values, "size": (int(height), int(width)), "points": points})

    @classmethod
    def read(cls, values: object, where: str) -> Alignment | None:
        """From a file: None for None, DataError naming it (``where``) for anything but :meth:`as_dict`'s result."""
        if values is None:
            return None
        try:
            return cls.from_dict(values)  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{where}: expected the record of an alignment, got {str(values)[:80]}") from error


@dataclass(frozen=True)
class Fit:
    """How to align faces by their landmarks.

    Attributes:
        matrices: float64 [N, 2, 3]: place in the original image of (row, column, 1) of the aligned one.
        landmarks: float64 [N, 5, 2] in the aligned images, (row, column).
        alignment: the record of it.
    """

    matrices: Tensor
    landmarks: Tensor
    alignment: Alignment


@dataclass(frozen=True)
class AlignedFaces(Fit):
    """A batch of aligned faces: a :class:`Fit`, and images, uint8 [N, C, height, width]."""

    images: Tensor


def fit(
    landmarks: Tensor,
    template: str | Template = "paper-100",
    *,
    size: tuple[int, int] | None = None,
    transform: str | None = None,
    border: str = "repeat",
    grey: bool | None = None,
    boxes: Tensor | None = None,
) -> Fit:
    """Find the transforms that align faces with these landmarks, [N, 5, 2]; arguments as in :func:`align_faces`.

    Raises:
        ValueError: a wrong argument; landmarks that are not finite or all in one place.
    """
    chosen = template_named(template)
    if size is not None:
        chosen = chosen.scaled(size)
    transform = chosen.transform if transform is None else transform
    for value, allowed, name in ((transform, TRANSFORMS, "transform"), (border, BORDERS, "border")):
        if value not in allowed:
            raise ValueError(f"{name}: expected one of {allowed}, got {value!r}")
    if landmarks.ndim != 3 or landmarks.shape[1:] != (5, 2):
        raise ValueError(f"landmarks: expected shape [N, 5, 2], got {list(landmarks.shape)}")
    if not landmarks.isfinite().all():
        bad = int((~landmarks.isfinite()).any(2).any(1).nonzero()[0])
        raise ValueError(f"landmarks: expected finite numbers, got {landmarks[bad].tolist()} for image {bad}")
    if boxes is not None and (transform != "box" or boxes.shape != (len(landmarks), 4)):
        raise ValueError(
            f"boxes: expected shape [{len(landmarks)}, 4] and transform 'box', got {list(boxes.shape)}, {transform!r}"
        )
    matrices = _SOLVERS[transform](landmarks, chosen.places()) if boxes is None else _from_boxes(boxes, chosen.size)
    flat = torch.linalg.det(matrices[:, :, :2]).abs() <= 1e-12
    if flat.any():
        bad = int(flat.nonzero()[0])
        raise ValueError(f"landmarks: expected five different places, got {landmarks[bad].tolist()} for image {bad}")
    moved = torch.linalg.solve(matrices[:, :, :2], (landmarks.double() - matrices[:, None, :, 2]).mT).mT
    color = None if grey is None else "grey" if grey else "RGB"
    return Fit(matrices, moved, Alignment(chosen.name, chosen.size, chosen.points, transform, border, color))


def _from_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The matrices that resize boxes, pixel areas to pixel areas as image libraries do."""
    top, left, bottom, right = boxes.double().unbind(1)
    down, across, zero = (bottom - top) / size[0], (right - left) / size[1], torch.zeros_like(top)
    rows = torch.stack([down, zero, top + down / 2 - 0.5], 1)
    return torch.stack([rows, torch.stack([zero, across, left + across / 2 - 0.5], 1)], 1)


def align_faces(
    images: Tensor | Sequence[Tensor],
    landmarks: Tensor,
    template: str | Template = "paper-100",
    *,
    size: tuple[int, int] | None = None,
    transform: str | None = None,
    border: str = "repeat",
    grey: bool | None = None,
    boxes: Tensor | None = None,
) -> AlignedFaces:
    """Align a batch of faces, on the device of the images.

    Args:
        images: uint8 [N, C, H, W], or a sequence of N uint8 [C, H, W] of any sizes; C is 3 (RGB) or 1.
        landmarks: [N, 5, 2], (row, column), finite.
        template: a :class:`Template` or its name: "paper-100" (trigueros2018), "arcface-112", "sphereface-112x96",
            "pdsn-128x96".
        size: (height, width) of the result, to which the template's places are scaled; None: its own.
        transform: "similarity", "affine" or "box"; None: the template's own.
        border: "repeat" repeats the image's edge beyond it, "black" is 0 there (as insightface aligns).
        grey: True converts to grey before, False repeats a grey channel thrice, None leaves the channels alone.
        boxes: [N, 4], (top, left, bottom, right) in pixels: with transform "box" these areas are resized, whatever
            the template's places are.

    Returns:
        The images with landmarks, matrices and the record of what was done.

    Raises:
        ValueError, TypeError: a wrong argument; landmarks that are not finite or all in one place.
    """
    found = fit(landmarks, template, size=size, transform=transform, border=border, grey=grey, boxes=boxes)
    if len(landmarks) != len(images):
        raise ValueError(f"landmarks: expected those of {len(images)} images, got {len(landmarks)}")
    images = recolor(images, grey) if isinstance(images, Tensor) else [recolor(image, grey) for image in images]
    out = warp(images, found.matrices, found.alignment.size, border)
    color = {1: "grey", 3: "RGB"}.get(out.shape[1])
    return AlignedFaces(found.matrices, found.landmarks, replace(found.alignment, color=color), out)


def align(image: Tensor, landmarks: Tensor, size: tuple[int, int] = (100, 100)) -> tuple[Tensor, Tensor]:
    """Align one face to the template "paper-100", scaled to ``size``: uint8 [C, H, W] and [5, 2].

    Returns:
        The aligned image, uint8 [C, *size], and its landmarks, float64 [5, 2].
    """
    result = align_faces(image[None], landmarks[None], "paper-100", size=size)
    return result.images[0], result.landmarks[0]


class Aligned(FaceDataset):
    """A data set whose faces are aligned as they are handed out.

    Args:
        dataset: with landmarks for every image.
        template, size, transform, border, boxes: as in :func:`align_faces`.
        grey: True: grey images [1, H, W]; False: RGB [3, H, W]; None: as the data set hands them out.

    Raises:
        DataError: the data set has images without landmarks; it says how many and which is first.  Find them
            (:func:`occfast.data.detect_landmarks`) or leave them out knowingly (:class:`Subset`).
    """

    def __init__(
        self,
        dataset: FaceDataset,
        template: str | Template = "paper-100",
        grey: bool | None = True,
        *,
        size: tuple[int, int] | None = None,
        transform: str | None = None,
        border: str = "repeat",
        boxes: Tensor | None = None,
    ) -> None:
        if grey is not None and isinstance(dataset, EncodedFaces):
            dataset = copy(dataset)
            dataset.grey = grey  # decoded as it is wanted, the same but quicker
        self.dataset, self.grey = dataset, grey
        self.names, self.labels, self.people = dataset.names, dataset.labels, dataset.people
        if dataset.landmarks is None:
            raise DataError(f"{type(dataset).__name__}: expected landmarks to align by, it has none")
        missing = dataset.landmarks.isnan().flatten(1).any(1).nonzero().flatten().tolist()
        if missing:
            raise DataError(
                f"{type(dataset).__name__}: expected landmarks for every image, {len(missing)} of {len(dataset)} have "
                f"none: {dataset.names[missing[0]]} is the first"
            )
        found = fit(dataset.landmarks, template, size=size, transform=transform, border=border, grey=grey, boxes=boxes)
        self.matrices, self.landmarks = found.matrices, found.landmarks
        self.alignment: Alignment = found.alignment

    def __getitem__(self, k: int) -> Face:
        k = self._index(k)
        face = self.dataset[k]
        image = warp(recolor(face.image, self.grey), self.matrices[k], self.alignment.size, self.alignment.border)
        return Face(image, face.label, face.name, self.landmarks_of(k))
