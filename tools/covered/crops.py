"""Faces to train on: aligned crops with a margin, of CelebA, CFP and LFW."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from occfast.covered.regions import TEMPLATE
from occfast.data import Aligned, FaceDataset, Subset, Template, open_dataset
from occfast.data.landmarks import read_table
from occfast.data.lfw import read_people
from occfast.progress import progress

#: Crops are 1.25 times as fine as the network's input and have 16 more pixels at each side, for shifts and turns.
SCALE, MARGIN = 1.25, 16
SIZE = int(TEMPLATE.size[0] * SCALE) + 2 * MARGIN
CROP = Template(
    "covered-crop", (SIZE, SIZE), tuple((r * SCALE + MARGIN, c * SCALE + MARGIN) for r, c in TEMPLATE.points)
)


@dataclass(frozen=True)
class Crops:
    """Aligned crops in memory.

    Attributes:
        images: uint8 [N, 3, SIZE, SIZE].
        landmarks: float64 [N, 5, 2], (row, column) in the crops.
        labels: Person on each image, int64 [N].
        names: Names of the images.
    """

    images: Tensor
    landmarks: Tensor
    labels: Tensor
    names: list[str]


def of(root: Path, part: str) -> FaceDataset:
    """Open one of the sets of photographs: "celeba", "cfp", "lfw-train" or "lfw-test" (the people of LFW's View 1).

    People of CelebA and CFP who are, or may be, in LFW are left out.
    """
    if part.startswith("lfw"):
        view = "peopleDevTrain.txt" if part == "lfw-train" else "peopleDevTest.txt"
        wanted = {name for fold in read_people(root / "lfw" / view) for name in fold}
        whole = open_dataset("lfw", root=root / "lfw", landmarks=root / "lfw" / "landmarks.csv")
        present = wanted & set(whole.people)
        return whole.select(people=present)
    whole = open_dataset("celeba", root=root / part)
    header, rows = read_table(root / part / "exclude_for_lfw.csv", ["identity"])
    column = header.index("identity")
    unwanted = {row[column] for _, row in rows} & set(whole.people)
    return whole.select(exclude=unwanted)


def read(root: Path, part: str, cache: Path) -> Crops:
    """Align the photographs of a set; the result is kept in the folder ``cache``."""
    dataset = of(root, part)
    assert dataset.landmarks is not None
    kept = (~dataset.landmarks.isnan().flatten(1).any(1)).nonzero()[:, 0]
    faces = Aligned(Subset(dataset, kept), CROP, border="repeat", gray=False)
    file = cache / f"{part}.npy"
    if not file.is_file():
        images = np.empty((len(faces), 3, SIZE, SIZE), np.uint8)
        with progress(f"aligning {part}", "images", True) as report:
            for k in range(len(faces)):
                images[k] = faces[k].image.numpy()
                report(k + 1, len(faces))
        cache.mkdir(parents=True, exist_ok=True)
        np.save(file.with_suffix(".new.npy"), images)
        file.with_suffix(".new.npy").rename(file)
    assert faces.landmarks is not None
    return Crops(torch.from_numpy(np.load(file)), faces.landmarks, faces.labels, list(faces.names))


def together(parts: list[Crops]) -> Crops:
    """Join sets of photographs; people of different sets are different."""
    labels, start = [], 0
    for part in parts:
        labels.append(part.labels + start)
        start += int(part.labels.max()) + 1
    return Crops(
        torch.cat([part.images for part in parts]),
        torch.cat([part.landmarks for part in parts]),
        torch.cat(labels),
        [name for part in parts for name in part.names],
    )
