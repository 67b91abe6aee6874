"""Numbers in ONNX files: of the file itself, or of files beside it."""

from __future__ import annotations

import math
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import DataError

#: Types of elements by their number in TensorProto.DataType: dtype, and the field that holds them without raw_data.
_TYPES: dict[int, tuple[str, str]] = {
    1: ("<f4", "float_data"),
    2: ("u1", "int32_data"),
    3: ("i1", "int32_data"),
    5: ("<i2", "int32_data"),
    6: ("<i4", "int32_data"),
    7: ("<i8", "int64_data"),
    9: ("?", "int32_data"),
    10: ("<f2", "int32_data"),
    11: ("<f8", "double_data"),
    16: ("<u2", "int32_data"),  # bfloat16: the upper half of a float32
}
_BFLOAT16 = 16
_FLOAT16 = 10
_LARGEST = 1 << 40
_MOST_DIMENSIONS = 8


class Tensors:
    """Reads the tensors of one file.

    Float16 and bfloat16 become float32, in which networks are computed. All tensors together may take no more than
    twice the size of the files, nor more than the memory of the machine: files can refer to the same bytes often.

    Args:
        path: The ONNX file, beside which external data lie.
        size: Its size in bytes.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._folder = path, Path(os.path.realpath(path.parent))
        self._given, self._taken = size, 0
        self._files: dict[str, int] = {}

    def read(self, tensor: Any, name: str) -> Tensor:
        """Return the values of a TensorProto.

        Raises:
            DataError: The tensor is damaged, or its data lie outside the file's folder.
        """
        where = f"{self._path}: tensor {name!r:.80}"
        dims = [int(dim) for dim in tensor.dims]
        if tensor.data_type not in _TYPES:
            raise DataError(f"{where}: expected numbers, got the type of elements {tensor.data_type}")
        if tensor.HasField("segment"):
            raise DataError(f"{where}: expected a whole tensor, got a segment")
        if len(dims) > _MOST_DIMENSIONS or any(dim < 0 for dim in dims) or math.prod(dims) > _LARGEST:
            raise DataError(f"{where}: expected a shape, got {dims[:9]}")
        count = math.prod(dims)
        dtype, field = _TYPES[tensor.data_type]
        if tensor.data_location == 1:
            array = self._external(tensor, where, count, np.dtype(dtype))
        elif tensor.HasField("raw_data"):
            if len(tensor.raw_data) != count * np.dtype(dtype).itemsize:
                raise DataError(f"{where}: expected {count:,} elements of {dtype}, got {len(tensor.raw_data):,} bytes")
            array = np.frombuffer(tensor.raw_data, dtype)
        else:
            array = self._of_field(getattr(tensor, field), where, count, tensor.data_type, dtype)
        self._take(array.nbytes, where)
        if tensor.data_type == _BFLOAT16:
            array = (array.astype(np.uint32) << 16).view(np.float32)
        elif tensor.data_type == _FLOAT16:
            array = array.astype(np.float32)
        # A copy: what the file's message holds can't be written to.
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="))).reshape(dims)

    def _of_field(self, values: Any, where: str, count: int, kind: int, dtype: str) -> np.ndarray:
        if len(values) != count:
            raise DataError(f"{where}: expected {count:,} elements, got {len(values):,}")
        array = np.array(values, dtype=np.float32 if kind == 1 else np.float64 if kind == 11 else np.int64)
        if kind in (_FLOAT16, _BFLOAT16):
            if count and not 0 <= array.min() <= array.max() < 1 << 16:
                raise DataError(f"{where}: expected the bits of numbers of 16 bits")
            return array.astype(np.uint16).view(dtype)
        made = array.astype(dtype)
        if kind not in (1, 11) and not np.array_equal(made, array):
            raise DataError(f"{where}: expected numbers in the range of {dtype}")
        return made

    def _take(self, size: int, where: str) -> None:
        self._taken += size
        if self._taken > 2 * (self._given + sum(self._files.values())):
            raise DataError(f"{where}: the tensors take {self._taken:,} bytes, more than twice the size of the files")
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if self._taken > memory:
            raise DataError(f"{where}: the tensors take more than this machine's memory of {memory:,} bytes")

    def _external(self, tensor: Any, where: str, count: int, dtype: np.dtype) -> np.ndarray:
        about = {entry.key: entry.value for entry in tensor.external_data}
        location = about.get("location", "")
        try:
            offset = int(about.get("offset", "0") or 0)
            length = int(about.get("length", "") or count * dtype.itemsize)
        except ValueError as error:
            raise DataError(f"{where}: expected numbers for the place of its data ({error})") from error
        if length != count * dtype.itemsize or offset < 0:
            raise DataError(f"{where}: expected {count:,} elements of {dtype}, got {length:,} bytes at {offset:,}")
        with self._opened(location, where) as file:
            size = os.fstat(file.fileno()).st_size
            if offset + length > size:
                raise DataError(f"{where}: {location!r:.80} has {size:,} bytes, the data end at {offset + length:,}")
            self._files[location] = size
            self._check_room(length, where)
            file.seek(offset)
            content = file.read(length)
        if len(content) != length:
            raise DataError(f"{where}: {location!r:.80} became shorter while it was read")
        return np.frombuffer(content, dtype)

    def _check_room(self, length: int, where: str) -> None:
        taken = self._taken
        try:
            self._take(length, where)
        finally:
            self._taken = taken

    def _opened(self, location: str, where: str) -> Any:
        """Open a regular file in the folder of the ONNX file; no part of its path may lead elsewhere."""
        parts = location.replace("\\", "/").split("/")
        parts = [part for part in parts if part not in ("", ".")]
        if not parts or location.startswith(("/", "\\")) or ".." in parts or "\0" in location or ":" in parts[0]:
            raise DataError(f"{where}: expected a file in the folder of the ONNX file, got {location!r:.80}")
        place = self._folder.joinpath(*parts)
        try:
            if Path(os.path.realpath(place)) != place:
                raise DataError(f"{where}: {location!r:.80} is a link; its data have to lie in the file's own folder")
            flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
            handle = os.open(place, flags | getattr(os, "O_BINARY", 0))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{where}: {location!r:.80} can't be read: {reason}") from error
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise DataError(f"{where}: expected {location!r:.80} to be a regular file")
        return os.fdopen(handle, "rb", buffering=0)


__all__ = ["Tensors"]
