"""Compile CUDA sources for the emulator (``cuda_runtime.h`` beside this file) with the sanitizers on.

``module()`` builds a drop-in for ``occfast_cuda`` whose kernels run on the CPU, ``program(source)`` an
executable. Builds are kept in occfast's cache under a hash of sources and flags.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11

from occfast.native import build, loader

HERE = Path(__file__).resolve().parent
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
# Few blocks, so that every loop over a grid runs more than once.
FLAGS = [
    "-std=c++17",
    "-O1",
    "-g1",
    "-fPIC",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-fno-strict-aliasing",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-Werror",
    "-DOCCFAST_MAX_BLOCKS=5",
]


def sanitizer_libraries() -> list[str]:
    """Return the libraries to preload into a program that is not sanitized; libstdc++ is for C++ exceptions."""
    paths = []
    for name in ("libasan.so", "libstdc++.so.6"):
        found = subprocess.run([str(build.compiler()), f"-print-file-name={name}"], capture_output=True, text=True)
        paths.append(found.stdout.strip())
    return paths


def missing() -> str | None:
    """Return the reason why the emulator can't be used here, or None."""
    if build.compiler() is None:
        return "no C++ compiler on the path"
    if not all(Path(path).is_absolute() for path in sanitizer_libraries()):
        return f"{build.compiler()} has no libasan.so to preload"
    return None


def environment() -> dict[str, str]:
    """Return the environment of a Python process that loads ``module()``, with its tensors' allocations watched too."""
    return {
        **os.environ,
        "LD_PRELOAD": ":".join(sanitizer_libraries()),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:exitcode=99:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "PYTHONPATH": os.pathsep.join([str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }


def _build(name: str, jobs: list[tuple[Path, list[str]]], link: list[str], extra: list[Path]) -> Path:
    """Compile each (source, flags) and link all into ``name``, in the cache."""
    content = hashlib.sha256(repr((build.compiler(), sysconfig.get_config_var("SOABI"), jobs, link)).encode())
    inputs = [*sorted(HERE.glob("*.h")), *sorted(build.source_root().rglob("*")), *extra]
    for path in inputs:
        if path.is_file():
            content.update(path.name.encode() + b"\0" + path.read_bytes())
    folder = loader.cache_root() / f"emulator-{content.hexdigest()[:20]}"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / name
    with (folder / "building").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if target.exists():
            return target

        def run(command: list[str]) -> None:
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")

        def compiled(job: tuple[int, tuple[Path, list[str]]]) -> str:
            index, (source, flags) = job
            output = str(folder / f"{index}-{source.stem}.o")
            run([str(build.compiler()), *FLAGS, *flags, "-x", "c++", "-c", str(source), "-o", output])
            return output

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compiled, enumerate(jobs)))
        partial = folder / f"{name}.partial"
        run([str(build.compiler()), *objects, *link, "-o", str(partial)])
        partial.rename(target)
    return target


def module() -> Path:
    """Build ``occfast_emulated.so`` of bindings.cpp and every csrc/cuda/*.cu; load it under ``environment()``."""
    root = build.source_root()
    python = [f"-I{sysconfig.get_path('include')}", f"-I{pybind11.get_include()}", f"-I{root}"]
    bindings, *kernels = build.sources("cuda")
    jobs = [(kernel, [*SANITIZE, f"-I{HERE}", f"-I{root}"]) for kernel in kernels]
    jobs.append((bindings, [*python, "-DOCCFAST_CUDA", "-DTORCH_EXTENSION_NAME=occfast_emulated"]))
    return _build("occfast_emulated.so", jobs, ["-shared", *SANITIZE], [])


def program(source: Path) -> Path:
    """Build an executable from one .cu file with a ``main``."""
    jobs = [(source, [*SANITIZE, f"-I{HERE}", f"-I{build.source_root()}"])]
    return _build(source.stem, jobs, SANITIZE, [source])


if __name__ == "__main__":
    print(module(), file=sys.stdout)
