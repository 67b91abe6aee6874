"""Resizing without alignment."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .. import checks
from .faces import Face, FaceDataset
from .images import recolor


class Resized(FaceDataset):
    """A data set whose images are resized when they are read, for faces that are cropped uniformly without landmarks.

    Interpolation is bilinear, with antialiasing where images become smaller. Height and width are scaled independently.
    The result has no alignment.

    Args:
        dataset: any data set of faces.
        size: (height, width) of the result.
        gray: True converts to gray, [1, H, W]; False to RGB, [3, H, W]; None keeps the data set's own colors.
    """

    def __init__(self, dataset: FaceDataset, size: tuple[int, int], *, gray: bool | None = None) -> None:
        self.dataset, self.size, self.gray = dataset, checks.pair(size, "size"), gray
        self.names, self.labels, self.people = dataset.names, dataset.labels, dataset.people

    def __getitem__(self, k: int) -> Face:
        face = self.dataset[self._index(k)]
        image = recolor(face.image, self.gray)
        before = torch.tensor(image.shape[1:], dtype=torch.float64)
        resized = F.interpolate(image[None].double(), self.size, mode="bilinear", antialias=True)[0]
        landmarks = face.landmarks
        if landmarks is not None:  # centers of pixels are at whole numbers
            landmarks = (landmarks + 0.5) * torch.tensor(self.size, dtype=torch.float64) / before - 0.5
        return Face(resized.round().clamp(0, 255).to(torch.uint8), face.label, face.name, landmarks)
