"""Faces for PDSN: read them, split them, and occlude them as in the tests of the paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import checks
from ..data import Aligned, Alignment, FaceDataset, Template, open_dataset
from ..errors import DataError
from ..models import Preprocessing
from ..occlude.face_masks import FaceMask
from ..occlude.sunglasses import Sunglasses
from ..progress import Report
from ..progress import progress as show_progress
from .regions import Regions, paint

#: Bands across the face, as the regions of LM2.
BANDS = ("forehead", "eyes", "nose", "mouth", "chin")
#: The seven occlusions of Table 1 and the one of its discussion, the bands of nose, mouth and chin together.
OCCLUSIONS = (*BANDS, "face mask", "sunglasses", "nose to chin")
#: Those that people wear.
ACCESSORIES = ("face mask", "sunglasses")
#: Fewest images of a person that give images for training, validation and test.
MIN_IMAGES = 7


@dataclass(frozen=True, eq=False)
class FaceSet:
    """Aligned faces in memory, split into training, validation and test images.

    Attributes:
        images: uint8 [N, C, H, W].
        landmarks: (row, column) in pixels, float64 [N, 5, 2].
        labels: Person on each image, int64 [N].
        people: Names of the people.
        train: Numbers of the training images, int64.
        validation: Numbers of the validation images, int64.
        test: Numbers of the test images, int64. The three sets are disjoint.
        preprocessing: Preprocessing of networks that are trained on these faces.
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
    data: str | Path,
    root: str | Path | None = None,
    *,
    size: tuple[int, int] = (128, 96),
    gray: bool | None = None,
    landmarks: str | Path | None = None,
    min_images: int | None = None,
    alignment: Alignment | None = None,
) -> FaceDataset:
    """Open a data set and align its faces. Images are read on access.

    Args:
        data: Any data set that :func:`occfast.data.open_dataset` opens. Images of an aligned data set are not aligned
            again.
        root: Path of a data set whose kind is ``data``.
        size: (height, width) of the aligned images, in pixels.
        gray: True for gray images, False for RGB. Default: gray if the images of the data set are.
        landmarks: CSV file with the landmarks. Default: those of the data set.
        min_images: Leave out people with fewer images. Default: 10 for "lfw", as in the paper, else 7, the fewest that
            can be split.
        alignment: Alignment, in place of the template "pdsn-128x96" (upright face boxes) at ``size``.

    Raises:
        DataError: The data set is missing or damaged, or has no landmarks.
        ValueError: No person has enough images, or the images are aligned to another size.
    """
    source = open_photographs(data, root, landmarks=landmarks, min_images=min_images)
    if source.landmarks is None:
        raise DataError(
            f"{data}: no landmarks; find them with occfast data landmarks {data} landmarks.csv, then give "
            "--landmarks landmarks.csv"
        )
    first = source[0].image
    if source.alignment is not None:
        if tuple(first.shape[1:]) != tuple(size):
            raise ValueError(f"size: expected {list(first.shape[1:])}, to which {data} is aligned, got {list(size)}")
        if gray is not None and gray != (len(first) == 1):
            raise ValueError(f"gray: expected {len(first) == 1}, as the aligned images of {data} are, got {gray}")
        return source
    gray = len(first) == 1 if gray is None else gray
    if alignment is None:
        return Aligned(source, "pdsn-128x96", size=size, gray=gray)
    template = Template(alignment.template, alignment.size, alignment.points, alignment.transform)
    return Aligned(source, template, border=alignment.border, gray=gray)


def open_photographs(
    data: str | Path,
    root: str | Path | None = None,
    *,
    landmarks: str | Path | None = None,
    min_images: int | None = None,
) -> FaceDataset:
    """Open a data set without aligning it; arguments and errors as for :func:`open_faces`."""
    if min_images is None:
        min_images = 10 if str(data).partition(":")[0].lower() == "lfw" else MIN_IMAGES
    checks.integer(min_images, "min_images", 1)
    source = open_dataset(data, root=root, landmarks=landmarks)
    return source.select(min_images=min_images) if int(source.counts.min()) < min_images else source


def split(labels: Tensor, seed: int, train: float = 0.7, test: float = 0.15) -> tuple[Tensor, Tensor, Tensor]:
    """Split images at random: of the n images of each person, ⌊0.7 n⌋ for training and ⌊0.15 n⌋ for the test.

    The others are for validation. On LFW this gives 2,959 training images, as in the paper, and 566 test images (the
    paper's percentages are multiples of 1 / 566, except those of face masks).

    Args:
        labels: Person on each image, int64 [N].
        seed: Random seed.
        train: Share of training images of each person.
        test: Share of test images of each person.

    Returns:
        Numbers of the training, validation and test images, int64, in increasing order.

    Raises:
        ValueError: One of the sets would be empty.
    """
    random = torch.Generator().manual_seed(checks.seed(seed))
    parts: tuple[list[Tensor], ...] = ([], [], [])
    for person in labels.unique().tolist():
        own = (labels == person).nonzero()[:, 0]
        own = own[torch.randperm(len(own), generator=random)]
        # 1e-9: 0.7 · 10 has to be 7 despite binary rounding.
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
    """Read the images of a data set into memory and split them.

    Args:
        dataset: Aligned faces with landmarks; see :func:`open_faces`.
        seed: Random seed of the split.
        people: Number of people to read, the first ones. Default: all.
        progress: True for a progress bar on the standard error, False for none, or a function of (done, total).

    Raises:
        DataError: An image can't be read, or the data set has no landmarks.
        ValueError: There are too few images to split.
    """
    if dataset.landmarks is None:
        raise DataError(f"{type(dataset).__name__}: expected faces with landmarks, it has none")
    count = len(dataset.people) if people is None else min(checks.integer(people, "people", 1), len(dataset.people))
    kept = (dataset.labels < count).nonzero()[:, 0].tolist()
    images = []
    with show_progress("reading faces", "images", progress) as report:
        for done, k in enumerate(kept):
            images.append(dataset[k].image)
            report(done + 1, len(kept))
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
    """Occlude faces in one of the ways of :data:`OCCLUSIONS`, or not at all ("clean").

    Bands are white and cover the regions of LM2, as in the paper. Masks and sunglasses are drawn by
    :mod:`occfast.occlude`.

    Args:
        name: Name of the occlusion.
        images: uint8 [N, C, H, W].
        landmarks: (row, column) in pixels, float64 [N, 5, 2].
        bands: Regions LM2.
        ids: Sample ids, int64 [N]; random draws depend on them and on the seed alone.
        seed: Random seed.

    Returns:
        Occluded images, uint8 [N, C, H, W], and occluded pixels, bool [N, H, W].

    Raises:
        ValueError: The name is unknown.
    """
    checks.choice(name, "occlusion", ("clean", *OCCLUSIONS))
    if name == "clean":
        return images, torch.zeros(len(images), *images.shape[2:], dtype=torch.bool)
    if name in BANDS or name == "nose to chin":
        chosen = [name] if name in BANDS else ["nose", "mouth", "chin"]
        band = paint(bands.boxes[[bands.names.index(one) for one in chosen]], bands.size).any(0)
        return torch.where(band, torch.tensor(255, dtype=torch.uint8), images), band.expand(len(images), -1, -1)
    draw = FaceMask(None, seed=seed) if name == "face mask" else Sunglasses(seed=seed, flat=True)
    parts = [draw(images[rows], landmarks[rows], ids[rows]) for rows in torch.arange(len(images)).split(64)]
    return torch.cat([part.images for part in parts]), torch.cat([part.mask for part in parts])


def mixed(
    faces: FaceSet, rows: Tensor, bands: Regions, seed: int, occlusions: Sequence[str] = OCCLUSIONS
) -> tuple[Tensor, Tensor]:
    """Return images for the training of the segmentation: clean, and occluded in each of some ways in turn.

    Args:
        faces: The faces.
        rows: Numbers of the images, int64 [N].
        bands: Regions LM2.
        seed: Random seed. The draws differ from those of the test images with the same seed.
        occlusions: Names among :data:`OCCLUSIONS`.

    Returns:
        Clean and occluded images, uint8 [N, C, H, W]; of k occlusions, each (k + 1)th occluded image is clean.
    """
    clean = faces.images[rows]
    covered, kinds = clean.clone(), ("clean", *occlusions)
    for k, name in enumerate(kinds):
        some = torch.arange(k, len(rows), len(kinds))
        if len(some):
            # The test uses `seed`: masks and sunglasses have to be others.
            covered[some] = occlude(name, clean[some], faces.landmarks[rows[some]], bands, rows[some], seed + 1)[0]
    return clean, covered


def face_pixels(landmarks: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the pixels of the face without its surroundings: an ellipse around the five landmarks.

    Its center lies a tenth of the distance from eyes to mouth above the midpoint of both. Its half axes are 1.15
    distances between the eyes, horizontally, and 1.75 from eyes to mouth, vertically. These were chosen by eye on the
    mean face of LFW.

    Args:
        landmarks: (row, column) in pixels, float64 [N, 5, 2].
        size: (height, width) of the images, in pixels.

    Returns:
        bool [N, H, W].
    """
    eyes, mouth = landmarks[:, :2].mean(1), landmarks[:, 3:].mean(1)
    middle = (eyes + mouth) / 2 - 0.1 * (mouth - eyes)
    across = 1.15 * (landmarks[:, 1] - landmarks[:, 0]).norm(dim=1)
    down = 1.75 * (mouth - eyes).norm(dim=1)
    rows = torch.arange(size[0], dtype=torch.float64)[None, :, None] - middle[:, 0, None, None]
    columns = torch.arange(size[1], dtype=torch.float64)[None, None] - middle[:, 1, None, None]
    inside: Tensor = (rows / down[:, None, None]).square() + (columns / across[:, None, None]).square() <= 1
    return inside
