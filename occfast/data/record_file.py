"""RecordIO files in the format of dmlc-core, with the headers of mxnet; mxnet is not needed.

A record consists of the word :data:`MAGIC`, a word with a flag of 3 bits above a length of 29 bits, the data, and zeros
up to a multiple of 4 bytes. Words are little-endian. Where the data contain MAGIC at a multiple of 4 bytes, that word
is omitted and the record continues in another part: flags 1 (first), 2 (middle) and 3 (last) replace 0 (whole).

The data begin with a header of 24 bytes: flag, label, and two numbers. If the flag is positive, it is the number of
labels that follow the header.
"""

from __future__ import annotations

import io
import mmap
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import DataError
from ..files import read_bytes

MAGIC = 0xCED7230A
_WORD = struct.pack("<I", MAGIC)
_LENGTH_BITS = 29
_PART = struct.Struct("<II")
_HEADER = struct.Struct("<IfQQ")
_MAX_LABELS = 1 << 20


@dataclass(frozen=True)
class Header:
    """The header of a record of mxnet.

    Attributes:
        labels: one label, stored in the header, or several, stored after it.
        id: number of the record.
        id2: second number, rarely used.
        listed: stores the labels after the header even if there is only one.
    """

    labels: tuple[float, ...]
    id: int = 0
    id2: int = 0
    listed: bool = False

    def pack(self, content: bytes) -> bytes:
        """Return the data of a record: the header, its labels, and the content."""
        if len(self.labels) == 1 and not self.listed:
            return _HEADER.pack(0, self.labels[0], self.id, self.id2) + content
        labels = struct.pack(f"<{len(self.labels)}f", *self.labels)
        return _HEADER.pack(len(self.labels), 0.0, self.id, self.id2) + labels + content


def unpack(data: bytes, source: str) -> tuple[Header, bytes]:
    """Split the data of a record into header and content. Raises DataError if they are too short."""
    if len(data) < _HEADER.size:
        raise DataError(f"{source}: expected a header of {_HEADER.size} bytes, got {len(data)} bytes")
    flag, label, first, second = _HEADER.unpack_from(data)
    if flag == 0:
        return Header((label,), first, second), data[_HEADER.size :]
    end = _HEADER.size + 4 * flag
    if flag > _MAX_LABELS or end > len(data):
        raise DataError(f"{source}: expected {flag} labels, {4 * flag} bytes, got {len(data) - _HEADER.size} bytes")
    return Header(struct.unpack_from(f"<{flag}f", data, _HEADER.size), first, second, True), data[end:]


def encode_record(data: bytes) -> bytes:
    """Encode data as a record, in several parts if they contain MAGIC at a multiple of 4 bytes."""
    if len(data) >= 1 << _LENGTH_BITS:
        raise ValueError(f"data: expected fewer than {1 << _LENGTH_BITS:,} bytes, got {len(data):,}")
    cuts = []
    at = data.find(_WORD)
    while at >= 0:
        if at % 4 == 0:
            cuts.append(at)
        at = data.find(_WORD, at + (4 if at % 4 == 0 else 1))
    out = []
    starts, ends = [0, *(cut + 4 for cut in cuts)], [*cuts, len(data)]
    for k, (start, end) in enumerate(zip(starts, ends, strict=True)):
        flag = 0 if not cuts else 1 if k == 0 else 3 if k == len(cuts) else 2
        out += [
            _WORD,
            struct.pack("<I", flag << _LENGTH_BITS | end - start),
            data[start:end],
            bytes(-(end - start) % 4),
        ]
    return b"".join(out)


class RecordFile:
    """The records of a ``.rec`` file by number, memory-mapped, for any number of processes and threads.

    Args:
        path: the file.
        index: the ``.idx``, with a key and an offset on each line; or (keys, offsets). Defaults to the file of that
            name beside the ``.rec``. Without one, the file is scanned, and the keys are 0, 1, 2, ...

    Attributes:
        keys: keys of the records, int64 [N], in the order of the index.
        offsets: offsets of the records in bytes, int64 [N].

    Raises:
        DataError: if the file is not RecordIO, is truncated, or contradicts the index.
    """

    def __init__(self, path: str | Path, index: str | Path | tuple[Any, Any] | None = None) -> None:
        self.path = Path(path)
        self._map: mmap.mmap | None = None
        self._handle = -1
        try:
            state = self.path.stat()
        except OSError as error:
            raise DataError(f"{self.path}: can't be read: {error.strerror}") from error
        if not stat.S_ISREG(state.st_mode):
            raise DataError(f"{self.path}: expected a regular file")
        self.size = state.st_size
        beside = self.path.with_suffix(".idx")
        if isinstance(index, tuple):
            self.keys, self.offsets = (np.array(values, np.int64) for values in index)
        elif index is None and not beside.is_file():
            self.offsets = np.array([offset for offset, _ in self.walk()], dtype=np.int64)
            self.keys = np.arange(len(self.offsets))
        else:
            self.keys, self.offsets = read_index(Path(index) if index is not None else beside, self.size)
            self._check_end()

    def __len__(self) -> int:
        return len(self.offsets)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None, "_handle": -1}  # another process maps the file for itself

    def __del__(self) -> None:
        if getattr(self, "_handle", -1) >= 0:
            os.close(self._handle)

    @property
    def content(self) -> mmap.mmap | bytes:
        """The whole file, mapped at its first use."""
        if self._map is None:
            if self.size == 0:
                return b""
            try:
                self._handle = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
                self._check_size()
                self._map = mmap.mmap(self._handle, 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise DataError(f"{self.path}: can't be read: {error.strerror}") from error
        else:
            self._check_size()
        return self._map

    def _check_size(self) -> None:
        # Reading mapped memory beyond the end of a file that was truncated meanwhile kills the process.
        if os.fstat(self._handle).st_size < self.size:
            raise DataError(f"{self.path}: expected {self.size} bytes as when it was opened first")

    def part(self, offset: int) -> tuple[int, int]:
        """Return flag and length of the part of a record at ``offset``. Raises DataError if there is none."""
        if not 0 <= offset <= self.size - 8:
            raise DataError(f"{self.path}: truncated: expected a record at offset {offset}, it ends at {self.size}")
        magic, word = _PART.unpack_from(self.content, offset)
        if magic != MAGIC:
            raise DataError(f"{self.path}: expected a record (magic {MAGIC:#x}) at offset {offset}, got {magic:#x}")
        flag, length = word >> _LENGTH_BITS, word & (1 << _LENGTH_BITS) - 1
        if flag > 3:
            raise DataError(f"{self.path}: expected a flag of at most 3 at offset {offset + 4}, got {flag}")
        padded = length + -length % 4
        if offset + 8 + padded > self.size:
            raise DataError(
                f"{self.path}: truncated: the record at offset {offset} needs {padded} bytes, the file ends "
                f"{self.size - offset - 8} after its header"
            )
        return flag, length

    def parts(self, offset: int) -> Iterator[tuple[int, int]]:
        """Yield (start, length) of the data of each part of the record at ``offset``."""
        flag, length = self.part(offset)
        if flag not in (0, 1):
            raise DataError(f"{self.path}: expected the start of a record at offset {offset}, got part {flag}")
        yield offset + 8, length
        while flag in (1, 2):
            offset += 8 + length + -length % 4
            flag, length = self.part(offset)
            if flag not in (2, 3):
                raise DataError(f"{self.path}: expected the next part of a record at offset {offset}, got part {flag}")
            yield offset + 8, length

    def at(self, offset: int) -> bytes:
        """Return the data of the record at ``offset``."""
        whole = self.content
        flag, length = self.part(offset)
        if flag == 0:
            return whole[offset + 8 : offset + 8 + length]
        return _WORD.join(whole[start : start + length] for start, length in self.parts(offset))

    def __getitem__(self, k: int) -> bytes:
        """Return the data of record k, in the order of the index."""
        return self.at(int(self.offsets[k]))

    def end(self, offset: int) -> int:
        """Return the offset at which the record at ``offset`` ends."""
        for start, length in self.parts(offset):
            end = start + length + -length % 4
        return end

    def walk(self, offset: int = 0) -> Iterator[tuple[int, int]]:
        """Yield (offset, end) of every record from ``offset`` on. Raises DataError where the file is damaged."""
        while offset < self.size:
            end = self.end(offset)
            yield offset, end
            offset = end

    def _check_end(self) -> None:
        if len(self.offsets) == 0:
            if self.size:
                raise DataError(f"{self.path}: expected no bytes, since the index is empty, got {self.size}")
            return
        last = int(self.offsets.max())
        end = self.end(last)
        if end != self.size:
            raise DataError(
                f"{self.path}: expected its end at offset {end}, after the last record of the index, got {self.size}"
            )

    def labels(self, records: np.ndarray, chunk: int = 1 << 16) -> np.ndarray:
        """Return the first label of these records, float32 [len(records)], without reading the images.

        Raises:
            DataError: if a record has no header.
        """
        labels = np.empty(len(records), np.float32)
        offsets = self.offsets[records]
        whole = np.frombuffer(self.content, np.uint8)
        # 8 bytes of record, 24 of header, 4 of a first listed label; other than such plain records are read singly.
        plain = offsets + 36 <= self.size
        for first in range(0, len(records), chunk):
            chosen = first + np.flatnonzero(plain[first : first + chunk])
            words = whole[offsets[chosen][:, None] + np.arange(36)].view("<u4")
            listed = words[:, 2] > 0
            labels[chosen] = np.where(listed, words[:, 8], words[:, 3]).view("<f4")
            one_part = (words[:, 0] == MAGIC) & (words[:, 1] >> _LENGTH_BITS == 0)
            plain[chosen] = one_part & (words[:, 1] >= np.where(listed, 28, 24))
        for k in np.flatnonzero(~plain):
            labels[k] = self.header(int(records[k]))[0].labels[0]
        return labels

    def labeled(self, k: int) -> tuple[float, bytes]:
        """Return the first label and the content of record k. Raises DataError if it has no header."""
        data = self[k]
        if len(data) >= _HEADER.size:
            flag, label, _, _ = _HEADER.unpack_from(data)
            if flag == 0:
                return label, data[_HEADER.size :]
        header, content = unpack(data, f"{self.path}, offset {self.offsets[k]}")
        return header.labels[0], content

    def header(self, k: int) -> tuple[Header, bytes]:
        """Return header and content of record k. Raises DataError if it has no header."""
        return unpack(self[k], f"{self.path}, offset {self.offsets[k]}")


def read_index(path: Path, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Read keys and offsets, int64, of the ``.idx`` of a file of ``size`` bytes. Raises DataError with the line."""
    text = read_bytes(path)
    table, good = np.empty((0, 2), np.int64), True
    if text.strip():
        try:
            table = np.loadtxt(io.BytesIO(text), np.int64, comments=None, ndmin=2, encoding="latin1")
            good = table.shape[1] == 2
        except (ValueError, OverflowError):
            good = False
    if not good:
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip() and not (len(line.split()) == 2 and all(_fits(cell) for cell in line.split())):
                raise DataError(f"{path}, line {number}: expected a key and an offset, got {line[:60]!r}")
        raise DataError(f"{path}: expected a key and an offset on every line")
    keys, offsets = table[:, 0], table[:, 1]
    wrong = np.flatnonzero((offsets < 0) | (offsets % 4 != 0) | (offsets > max(size - 8, 0)))
    if len(wrong):
        raise DataError(
            f"{path}: record {keys[wrong[0]]}: expected an offset that is a multiple of 4 in a file of {size} bytes, "
            f"got {offsets[wrong[0]]}"
        )
    for values, name in ((keys, "key"), (offsets, "offset")):
        values, times = np.unique(values, return_counts=True)
        if (times > 1).any():
            raise DataError(f"{path}: expected every {name} once, got {values[times > 1][0]} {times.max()} times")
    return keys.copy(), offsets.copy()


def _fits(cell: bytes) -> bool:
    digits = cell[1:] if cell[:1] == b"-" else cell
    return digits.isdigit() and len(digits) < 19


class RecordWriter:
    """Writes a ``.rec`` and its ``.idx``.

    Records go to files that end in ``.part``. They get their final names when the ``with`` block succeeds, and remain
    for ``resume`` otherwise.

    Args:
        path: the ``.rec``.
        resume: continues after the last complete record of a writer that was interrupted.
        keep: continues after at most so many records; None keeps all complete ones.

    Attributes:
        keys: keys of the records written so far.
        begun: the records that existed at the start.
    """

    def __init__(self, path: str | Path, *, resume: bool = False, keep: int | None = None) -> None:
        self.path = Path(path)
        self.index = self.path.with_suffix(".idx")
        self._parts = (Path(f"{self.path}.part"), Path(f"{self.index}.part"))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        entries = self._whole()[:keep] if resume and all(part.is_file() for part in self._parts) else []
        self.keys = [key for key, _, _ in entries]
        self._offset = entries[-1][2] if entries else 0
        mode = "r+b" if entries else "wb"
        self._file = self._parts[0].open(mode)
        self._file.truncate(self._offset)
        self._file.seek(self._offset)
        self._lines = self._parts[1].open("wb")
        self._lines.writelines(b"%d\t%d\n" % entry[:2] for entry in entries)
        self._known = set(self.keys)
        self.begun = RecordFile(self._parts[0], (self.keys, [offset for _, offset, _ in entries]))

    def _whole(self) -> list[tuple[int, int, int]]:
        """Return (key, offset, end) of the records that are complete in both files."""
        file = RecordFile(self._parts[0], ([], []))
        entries: list[tuple[int, int, int]] = []
        lines = self._parts[1].read_bytes().split(b"\n")[:-1]  # what follows the last line end is not whole
        for line in lines:
            try:
                key, offset = (int(cell) for cell in line.split())
                if offset != (entries[-1][2] if entries else 0):
                    break
                end = file.end(offset)
            except ValueError:  # DataError too
                break
            entries.append((key, offset, end))
        return entries

    def write(self, key: int, data: bytes) -> None:
        """Append a record. Raises ValueError if the key exists already."""
        if key in self._known:
            raise ValueError(f"key: expected one that is not there yet, got {key}")
        record = encode_record(data)
        self._file.write(record)
        self._lines.write(b"%d\t%d\n" % (key, self._offset))
        self._offset += len(record)
        self._known.add(key)
        self.keys.append(key)
        if len(self.keys) % 256 == 0:
            self._flush()

    def _flush(self) -> None:
        self._file.flush()
        self._lines.flush()

    def close(self) -> None:
        """Finish both files and give them their final names."""
        self._flush()
        for file in (self._file, self._lines):
            os.fsync(file.fileno())
            file.close()
        # The index comes last: opening a .rec detects an older .idx.
        for part, name in zip(self._parts, (self.path, self.index), strict=True):
            part.replace(name)

    @staticmethod
    def finish(path: Path) -> bool:
        """Give the ``.idx`` its name if a kill came between it and the ``.rec``; return whether both are there."""
        index = path.with_suffix(".idx")
        records, lines = (Path(f"{name}.part") for name in (path, index))
        if records.exists() or not path.is_file():
            return False
        if lines.is_file():
            lines.replace(index)
        return index.is_file()

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._flush()
            self._file.close()
            self._lines.close()
