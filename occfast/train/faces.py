"""The faces that a recipe names, and which of them are kept out of training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import data
from ..data import FaceDataset
from ..models.registry import imported
from .recipe import DataPart, ValidationPart

#: Data sets by the names that recipes use.
DATASETS = {"orl": "ORL", "lfw": "LFW", "celeba": "CelebA", "folder": "Folder", "recordio": "RecordIO"}


def open_data(part: DataPart) -> FaceDataset:
    """The data set of a recipe, aligned if it says so.

    Raises:
        ValueError: an unknown name, or arguments that the data set doesn't take.
        DataError: what is there can't be read.
    """
    if part.name in DATASETS:
        make: Any = getattr(data, DATASETS[part.name])
    elif ":" in part.name:
        make = imported(part.name, "data.name")
    else:
        raise ValueError(f"data.name: expected one of {', '.join(DATASETS)} or module:function, got {part.name!r}")
    arguments = dict(part.arguments)
    if part.name == "orl":  # it would align its photographs by itself
        arguments = {"aligned": part.template is None, **arguments}
    elif part.name in DATASETS:
        arguments = {"gray": part.color == "gray", **arguments}
    try:
        faces: FaceDataset = make(*([] if part.root is None else [part.root]), **arguments)
    except TypeError as error:
        raise ValueError(f"data.arguments: {part.name} doesn't take them ({error})") from error
    if part.template is None:
        return faces
    size = None if part.size is None else (part.size[0], part.size[1])
    return data.Aligned(faces, part.template, gray=part.color == "gray", size=size)


def split(faces: FaceDataset, part: ValidationPart, min_images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Numbers of the images for training and for validation, int64, in rising order.

    People with fewer than ``min_images`` images are in neither.  "images": drawn from all, but for one image of each
    person, which stays in training; "people": whole people.

    Raises:
        ValueError: nothing is left to train on.
    """
    random = torch.Generator().manual_seed(seed)
    counts = faces.labels.bincount(minlength=len(faces.people))
    usable = (counts[faces.labels] >= min_images).nonzero()[:, 0]
    people = faces.labels[usable].unique()
    if len(people) < 2:
        raise ValueError(f"data.min_images: expected at least two people with {min_images} images, got {len(people)}")
    order = usable[torch.randperm(len(usable), generator=random)]
    if part.share == 0:
        held = order[:0]
    elif part.by == "people":
        count = max(2, round(part.share * len(people)))
        kept_out = people[torch.randperm(len(people), generator=random)[:count]]
        held = usable[torch.isin(faces.labels[usable], kept_out)]
    else:
        labels = faces.labels[order]
        first = torch.ones(len(order), dtype=torch.bool)
        by_person = labels.argsort(stable=True)
        first[by_person[1:]] = labels[by_person[1:]] != labels[by_person[:-1]]
        held = order[~first][: max(1, round(part.share * len(usable)))]
    rest = usable[~torch.isin(usable, held)]
    if len(faces.labels[rest].unique()) < 2:
        raise ValueError("validation.share: expected at least two people to stay in training")
    return rest, held.sort().values
