"""Numeric arrays of MATLAB 5 files (``.mat``), by the format's description ("MAT-File Format", The MathWorks).

SciPy's reader crashes on some damaged files; this one reads only what is needed here and checks every length.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..files import read_bytes

#: Compressed variables of more bytes together are refused.
MAX_BYTES = 1 << 28
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MATRIX, _COMPRESSED = 14, 15
_NUMERIC = range(6, 16)  # the classes double, single and the integers


def read_mat(path: Path) -> dict[str, np.ndarray]:
    """Read the real numeric arrays of a file by name, in the types in which they are stored.

    MATLAB stores a "double" array of small whole numbers as uint8. Other variables (cells, texts, complex numbers) are
    skipped.

    Raises:
        DataError: if the file is not a MATLAB 5 file, is truncated or damaged, or decompresses to too many bytes.
    """
    content = read_bytes(path)
    source = str(path)
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if len(content) < 128 or order is None or struct.unpack(f"{order}H", content[124:126])[0] != 0x0100:
        raise DataError(f"{source}: expected the header of a MATLAB 5 file, got {content[:16]!r} and so on")
    arrays: dict[str, np.ndarray] = {}
    left = MAX_BYTES
    for kind, data, offset in _elements(content, 128, order, source):
        if kind == _COMPRESSED:
            unpacked = _decompress(data, left, f"{source}, offset {offset}")
            left -= len(unpacked)
            inside = list(_elements(unpacked, 0, order, f"{source}, compressed at offset {offset}", padded=False))
            if len(inside) != 1:
                raise DataError(f"{source}, offset {offset}: expected one variable, got {len(inside)}")
            kind, data, _ = inside[0]
        if kind == _MATRIX:
            variable = _array(data, order, f"{source}, offset {offset}")
            if variable is not None:
                arrays[variable[0]] = variable[1]
    return arrays


def _elements(
    data: bytes, at: int, order: str, source: str, *, padded: bool = True
) -> Iterator[tuple[int, bytes, int]]:
    """Yield (type, data, offset) of successive elements, which are padded to 8 bytes unless compressed."""
    while at < len(data):
        if len(data) - at < 8:
            raise DataError(f"{source}: truncated: expected an element of 8 bytes or more at offset {at}")
        kind, length = struct.unpack_from(f"{order}II", data, at)
        begin = at + 8
        if kind >> 16:  # a small one: length, type and up to 4 bytes of data in 8 bytes
            kind, length, begin = kind & 0xFFFF, kind >> 16, at + 4
            if length > 4:
                raise DataError(f"{source}: expected at most 4 bytes in the small element at offset {at}, got {length}")
            following = at + 8
        else:
            following = begin + length + (-length % 8 if padded and kind != _COMPRESSED else 0)
        if begin + length > len(data):
            raise DataError(f"{source}: truncated: the element at offset {at} needs {length} bytes")
        yield kind, data[begin : begin + length], at
        at = following


def _decompress(data: bytes, limit: int, source: str) -> bytes:
    machine = zlib.decompressobj()
    try:
        out = machine.decompress(data, max(limit, 1))
    except zlib.error as error:
        raise DataError(f"{source}: damaged ({error})") from error
    if machine.unconsumed_tail or len(out) > limit:
        raise DataError(f"{source}: expected at most {MAX_BYTES:,} bytes once decompressed, got more")
    if not machine.eof:
        raise DataError(f"{source}: truncated: the compressed data end early")
    return out


def _array(data: bytes, order: str, source: str) -> tuple[str, np.ndarray] | None:
    """Return name and values of a variable, or None if it is not numeric and real."""
    parts = list(_elements(data, 0, order, source))
    if len(parts) < 3 or len(parts[0][1]) < 8 or len(parts[1][1]) % 4:
        raise DataError(f"{source}: expected flags, dimensions and a name")
    flags = struct.unpack_from(f"{order}I", parts[0][1])[0]
    kind, is_complex = flags & 0xFF, flags & 0x0800
    if kind not in _NUMERIC or is_complex:
        return None
    shape = tuple(int(n) for n in np.frombuffer(parts[1][1], f"{order}i4"))
    name = parts[2][1].decode("ascii", "replace")
    if len(parts) != 4 or parts[3][0] not in _NUMBERS or not 2 <= len(shape) <= 8 or min(shape) < 0:
        raise DataError(
            f"{source}: expected the numbers of {name!r}, got {len(parts)} elements and shape {list(shape)}"
        )
    dtype = np.dtype(order + _NUMBERS[parts[3][0]])
    if math.prod(shape) * dtype.itemsize != len(parts[3][1]):
        raise DataError(f"{source}: expected {math.prod(shape)} numbers in {name!r}, got {len(parts[3][1])} bytes")
    return name, np.frombuffer(parts[3][1], dtype).reshape(shape, order="F").astype(dtype.newbyteorder("="))
