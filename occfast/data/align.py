"""Alignment of faces by their landmarks.

A :class:`Template` is an image size and the positions of five landmarks. For each face, the transform from these
positions to the landmarks of the face is fitted by least squares, and the pixels of the result are interpolated
bilinearly.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import DataError
from .faces import Alignment, EncodedFaces, Face, FaceDataset
from .images import recolor
from .warp import BORDERS, SOLVERS, warp

TRANSFORMS = ("similarity", "affine", "box")
#: Positions of the five landmarks in an aligned face of 100×100 pixels, (row, column).
TEMPLATE_100 = ((40.0, 31.0), (40.0, 69.0), (60.5, 50.0), (79.0, 33.5), (79.0, 66.5))


@dataclass(frozen=True)
class Template:
    """Positions of the landmarks in an aligned face.

    Attributes:
        name: name of the template.
        size: (height, width) in pixels.
        points: five (row, column): left eye, right eye, nose, left and right corner of the mouth.
        transform: "similarity" (rotation, uniform scale and translation), "affine" (any linear map and translation) or
            "box" (no rotation; height and width scaled independently, as when a face box is resized).
    """

    name: str
    size: tuple[int, int]
    points: tuple[tuple[float, float], ...]
    transform: str = "similarity"

    def scaled(self, size: tuple[int, int]) -> Template:
        """Return the template scaled to another (height, width)."""
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"size: expected (height, width) of at least a pixel, got {tuple(size)}")
        return replace(
            self, size=(int(size[0]), int(size[1])), points=tuple((r, c) for r, c in self.places(size).tolist())
        )

    def places(self, size: tuple[int, int] | None = None) -> Tensor:
        """Return the points, float64 [5, 2], scaled to ``size``."""
        points = torch.tensor(self.points, dtype=torch.float64)
        if size is None or tuple(size) == self.size:
            return points
        scale = torch.tensor(size, dtype=torch.float64) / torch.tensor(self.size, dtype=torch.float64)
        return points * scale


# The published points of SphereFace; ArcFace (insightface) shifts them. Published as (x, y).
_SPHEREFACE = ((51.6963, 30.2946), (51.5014, 65.5318), (71.7366, 48.0252), (92.3655, 33.5493), (92.2041, 62.7299))
TEMPLATES = {
    template.name: template
    for template in (
        Template("paper-100", (100, 100), TEMPLATE_100),
        Template("arcface-112", (112, 112), tuple((row, column + 8.0) for row, column in _SPHEREFACE)),
        Template("sphereface-112x96", (112, 96), _SPHEREFACE),
        # pdsn-landmarks resizes MTCNN's face box. These are the mean positions of MTCNN's landmarks in its boxes on 160
        # images of LFW, made symmetric.
        Template(
            "pdsn-128x96", (128, 96), ((49.4, 26.4), (49.4, 69.6), (74.4, 48.0), (96.5, 29.1), (96.5, 66.9)), "box"
        ),
    )
}


def template_named(template: str | Template) -> Template:
    """Return the template of a name, or the given template."""
    if isinstance(template, Template):
        return template
    if template not in TEMPLATES:
        raise ValueError(f"template: expected one of {', '.join(TEMPLATES)}, got {template!r}")
    return TEMPLATES[template]


@dataclass(frozen=True)
class Fit:
    """Transforms that align N faces.

    Attributes:
        matrices: float64 [N, 2, 3], which map (row, column, 1) of the aligned image to (row, column) of the original.
        landmarks: float64 [N, 5, 2], (row, column) in the aligned images.
        alignment: record of the alignment.
    """

    matrices: Tensor
    landmarks: Tensor
    alignment: Alignment


@dataclass(frozen=True)
class AlignedFaces(Fit):
    """A batch of aligned faces: a :class:`Fit` and the images, uint8 [N, C, height, width]."""

    images: Tensor


def fit(
    landmarks: Tensor,
    template: str | Template = "paper-100",
    *,
    size: tuple[int, int] | None = None,
    transform: str | None = None,
    border: str = "repeat",
    gray: bool | None = None,
    boxes: Tensor | None = None,
) -> Fit:
    """Fit the transforms that align faces with these landmarks, [N, 5, 2]; arguments as in :func:`align_faces`.

    Raises:
        ValueError: if an argument is invalid, or landmarks are not finite or coincide.
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
    matrices = SOLVERS[transform](landmarks, chosen.places()) if boxes is None else _from_boxes(boxes, chosen.size)
    flat = torch.linalg.det(matrices[:, :, :2]).abs() <= 1e-12
    if flat.any():
        bad = int(flat.nonzero()[0])
        raise ValueError(f"landmarks: expected five different places, got {landmarks[bad].tolist()} for image {bad}")
    moved = torch.linalg.solve(matrices[:, :, :2], (landmarks.double() - matrices[:, None, :, 2]).mT).mT
    color = None if gray is None else "gray" if gray else "RGB"
    return Fit(matrices, moved, Alignment(chosen.name, chosen.size, chosen.points, transform, border, color))


def _from_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the matrices that resize boxes, with the pixel areas aligned as in image libraries."""
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
    gray: bool | None = None,
    boxes: Tensor | None = None,
) -> AlignedFaces:
    """Align a batch of faces, on the device of the images.

    Args:
        images: uint8 [N, C, H, W], or a sequence of N uint8 [C, H, W] of any sizes; C is 3 (RGB) or 1.
        landmarks: [N, 5, 2], (row, column), finite.
        template: a :class:`Template` or its name: "paper-100" (trigueros2018), "arcface-112", "sphereface-112x96",
            "pdsn-128x96".
        size: (height, width) of the result, to which the template is scaled. None takes the template's size.
        transform: "similarity", "affine" or "box". None takes the template's transform.
        border: values beyond the image: "repeat" repeats its edge, "black" is 0 (as in insightface).
        gray: True converts to gray, False to RGB, None keeps the channels.
        boxes: [N, 4], (top, left, bottom, right) in pixels. With the transform "box", these areas are resized, and the
            template's points are not used.

    Returns:
        The aligned images with their landmarks, transforms and record.

    Raises:
        TypeError: if an argument has the wrong type or dtype.
        ValueError: if an argument is invalid, or landmarks are not finite or coincide.
    """
    found = fit(landmarks, template, size=size, transform=transform, border=border, gray=gray, boxes=boxes)
    if len(landmarks) != len(images):
        raise ValueError(f"landmarks: expected those of {len(images)} images, got {len(landmarks)}")
    images = recolor(images, gray) if isinstance(images, Tensor) else [recolor(image, gray) for image in images]
    out = warp(images, found.matrices, found.alignment.size, border)
    color = {1: "gray", 3: "RGB"}.get(out.shape[1])
    return AlignedFaces(found.matrices, found.landmarks, replace(found.alignment, color=color), out)


def align(image: Tensor, landmarks: Tensor, size: tuple[int, int] = (100, 100)) -> tuple[Tensor, Tensor]:
    """Align one face, uint8 [C, H, W], by its landmarks [5, 2] to the template "paper-100" scaled to ``size``.

    Returns:
        The aligned image, uint8 [C, *size], and its landmarks, float64 [5, 2].
    """
    result = align_faces(image[None], landmarks[None], "paper-100", size=size)
    return result.images[0], result.landmarks[0]


class Aligned(FaceDataset):
    """A data set whose faces are aligned when they are read.

    Args:
        dataset: a data set with landmarks for every image.
        template: as in :func:`align_faces`.
        size, transform, border, boxes: as in :func:`align_faces`.
        gray: True converts to gray, [1, H, W]; False to RGB, [3, H, W]; None keeps the data set's own colors.

    Raises:
        DataError: if the data set has images without landmarks. Detect them with
            :func:`~occfast.data.detect_landmarks`, or leave the images out with :class:`Subset`.
    """

    def __init__(
        self,
        dataset: FaceDataset,
        template: str | Template = "paper-100",
        *,
        size: tuple[int, int] | None = None,
        transform: str | None = None,
        border: str = "repeat",
        gray: bool | None = None,
        boxes: Tensor | None = None,
    ) -> None:
        if isinstance(dataset, EncodedFaces):
            if gray is None:
                gray = dataset.gray
            else:
                dataset = copy(dataset)
                dataset.gray = gray  # decodes to the wanted colors at once, which is faster and gives equal pixels
        self.dataset, self.gray = dataset, gray
        self.names, self.labels, self.people = dataset.names, dataset.labels, dataset.people
        if dataset.landmarks is None:
            root = getattr(dataset, "root", None)
            where = "" if root is None else f" {root} {root}/landmarks.csv"
            raise DataError(
                f"{type(dataset).__name__}: no landmarks to align by; run occfast data landmarks{where}, or pass a "
                "file of landmarks"
            )
        missing = dataset.landmarks.isnan().flatten(1).any(1).nonzero().flatten().tolist()
        if missing:
            raise DataError(
                f"{type(dataset).__name__}: expected landmarks for every image, {len(missing)} of {len(dataset)} have "
                f"none: {dataset.names[missing[0]]} is the first"
            )
        found = fit(dataset.landmarks, template, size=size, transform=transform, border=border, gray=gray, boxes=boxes)
        self.matrices, self.landmarks = found.matrices, found.landmarks
        self.alignment: Alignment = found.alignment

    def __getitem__(self, k: int) -> Face:
        k = self._index(k)
        face = self.dataset[k]
        image = warp(recolor(face.image, self.gray), self.matrices[k], self.alignment.size, self.alignment.border)
        return Face(image, face.label, face.name, self.landmarks_of(k))


def aligned_as(dataset: FaceDataset, alignment: Alignment, *, gray: bool | None = None) -> Aligned:
    """Align a data set as a record says, such as that of a network's training data.

    Args:
        dataset: a data set with landmarks for every image.
        alignment: the record; its color does not matter.
        gray: as in :class:`Aligned`.
    """
    template = Template(alignment.template, alignment.size, alignment.points, alignment.transform)
    return Aligned(dataset, template, gray=gray, border=alignment.border)
