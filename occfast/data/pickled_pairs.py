"""The pickle inside a verification ``.bin``, read without executing it: two lists, of images and of flags.

A pickle is a program for a small machine that can import and call anything. This machine knows only the instructions
that build lists and tuples of bytes, booleans and small integers, and those with which NumPy stores arrays and
booleans; of the latter it computes nothing but where their bytes lie. Bytes are not copied: they are noted as (start,
length).
"""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal

from ..errors import DataError

MAX_ITEMS = 4_000_000
_MAX_CONTAINERS = 64  # two lists and a tuple suffice
_CONTAINERS_OF_A_CALL = 8  # NumPy stores an array with several tuples
_MAX_LINE = 32
_MAX_TEXT = 64
_DECIMAL = re.compile(rb"-?[0-9]+")
_WHOLE = re.compile(r"[biu]([1248])|bool|\?")


@dataclass(frozen=True)
class Slice:
    """Bytes of the file.

    Attributes:
        start: offset of the first byte.
        length: number of bytes.
    """

    start: int
    length: int


@dataclass(frozen=True)
class _Name:
    """A function or class of NumPy that a pickle names."""

    name: str


@dataclass
class _Dtype:
    """A dtype of NumPy; its byte order ("<", ">" or "|") is set by a later instruction."""

    code: str
    order: str = "|"

    @property
    def whole(self) -> int:
        """Number of bytes of a boolean or an integer; 0 of other dtypes."""
        match = _WHOLE.fullmatch(self.code)
        return int(match[1] or 1) if match else 0


@dataclass
class _Array:
    """An array of NumPy; its parts are set by a later instruction."""

    type: _Dtype = field(default_factory=lambda: _Dtype(""))
    shape: tuple[int, ...] = ()
    data: Slice | None = None

    @property
    def dtype(self) -> str:
        return self.type.code

    def __str__(self) -> str:
        return f"a NumPy array, {self.dtype} {list(self.shape)}"


@dataclass(frozen=True)
class _Scalar:
    type: _Dtype
    data: Slice


#: What NumPy's pickles name. Modules of NumPy 1 (``numpy.core``) and 2 (``numpy._core``) are equal.
_KNOWN = {
    "numpy._core.multiarray _reconstruct": "reconstruct",
    "numpy._core.multiarray scalar": "scalar",
    "numpy._core.numeric _frombuffer": "frombuffer",
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
}


class _Mark:
    pass


_MARK = _Mark()
#: Formats of the numbers that follow an instruction: an integer, the length of a string, a key of the memo.
_NUMBERS = {b"J": "<i", b"K": "<B", b"M": "<H"}
_STRINGS = {b"U": "<B", b"C": "<B", b"T": "<i", b"B": "<I", b"\x8e": "<Q", b"\x96": "<Q"}
_TEXTS = {b"\x8c": "<B", b"X": "<I"}
_GETS = {b"h": "<B", b"j": "<I"}
_PUTS = {b"q": "<B", b"r": "<I"}


class _Machine:
    def __init__(self, data: Any, size: int, source: str) -> None:
        self.data, self.size, self.source = data, size, source
        self.at = 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.items = self.containers = self.calls = 0

    def fail(self, expected: str, offset: int | None = None) -> DataError:
        return DataError(f"{self.source}: expected {expected} at offset {self.at if offset is None else offset}")

    def truncated(self, count: int) -> DataError:
        return DataError(
            f"{self.source}: truncated: expected {count} bytes at offset {self.at}, the file ends at {self.size}"
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

    def word(self) -> str:
        """Read the rest of the line, a part of a name."""
        text = bytes(self.data[self.at : min(self.at + _MAX_TEXT, self.size)])
        end = text.find(b"\n")
        if end < 0:
            if self.size - self.at <= _MAX_TEXT:
                raise self.truncated(self.size - self.at + 1)
            raise self.fail("a short line")
        self.at += end + 1
        return text[:end].decode("latin-1")

    def push(self, value: Any) -> None:
        self.items += 1
        if self.items > MAX_ITEMS:
            raise DataError(f"{self.source}: expected at most {MAX_ITEMS:,} items, found more at offset {self.at}")
        self.stack.append(value)

    def container(self, value: Any) -> None:
        self.containers += 1
        if self.containers > _MAX_CONTAINERS + _CONTAINERS_OF_A_CALL * self.calls:
            raise self.fail(f"at most {_MAX_CONTAINERS} lists and tuples")
        self.push(value)

    def refused(self, code: bytes, start: int, name: str = "") -> DataError:
        called = f", {name}" if name else ""
        return DataError(
            f"{self.source}: refused: expected lists of bytes (or of NumPy's uint8 arrays) and booleans, got the "
            f"pickle instruction {_NAMES.get(code, repr(code))} at offset {start}, which is not executed{called}; if "
            "you trust the file, load it with pickle and write it anew (write_verification_bin)"
        )

    def name(self, module: object, attribute: object, code: bytes, start: int) -> None:
        """Push a name that NumPy's pickles contain; refuse any other."""
        name = f"{module} {attribute}".replace("numpy.core.", "numpy._core.")
        if name not in _KNOWN:
            raise self.refused(code, start, f"{module}.{attribute}")
        self.push(_Name(_KNOWN[name]))

    def text(self, value: object) -> str:
        """Return a short string, which Python 2 stores as bytes."""
        if isinstance(value, Slice) and value.length <= _MAX_TEXT:
            return bytes(self.data[value.start : value.start + value.length]).decode("latin-1")
        return value if isinstance(value, str) else ""

    def call(self, start: int) -> None:
        """Evaluate one of NumPy's calls that build an array, a dtype or a number."""
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise self.refused(b"R", start)
        self.calls += 1
        match function.name, arguments:
            case "dtype", (code, *_):
                self.push(_Dtype(self.text(code).lstrip("|<>=")))
            case "reconstruct", (_Name("ndarray"), *_):
                self.push(_Array())
            case "scalar", (_Dtype() as dtype, Slice() as data):
                self.push(_Scalar(dtype, data))
            case "frombuffer", (Slice() as data, _Dtype() as dtype, tuple(shape), *_):
                self.push(_Array(dtype, self.shape(shape), data))
            case _:
                raise self.refused(b"R", start, f"NumPy's {function.name}")

    def build(self, start: int) -> None:
        """Set the parts of an array, or the byte order of a dtype."""
        state = self.pop()
        target = self.stack[-1] if self.stack else None
        if isinstance(target, _Dtype) and isinstance(state, tuple):
            target.order = self.text(state[1]) if len(state) > 1 else target.order
            return
        match target, state:
            case _Array(data=None), (int(), tuple(shape), _Dtype() as dtype, bool(), Slice() as data):
                target.type, target.shape, target.data = dtype, self.shape(shape), data
            case _:
                raise self.refused(b"b", start)

    def shape(self, values: tuple[Any, ...]) -> tuple[int, ...]:
        if not all(isinstance(value, int) and not isinstance(value, bool) and value >= 0 for value in values):
            raise self.fail("the shape of an array")
        return values

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
            elif code in _TEXTS:
                length = self.number(_TEXTS[code])
                if length > _MAX_TEXT:
                    raise self.refused(code, start)
                self.push(self.take(length).decode("utf-8", "replace"))
            elif code == b"N":
                self.push(None)
            elif code == b"c":
                self.name(self.word(), self.word(), code, start)
            elif code == b"\x93":
                attribute, module = self.pop(), self.pop()
                self.name(module, attribute, code, start)
            elif code == b"R":
                self.call(start)
            elif code == b"b":
                self.build(start)
            else:
                raise self.refused(code, start)


_NAMES = {
    getattr(pickle, name): name
    for name in dir(pickle)
    if name.isupper() and isinstance(getattr(pickle, name), bytes) and len(getattr(pickle, name)) == 1
}


def read_pairs(data: Any, size: int, source: str) -> tuple[list[Slice], list[bool]]:
    """Find the images in a verification ``.bin``, and read whether each pair of them shows one person.

    Args:
        data: the content, such as a memory map; slices of it give bytes.
        size: number of bytes.
        source: Name of the file in errors.

    Returns:
        The bytes of each image, two images for each pair, and a flag for each pair.

    Raises:
        DataError: if the file is truncated, contains any other instruction, or holds anything but two lists, of bytes
            (or NumPy arrays, uint8 [length]) and of booleans or 0 and 1 (Python's or NumPy's).
    """
    result = _Machine(data, size, source).run()
    if not isinstance(result, (list, tuple)) or len(result) != 2:
        raise DataError(f"{source}: expected a pair of lists, of images and of booleans")
    images, same = result
    if isinstance(same, _Array) and same.type.whole and same.data is not None:
        if len(same.shape) != 1 or same.shape[0] * same.type.whole != same.data.length:
            raise DataError(f"{source}: expected booleans [pairs], got {same}")
        same = _numbers(data, same.data, same.type)
    if not isinstance(images, (list, tuple)) or not isinstance(same, (list, tuple)):
        raise DataError(f"{source}: expected a pair of lists, of images and of booleans")
    found, flags = [_image(image, k, source) for k, image in enumerate(images)], []
    for k, value in enumerate(same):
        if isinstance(value, _Scalar) and value.data.length == value.type.whole:
            value = _numbers(data, value.data, value.type)[0]
        if not isinstance(value, (bool, int)) or value not in (0, 1):
            got = value if isinstance(value, int) else _kind(value)
            raise DataError(f"{source}: expected True or False for pair {k}, got {got}")
        flags.append(bool(value))
    if len(found) != 2 * len(flags):
        raise DataError(f"{source}: expected two images a pair, got {len(found)} images and {len(flags)} pairs")
    return found, flags


def _numbers(data: Any, where: Slice, dtype: _Dtype) -> list[int]:
    """Decode booleans or integers of NumPy."""
    order: Literal["big", "little"] = "big" if dtype.order == ">" else "little"
    step, end = dtype.whole, where.start + where.length
    signed = dtype.code.startswith("i")
    return [int.from_bytes(data[at : at + step], order, signed=signed) for at in range(where.start, end, step)]


def _image(value: Any, k: int, source: str) -> Slice:
    is_bytes = isinstance(value, _Array) and value.dtype in ("u1", "|u1")
    if is_bytes and value.data is not None and value.shape == (value.data.length,):
        data: Slice = value.data
        return data
    if not isinstance(value, Slice):
        raise DataError(f"{source}: expected bytes for image {k}, got {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    return str(value) if isinstance(value, _Array) else type(value).__name__.lstrip("_")


def write_pairs(file: BinaryIO, images: Iterable[bytes], same: Iterable[bool]) -> None:
    """Write the pickle (protocol 3) of a list of bytes and a list of booleans, one image at a time."""
    file.write(b"\x80\x03](")
    for image in images:
        file.write(b"B" + struct.pack("<I", len(image)))
        file.write(image)
    file.write(b"e](")
    file.write(b"".join(b"\x88" if value else b"\x89" for value in same))
    file.write(b"e\x86.")
