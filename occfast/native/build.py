"""Sources, compilers, flags and cache key of the native modules.

The build at first use (``loader.py``), ``occfast build``, ``setup.py`` and the tests that compile the CUDA kernels
without a GPU all use these. ``setup.py`` imports this where PyTorch is not installed.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from . import processor

Backend = Literal["cpu", "cuda"]

#: Variants of the CPU kernels that a wheel holds: values of ``-march`` for each ``platform.machine()``, the best first.
#: Each level contains the next, so a processor that can run one can run those after it.
VARIANTS = {"x86_64": ("x86-64-v4", "x86-64-v3", "x86-64-v2"), "aarch64": ("armv8-a",)}

#: Compute capabilities that the tests compile for, and that are built without a visible GPU.
CUDA_ARCHITECTURES = ("80", "90", "100")

_PACKAGE = Path(__file__).resolve().parent.parent
# No fast-math. Contraction is off so that the noise has the same bits on every device. The next two flags drop errno
# and floating-point traps, which nothing here reads, so that loops vectorize. Symbols are hidden because both modules
# define the same functions: if one of them is loaded with RTLD_GLOBAL, the other must not call its functions.
_CXX_FLAGS = (
    "-O3",
    "-std=c++17",
    "-fopenmp",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
)
_NVCC_FLAGS = (
    "-O3",
    "-std=c++17",
    "-fmad=false",
    "--expt-relaxed-constexpr",
    "-lineinfo",
    "-Xcompiler",
    "-fvisibility=hidden",
)


def source_root() -> Path:
    """Return the folder ``csrc``, inside an installed package or beside it in a checkout."""
    for root in (_PACKAGE / "csrc", _PACKAGE.parent / "csrc"):
        if (root / "bindings.cpp").is_file():
            return root
    raise FileNotFoundError(f"csrc/bindings.cpp is neither in {_PACKAGE} nor beside it")


def sources(backend: Backend) -> list[Path]:
    """Return the files that are compiled into ``occfast_<backend>``."""
    root = source_root()
    kernels = sorted((root / backend).glob("*.cpp" if backend == "cpu" else "*.cu"))
    return [root / "bindings.cpp", *kernels]


@lru_cache(maxsize=1)
def source_digest() -> str:
    """Return the hash of everything under ``csrc`` that is compiled."""
    root, content = source_root(), hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.suffix in {".h", ".cpp", ".cu", ".cuh"}:
            content.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return content.hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def python_abi() -> str:
    """Return the name of Python's binary interface, for example "cpython-311-x86_64-linux-gnu"."""
    return sysconfig.get_config_var("SOABI") or sys.version


def march() -> str:
    """Return the value of ``-march`` for a build: ``OCCFAST_MARCH``, by default "native"."""
    return os.environ.get("OCCFAST_MARCH") or "native"


def cxx_flags(backend: Backend, target: str | None = None) -> list[str]:
    """Return the flags of the C++ compiler for a backend, with ``-march=target`` or that of :func:`march`."""
    return [*_CXX_FLAGS, f"-march={target or march()}", *(["-DOCCFAST_CUDA"] if backend == "cuda" else [])]


def nvcc_flags(architectures: tuple[str, ...] = ()) -> list[str]:
    """Return the flags of nvcc: machine code for each architecture, and PTX for the newest."""
    flags = list(_NVCC_FLAGS)
    for arch in architectures:
        flags.append(f"-gencode=arch=compute_{arch},code=sm_{arch}")
    if architectures:
        newest = max(architectures, key=int)
        flags.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
    return flags


def compiler() -> str | None:
    """Return the C++ compiler of a build: ``CXX``, or the first of c++, g++ and clang++; None if there is none."""
    if chosen := os.environ.get("CXX", "").split():
        return shutil.which(chosen[0])
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return path
    return None


def compiler_command() -> list[str]:
    """Return the command of the C++ compiler, with the options that ``CXX`` names; empty if there is none."""
    path = compiler()
    return [path, *os.environ.get("CXX", "").split()[1:]] if path else []


def nvcc() -> str | None:
    """Return the CUDA compiler, under ``CUDA_HOME`` or on the path; None if there is none."""
    home = os.environ.get("CUDA_HOME")
    if home and (path := shutil.which("nvcc", path=str(Path(home) / "bin"))):
        return path
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


@lru_cache(maxsize=8)
def version_of(*command: str) -> str:
    """Return the line of ``--version`` that names the version of a compiler."""
    try:
        shown = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({type(error).__name__})"
    lines = [line.strip() for line in shown.splitlines() if line.strip()]
    return next((line for line in lines if "release" in line), lines[0] if lines else "unknown")


@lru_cache(maxsize=1)
def instruction_set() -> str:
    """Return what ``-march`` stands for: its value, or for "native" the machine and the features of its processor."""
    if march() != "native":
        return march()
    return f"{platform.machine()} {' '.join(sorted(processor.features())) or platform.processor()}"


@dataclass(frozen=True)
class BuildKey:
    """Everything that the content of a built module depends on.

    PyTorch's version is not among it: ``csrc`` includes no header of PyTorch, and a module links to none of its
    libraries. ``compilers`` is empty on a machine without a compiler.
    """

    backend: str
    python: str
    instruction_set: str
    compilers: str
    flags: str
    sources: str

    def digest(self) -> str:
        """Return the hash of the key, 20 hexadecimal digits."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:20]


def cuda_architectures() -> tuple[str, ...]:
    """Return the architectures to build for.

    ``OCCFAST_CUDA_ARCHITECTURES`` (for example "90,100"), else those of the visible GPUs, else all tested ones.
    """
    if chosen := os.environ.get("OCCFAST_CUDA_ARCHITECTURES"):
        parts = tuple(part.strip() for part in chosen.split(",") if part.strip())
        if not parts or not all(re.fullmatch(r"\d{2,3}", part) for part in parts):
            raise ValueError(f"OCCFAST_CUDA_ARCHITECTURES: expected numbers such as 90,100, got {chosen!r}")
        return parts
    import torch

    if torch.cuda.is_available():
        found = {torch.cuda.get_device_capability(k) for k in range(torch.cuda.device_count())}
        return tuple(f"{major}{minor}" for major, minor in sorted(found))
    return CUDA_ARCHITECTURES


def key(backend: Backend) -> BuildKey:
    """Return the cache key of a build of the present sources on this machine."""
    flags = cxx_flags(backend)
    compilers = [version_of(*compiler_command())] if compiler() else []
    if backend == "cuda":
        flags += nvcc_flags(cuda_architectures())
        compilers += [version_of(program)] if (program := nvcc()) else []
    return BuildKey(
        backend=backend,
        python=python_abi(),
        instruction_set=instruction_set(),
        compilers="; ".join(compilers),
        flags=" ".join(flags),
        sources=source_digest(),
    )


def nvcc_compile(source: Path, output: Path, architecture: str) -> subprocess.CompletedProcess[str]:
    """Compile one ``.cu`` file for one architecture with every warning an error.

    Only CUDA's own headers are needed, so this works with a PyTorch without CUDA.  The standard error of the result
    holds the registers and spills of each kernel (``-Xptxas -v``).
    """
    program = nvcc()
    if program is None:
        raise FileNotFoundError("nvcc is neither on the path nor under CUDA_HOME")
    command = [
        program,
        "-c",
        *nvcc_flags(),
        f"-gencode=arch=compute_{architecture},code=sm_{architecture}",
        "-Xptxas",
        "-v,-warn-spills",
        "-Werror",
        "all-warnings",
        "-Xcompiler",
        "-Wall,-fPIC",
        str(source),
        "-o",
        str(output),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)
