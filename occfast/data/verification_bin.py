"""Verification sets of insightface: ``lfw.bin``, ``cfp_fp.bin``, ``agedb_30.bin``."""

from __future__ import annotations

import json
import mmap
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from ..files import read_json, write_atomically, writing
from .faces import Alignment, EncodedFaces
from .pickled_pairs import read_pairs, write_pairs
from .recordio import optional


class VerificationBin(EncodedFaces):
    """Pairs of faces in a ``.bin``; pair p consists of the images 2p and 2p + 1. The pickle in it is never executed.

    Such files do not identify people. The two images of a pair of one person share a label, and every other image has a
    label of its own; a person in two pairs has two labels. The alignment is known if ``<stem>.json`` beside the file
    records it, as ``occfast data bin`` writes it.

    Args:
        path: the file.
        gray: as in :class:`EncodedFaces`.

    Attributes:
        pairs: numbers of the images of each pair, int64 [P, 2].
        same: whether each pair shows one person, bool [P].

    Raises:
        DataError: if the file is truncated, or contains anything but lists of images (bytes, or NumPy's uint8 arrays)
            and booleans.
    """

    def __init__(self, path: str | Path, *, gray: bool | None = False) -> None:
        super().__init__(gray=gray)
        self.path = Path(path)
        self._map: mmap.mmap | None = None
        try:
            state = self.path.stat()
        except OSError as error:
            raise DataError(f"{self.path}: can't be read: {error.strerror}") from error
        if not stat.S_ISREG(state.st_mode):
            raise DataError(f"{self.path}: expected a regular file")
        size = self._size = state.st_size
        if size == 0:
            raise DataError(f"{self.path}: truncated: expected a pickle at offset 0, the file is empty")
        self._slices, same = read_pairs(self._content, size, str(self.path))
        if not same:
            raise DataError(f"{self.path}: expected pairs, found none")
        self.same = torch.tensor(same)
        self.pairs = torch.arange(2 * len(same)).reshape(-1, 2)
        own = torch.ones(len(same), 2, dtype=torch.int64)
        own[self.same, 1] = 0
        self.labels = own.flatten().cumsum(0) - 1
        self.names = [f"pair-{pair:05d}-{side}" for pair in range(len(same)) for side in "ab"]
        self.people = [f"{person:05d}" for person in range(int(self.labels[-1]) + 1)]
        about = self.path.with_suffix(".json")
        if about.is_file():
            with optional(about):
                self._read_about(about)

    def _read_about(self, about: Path) -> None:
        values = read_json(about)
        if "bin_bytes" not in values:
            return  # of a .rec of the same name
        if values["bin_bytes"] != self._size:
            raise DataError(f"{about}: expected the record of a file of {self._size} bytes, as {self.path.name} is")
        self.alignment = Alignment.read(values.get("alignment"), str(about))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}  # another process maps the file for itself

    @property
    def _content(self) -> mmap.mmap:
        if self._map is None:
            try:
                with self.path.open("rb") as file:
                    self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise DataError(f"{self.path}: can't be read: {error.strerror}") from error
        return self._map

    def place(self, k: int) -> str:
        """Return the location of image k for error messages."""
        return f"{self.path}, offset {self._slices[k].start}"

    def encoded(self, k: int) -> bytes:
        """Return the stored image file of image k; raise DataError if the file was truncated meanwhile."""
        part = self._slices[k]
        content = self._content
        # Reading mapped memory beyond the end of a file that was truncated meanwhile kills the process.
        if self.path.stat().st_size < self._size:
            raise DataError(f"{self.path}: expected {self._size} bytes as when it was opened first")
        return content[part.start : part.start + part.length]


def write_verification_bin(
    path: str | Path, images: Iterable[bytes], same: Sequence[bool] | Tensor, *, alignment: Alignment | None = None
) -> Path:
    """Write a verification set that insightface reads, atomically and one image at a time.

    Args:
        path: the file.
        images: image files (JPEG, PNG, ...), two for each pair.
        same: whether each pair shows one person.
        alignment: record of how the images are aligned, which is written beside, into ``<stem>.json``.

    Raises:
        ValueError: if there are not two images for each pair, or one has 4 GiB or more; nothing is written.
    """
    flags = [bool(value) for value in same]
    count = 0

    def counted() -> Iterable[bytes]:
        nonlocal count
        for image in images:
            if len(image) >= 1 << 32:
                raise ValueError(f"images: expected less than 4 GiB each, got {len(image):,} bytes at {count}")
            count += 1
            yield image
        if count != 2 * len(flags):
            raise ValueError(f"images: expected {2 * len(flags)}, two a pair, got {count}")

    with writing(path) as file:
        write_pairs(file, counted(), flags)
        if alignment is not None:  # before the file has its name: a whole one has its record
            about = {"bin_bytes": file.tell(), "alignment": alignment.as_dict()}
            write_atomically(Path(path).with_suffix(".json"), json.dumps(about, indent=1).encode())
    return Path(path)
