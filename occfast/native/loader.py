"""Find a native module: prebuilt in a wheel, from the cache, or built now.

Where no prebuilt module fits, the first use of a native op builds one once for each key (see ``build.py``), under a
file lock, so any number of processes may start at the same time. Importing compiles nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

from ..errors import NativeUnavailable
from ..files import write_atomically
from . import build, prebuilt
from .build import Backend
from .compile import CompileError, build_module, check_cuda_version

_REFERENCE_HINT = "or set OCCFAST_BACKEND=reference to run the (slower) PyTorch twins"
_modules: dict[str, ModuleType] = {}
_lock = threading.Lock()


def requested() -> str:
    """``OCCFAST_BACKEND``: "native" (the default) or "reference"."""
    value = os.environ.get("OCCFAST_BACKEND", "native")
    if value not in ("native", "reference"):
        raise ValueError(f"OCCFAST_BACKEND: expected 'native' or 'reference', got {value!r}")
    return value


def cache_root() -> Path:
    """Return the folder of the cache: ``OCCFAST_CACHE``, or ``occfast`` in the user's cache folder.

    Raises:
        NativeUnavailable: The user has no home folder.
    """
    chosen = os.environ.get("OCCFAST_CACHE")
    try:
        if chosen:
            return Path(chosen).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "occfast"
    except RuntimeError as error:
        raise NativeUnavailable(
            f"no folder for the cache of the native modules: {error}; set OCCFAST_CACHE to a folder that can be "
            f"written, {_REFERENCE_HINT}"
        ) from error


def cache_folder(backend: Backend) -> Path:
    """Return the folder of a module in the cache."""
    return cache_root() / f"{backend}-{build.key(backend).digest()}"


def module(backend: Backend) -> ModuleType:
    """Return the native module of a backend, and build it first if there is none.

    Raises:
        NativeUnavailable: If it can't be built or loaded; the message names what is missing.
    """
    found = _modules.get(backend)
    if found is not None:
        return found
    with _lock:
        if backend not in _modules:
            _modules[backend] = _prebuilt(backend) or _cached(backend) or _built(backend)
        return _modules[backend]


def is_ready(backend: Backend) -> bool:
    """Return whether :func:`module` returns without compiling."""
    return backend in _modules or prebuilt.find(backend) is not None or cached_path(backend) is not None


def _prebuilt(backend: Backend) -> ModuleType | None:
    path = prebuilt.find(backend)
    if path is None:
        return None
    if backend == "cpu":
        prebuilt.provide_openmp()
    return _import(backend, path, "reinstall occfast, or set OCCFAST_MARCH=native to compile the kernels here")


def cached_path(backend: Backend) -> Path | None:
    """Return the module in the cache, or None.

    A module counts only if it has the digest that ``finished`` states. A killed build leaves no such file. A module
    that was cut or damaged is built again instead of being mapped, which could end the process. On a machine
    without a compiler, a module counts whichever version of a compiler built it.
    """
    key = build.key(backend)
    folders = [cache_folder(backend)]
    if not key.compilers:
        folders = sorted(path.parent for path in cache_root().glob(f"{backend}-*/finished"))
    for folder in folders:
        path = folder / f"occfast_{backend}.so"
        try:
            stated = json.loads((folder / "finished").read_text())
            same = all(stated[name] == value for name, value in asdict(key).items() if name != "compilers")
            if same and stated["sha256"] == build.file_digest(path):
                return path
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _cached(backend: Backend) -> ModuleType | None:
    path = cached_path(backend)
    return _import(backend, path) if path else None


def _import(backend: Backend, path: Path, cure: str = "delete it and run `occfast build`") -> ModuleType:
    # pybind11 keeps modules by name, so another file needs another name; Python takes what follows the last point.
    name = f"{path.as_posix().replace('.', '_')}.occfast_{backend}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    try:
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
    except ImportError as error:
        raise NativeUnavailable(
            f"the native module {path} can't be loaded: {error}; {cure}, {_REFERENCE_HINT}"
        ) from error
    return loaded


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold a lock that is released when its process ends."""
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)


def missing(backend: Backend) -> str | None:
    """Return what prevents a build, and how to fix it, or None."""
    if build.compiler() is None:
        chosen = os.environ.get("CXX", "").strip()
        what = (
            f"CXX={chosen} is not a program on the path"
            if chosen
            else "no C++ compiler (c++, g++, clang++) on the path"
        )
        return f"{what}; install one (Debian: apt-get install g++) or set CXX"
    if importlib.util.find_spec("pybind11") is None:
        return "no pybind11; run `pip install pybind11`"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        return f"no {header}; install the headers of this Python (Debian: apt-get install python3-dev)"
    if backend == "cuda":
        import torch

        if torch.version.cuda is None:
            return "this PyTorch has no CUDA; install a CUDA build of torch"
        if build.nvcc() is None:
            return "no nvcc; install the CUDA toolkit or set CUDA_HOME"
    return None


def _built(backend: Backend) -> ModuleType:
    if reason := missing(backend):
        raise NativeUnavailable(f"the {backend} kernels can't be built: {reason}, {_REFERENCE_HINT}")
    folder = cache_folder(backend)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise NativeUnavailable(
            f"the cache folder {cache_root()} can't be written: {error.strerror}; "
            f"set OCCFAST_CACHE to a folder that can, {_REFERENCE_HINT}"
        ) from error
    with _exclusive(folder / "building"):
        if (done := _cached(backend)) is not None:  # another process was first
            return done
        started = time.perf_counter()
        print(f"occfast: compiling the {backend} kernels (once, under a minute) ...", file=sys.stderr, flush=True)
        _clear(folder)
        _compile(backend, folder)
        loaded = _import(backend, folder / f"occfast_{backend}.so")
        _finish(backend, folder)
        print(f"occfast: compiled in {time.perf_counter() - started:.0f} s into {folder}", file=sys.stderr, flush=True)
        return loaded


def _clear(folder: Path) -> None:
    """Remove what a killed or damaged build left."""
    for path in folder.iterdir():
        if path.name != "building" and path.is_file():
            path.unlink()


def _finish(backend: Backend, folder: Path) -> None:
    """State that the module is complete, after its content has reached the disk."""
    path = folder / f"occfast_{backend}.so"
    with path.open("rb") as file:
        os.fsync(file.fileno())
    stated = {**asdict(build.key(backend)), "sha256": build.file_digest(path)}
    write_atomically(folder / "finished", json.dumps(stated, indent=1).encode())


def _compile(backend: Backend, folder: Path) -> None:
    try:
        architectures: tuple[str, ...] = ()
        if backend == "cuda":
            check_cuda_version()
            architectures = build.cuda_architectures()
        build_module(backend, folder, build.march(), architectures)
    except (CompileError, OSError) as error:
        raise NativeUnavailable(
            f"the {backend} kernels did not compile with {build.compiler()}:\n{error}\n"
            f"set OCCFAST_VERBOSE=1 to see the commands, {_REFERENCE_HINT}"
        ) from error
    for path in folder.glob("*.o"):
        path.unlink()


def forget() -> None:
    """Forget the loaded modules (for tests)."""
    with _lock:
        _modules.clear()
