"""The AR faces of AR_42_30.mat: 100 people with 26 photographs each, 42×30 gray (see occfast.data.ar for the shots)."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.drawn_real import POINTS, SHOTS, read_ar100
from occfast.data import Face, FaceDataset


class AR100(FaceDataset):
    """The photographs as a data set; ``numbers`` has AR's number of each, int64 [N], from 1 to 26."""

    def __init__(self, path: Path) -> None:
        images = read_ar100(path)
        people, count = len(images), len(images) * SHOTS
        self.images = images.flatten(0, 1)
        self.numbers = torch.arange(count) % SHOTS + 1
        self.labels = torch.arange(count) // SHOTS
        self.people = [f"{k + 1:03d}" for k in range(people)]
        self.names = [
            f"{self.people[person]}-{number:02d}"
            for person, number in zip(self.labels.tolist(), self.numbers.tolist(), strict=True)
        ]
        self.landmarks = torch.tensor(POINTS, dtype=torch.float64).expand(count, 5, 2)

    def __getitem__(self, k: int) -> Face:
        k = self._index(k)
        assert self.landmarks is not None
        return Face(self.images[k].expand(3, -1, -1), int(self.labels[k]), self.names[k], self.landmarks[k])
