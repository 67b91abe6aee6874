"""Finds a native module: a prebuilt one, one from the cache, or one built now.

A build happens at the first use of a native op, once for each key (see ``build.py``), under a file
lock, so that any number of processes may start at once.  Nothing is compiled at import.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import NativeUnavailable
from . import build
from .build import Backend

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
    """``OCCFAST_CACHE``, or ``occfast`` in the user's cache folder."""
    if chosen := os.environ.get("OCCFAST_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "occfast"


def cache_folder(backend: Backend) -> Path:
    return cache_root() / f"{backend}-{build.key(backend).digest()}"


def module(backend: Backend) -> ModuleType:
    """The native module for a backend; built first if need be.

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
    """Whether :func:`module` will return without compiling."""
    return backend in _modules or prebuilt_path(backend) is not None or cached_path(backend) is not None


def prebuilt_path(backend: Backend) -> Path | None:
    """A module that ``OCCFAST_AOT=1 pip install`` put beside this file for this very machine and torch."""
    marker = Path(__file__).with_name(f"occfast_{backend}.json")
    if not marker.is_file():
        return None
    stated = json.loads(marker.read_text())
    if stated.get("key") != build.key(backend).digest():
        return None
    path = marker.with_name(stated["module"])
    return path if path.is_file() else None


def _prebuilt(backend: Backend) -> ModuleType | None:
    path = prebuilt_path(backend)
    return _import(backend, path) if path else None


def cached_path(backend: Backend) -> Path | None:
    """The finished module in the cache; the marker is written last, so a killed build is no module."""
    folder = cache_folder(backend)
    try:
        if not (folder / "finished").is_file():
            return None
    except PermissionError:
        return None
    path = folder / f"occfast_{backend}.so"
    return path if path.is_file() else None


def _cached(backend: Backend) -> ModuleType | None:
    path = cached_path(backend)
    return _import(backend, path) if path else None


def _import(backend: Backend, path: Path) -> ModuleType:
    name = f"occfast_{backend}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(loaded)
    except ImportError as error:
        raise NativeUnavailable(
            f"the native module {path} can't be loaded: {error}; delete it and run `occfast build`, {_REFERENCE_HINT}"
        ) from error
    return loaded


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold a lock that dies with its process (PyTorch's own lock file outlives a killed build)."""
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)


def missing(backend: Backend) -> str | None:
    """What keeps a build from starting, with its cure, or None."""
    if build.compiler() is None:
        chosen = os.environ.get("CXX")
        what = (
            f"CXX={chosen} is no program on the path" if chosen else "no C++ compiler (c++, g++, clang++) on the path"
        )
        return f"{what}; install one (Debian: apt-get install g++) or set CXX"
    if build.ninja() is None:
        return "no ninja; run `pip install ninja`"
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
        loaded = _compile(backend, folder)
        (folder / "finished").write_text(json.dumps(build.key(backend).__dict__, indent=1))
        print(f"occfast: compiled in {time.perf_counter() - started:.0f} s into {folder}", file=sys.stderr, flush=True)
        return loaded


def _compile(backend: Backend, folder: Path) -> ModuleType:
    from torch.utils import cpp_extension

    (folder / "lock").unlink(missing_ok=True)  # of a build that was killed: ours is the flock
    options: dict[str, Any] = {"extra_cflags": build.cxx_flags(backend), "extra_ldflags": ["-fopenmp"]}
    environment = {"MAX_JOBS": os.environ.get("MAX_JOBS", str(max(1, os.cpu_count() or 1)))}
    if found := build.ninja():  # a wheel's ninja beside python need not be on the path
        environment["PATH"] = f"{Path(found).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    if backend == "cuda":
        architectures = build.cuda_architectures()
        options["extra_cuda_cflags"] = [*build.nvcc_flags(architectures), "-Xcompiler", "-fPIC"]
        options["with_cuda"] = True
        environment["TORCH_CUDA_ARCH_LIST"] = ";".join(f"{a[:-1]}.{a[-1]}" for a in architectures)
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        loaded: ModuleType = cpp_extension.load(
            name=f"occfast_{backend}",
            sources=[str(path) for path in build.sources(backend)],
            extra_include_paths=[str(build.source_root())],
            build_directory=str(folder),
            verbose=bool(os.environ.get("OCCFAST_VERBOSE")),
            **options,
        )
    except (RuntimeError, OSError, ImportError) as error:
        raise NativeUnavailable(
            f"the {backend} kernels did not compile with {build.compiler()}:\n{error}\n"
            f"set OCCFAST_VERBOSE=1 to see the commands, {_REFERENCE_HINT}"
        ) from error
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
    return loaded


def forget() -> None:
    """Drop the loaded modules (for tests)."""
    with _lock:
        _modules.clear()
