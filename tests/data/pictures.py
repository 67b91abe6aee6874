"""Small pictures and data sets on the disk for the tests of data sets."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from occfast.data import Face, FaceDataset


def pixels(seed: int, height: int = 20, width: int = 16, channels: int = 3) -> np.ndarray:
    """Smooth colors, uint8 [H, W, C], so that JPEG keeps them nearly."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [
        np.sin(x / width * random.uniform(1, 4) + y / height * random.uniform(1, 4) + random.uniform(0, 6))
        for _ in range(channels)
    ]
    return (np.stack(waves, -1) * 100 + 128).astype(np.uint8)


def encode(array: np.ndarray, form: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array.squeeze()).save(out, form, **options)
    return out.getvalue()


def write_faces(root: Path, names: list[str], landmarks: bool = False) -> list[str]:
    """JPEG files of these names under ``root``; with ``landmarks`` a landmarks.csv beside."""
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encode(pixels(seed)))
    if landmarks:
        points = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
        header = ",".join(["image", *(f"{point}_{axis}" for point in points for axis in "xy")])
        rows = [f"{name},5,6,11,6,8,10,5.5,14,10.5,{14 + seed / 10}" for seed, name in enumerate(names)]
        (root / "landmarks.csv").write_text("\n".join([header, *rows]) + "\n")
    return names


class InMemory(FaceDataset):
    """A data set of tensors."""

    def __init__(self, images: list[Tensor], labels: list[int], landmarks: Tensor | None = None) -> None:
        self.images = images
        self.labels = torch.tensor(labels)
        self.people = [f"person {k}" for k in range(max(labels) + 1)]
        self.names = [f"{k:03d}" for k in range(len(images))]
        self.landmarks = landmarks

    def __getitem__(self, k: int) -> Face:
        k = self._index(k)
        return Face(self.images[k], int(self.labels[k]), self.names[k], self.landmarks_of(k))
