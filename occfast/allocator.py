"""Reuse of freed memory on a CPU."""

from __future__ import annotations

import ctypes
import sys

# Constants of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Keep freed memory for later allocations instead of returning it to the system.

    PyTorch frees the activations of a step and allocates them again in the next. glibc returns blocks above some
    hundred KiB to the system each time, which then clears every page again: in training the paper's network on two
    cores this took almost half of the time. The commands of ``occfast`` call this function; in your own program call it
    once, before the first large tensor. It applies to the whole process and its forks, whose memory stays as large as
    it once was. GPU memory is not affected; PyTorch keeps it anyway.

    Returns:
        Whether the C library supports it: True for glibc, else False.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # -1 is the largest size. All three are needed: without mappings of their own large blocks come from the heap,
    # and its top must neither be trimmed nor grow page by page.
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1), mallopt(_TOP_PAD, 64 << 20)])
