"""What every data set of faces hands out, and the reading and aligning that they share."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DataError


@dataclass(frozen=True)
class Face:
    """One face of a data set.

    Attributes:
        image: uint8 [C, H, W].
        label: number of the person, from 0.
        name: of the image, unique in its data set.
        landmarks: float64 [5, 2], (row, column) in pixels of ``image``: left eye, right eye, nose, left
            and right corner of the mouth, left and right as seen in the image; None where unknown.
    """

    image: Tensor
    label: int
    name: str
    landmarks: Tensor | None


class FaceDataset(ABC):
    """What every data set offers: ``len()``, ``[k]`` a :class:`Face`, iteration in order, and its table of contents.

    The table is known without opening an image, so that samplers, protocols and splits are built at once.

    Attributes:
        names: of the images, unique, [N].
        labels: number of the person on each image, int64 [N], from 0 to ``len(people) - 1``.
        people: name of each person, in the order of the numbers.
    """

    names: Sequence[str]
    labels: Tensor
    people: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def __getitem__(self, k: int) -> Face: ...

    def __iter__(self) -> Iterator[Face]:
        return (self[k] for k in range(len(self)))


#: Where the five landmarks of an aligned 100×100 face lie, (row, column).
TEMPLATE_100 = ((40.0, 31.0), (40.0, 69.0), (60.5, 50.0), (79.0, 33.5), (79.0, 66.5))


def read_pgm(path: Path) -> Tensor:
    """An 8-bit binary PGM (P5) as uint8 [H, W].

    Raises DataError, with the file and the offset, where it is none or ends early.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from error
    space = rb"(?:\s|#[^\n]*\n)+"
    header = re.match(rb"P5%b(\d+)%b(\d+)%b(\d+)\s" % (space, space, space), data)
    if header is None:
        raise DataError(f"{path}: expected the header of a binary PGM (P5) at offset 0, got {data[:16]!r}")
    width, height, largest = map(int, header.groups())
    if not 1 <= largest <= 255:
        raise DataError(f"{path}: expected 8-bit pixels (1 to 255 at offset {header.start(3)}), got {largest}")
    start, need = header.end(), width * height
    if len(data) - start < need:
        raise DataError(f"{path}: expected {need} pixels from offset {start}, got {len(data) - start}")
    return torch.frombuffer(bytearray(data[start : start + need]), dtype=torch.uint8).reshape(height, width)


def similarity(source: Tensor, target: Tensor) -> Tensor:
    """The rotation, scaling and shift that takes ``target`` points to ``source`` points in least squares.

    Args:
        source, target: [K, 2] points, (row, column), K at least 2.

    Returns:
        float64 [2, 3]: ``source ≈ matrix @ (row, column, 1)`` of the target, the way :func:`warp` looks
        pixels up.
    """
    source, target = source.double(), target.double()
    s0, t0 = source.mean(0), target.mean(0)
    s, t = source - s0, target - t0
    a = (s * t).sum() / (t * t).sum()
    b = (s[:, 0] * t[:, 1] - s[:, 1] * t[:, 0]).sum() / (t * t).sum()
    turn = torch.stack([torch.stack([a, b]), torch.stack([-b, a])])
    return torch.cat([turn, (s0 - turn @ t0)[:, None]], 1)


def warp(image: Tensor, matrix: Tensor, size: tuple[int, int]) -> Tensor:
    """Look up, for each pixel of the result, its place in the image: bilinear, edges repeated.

    Args:
        image: uint8 [C, H, W].
        matrix: [2, 3] as from :func:`similarity`: places of pixel (row, column) of the result.
        size: (height, width) of the result.

    Returns:
        uint8 [C, height, width].
    """
    height, width = image.shape[-2:]
    rows, columns = torch.meshgrid(
        torch.arange(size[0], dtype=torch.float64), torch.arange(size[1], dtype=torch.float64), indexing="ij"
    )
    places = torch.stack([rows, columns, torch.ones_like(rows)], -1) @ matrix.double().T
    scale = torch.tensor([height - 1, width - 1], dtype=torch.float64).clamp_min(1)
    grid = (places / scale * 2 - 1).flip(-1)
    out = F.grid_sample(image[None].double(), grid[None], padding_mode="border", align_corners=True)[0]
    return out.round().clamp(0, 255).to(torch.uint8)


def align(image: Tensor, landmarks: Tensor, size: tuple[int, int] = (100, 100)) -> tuple[Tensor, Tensor]:
    """Turn, scale and shift a face so that its landmarks come to lie at :data:`TEMPLATE_100`, scaled to ``size``.

    Returns:
        The aligned image, uint8 [C, *size], and its landmarks, float64 [5, 2].
    """
    template = torch.tensor(TEMPLATE_100, dtype=torch.float64) * (torch.tensor(size, dtype=torch.float64) / 100)
    matrix = similarity(landmarks, template)
    moved = torch.linalg.solve(matrix[:, :2], (landmarks.double() - matrix[:, 2]).T).T
    return warp(image, matrix, size), moved
