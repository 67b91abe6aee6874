"""Checks of arguments, shared by all modules. Each failure is one error that names the argument."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.utils.dlpack
from torch import Tensor

#: A size or step: one int for both axes, or (rows, columns).
Pair = int | Sequence[int] | np.ndarray

#: Images with more pixels are refused before they are decoded: a file of kilobytes can claim gigabytes. Telephones take
#: photographs of 50 million.
MAX_PIXELS = 80_000_000

#: Largest number of which twice as much fits float32; bounds arguments that float32 computations add or subtract.
MAX_FLOAT32 = 1.7e38

_LARGEST = 2**31 - 1
_UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


class SupportsDLPack(Protocol):
    """Array that other libraries can read in place, such as one of NumPy, CuPy or JAX."""

    def __dlpack__(self) -> object: ...


#: A tensor, or an array that becomes one.
Array = Tensor | SupportsDLPack


def as_tensor(value: Array, name: str) -> Tensor:
    """Return a tensor that shares the memory of an array where PyTorch can read it, else a copy.

    Args:
        value: A tensor, or an object with ``__dlpack__``. NumPy arrays that PyTorch can't read in place (negative
            strides, another byte order, read-only memory, Python numbers as objects) are copied.
        name: The argument that error messages name.

    Raises:
        TypeError: ``value`` is no array, or holds something else than numbers.
        ValueError: Entries are masked, or another library's array has negative strides.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        return _from_numpy(value, name)
    if not hasattr(value, "__dlpack__"):
        raise TypeError(f"{name}: expected a tensor or an array with __dlpack__, got {type(value).__name__}")
    strides = getattr(value, "strides", None)
    if isinstance(strides, tuple) and any(stride < 0 for stride in strides):
        raise ValueError(f"{name}: expected an array without negative strides, got {strides}; copy it first")
    tensor: Tensor = torch.utils.dlpack.from_dlpack(value)
    return tensor


def _from_numpy(value: np.ndarray, name: str) -> Tensor:
    if isinstance(value, np.ma.MaskedArray):
        masked = int(np.ma.getmaskarray(value).sum())
        if masked:
            raise ValueError(f"{name}: expected no masked entries, got {masked}; replace them with .filled(...)")
        value = value.data
    if value.dtype.kind == "O":
        with contextlib.suppress(ValueError):  # rows of different lengths stay objects
            value = np.array(value.tolist())
    if value.dtype.kind not in "biufc":
        raise TypeError(f"{name}: expected an array of numbers, got dtype {value.dtype}")
    readable = (
        value.dtype.isnative
        and value.flags.writeable
        and value.flags.aligned
        and all(stride >= 0 and stride % value.itemsize == 0 for stride in value.strides)
    )
    if not readable:
        value = value.astype(value.dtype.newbyteorder("="), order="C", copy=True)
    try:
        return torch.from_numpy(value)
    except TypeError as error:
        raise TypeError(f"{name}: expected a dtype that PyTorch has, got {value.dtype}") from error


def shown(value: Any) -> str:
    """Return one line that says what a value is, for errors: its text, or shape and type of what holds many numbers."""
    shape = getattr(value, "shape", None)
    if shape is not None and (len(shape) > 1 or (len(shape) == 1 and shape[0] > 8)):
        return f"a {type(value).__name__} of {list(shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 200 else f"{text[:160]}… ({type(value).__name__})"


def number(
    value: Any, name: str, low: float = -math.inf, high: float = math.inf, *, above: float | None = None
) -> float:
    """Return a finite number in [low, high], greater than ``above`` if that is given.

    Raises:
        TypeError: ``value`` is not a number; a bool is not one either.
        ValueError: It is out of range, NaN or infinite.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number, got {shown(value)}")
    try:
        found = float(value)
    except OverflowError:  # an int beyond the range of floats
        found = math.inf
    if not (low <= found <= high and math.isfinite(found)) or (above is not None and not found > above):
        raise ValueError(f"{name}: expected {_range('a number', low, high, above)}, got {shown(value)}")
    return found


def integer(value: Any, name: str, low: int | None = None, high: int | None = None) -> int:
    """Return an int in [low, high]; NumPy integers are taken.

    Raises:
        TypeError: ``value`` is not an integer; a bool is not one either.
        ValueError: It is out of range.
    """
    if not _is_integer(value):
        raise TypeError(f"{name}: expected an int, got {shown(value)}")
    found = int(value)
    if (low is not None and found < low) or (high is not None and found > high):
        bounds = _range("an int", -math.inf if low is None else low, math.inf if high is None else high, None)
        raise ValueError(f"{name}: expected {bounds}, got {shown(value)}")
    return found


def flag(value: Any, name: str) -> bool:
    """Return a bool. Raises TypeError for anything else."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {shown(value)}")
    return bool(value)


def choice(value: Any, name: str, options: Iterable[str]) -> str:
    """Return one of the strings ``options``.

    Raises:
        TypeError: ``value`` is not a string.
        ValueError: It is none of them.
    """
    known = list(options)
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected one of {', '.join(map(repr, known))}, got {shown(value)}")
    if value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, known))}, got {shown(value)}")
    return value


def seed(value: Any, name: str = "seed") -> int:
    """Return a seed that fits the counters of the random numbers: an int in [0, 2**63)."""
    if not _is_integer(value):
        raise TypeError(f"{name}: expected an int, got {shown(value)}")
    if not 0 <= value < 2**63:
        raise ValueError(f"{name}: expected an int in [0, 2**63), got {value}")
    return int(value)


def _range(noun: str, low: float, high: float, above: float | None) -> str:
    if above is not None:
        return f"{noun} above {above:g}" + (f" and at most {high:g}" if math.isfinite(high) else "")
    if math.isfinite(low) and math.isfinite(high):
        whole = noun == "an int"  # whose large bounds have all of their digits
        return f"{noun} in [{low:.0f}, {high:.0f}]" if whole else f"{noun} in [{low:g}, {high:g}]"
    if math.isfinite(low):
        return f"{noun} of at least {low:g}"
    return f"{noun} of at most {high:g}" if math.isfinite(high) else f"a finite {noun.removeprefix('a ')}"


def device(value: torch.device | str) -> torch.device:
    """Return a device that is present.

    Raises:
        TypeError: ``value`` is neither a string nor a ``torch.device``.
        ValueError: It names no CPU or CUDA device, or one that is not there.
    """
    if not isinstance(value, (str, torch.device)):
        raise TypeError(f"device: expected 'cpu', 'cuda' or 'cuda:N', got {shown(value)}")
    try:
        found = torch.device(value)
    except RuntimeError as error:
        raise ValueError(f"device: expected 'cpu', 'cuda' or 'cuda:N', got {shown(value)}") from error
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected 'cpu', 'cuda' or 'cuda:N', got {shown(value)}")
    if found.type == "cuda" and not torch.cuda.is_available():
        why = "this PyTorch has no CUDA" if torch.version.cuda is None else "PyTorch sees no GPU"
        raise ValueError(f"device: {str(value)!r} was asked for, but {why}")
    if found.type == "cuda" and found.index is not None and found.index >= torch.cuda.device_count():
        raise ValueError(f"device: {str(value)!r} was asked for, but there are {torch.cuda.device_count()} GPUs")
    return found


def memory(value: int | str, name: str) -> int:
    """Return a number of bytes from an int or a string such as "512MiB".

    Raises:
        TypeError: ``value`` is neither.
        ValueError: It is less than one byte, or not a size.
    """
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([KMG]?i?B?)\s*", value, re.IGNORECASE | re.ASCII)
        unit = match and match[2].upper()
        if not match or unit not in _UNITS:
            raise ValueError(f"{name}: expected bytes or a size such as '512MiB', got {shown(value)}")
        found = int(float(match[1]) * _UNITS[unit])
    elif _is_integer(value):
        found = int(value)
    else:
        raise TypeError(f"{name}: expected bytes or a size such as '512MiB', got {shown(value)}")
    if found < 1:
        raise ValueError(f"{name}: expected at least 1 byte, got {shown(value)}")
    return found


def pair(value: Pair, name: str) -> tuple[int, int]:
    """Return two positive ints (rows, columns) from one int or two of them; NumPy integers are taken.

    Raises:
        TypeError: ``value`` is something else.
        ValueError: A number is below 1 or above 2**31 - 1.
    """
    parts: Any = (value, value)
    if isinstance(value, np.ndarray) and value.ndim == 1:
        parts = list(value)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        parts = value
    if len(parts) != 2 or not all(_is_integer(part) for part in parts):
        raise TypeError(f"{name}: expected an int or two (rows, columns), got {shown(value)}")
    if min(parts) < 1:
        raise ValueError(f"{name}: expected numbers of at least 1, got {shown(value)}")
    if max(parts) > _LARGEST:
        raise ValueError(f"{name}: expected numbers of at most {_LARGEST}, got {shown(value)}")
    return int(parts[0]), int(parts[1])


def progress(value: bool | Callable[[int, int | None], None]) -> bool | Callable[[int, int | None], None]:
    """Return a flag, or a function of (done, total or None). Raises TypeError for anything else."""
    if callable(value):
        return value
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"progress: expected True, False or a function of (done, total), got {shown(value)}")
    return bool(value)


def _is_integer(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
