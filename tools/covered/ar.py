"""The AR faces of AR_42_30.mat: 100 people with 26 photographs each, 42×30 gray (see occfast.data.ar for the shots)."""

from __future__ import annotations

from pathlib import Path

import torch

from occfast.data import Face, FaceDataset
from occfast.data.matlab import read_mat

#: Points that align all of them, (row, column).
POINTS = ((15.5, 7.5), (15.5, 21.6), (24.7, 14.5), (29.6, 9.7), (29.6, 19.4))


class AR100(FaceDataset):
    """The photographs as a data set; ``numbers`` has AR's number of each, int64 [N], from 1 to 26."""

    def __init__(self, path: Path) -> None:
        pixels = read_mat(path)["DATA"]
        count = pixels.shape[1]
        self.images = torch.from_numpy(pixels.T.reshape(count, 1, 30, 42).swapaxes(2, 3).copy())
        self.numbers = torch.arange(count) % 26 + 1
        self.labels = torch.arange(count) // 26
        self.people = [f"{k + 1:03d}" for k in range(count // 26)]
        self.names = [
            f"{self.people[person]}-{number:02d}"
            for person, number in zip(self.labels.tolist(), self.numbers.tolist(), strict=True)
        ]
        self.landmarks = torch.tensor(POINTS, dtype=torch.float64).expand(count, 5, 2)

    def __getitem__(self, k: int) -> Face:
        k = self._index(k)
        assert self.landmarks is not None
        return Face(self.images[k].expand(3, -1, -1), int(self.labels[k]), self.names[k], self.landmarks[k])
