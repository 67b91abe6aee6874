"""Find a native module: prebuilt, from the cache, or built now.

The first use of a native op builds a module once for each key (see ``build.py``), under a file lock, so any number of
processes may start at the same time.  Importing compiles nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import NativeUnavailable
from ..files import write_atomically
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
    return backend in _modules or prebuilt_path(backend) is not None or cached_path(backend) is not None


def prebuilt_path(backend: Backend) -> Path | None:
    """Return the module that ``OCCFAST_AOT=1 pip install`` built for this processor, Python and torch, or None."""
    marker = Path(__file__).with_name(f"occfast_{backend}.json")
    if not marker.is_file():
        return None
    try:
        stated = json.loads(marker.read_text())
        key, path = stated["key"], marker.with_name(stated["module"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(
            f"{marker} is damaged ({type(error).__name__}: {error}), so the prebuilt module is not used; "
            "reinstall occfast",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return path if key == build.key(backend).digest() and path.is_file() else None


def _prebuilt(backend: Backend) -> ModuleType | None:
    path = prebuilt_path(backend)
    return _import(backend, path) if path else None


def cached_path(backend: Backend) -> Path | None:
    """Return the module in the cache, or None.

    A module counts only if it has the digest that ``finished`` states.  A killed build leaves no such file.  A module
    that was cut or damaged is built again instead of being mapped, which could end the process.
    """
    folder = cache_folder(backend)
    path = folder / f"occfast_{backend}.so"
    try:
        stated = json.loads((folder / "finished").read_text())
        return path if stated["sha256"] == _digest(path) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _cached(backend: Backend) -> ModuleType | None:
    path = cached_path(backend)
    return _import(backend, path) if path else None


def _import(backend: Backend, path: Path) -> ModuleType:
    name = f"occfast_{backend}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    try:
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
    except ImportError as error:
        raise NativeUnavailable(
            f"the native module {path} can't be loaded: {error}; delete it and run `occfast build`, {_REFERENCE_HINT}"
        ) from error
    return loaded


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold a lock that is released when its process ends (PyTorch's own lock file survives a killed build)."""
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
        _clear(folder)
        loaded = _compile(backend, folder)
        _finish(backend, folder)
        print(f"occfast: compiled in {time.perf_counter() - started:.0f} s into {folder}", file=sys.stderr, flush=True)
        return loaded


def _clear(folder: Path) -> None:
    """Remove what a killed or damaged build left, PyTorch's lock included; ninja would take it for up to date."""
    for path in folder.iterdir():
        if path.name != "building" and path.is_file():
            path.unlink()


def _finish(backend: Backend, folder: Path) -> None:
    """State that the module is complete, after its content has reached the disk."""
    path = folder / f"occfast_{backend}.so"
    with path.open("rb") as file:
        os.fsync(file.fileno())
    stated = {**build.key(backend).__dict__, "sha256": _digest(path)}
    write_atomically(folder / "finished", json.dumps(stated, indent=1).encode())


def _compile(backend: Backend, folder: Path) -> ModuleType:
    from torch.utils import cpp_extension

    options: dict[str, Any] = {"extra_cflags": build.cxx_flags(backend), "extra_ldflags": ["-fopenmp"]}
    environment = {"MAX_JOBS": os.environ.get("MAX_JOBS", str(max(1, os.cpu_count() or 1)))}
    if not os.environ.get("CXX", "").split():  # PyTorch would try c++ alone
        environment["CXX"] = str(build.compiler())
    if found := build.ninja():  # the ninja of a wheel lies beside python, which need not be on the path
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
    except (RuntimeError, OSError, ImportError, subprocess.SubprocessError) as error:
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
    """Forget the loaded modules (for tests)."""
    with _lock:
        _modules.clear()
