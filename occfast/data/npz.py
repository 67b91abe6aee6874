"""Faces in one ``.npz`` file, as pixels or as image files."""

from __future__ import annotations

import ast
import json
import math
import stat
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..files import check_texts
from .faces import Alignment, EncodedFaces, Face, check_people, number_people
from .images import recolor

#: Compressed arrays of more bytes together are refused, since they would have to be held in memory.
MAX_COMPRESSED = 4 << 30
_MAX_HEADER = 1 << 16


class Npz(EncodedFaces):
    """Faces in an ``.npz`` file. Arrays that are stored without compression are memory-mapped.

    The file contains these arrays:

    - ``images``: uint8 [N, C, H, W], [N, H, W, C] or [N, H, W] with C = 1 or 3; or instead ``encoded``, uint8 [bytes],
      concatenated image files, and ``offsets``, int64 [N + 1], where they begin and end;
    - ``labels``: integers or texts [N];
    - ``names`` and ``people`` (optional): texts [N] and [largest label + 1];
    - ``landmarks`` (optional): float64 [N, 5, 2], (row, column), NaN for images without landmarks;
    - ``about`` (optional): text, JSON with the alignment.

    Args:
        path: the file.
        gray: as in :class:`EncodedFaces`.

    Raises:
        DataError: if the file is damaged, or an array is missing, has another type or shape, or holds Python objects.
    """

    def __init__(self, path: str | Path, *, gray: bool | None = False) -> None:
        super().__init__(gray=gray)
        self.path = Path(path)
        self._open()
        count = self._count()
        self.people, self.labels = self._people(count)
        names = self._arrays.get("names")
        self.names = [f"{k:06d}" for k in range(count)] if names is None else self._texts("names", count)
        if len(set(self.names)) < count:
            raise DataError(f"{self.path}: expected every name once in 'names', got repeats")
        landmarks = self._arrays.get("landmarks")
        if landmarks is not None:
            if landmarks.shape != (count, 5, 2) or landmarks.dtype.kind != "f":
                raise self._wrong("landmarks", f"floating [{count}, 5, 2]")
            self.landmarks = torch.from_numpy(np.array(landmarks, np.float64))
        about = self._arrays.get("about")
        if about is not None:
            try:
                values = json.loads(str(about))
            except (ValueError, RecursionError) as error:
                raise DataError(f"{self.path}: expected JSON in 'about' ({error})") from error
            self.alignment = Alignment.read(values.get("alignment") if isinstance(values, dict) else 0, str(self.path))

    def _open(self) -> None:
        self._arrays = read_arrays(
            self.path, ("images", "encoded", "offsets", "labels", "names", "people", "landmarks", "about")
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": None}  # another process maps the file for itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def _wrong(self, name: str, expected: str) -> DataError:
        array = self._arrays.get(name)
        got = "none" if array is None else f"{array.dtype} {list(array.shape)}"
        return DataError(f"{self.path}: expected {name!r}, {expected}, got {got}")

    def _count(self) -> int:
        """Check the images and return their number."""
        images, encoded, offsets = (self._arrays.get(name) for name in ("images", "encoded", "offsets"))
        if images is not None:
            last = images.shape[-1] if images.ndim == 4 else 0
            channels = images.shape[1] if images.ndim == 4 and images.shape[1] in (1, 3) else last
            if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and channels not in (1, 3)):
                raise self._wrong("images", "uint8 [N, C, H, W], [N, H, W, C] or [N, H, W] with C 1 or 3")
            self._planes = images.ndim == 4 and images.shape[1] in (1, 3)
            return len(images)
        if encoded is None or encoded.dtype != np.uint8 or encoded.ndim != 1:
            raise self._wrong("encoded", "uint8 [bytes] (or 'images')")
        if offsets is None or offsets.dtype.kind not in "iu" or offsets.ndim != 1 or len(offsets) < 1:
            raise self._wrong("offsets", "integers [N + 1]")
        ends = offsets.astype(np.int64)
        if ends[0] != 0 or ends[-1] != len(encoded) or (np.diff(ends) < 0).any():
            raise DataError(f"{self.path}: expected 'offsets' rising from 0 to {len(encoded)}")
        return len(offsets) - 1

    def _texts(self, name: str, count: int) -> list[str]:
        array = self._arrays[name]
        if array.shape != (count,) or array.dtype.kind != "U":
            raise self._wrong(name, f"texts [{count}]")
        return [str(text) for text in array]

    def _people(self, count: int) -> tuple[list[str], Tensor]:
        labels = self._arrays.get("labels")
        if labels is None or labels.shape != (count,) or labels.dtype.kind not in "iuU" or count == 0:
            raise self._wrong("labels", f"integers or texts [{count}], at least one")
        if labels.dtype.kind == "U":
            return number_people([str(text) for text in labels], str(self.path))
        stored, numbers = np.unique(labels, return_inverse=True)
        if stored[0] < 0:
            raise DataError(f"{self.path}: expected 'labels' that are not negative, got {stored[0]}")
        people = [str(label) for label in stored]
        if "people" in self._arrays:
            named = self._arrays["people"]
            if named.ndim != 1 or len(named) <= int(stored[-1]):
                raise self._wrong("people", f"texts [{int(stored[-1]) + 1}]")
            texts = self._texts("people", len(named))
            people = [texts[int(label)] for label in stored]
            check_people(people, f"{self.path}: 'people'")
        return people, torch.from_numpy(numbers.astype(np.int64))

    def place(self, k: int) -> str:
        """Return the location of image k for error messages."""
        return f"{self.path}, image {k}"

    def encoded(self, k: int) -> bytes | None:
        """Return the stored image file of image k; None where the archive holds pixels."""
        if "images" in self._arrays:
            return None
        begin, end = (int(v) for v in self._arrays["offsets"][k : k + 2])
        return self._arrays["encoded"][begin:end].tobytes()

    def __getitem__(self, k: int) -> Face:
        k = self._index(k)
        if "images" not in self._arrays:
            return super().__getitem__(k)
        pixels = torch.from_numpy(np.array(self._arrays["images"][k]))
        image = pixels[None] if pixels.ndim == 2 else pixels if self._planes else pixels.permute(2, 0, 1)
        image = recolor(image, self.gray)
        return Face(image, int(self.labels[k]), self.names[k], self.landmarks_of(k))


def read_arrays(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Read arrays of an ``.npz`` file, as far as they exist. Arrays without compression are memory-mapped.

    Raises:
        DataError: if the file or an array is damaged, or an array holds Python objects.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"{path}: expected a regular file")
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            members = {info.filename: info for info in archive.infolist()}
            wanted = {name: members[f"{name}.npy"] for name in names if f"{name}.npy" in members}
            arrays: dict[str, np.ndarray] = {}
            held = 0
            for name, info in wanted.items():
                arrays[name] = _read_array(path, file, archive, info, held)
                check_texts(arrays[name], f"{path}: {info.filename}")
                held += 0 if isinstance(arrays[name], np.memmap) else arrays[name].nbytes
            return arrays
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}") from error
    except Exception as error:  # damaged archives make zipfile and zlib raise about anything
        raise DataError(f"{path}: not a readable .npz file ({error})") from error


def _read_array(path: Path, file: BinaryIO, archive: zipfile.ZipFile, member: zipfile.ZipInfo, held: int) -> np.ndarray:
    source = f"{path}: {member.filename}"
    with archive.open(member) as stream:
        start = stream.read(12)
        if start[:6] != b"\x93NUMPY" or len(start) < 12 or start[6] not in (1, 2, 3):
            raise DataError(f"{source}: expected an array of NumPy")
        # Versions 2 and 3 have four bytes of length where version 1 has two.
        length, begin = struct.unpack("<H", start[8:10])[0] + 10, 10
        if start[6] > 1:
            length, begin = struct.unpack("<I", start[8:12])[0] + 12, 12
        if length > _MAX_HEADER:
            raise DataError(f"{source}: expected a header of at most {_MAX_HEADER} bytes, got {length}")
        text = start + stream.read(length - 12)
        shape, fortran, dtype = _parse_header(text[begin:length], source)
        size = math.prod(shape) * dtype.itemsize
        if size != member.file_size - length:
            raise DataError(
                f"{source}: expected {size} bytes for {dtype} {list(shape)}, got {member.file_size - length}"
            )
        order = "F" if fortran else "C"
        if member.compress_type == zipfile.ZIP_STORED and size > 0:
            file.seek(member.header_offset)
            local = file.read(30)
            data = member.header_offset + 30 + sum(struct.unpack("<HH", local[26:30])) + length
            return np.memmap(path, dtype, "r", data, shape, order=order)  # type: ignore[call-overload, no-any-return]
        if held + size > MAX_COMPRESSED:
            raise DataError(
                f"{source}: expected at most {MAX_COMPRESSED:,} bytes once decompressed, got {held + size:,}"
            )
        content = stream.read(size)
        if len(content) != size:
            raise DataError(f"{source}: truncated: expected {size} bytes, got {len(content)}")
        return np.frombuffer(bytearray(content), dtype).reshape(shape, order=order)  # type: ignore[call-overload, no-any-return]


def _parse_header(text: bytes, source: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        values = ast.literal_eval(text.decode("utf-8").strip())
        shape, fortran = tuple(values["shape"]), values["fortran_order"]
        dtype = np.dtype(values["descr"])
        good = all(isinstance(n, int) and n >= 0 for n in shape) and len(shape) <= 8 and dtype.kind in "biufU"
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise DataError(f"{source}: expected the header of an array ({error})") from error
    if not good:
        raise DataError(f"{source}: expected numbers or texts, got {dtype} {list(shape)}; objects are never unpickled")
    return shape, bool(fortran), dtype
