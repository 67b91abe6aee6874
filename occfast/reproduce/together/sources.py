"""Faces for both papers together: whom the recognizer is trained on, chosen by and tested with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...data import Face, FaceDataset
from ..graph import fingerprint
from ..trigueros2018.sources import CachedDataset, Condition
from ..trigueros2018.trunk.sources import TrunkSources

#: Images of the default data, for predictions.
SIZES = {"training": 9320, "choosing": 1760, "lfw": 7701, "ar": 1900}


class Joined(FaceDataset):
    """Several data sets as one; nobody is in two of them.

    Args:
        parts: data sets of one alignment with landmarks, by name; the names come before those of images and people.
    """

    def __init__(self, parts: Sequence[tuple[str, FaceDataset]]) -> None:
        self._parts = [part for _, part in parts]
        self.names = [f"{name}/{image}" for name, part in parts for image in part.names]
        self.people = [f"{name}/{person}" for name, part in parts for person in part.people]
        starts = torch.tensor([0, *(len(part.people) for part in self._parts)]).cumsum(0)
        self.labels = torch.cat([part.labels + start for part, start in zip(self._parts, starts, strict=False)])
        found = [part.landmarks for part in self._parts]
        assert all(points is not None for points in found)
        self.landmarks = torch.cat([points for points in found if points is not None])
        self.alignment = self._parts[0].alignment
        self._ends = torch.tensor([len(part) for part in self._parts]).cumsum(0)

    def __getitem__(self, k: int) -> Face:
        k = self._index(k)
        part = int(torch.searchsorted(self._ends, k, right=True))
        within = k - (int(self._ends[part - 1]) if part else 0)
        face = self._parts[part][within]
        return Face(face.image, int(self.labels[k]), self.names[k], face.landmarks)


@dataclass
class TogetherSources(TrunkSources):
    """The data of one run, and the recognizer."""

    scale: str = "together"

    @cached_property
    def training(self) -> FaceDataset:
        """Aligned faces of everybody to train on; nobody of them is in LFW or among those to choose by."""
        return Joined([("train", self.train), ("others", self.others)])

    def images(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return images, labels and landmarks of some faces to train on."""
        faces = self.training
        assert faces.landmarks is not None
        images = torch.stack([faces[k].image for k in rows.tolist()])
        return images, faces.labels[rows], faces.landmarks[rows]

    def tested(self, name: str) -> tuple[CachedDataset, list[Condition]]:
        """Return the faces of "choosing", "lfw" or "ar" and the pairs to compare, by condition."""
        if name == "ar":
            return self.ar
        faces = self.choosing[0] if name == "choosing" else self.pairs[0]
        return faces, [Condition("clean", self.protocol(name))]

    @property
    def fingerprints(self) -> dict[str, Callable[[], str]]:
        """Functions that compute the fingerprint of each data set and of the recognizer."""
        found = super().fingerprints
        return {
            "trunk": found["trunk"],
            "training": lambda: fingerprint(self.training),
            **{name: lambda name=name: fingerprint(self.tested(name)[0]) for name in ("choosing", "lfw", "ar")},  # type: ignore[misc]
        }

    def about(self) -> dict[str, Any]:
        """Describe the data, for the report."""
        conditions = self.ar[1]
        return {
            **super().about(),
            "ar": {"name": self.where("ar"), "conditions": {c.name: len(c.protocol.same) for c in conditions}},
        }
