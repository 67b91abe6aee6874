"""Summaries of data sets: counts, sizes, unreadable and repeated files, and a contact sheet."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DataError
from ..progress import Report
from ..progress import progress as show_progress
from .faces import FaceDataset
from .images import probe, recolor


@dataclass(frozen=True)
class Contents:
    """Contents of a data set, as :func:`examine` returns them.

    Attributes:
        kind: class of the data set.
        people: number of people.
        images: number of images.
        per_person: smallest, median and largest number of images of a person.
        examined: number of images that were opened.
        sizes: number of images of each (height, width), the most frequent first.
        formats: number of files of each format and mode ("JPEG RGB"); "pixels" for sets that store no files.
        bytes: total size of the examined files.
        landmarks: number of images with landmarks, or None if the set has none.
        alignment: record of the alignment, or None.
        corrupt: the reason for each image that cannot be read, by name.
        repeated: groups of names whose files are identical.
        others: files in the folder that are not images.
    """

    kind: str
    people: int
    images: int
    per_person: tuple[int, float, int]
    examined: int
    sizes: dict[tuple[int, int], int]
    formats: dict[str, int]
    bytes: int
    landmarks: int | None
    alignment: dict[str, Any] | None
    corrupt: dict[str, str]
    repeated: list[list[str]]
    others: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return the contents as values that JSON can hold."""
        return {**self.__dict__, "sizes": {f"{h}x{w}": count for (h, w), count in self.sizes.items()}}


def examine(dataset: FaceDataset, images: Sequence[int] | None = None, *, progress: bool | Report = True) -> Contents:
    """Open images of a data set and summarize them.

    Args:
        dataset: any data set of faces.
        images: numbers of the images to open. Defaults to all.
        progress: True for a progress bar, False for none, or a function that is called with (done, total).
    """
    chosen = range(len(dataset)) if images is None else images
    sizes: Counter[tuple[int, int]] = Counter()
    formats: Counter[str] = Counter()
    corrupt: dict[str, str] = {}
    same: dict[bytes, list[str]] = {}
    total = 0
    with show_progress("reading", "images", progress) as report:
        for done, k in enumerate(chosen, 1):
            name = dataset.names[k]
            try:
                stored = dataset.encoded(k)
                image = dataset[k].image
                if stored is None:
                    formats["pixels"] += 1
                    stored = image.contiguous().numpy().tobytes()
                else:
                    formats["{0} {2}".format(*probe(stored, dataset.place(k)))] += 1
                total += len(stored)
                same.setdefault(hashlib.blake2b(stored, digest_size=16).digest(), []).append(name)
                sizes[image.shape[1], image.shape[2]] += 1
            except DataError as error:
                corrupt[name] = str(error)
            report(done, len(chosen))
    counts = dataset.counts
    known = dataset.landmarks
    return Contents(
        kind=type(dataset).__name__,
        people=len(dataset.people),
        images=len(dataset),
        per_person=(int(counts.min()), float(counts.double().median()), int(counts.max())),
        examined=len(chosen),
        sizes=dict(sizes.most_common()),
        formats=dict(formats.most_common()),
        bytes=total,
        landmarks=None if known is None else int((~known.isnan().flatten(1).any(1)).sum()),
        alignment=None if dataset.alignment is None else dataset.alignment.as_dict(),
        corrupt=corrupt,
        repeated=[names for names in same.values() if len(names) > 1],
        others=list(getattr(dataset, "others", [])),
    )


def contact_sheet(
    dataset: FaceDataset, rows: int = 5, columns: int = 8, cell: int = 96, *, landmarks: bool = True
) -> Tensor:
    """Draw a contact sheet with faces of as many people as possible.

    An image that cannot be read gives a red cell.

    Args:
        dataset: any data set of faces.
        rows: largest number of rows.
        columns: number of columns.
        cell: side of a cell in pixels. Images are scaled to fit and centered.
        landmarks: marks the landmarks, if there are any.

    Returns:
        uint8 [3, rows · cell, columns · cell].
    """
    for name, value in (("rows", rows), ("columns", columns), ("cell", cell)):
        if not 1 <= value <= 4096:
            raise ValueError(f"{name}: expected 1 to 4096, got {value}")
    shown = _spread(dataset, rows * columns)
    rows = min(rows, -(-len(shown) // columns))
    sheet = torch.full((3, rows * cell, columns * cell), 24, dtype=torch.uint8)
    for place, k in enumerate(shown):
        top, left = (part * cell for part in divmod(place, columns))
        area = sheet[:, top : top + cell, left : left + cell]
        try:
            face = dataset[k]
        except DataError:
            area[:] = torch.tensor([140, 20, 20], dtype=torch.uint8)[:, None, None]
            continue
        image = recolor(face.image, False)
        scale = (cell - 2) / max(image.shape[1:])
        size = [max(1, round(n * scale)) for n in image.shape[1:]]
        small = F.interpolate(image[None].float(), size=size, mode="bilinear", antialias=True, align_corners=False)[0]
        y, x = ((cell - n) // 2 for n in size)
        area[:, y : y + size[0], x : x + size[1]] = small.round().clamp(0, 255).to(torch.uint8)
        if landmarks and face.landmarks is not None:
            for row, column in ((face.landmarks + 0.5) * scale + torch.tensor([y, x])).floor().long().tolist():
                area[:, max(0, row - 1) : max(0, row + 1), max(0, column - 1) : max(0, column + 1)] = torch.tensor(
                    [60, 255, 90], dtype=torch.uint8
                )[:, None, None]
    return sheet


def _spread(dataset: FaceDataset, count: int) -> list[int]:
    """Choose images of people spread over the whole set: one of each person, then second images, and so on."""
    order = torch.argsort(dataset.labels, stable=True)
    starts = dataset.counts.cumsum(0) - dataset.counts
    rank = torch.empty(len(dataset), dtype=torch.int64)  # of each image among its person's
    rank[order] = torch.arange(len(dataset)) - starts[dataset.labels[order]]
    firsts = order[rank[order] == 0]
    if len(firsts) >= count:
        return [int(firsts[i * len(firsts) // count]) for i in range(count)]
    by_rank = torch.argsort(rank[order], stable=True)[:count]
    chosen = order[by_rank]
    return [int(k) for k in chosen[torch.argsort(dataset.labels[chosen], stable=True)]]
