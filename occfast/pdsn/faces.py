"""Faces for PDSN: read, split, and occluded by the test occlusions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import FaceDataset, open_dataset
from ..models import Preprocessing
from ..occlude.drawn import Sunglasses
from ..occlude.masks import FaceMask
from ..progress import Report
from ..progress import progress as show_progress
from .regions import Regions, paint

#: Bands across the face, as LM2's regions.
BANDS = ("forehead", "eyes", "nose", "mouth", "chin")


#: The seven occlusions of Table 1, and the one of its discussion: the bands of nose, mouth and chin together.
OCCLUSIONS = (*BANDS, "face mask", "sunglasses", "nose to chin")


@dataclass(frozen=True, eq=False)
class FaceSet:
    """Aligned faces in memory and their split.

    Attributes:
        images: uint8 [N, C, H, W].
        landmarks: float64 [N, 5, 2].
        labels: int64 [N].
        people: names.
        train, validation, test: numbers of images, disjoint, every person in each.
        preprocessing: what networks that are trained on them expect.
    """

    images: Tensor
    landmarks: Tensor
    labels: Tensor
    people: list[str]
    train: Tensor
    validation: Tensor
    test: Tensor
    preprocessing: Preprocessing


def open_faces(
    data: str, root: str | Path | None = None, *, size: tuple[int, int] = (128, 96), gray: bool | None = None
) -> FaceDataset:
    """Face boxes of "lfw" (people with at least 10 images) or "orl"; images are read as they are asked for.

    ``gray``: by default gray for ORL, which has no colors, and RGB for LFW.
    """
    if data not in ("lfw", "orl"):
        raise ValueError(f"data: expected 'lfw' or 'orl', got {data!r}")
    options: dict[str, Any] = {"min_images": 10} if data == "lfw" else {}
    gray = data == "orl" if gray is None else gray
    return open_dataset(data, root=root, template="pdsn-128x96", size=size, gray=gray, **options)


def split(labels: Tensor, seed: int, train: float = 0.7, test: float = 0.15) -> tuple[Tensor, Tensor, Tensor]:
    """Training, validation and test images, int64 in rising order: of each person's n images ⌊0.7 n⌋ for training,
    ⌊0.15 n⌋ for the test, the rest for validation.

    On LFW this gives 2,959 training images, the paper's number, and 566 for the test (its percentages are
    multiples of 1 / 566, but for those of face masks).
    """
    random = torch.Generator().manual_seed(seed)
    parts: tuple[list[Tensor], ...] = ([], [], [])
    for person in labels.unique().tolist():
        own = (labels == person).nonzero()[:, 0]
        own = own[torch.randperm(len(own), generator=random)]
        # 1e-9: 0.7 · 10 is 7, whatever its nearest float is.
        first, last = (math.floor(share * len(own) + 1e-9) for share in (train, test))
        for part, some in zip(parts, (own[:first], own[first + last :], own[first : first + last]), strict=True):
            part.append(some)
    a, b, c = (torch.cat(part).sort().values for part in parts)
    if min(len(a), len(b), len(c)) == 0:
        raise ValueError("labels: expected enough images of each person for training, validation and test")
    return a, b, c


def read_faces(
    dataset: FaceDataset, seed: int, people: int | None = None, *, progress: bool | Report = True
) -> FaceSet:
    """Read all images (of the first so many people) into memory and split them."""
    count = len(dataset.people) if people is None else min(people, len(dataset.people))
    kept = (dataset.labels < count).nonzero()[:, 0].tolist()
    images = []
    with show_progress("reading faces", "images", progress) as report:
        for done, k in enumerate(kept):
            images.append(dataset[k].image)
            report(done + 1, len(kept))
    assert dataset.landmarks is not None
    labels = dataset.labels[kept]
    alignment = None if dataset.alignment is None else dataset.alignment.as_dict()
    channels, height, width = images[0].shape
    preprocessing = Preprocessing((height, width), "gray" if channels == 1 else "RGB", alignment=alignment)
    return FaceSet(
        torch.stack(images),
        dataset.landmarks[kept],
        labels,
        list(dataset.people[:count]),
        *split(labels, seed),
        preprocessing,
    )


def occlude(
    name: str, images: Tensor, landmarks: Tensor, bands: Regions, ids: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """Cover faces in one of the ways of :data:`OCCLUSIONS`, or not ("clean").

    The bands are white and lie where LM2's regions do, as in the paper; masks and sunglasses are drawn by
    :mod:`occfast.occlude`.

    Returns:
        uint8 images, and the covered pixels, bool [N, H, W].
    """
    if name == "clean":
        return images, torch.zeros(len(images), *images.shape[2:], dtype=torch.bool)
    if name in BANDS or name == "nose to chin":
        chosen = [name] if name in BANDS else ["nose", "mouth", "chin"]
        band = paint(bands.boxes[[bands.names.index(one) for one in chosen]], bands.size).any(0)
        return torch.where(band, torch.tensor(255, dtype=torch.uint8), images), band.expand(len(images), -1, -1)
    if name not in ("face mask", "sunglasses"):
        raise ValueError(f"occlusion: expected one of {', '.join(OCCLUSIONS)}, got {name!r}")
    draw = FaceMask(None, seed=seed) if name == "face mask" else Sunglasses(seed=seed)
    parts = [draw(images[rows], landmarks[rows], ids[rows]) for rows in torch.arange(len(images)).split(64)]
    return torch.cat([part.images for part in parts]), torch.cat([part.mask for part in parts])


def mixed(faces: FaceSet, rows: Tensor, bands: Regions, seed: int) -> tuple[Tensor, Tensor]:
    """For the segmentation: clean images, and each covered in one of the ways of the table (or not), in turn."""
    clean = faces.images[rows]
    covered, kinds = clean.clone(), ("clean", *OCCLUSIONS)
    for k, name in enumerate(kinds):
        some = torch.arange(k, len(rows), len(kinds))
        if len(some):
            # Another seed than the test's: other masks and sunglasses.
            covered[some] = occlude(name, clean[some], faces.landmarks[rows[some]], bands, rows[some], seed + 1)[0]
    return clean, covered


def face_pixels(landmarks: Tensor, size: tuple[int, int]) -> Tensor:
    """The face without its surroundings: an ellipse about the five landmarks, bool [N, H, W].

    Its middle lies a tenth of the way from the eyes to the mouth above the midpoint of both; its half axes are 1.15
    distances between the eyes across and 1.75 from eyes to mouth down: chosen by eye on the mean face of LFW.
    """
    eyes, mouth = landmarks[:, :2].mean(1), landmarks[:, 3:].mean(1)
    middle = (eyes + mouth) / 2 - 0.1 * (mouth - eyes)
    across = 1.15 * (landmarks[:, 1] - landmarks[:, 0]).norm(dim=1)
    down = 1.75 * (mouth - eyes).norm(dim=1)
    rows = torch.arange(size[0], dtype=torch.float64)[None, :, None] - middle[:, 0, None, None]
    columns = torch.arange(size[1], dtype=torch.float64)[None, None] - middle[:, 1, None, None]
    inside: Tensor = (rows / down[:, None, None]).square() + (columns / across[:, None, None]).square() <= 1
    return inside
