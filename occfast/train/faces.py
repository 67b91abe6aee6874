"""The faces that a recipe names, and which of them are kept out of training."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data import Aligned, FaceDataset, open_dataset
from ..data.open import KINDS
from ..models.registry import imported
from .recipe import DataPart, ValidationPart


def open_data(part: DataPart) -> FaceDataset:
    """Open the data set that a recipe names, aligned if the recipe has a template.

    Raises:
        ValueError: if the name is unknown, or the data set does not accept the arguments.
        DataError: if the data set cannot be read.
    """
    size = None if part.size is None or part.template is None else (part.size[0], part.size[1])
    gray = part.color == "gray"
    try:
        if part.name in KINDS:
            options = {"gray": gray, **part.arguments}
            if part.name == "orl":  # without a template, ORL aligns its photographs by itself
                options.setdefault("aligned", part.template is None)
            return open_dataset(part.name, root=part.root, template=part.template, size=size, **options)
        if ":" not in part.name:
            raise ValueError(f"data.name: expected one of {', '.join(KINDS)} or module:function, got {part.name!r}")
        make = imported(part.name, "data.name")
        faces: FaceDataset = make(*([] if part.root is None else [part.root]), **part.arguments)
    except TypeError as error:
        raise ValueError(f"data.arguments: {part.name} doesn't take them ({error})") from error
    return faces if part.template is None else Aligned(faces, part.template, gray=gray, size=size)


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
