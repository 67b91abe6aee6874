"""``python -m bench.pipelines``: images a second from JPEG files to the network's input, beside other ways.

The work is that of a training run: read photographs of 250×250, align the face to 112×112 by five landmarks, mirror,
shift, scale and turn it a little, change contrast and brightness, cover it with a noisy 20×40 block, and scale it to a
float32 batch of 64. Everyone has two processes of one thread for it:

- "occfast": :mod:`occfast.train` as recipes use it. In the first epoch two workers read and align; the images stay
  decoded, as in every run whose images fit in memory, and later epochs start from them.
- "torch, Pillow": a DataLoader with two workers; each image is decoded by Pillow, aligned and moved by one affine
  transform, and changed by NumPy.
- "albumentations": the same workers with OpenCV and albumentations, if it is installed; its block is one of uniform
  noise.
- "kornia": workers decode with Pillow and align; kornia moves and changes batches in the main process.

All keep freed memory, as the commands of occfast do. Rows run in turn; each is the median of the rounds. The files come
from the page cache. By default they are crops of scikit-image's astronaut; ``--lfw`` takes LFW in $OCCFAST_DATA, with
its landmarks. The result is written to ``bench/results/pipelines.json``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bench.harness import RESULTS, environment, installed, write
from bench.loading import write_faces
from occfast import NoisyOccluder
from occfast.allocator import keep_freed_memory
from occfast.data import LFW, Aligned, FaceDataset, Folder, Subset, WithLandmarks
from occfast.data.align import template_named
from occfast.models import Preprocessing
from occfast.train import Augment, Jitter
from occfast.train.batches import FromDisk, InMemory, Shuffled

BATCH, WORKERS, SIDE = 64, 2, 112
TEMPLATE = "arcface-112"
JITTER = Jitter(flip=0.5, shift=0.05, scale=0.1, turn=8.0, gain=0.2, offset=0.1)
BLOCK = (20, 40)
Epoch = Callable[[], Iterator[Tensor]]


class Photographs:
    """Files and landmarks of the photographs.

    Args:
        faces: photographs of any size with landmarks.
        files: the file of each.
    """

    def __init__(self, faces: FaceDataset, files: list[Path]) -> None:
        assert faces.landmarks is not None
        self.faces, self.files = faces, files
        #: (row, column) of the five points of each photograph, and where they lie on an aligned face.
        self.points: NDArray[np.float64] = faces.landmarks.numpy()
        self.wanted = np.asarray(template_named(TEMPLATE).places((SIDE, SIDE)))

    @classmethod
    def generated(cls, folder: Path, count: int) -> Photographs:
        """Write crops of a photograph, whose landmarks are put at the same places."""
        files = write_faces(folder / "one", count, 250)
        faces = Folder(folder)
        points = (template_named(TEMPLATE).places((SIDE, SIDE)) * 1.2 + 60).expand(count, 5, 2)
        return cls(WithLandmarks(faces, points), [faces.path(k) for k in range(len(faces))] if files else [])

    @classmethod
    def of_lfw(cls, folder: Path, count: int) -> Photographs:
        """Take photographs of LFW."""
        faces = LFW(folder)
        return cls(Subset(faces, range(count)), [faces.path(k) for k in range(count)])

    def matrix(self, k: int, random: np.random.Generator) -> NDArray[np.float64]:
        """Return the affine transform from a jittered aligned face to the photograph, [2, 3], for (column, row)."""
        source, target = self.points[k][:, ::-1], self.wanted[:, ::-1]
        a, b = target - target.mean(0), source - source.mean(0)
        scale = complex((a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1]).sum(), (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum())
        scale /= (a**2).sum()
        align = np.array([[scale.real, -scale.imag], [scale.imag, scale.real]])
        angle = np.deg2rad(random.uniform(-JITTER.turn, JITTER.turn))
        size = random.uniform(1 - JITTER.scale, 1 + JITTER.scale)
        side = -1.0 if random.random() < JITTER.flip else 1.0
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * [side, 1] / size
        center = (SIDE - 1) / 2
        shift = random.uniform(-JITTER.shift, JITTER.shift, 2) * SIDE
        linear = align @ turn
        move = source.mean(0) + align @ (center + shift - target.mean(0)) - linear @ [center, center]
        return np.concatenate([linear, move[:, None]], 1)


# -- occfast -----------------------------------------------------------------------------------------------


def of_occfast(photographs: Photographs) -> tuple[Epoch, Epoch]:
    """Return the first epoch and a later one, as a run has them."""
    aligned = Aligned(photographs.faces, TEMPLATE, gray=False)
    numbers = torch.arange(len(aligned))
    how = Preprocessing((SIDE, SIDE), "RGB", 0.5, 0.5)
    augment = Augment(how, JITTER, NoisyOccluder(BLOCK, "normal", seed=0))
    plan, generator = Shuffled(len(aligned), BATCH), torch.Generator().manual_seed(0)
    kept: list[Tensor] = []

    def batches(source: Callable[[Any], Iterator[Tensor]], keep: bool) -> Iterator[Tensor]:
        rows, ids = plan.epoch(0, generator)
        for images, number in zip(source(list(rows)), ids, strict=True):
            if keep:
                kept.append(images)
            uniform = torch.rand(len(images), augment.draws, generator=generator)
            yield augment(images, number, uniform)

    def first() -> Iterator[Tensor]:
        kept.clear()
        yield from batches(FromDisk(aligned, numbers, 3, WORKERS), True)

    def later() -> Iterator[Tensor]:
        images = torch.cat(kept)
        source = InMemory(images[torch.arange(len(aligned)) % len(images)])
        torch.set_num_threads(WORKERS)  # no worker is left
        yield from batches(source, False)
        torch.set_num_threads(1)

    return first, later


# -- the others --------------------------------------------------------------------------------------------


class WithPillow(Dataset):
    """Aligned, jittered and covered faces, float32 [3, 112, 112], by Pillow and NumPy."""

    def __init__(self, photographs: Photographs) -> None:
        self.photographs = photographs

    def __len__(self) -> int:
        return len(self.photographs.files)

    def __getitem__(self, k: int) -> Tensor:
        random = np.random.default_rng(k)
        matrix = self.photographs.matrix(k, random)
        with Image.open(self.photographs.files[k]) as file:
            face = file.convert("RGB").transform(
                (SIDE, SIDE), Image.Transform.AFFINE, tuple(matrix.flatten()), Image.Resampling.BILINEAR
            )
        image = np.asarray(face).astype(np.float32) / 255
        gain, offset = random.uniform(0.8, 1.2), random.uniform(-0.1, 0.1)
        image = np.clip((image - 0.5) * np.float32(gain) + np.float32(0.5 + offset), 0, 1, dtype=np.float32)
        covered(image, random)
        return torch.from_numpy(((image - 0.5) / 0.5).transpose(2, 0, 1))


def covered(image: NDArray[np.float32], random: np.random.Generator) -> None:
    """Draw a noisy block of the paper on [H, W, C], in place."""
    row, column = np.clip(random.normal(SIDE / 2, SIDE / 4, 2), 0, SIDE - 1).astype(int)
    top, left = max(0, row - BLOCK[0] // 2), max(0, column - BLOCK[1] // 2)
    part = image[top : row + BLOCK[0] // 2, left : column + BLOCK[1] // 2]
    level = random.uniform(0, 0.3)
    noise = random.standard_normal(part.shape, dtype=np.float32)
    part[...] = np.clip(random.uniform(0, 1, 3).astype(np.float32) + np.float32(level) * noise, 0, 1)


class WithAlbumentations(WithPillow):
    """The same by OpenCV and albumentations."""

    def __init__(self, photographs: Photographs) -> None:
        import albumentations

        super().__init__(photographs)
        self.change = albumentations.Compose(
            [
                albumentations.RandomBrightnessContrast(0.1, 0.2, p=1.0),
                albumentations.CoarseDropout(
                    num_holes_range=(1, 1), hole_height_range=(20, 20), hole_width_range=(40, 40), fill="random", p=1.0
                ),
                albumentations.Normalize((0.5,) * 3, (0.5,) * 3),
            ]
        )

    def __getitem__(self, k: int) -> Tensor:
        import cv2

        image = cv2.imread(str(self.photographs.files[k]))
        assert image is not None
        matrix = self.photographs.matrix(k, np.random.default_rng(k))
        face = cv2.warpAffine(image, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        changed = self.change(image=cv2.cvtColor(face, cv2.COLOR_BGR2RGB))["image"]
        return torch.from_numpy(changed.transpose(2, 0, 1))


class AlignedByPillow(WithPillow):
    """Aligned faces alone, float32 [3, 112, 112] in [0, 1]."""

    def __getitem__(self, k: int) -> Tensor:
        with Image.open(self.photographs.files[k]) as file:
            matrix = self.photographs.matrix(k, _Still())  # type: ignore[arg-type]
            face = file.convert("RGB").transform(
                (SIDE, SIDE), Image.Transform.AFFINE, tuple(matrix.flatten()), Image.Resampling.BILINEAR
            )
        return torch.from_numpy(np.asarray(face).transpose(2, 0, 1)).float() / 255


class _Still:
    """Draws the middle of every range, so that nothing moves."""

    def uniform(self, low: float, high: float, size: int | None = None) -> Any:
        return (low + high) / 2 if size is None else np.full(size, (low + high) / 2)

    def random(self) -> float:
        return 1.0


def loaded(dataset: Dataset) -> Epoch:
    """Return an epoch of a DataLoader with two workers."""
    loader = DataLoader(dataset, BATCH, shuffle=True, drop_last=True, num_workers=WORKERS)
    return lambda: iter(loader)


def of_kornia(photographs: Photographs) -> Epoch:
    """Return an epoch whose batches kornia changes in the main process."""
    import kornia.augmentation as K

    change = K.AugmentationSequential(
        K.RandomHorizontalFlip(0.5),
        K.RandomAffine(JITTER.turn, (JITTER.shift, JITTER.shift), (1 - JITTER.scale, 1 + JITTER.scale), p=1.0),
        K.ColorJiggle(brightness=JITTER.offset, contrast=JITTER.gain, p=1.0),
        K.RandomErasing((0.0638, 0.0638), (0.5, 0.5), value=0.5, p=1.0),
        K.Normalize(torch.full((3,), 0.5), torch.full((3,), 0.5)),
    )
    epoch = loaded(AlignedByPillow(photographs))
    return lambda: (change(batch) for batch in epoch())


# -- measuring ---------------------------------------------------------------------------------------------


def rate(epoch: Epoch) -> float:
    """Return images a second of an epoch, workers' start included."""
    start, images = time.perf_counter(), 0
    for batch in epoch():
        assert batch.shape[1:] == (3, SIDE, SIDE) and batch.dtype == torch.float32
        images += len(batch)
    return images / (time.perf_counter() - start)


def measured(photographs: Photographs, rounds: int) -> list[dict[str, Any]]:
    """Run every row in turn, and return the median rates with those of the rounds."""
    first, later = of_occfast(photographs)
    rows: dict[str, Epoch] = {
        "occfast, first epoch": first,
        "occfast, later epochs": later,
        "torch, Pillow": loaded(WithPillow(photographs)),
    }
    if installed("albumentations") or installed("albumentationsx"):
        rows["albumentations"] = loaded(WithAlbumentations(photographs))
    if installed("kornia"):
        rows["kornia"] = of_kornia(photographs)
    found: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds):
        for name, epoch in rows.items():
            found[name].append(rate(epoch))
    base = found["torch, Pillow"]
    return [
        {
            "pipeline": name,
            "images_per_second": statistics.median(each),
            "rounds": each,
            "over torch, Pillow": statistics.median(a / b for a, b in zip(each, base, strict=True)),
        }
        for name, each in found.items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.pipelines", description=__doc__.splitlines()[0])
    parser.add_argument("--lfw", action="store_true", help="Photographs and landmarks.csv in $OCCFAST_DATA/lfw.")
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "pipelines.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / "one").mkdir()
        photographs = (
            Photographs.of_lfw(Path(os.environ["OCCFAST_DATA"]) / "lfw", options.count)
            if options.lfw
            else Photographs.generated(Path(temporary), options.count)
        )
        rows = measured(photographs, options.rounds)
    for row in rows:
        print(f"{row['pipeline']:24} {row['images_per_second']:8,.0f} images/s, {row['over torch, Pillow']:.2f}")
    about = environment("pillow", "albumentations", "albumentationsx", "kornia", "opencv-python-headless")
    faces = "LFW" if options.lfw else "scikit-image's astronaut"
    write(
        options.output,
        {**about, "images": len(photographs.files), "faces": faces, "workers": WORKERS, "batch": BATCH, "rows": rows},
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
