"""Memory that a forward pass needs, and memory that is free."""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class _LiveBytes(TorchDispatchMode):
    """Count of the storages that operators create and that are still alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        identity, size = storage._cdata, storage.nbytes()
        if identity in self._known:
            return
        self._known.add(identity)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, identity, size)

    def _gone(self, identity: int, size: int) -> None:
        self._known.discard(identity)
        self.live -= size


def peak_bytes(function: Callable[[], Any]) -> int:
    """Return the largest memory that tensors created by a call hold at one time, in bytes."""
    counter = _LiveBytes()
    with counter:
        kept = function()
    del kept
    return counter.peak


def available_bytes(device: torch.device) -> int:
    """Return the memory that is free now, in bytes."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 4 * 2**30


def return_freed(device: torch.device) -> None:
    """Return memory of freed tensors from the C library to the system, on a CPU with glibc.

    Tensors of one size leave holes that do not fit those of another size: after a few batch sizes have been tried, half
    of the memory that the process holds may be such holes.
    """
    if device.type == "cpu" and sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that an allocation failed, on any device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        phrase in text for phrase in ("out of memory", "can't allocate memory", "not enough memory")
    )
