"""What the C library does with memory that PyTorch gives back on a CPU."""

from __future__ import annotations

import ctypes
import sys

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Keep what is freed for the next allocation, instead of handing it back to the system at once.

    PyTorch frees the activations of a step and asks for them again in the next.  glibc returns blocks above some
    hundred KiB to the system each time, which then clears every page anew: in training the paper's network on two
    cores that took almost half of the time. The commands of ``occfast`` call this; in a program of your own call it
    once, before the first large tensor. It holds for the whole process and its forks: memory stays as high as it once
    was. GPUs are not concerned; PyTorch keeps their memory anyway.

    Returns:
        Whether there was anything to set: True with glibc, False with other C libraries.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # -1 is the largest size there is. All three: without mappings of their own large blocks come from the heap, and
    # its top must neither be cut off nor grow page by page.
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1), mallopt(_TOP_PAD, 64 << 20)])
