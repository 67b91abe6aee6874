"""Build ``memory.c`` and return the environment of a process whose memory it poisons."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from occfast.native import loader

SOURCE = Path(__file__).with_name("memory.c")


def missing() -> str | None:
    """Return the reason why memory can't be poisoned here, or None."""
    if not sys.platform.startswith("linux") or os.confstr("CS_GNU_LIBC_VERSION") is None:
        return "only the allocator of glibc is replaced"
    return None if compiler() else "no C compiler (cc, gcc, clang) on the path"


def compiler() -> str | None:
    """Return the C compiler, or None."""
    return next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)


def library() -> Path:
    """Return the library to preload; it is kept in occfast's cache."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:20]
    path = loader.cache_root() / f"poisoned-{digest}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        command = [str(compiler()), "-O1", "-shared", "-fPIC", "-fno-builtin", str(SOURCE), "-o", str(partial)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
        partial.rename(path)
    return path


def environment() -> dict[str, str]:
    """Return the environment of a process with poisoned memory."""
    return {**os.environ, "LD_PRELOAD": str(library())}
