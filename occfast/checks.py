"""Checks of arguments that several modules share; each failure is one error that names the argument."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.utils.dlpack
from torch import Tensor

#: A size or step: one int for both axes, or (rows, columns).
Pair = int | Sequence[int]

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


def in_range(value: float, name: str, low: float, high: float) -> float:
    """A number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if not low <= value <= high:  # also refuses NaN
        raise ValueError(f"{name}: expected a number in [{low:g}, {high:g}], got {value!r}")
    return float(value)


def seed(value: int) -> int:
    """A seed that fits the counters: an int in [0, 2**63)."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"seed: expected an int, got {value!r}")
    if not 0 <= value < 2**63:
        raise ValueError(f"seed: expected an int in [0, 2**63), got {value}")
    return value


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
