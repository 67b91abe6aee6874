"""The pickle inside a verification ``.bin``: two lists, of images (bytes) and of booleans; nothing of it is executed.

A pickle is a program for a small machine that can import and call anything.  Here only the instructions that build
lists and tuples of bytes, booleans and small integers exist; strings of bytes are not copied but noted as (start,
length) in the file.
"""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO

from ..errors import DataError

MAX_ITEMS = 4_000_000
_MAX_CONTAINERS = 64  # two lists and a tuple are all it needs
_MAX_LINE = 32
_DECIMAL = re.compile(rb"-?[0-9]+")


@dataclass(frozen=True)
class Slice:
    """A string of bytes of the file.

    Attributes:
        start, length: in bytes.
    """

    start: int
    length: int


class _Mark:
    pass


_MARK = _Mark()
#: Lengths and offsets of instructions that carry a number: format of the number, what it is.
_NUMBERS = {b"J": "<i", b"K": "<B", b"M": "<H"}
_STRINGS = {b"U": "<B", b"C": "<B", b"T": "<i", b"B": "<I", b"\x8e": "<Q", b"\x96": "<Q"}
_GETS = {b"h": "<B", b"j": "<I"}
_PUTS = {b"q": "<B", b"r": "<I"}


class _Machine:
    def __init__(self, data: Any, size: int, where: str) -> None:
        self.data, self.size, self.where = data, size, where
        self.at = 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.items = self.containers = 0

    def fail(self, expected: str, offset: int | None = None) -> DataError:
        return DataError(f"{self.where}: expected {expected} at offset {self.at if offset is None else offset}")

    def truncated(self, count: int) -> DataError:
        return DataError(
            f"{self.where}: truncated: expected {count} bytes at offset {self.at}, the file ends at {self.size}"
        )

    def take(self, count: int) -> bytes:
        if not 0 <= count <= self.size - self.at:
            raise self.truncated(count)
        self.at += count
        return bytes(self.data[self.at - count : self.at])

    def number(self, form: str) -> int:
        return int(struct.unpack(form, self.take(struct.calcsize(form)))[0])

    def line(self) -> bytes:
        text = bytes(self.data[self.at : self.at + _MAX_LINE])
        end = text.find(b"\n")
        if end < 0:
            raise self.fail("a short line")
        self.at += end + 1
        return text[:end]

    def push(self, value: Any) -> None:
        self.items += 1
        if self.items > MAX_ITEMS:
            raise DataError(f"{self.where}: expected at most {MAX_ITEMS:,} items, found more at offset {self.at}")
        self.stack.append(value)

    def container(self, value: Any) -> None:
        self.containers += 1
        if self.containers > _MAX_CONTAINERS:
            raise self.fail(f"at most {_MAX_CONTAINERS} lists and tuples")
        self.push(value)

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise self.fail("a value on the stack")
        return self.stack.pop()

    def to_mark(self) -> list[Any]:
        values = []
        while self.stack and self.stack[-1] is not _MARK:
            values.append(self.stack.pop())
        if not self.stack:
            raise self.fail("a mark on the stack")
        self.stack.pop()
        return values[::-1]

    def list_on_top(self) -> list[Any]:
        if not self.stack or not isinstance(self.stack[-1], list):
            raise self.fail("a list on the stack")
        top: list[Any] = self.stack[-1]
        return top

    def remember(self, key: int) -> None:
        if not self.stack or self.stack[-1] is _MARK:
            raise self.fail("a value to remember")
        if len(self.memo) >= MAX_ITEMS:
            raise self.fail(f"at most {MAX_ITEMS:,} remembered values")
        self.memo[key] = self.stack[-1]

    def recall(self, key: int) -> None:
        if key not in self.memo:
            raise self.fail(f"a value remembered as {key}")
        self.push(self.memo[key])

    def decimal(self) -> int:
        text = self.line()
        if not _DECIMAL.fullmatch(text):
            raise self.fail("a decimal number")
        return int(text)

    def run(self) -> Any:
        while True:
            start = self.at
            code = self.take(1)
            if code == b".":
                result = self.pop()
                if self.stack:
                    raise self.fail("one result")
                return result
            if code in _STRINGS:
                length = self.number(_STRINGS[code])
                if not 0 <= length <= self.size - self.at:
                    raise self.truncated(length)
                self.push(Slice(self.at, length))
                self.at += length
            elif code in (b"q", b"r"):
                self.remember(self.number(_PUTS[code]))
            elif code == b"\x94":
                self.remember(len(self.memo))
            elif code in (b"\x88", b"\x89"):
                self.push(code == b"\x88")
            elif code == b"a":
                value = self.pop()
                self.list_on_top().append(value)
            elif code == b"e":
                values = self.to_mark()
                self.list_on_top().extend(values)
            elif code == b"(":
                self.push(_MARK)
            elif code in _NUMBERS:
                self.push(self.number(_NUMBERS[code]))
            elif code in _GETS:
                self.recall(self.number(_GETS[code]))
            elif code == b"]":
                self.container([])
            elif code == b")":
                self.container(())
            elif code in (b"l", b"t"):
                values = self.to_mark()
                self.container(values if code == b"l" else tuple(values))
            elif code in (b"\x85", b"\x86", b"\x87"):
                values = [self.pop() for _ in range(code[0] - 0x84)]
                self.container(tuple(values[::-1]))
            elif code == b"I":
                flag = {b"00\n": False, b"01\n": True}.get(bytes(self.data[self.at : self.at + 3]))
                number = self.decimal()
                self.push(number if flag is None else flag)
            elif code == b"p":
                self.remember(self.decimal())
            elif code == b"g":
                self.recall(self.decimal())
            elif code == b"\x80":
                if self.number("<B") > 5:
                    raise self.fail("a pickle of protocol 5 or less", start + 1)
            elif code == b"\x95":
                self.number("<Q")  # the size of a frame; frames need no reading by themselves
            else:
                raise DataError(
                    f"{self.where}: refused: expected lists of bytes and booleans, got the pickle instruction "
                    f"{_NAMES.get(code, repr(code))} at offset {start}, which is not executed; if you trust the file, "
                    "load it with pickle and write it anew (write_verification_bin)"
                )


_NAMES = {
    getattr(pickle, name): name
    for name in dir(pickle)
    if name.isupper() and isinstance(getattr(pickle, name), bytes) and len(getattr(pickle, name)) == 1
}


def read_pairs(data: Any, size: int, where: str) -> tuple[list[Slice], list[bool]]:
    """Where the images are in a verification ``.bin``, and whether each pair of them shows one person.

    Args:
        data: the content, anything that slices into bytes (a memory map).
        size: of it in bytes.
        where: names the file in errors.

    Raises:
        DataError: truncated, an instruction beyond the few, or another structure than two lists.
    """
    result = _Machine(data, size, where).run()
    shape = isinstance(result, (list, tuple)) and len(result) == 2 and all(isinstance(part, list) for part in result)
    if not shape:
        raise DataError(f"{where}: expected a pair of lists, of images and of booleans")
    images, same = result
    for k, image in enumerate(images):
        if not isinstance(image, Slice):
            raise DataError(f"{where}: expected bytes for image {k}, got {type(image).__name__}")
    for k, value in enumerate(same):
        if not isinstance(value, bool) and value not in (0, 1):
            raise DataError(f"{where}: expected True or False for pair {k}, got {type(value).__name__}")
    if len(images) != 2 * len(same):
        raise DataError(f"{where}: expected two images a pair, got {len(images)} images and {len(same)} pairs")
    return images, [bool(value) for value in same]


def write_pairs(file: BinaryIO, images: Iterable[bytes], same: Iterable[bool]) -> None:
    """Write the pickle (protocol 3) of (list of bytes, list of booleans), an image at a time.

    ``pickle.load``, and so insightface, reads it.
    """
    file.write(b"\x80\x03](")
    for image in images:
        file.write(b"B" + struct.pack("<I", len(image)))
        file.write(image)
    file.write(b"e](")
    file.write(b"".join(b"\x88" if value else b"\x89" for value in same))
    file.write(b"e\x86.")
