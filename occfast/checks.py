"""Checks of arguments that several modules share; each failure is one error that names the argument."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.utils.dlpack
from torch import Tensor

#: A size or step: one int for both axes, or (rows, columns).
Pair = int | Sequence[int]

#: Images of more pixels are refused before they are decoded: a file of kilobytes can claim gigabytes.
MAX_PIXELS = 40_000_000

_UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def as_tensor(value: Any, name: str) -> Tensor:
    """A tensor, sharing memory, from a tensor or any object with ``__dlpack__`` (NumPy, CuPy, JAX)."""
    if isinstance(value, Tensor):
        return value
    if hasattr(value, "__dlpack__"):
        flags = getattr(value, "flags", None)
        if flags is not None and getattr(flags, "writeable", True) is False:
            value = value.copy()  # PyTorch takes no read-only memory
        tensor: Tensor = torch.utils.dlpack.from_dlpack(value)
        return tensor
    raise TypeError(f"{name}: expected a tensor or an array with __dlpack__, got {type(value).__name__}")


def number(
    value: Any, name: str, low: float = -math.inf, high: float = math.inf, *, above: float | None = None
) -> float:
    """Return a finite number in [low, high], greater than ``above`` if that is given.

    Raises:
        TypeError: ``value`` is no number (a bool is none).
        ValueError: It is out of range, NaN or infinite.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    found = float(value)
    if not (low <= found <= high and math.isfinite(found)) or (above is not None and not found > above):
        raise ValueError(f"{name}: expected {_range('a number', low, high, above)}, got {value!r}")
    return found


def integer(value: Any, name: str, low: int | None = None, high: int | None = None) -> int:
    """Return an int in [low, high]; NumPy integers are taken.

    Raises:
        TypeError: ``value`` is no integer (a bool is none).
        ValueError: It is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    found = int(value)
    if (low is not None and found < low) or (high is not None and found > high):
        bounds = _range("an int", -math.inf if low is None else low, math.inf if high is None else high, None)
        raise ValueError(f"{name}: expected {bounds}, got {value!r}")
    return found


def flag(value: Any, name: str) -> bool:
    """Return a bool.  Raises TypeError for anything else."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def choice(value: Any, name: str, options: Iterable[str]) -> str:
    """Return one of the strings ``options``.

    Raises:
        TypeError: ``value`` is no string.
        ValueError: It is none of them.
    """
    known = list(options)
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected one of {', '.join(map(repr, known))}, got {value!r}")
    if value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, known))}, got {value!r}")
    return value


def seed(value: Any, name: str = "seed") -> int:
    """Return a seed that fits the counters of the random numbers: an int in [0, 2**63)."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    if not 0 <= value < 2**63:
        raise ValueError(f"{name}: expected an int in [0, 2**63), got {value}")
    return int(value)


def _range(what: str, low: float, high: float, above: float | None) -> str:
    if above is not None:
        return f"{what} above {above:g}" + (f" and at most {high:g}" if math.isfinite(high) else "")
    if math.isfinite(low) and math.isfinite(high):
        return f"{what} in [{low:g}, {high:g}]"
    if math.isfinite(low):
        return f"{what} of at least {low:g}"
    return f"{what} of at most {high:g}" if math.isfinite(high) else f"a finite {what.removeprefix('a ')}"


def device(value: Any) -> torch.device:
    """A device that is there."""
    try:
        found = torch.device(value)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device: expected 'cpu', 'cuda' or 'cuda:N', got {value!r}") from error
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected 'cpu', 'cuda' or 'cuda:N', got {value!r}")
    if found.type == "cuda" and not torch.cuda.is_available():
        why = "this PyTorch has no CUDA" if torch.version.cuda is None else "PyTorch sees no GPU"
        raise ValueError(f"device: {value!r} was asked for, but {why}")
    if found.type == "cuda" and found.index is not None and found.index >= torch.cuda.device_count():
        raise ValueError(f"device: {value!r} was asked for, but there are {torch.cuda.device_count()} GPUs")
    return found


def memory(value: int | str, name: str) -> int:
    """Bytes from an int or a string such as "512MiB"."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?i?B?)\s*", value, re.IGNORECASE)
        unit = match and match[2].upper()
        if not match or unit not in _UNITS:
            raise ValueError(f"{name}: expected bytes or a size such as '512MiB', got {value!r}")
        return int(float(match[1]) * _UNITS[unit])
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected bytes or a size such as '512MiB', got {value!r}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1 byte, got {value}")
    return value


def pair(value: Pair, name: str) -> tuple[int, int]:
    """A positive int or two of them."""
    given = value
    if isinstance(value, int) and not isinstance(value, bool):
        value = (value, value)
    if (
        isinstance(value, str)
        or not isinstance(value, Sequence)
        or len(value) != 2
        or not all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    ):
        raise TypeError(f"{name}: expected an int or two (rows, columns), got {given!r}")
    if min(value) < 1:
        raise ValueError(f"{name}: expected numbers of at least 1, got {given!r}")
    return int(value[0]), int(value[1])
