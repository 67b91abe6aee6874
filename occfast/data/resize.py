"""A data set at another size, without alignment."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .. import checks
from .faces import Face, FaceDataset
from .images import recolor


class Resized(FaceDataset):
    """A data set whose images are resized as they are handed out: for faces that come cropped alike, without landmarks.

    Bilinear, with antialiasing where images get smaller; rows and columns are scaled apart.  What is known of an
    alignment no longer holds.

    Args:
        dataset: any data set of faces.
        size: (height, width) of the result.
        gray: True: gray images [1, H, W]; False: RGB [3, H, W]; None: as the data set hands them out.
    """

    def __init__(self, dataset: FaceDataset, size: tuple[int, int], gray: bool | None = None) -> None:
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
