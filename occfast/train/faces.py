"""Data set of a recipe, and its split into training and validation."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from ..data import Aligned, FaceDataset, Subset, open_dataset
from ..data.images import recolor
from ..data.open import KINDS
from ..data.resize import Resized
from ..errors import DataError
from ..files import read_text, write_atomically
from ..models.registry import check_arguments, imported
from .recipe import DataPart, ValidationPart
from .run import SPLIT

#: Images at most whose pixels a fingerprint reads from disk.
_SAMPLED = 2048


def open_data(part: DataPart) -> FaceDataset:
    """Open the data set that a recipe names.

    With a template the faces are aligned to it; without one, ``data.size`` resizes them.

    Raises:
        ValueError: If the name is unknown, or the data set does not accept the arguments.
        DataError: If the data set cannot be read.
    """
    size = None if part.size is None else (part.size[0], part.size[1])
    gray = part.color == "gray"
    if part.name in KINDS:
        options = {"gray": gray, **part.arguments}
        if part.name == "orl":  # without a template, ORL aligns its photographs by itself
            options.setdefault("aligned", part.template is None)
        aligned_size = None if part.template is None else size
        try:
            faces = open_dataset(part.name, root=part.root, template=part.template, size=aligned_size, **options)
        except TypeError as error:
            raise ValueError(f"data.arguments: {part.name} does not accept them ({error})") from error
    elif ":" in part.name:
        make: Callable[..., FaceDataset] = imported(part.name, "data.name")
        check_arguments(make, part.arguments, f"data.arguments: {part.name}")
        faces = make(*([] if part.root is None else [part.root]), **part.arguments)
        if part.template is not None:
            faces = Aligned(faces, part.template, gray=gray, size=size)
    else:
        raise ValueError(f"data.name: expected one of {', '.join(KINDS)} or module:function, got {part.name!r}")
    return Resized(faces, size, gray=gray) if part.template is None and size is not None else faces


def split(faces: FaceDataset, part: ValidationPart, min_images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Split the images into training and validation.

    An image (``by="images"``) or a person (``by="people"``) is kept out of training if a hash of its name and of the
    seed lies below ``part.share``, so other images or people do not matter. One image of each person always stays in
    training with "images"; at least one image or two people are kept out. People with fewer than ``min_images`` images
    are in neither part.

    Returns:
        Indices of the images for training and for validation, int64, ascending.

    Raises:
        ValueError: If fewer than two people are left to train on.
    """
    counts = faces.labels.bincount(minlength=len(faces.people))
    usable = (counts[faces.labels] >= min_images).nonzero()[:, 0]
    labels = faces.labels[usable]
    people = labels.unique()
    if len(people) < 2:
        raise ValueError(f"data.min_images: expected at least two people with {min_images} images, got {len(people)}")
    if part.share == 0:
        return usable, usable[:0]
    if part.by == "people":
        draws = _draws([faces.people[k] for k in people.tolist()], seed)
        held_people = people[(draws < part.share) | (draws <= draws.sort().values[1])]
        held = torch.isin(labels, held_people)
    else:
        draws = _draws([faces.names[k] for k in usable.tolist()], seed)
        order = draws.argsort(descending=True)
        order = order[labels[order].argsort(stable=True)]
        stays = torch.zeros(len(usable), dtype=torch.bool)  # of each person, the image with the largest draw
        stays[order] = torch.cat([torch.ones(1, dtype=torch.bool), labels[order].diff() != 0])
        held = (draws < part.share) & ~stays
        if not bool(held.any()) and not bool(stays.all()):
            held[draws.masked_fill(stays, 2.0).argmin()] = True
    if len(labels[~held].unique()) < 2:
        raise ValueError("validation.share: expected at least two people to stay in training")
    return usable[~held], usable[held]


def _draws(names: list[str], seed: int) -> Tensor:
    """Return a number in [0, 1) for each name, float64 [N], that depends on the name and the seed alone."""
    numbers = [
        int.from_bytes(
            hashlib.blake2b(f"{seed}/{name}".encode("utf-8", "surrogatepass"), digest_size=6).digest(), "big"
        )
        for name in names
    ]
    return torch.tensor(numbers, dtype=torch.float64) / 2**48


# -- fingerprint -----------------------------------------------------------------------------------------


def fingerprint(
    faces: FaceDataset, rest: Tensor, held: Tensor, gray: bool, pixels: list[Tensor], landmarks: Tensor | None = None
) -> dict[str, str]:
    """Compute digests of the data of a run, to recognize it when the run is resumed.

    Args:
        faces: Data set.
        rest, held: Indices of the images for training and for validation.
        gray: Convert sampled images to gray, else to RGB.
        pixels: Images that are in memory, uint8; all of them count. Otherwise one image of each of up to 2,048 people
            is read.
        landmarks: Landmarks of the images for training that augmentation depends on, float64 [N, 5, 2]; None: on none.

    Returns:
        Digests of "people" (in the order of the classes), "images" (names and people), "split", "sample" (pixels of one
        image of each person), if the images are in memory "pixels", and of "landmarks".
    """
    every = torch.cat([rest, held]).sort().values
    labels = faces.labels[every]
    first = torch.ones(len(every), dtype=torch.bool)
    by_person = labels.argsort(stable=True)
    first[by_person[1:]] = labels[by_person[1:]] != labels[by_person[:-1]]
    sample = every[first]
    sample = sample[:: -(-len(sample) // _SAMPLED)]
    found = {
        "people": _digest(faces.people[k] for k in faces.labels[rest].unique().tolist()),
        "images": _digest(part for row in split_rows(faces, rest, held) for part in row[:2]),
        "split": _digest(faces.names[k] for k in held.tolist()),
        "sample": _digest(recolor(faces[k].image, gray) for k in sample.tolist()),
    }
    if landmarks is not None:
        found["landmarks"] = _digest([landmarks])
    return found | ({"pixels": _digest(pixels)} if pixels else {})


def _digest(parts: Iterable[str | Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(repr(tuple(part.shape)).encode())
            digest.update(part.cpu().contiguous().numpy().data)
        else:
            digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def split_rows(faces: FaceDataset, rest: Tensor, held: Tensor) -> list[tuple[str, str, str]]:
    """Return (name, person, "training" or "validation") of each image, sorted."""
    labels = faces.labels.tolist()
    return sorted(
        (faces.names[k], faces.people[labels[k]], part)
        for indices, part in ((rest, "training"), (held, "validation"))
        for k in indices.tolist()
    )


def write_split(path: Path, faces: FaceDataset, rest: Tensor, held: Tensor) -> None:
    """Write a CSV file with the columns name, person and part ("training" or "validation")."""
    out = io.StringIO(newline="")
    csv.writer(out).writerows([("name", "person", "part"), *split_rows(faces, rest, held)])
    write_atomically(path, out.getvalue().encode("utf-8", "surrogatepass"))


def validation_of(faces: FaceDataset, run: str | Path) -> Subset:
    """Return the images that a run kept out of training.

    Args:
        faces: The data set of the run.
        run: Folder of the run, or its ``split.csv``.

    Raises:
        DataError: If there is no such file, or it is no split of a run.
        ValueError: If the run kept nothing out, or the data set lacks one of these images.
    """
    path = Path(run) / SPLIT if Path(run).is_dir() else Path(run)
    if not path.is_file():
        raise DataError(f"run: expected the folder of a run (--validation-of), which holds its {SPLIT}, got {run}")
    rows = list(csv.reader(io.StringIO(read_text(path), newline="")))
    if not rows or rows[0] != ["name", "person", "part"] or any(len(row) != 3 for row in rows):
        raise DataError(f"{path}: expected the split of a run, with the columns name, person and part")
    held = [(name, person) for name, person, part in rows[1:] if part == "validation"]
    if not held:
        raise ValueError(f"{path}: this run kept no images out of training (validation.share)")
    people = [faces.people[label] for label in faces.labels.tolist()]
    place = {key: k for k, key in enumerate(zip(faces.names, people, strict=True))}
    missing = [name for name, person in held if (name, person) not in place]
    if missing:
        raise ValueError(
            f"dataset: expected the images that {path} keeps out of training, {len(missing)} of {len(held)} are not "
            f"there, such as {missing[0]}"
        )
    return Subset(faces, sorted(place[key] for key in held))


def data_changes(before: dict[str, str], now: dict[str, str], path: Path, rows: list[tuple[str, str, str]]) -> str:
    """Describe how the data of a run differ from those that it was begun with.

    Args:
        before, now: From :func:`fingerprint`.
        path: CSV file of :func:`write_split` of the run.
        rows: Present (name, person, part) of each image.

    Returns:
        A phrase for an error message; "" if nothing differs.
    """
    keys = {key for key in before.keys() & now.keys() if not key.startswith("sets/")}
    if "pixels" in keys:
        keys -= {"sample"}
    different = {key for key in keys if before[key] != now[key]}
    if not different:
        return ""
    changes = _listed_changes(path, rows) if path.is_file() else []
    if not changes and "people" in different:
        changes = ["the people differ"]
    if not changes and different & {"images", "split"}:
        changes = ["names, people or the split of the images differ"]
    what = "landmarks" if different == {"landmarks"} else "pixels"
    return "; ".join(changes or [f"the names are the same, but the {what} of images differ"])


def _listed_changes(path: Path, rows: list[tuple[str, str, str]]) -> list[str]:
    with path.open(newline="", encoding="utf-8", errors="surrogatepass") as file:
        old = {row[0]: tuple(row[1:]) for row in csv.reader(file) if len(row) == 3}
    old.pop("name", None)
    new = {name: (person, part) for name, person, part in rows}
    both = sorted(old.keys() & new.keys())
    groups = {
        "missing": sorted(old.keys() - new.keys()),
        "new": sorted(new.keys() - old.keys()),
        "of another person": [name for name in both if old[name][0] != new[name][0]],
        "moved between training and validation": [name for name in both if old[name][1] != new[name][1]],
    }
    return [
        f"{len(found)} image{'s' * (len(found) > 1)} {change} ({', '.join(found[:2])}{', …' * (len(found) > 2)})"
        for change, found in groups.items()
        if found
    ]
