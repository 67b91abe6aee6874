"""Compile the native modules.

The build at first use (``loader.py``) calls :func:`build_module`, ``setup.py`` calls :func:`prebuild`, which makes the
modules of a wheel from the same sources and flags. ``setup.py`` imports this where PyTorch is not installed.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from . import build
from .build import Backend

#: A command and the file that it makes.
Job = tuple[list[str], Path]


class CompileError(RuntimeError):
    """A command of the compiler that failed; the message holds the command and its output."""


def run(jobs: Iterable[Job]) -> None:
    """Run commands at the same time, ``MAX_JOBS`` at most, by default one for each core.

    Raises:
        CompileError: One of them failed. Those that have not begun are dropped.
    """
    limit = os.environ.get("MAX_JOBS", "")
    pool = ThreadPoolExecutor(int(limit) if limit.isdigit() and int(limit) else os.cpu_count() or 1)
    try:
        for done in [pool.submit(_run, command) for command, _ in jobs]:
            done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _run(command: list[str]) -> None:
    if os.environ.get("OCCFAST_VERBOSE"):
        print(shlex.join(command), file=sys.stderr, flush=True)
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise CompileError(f"{command[0]}: {error.strerror}") from error
    if done.returncode != 0:
        output = (done.stdout + done.stderr).strip() or f"exit status {done.returncode}"
        raise CompileError(f"{output}\n{shlex.join(command)}")


def compile_jobs(
    backend: Backend, sources: Sequence[Path], folder: Path, march: str, architectures: tuple[str, ...] = ()
) -> list[Job]:
    """Return the commands that compile sources into objects in a folder."""
    import pybind11

    program = build.nvcc() if backend == "cuda" else None
    include = [f"-I{build.source_root()}"]
    for path in (pybind11.get_include(), sysconfig.get_path("include")):
        include += ["-isystem", path]
    chosen = os.environ.get("CXX", "").split()
    host = ["-ccbin", str(build.compiler())] if len(chosen) == 1 else []  # with more words it is no program alone
    jobs = []
    for source in sources:
        output = folder / f"{source.stem}.{march}.o"
        if source.suffix == ".cu":
            command = [str(program), *host, *build.nvcc_flags(architectures), "-Xcompiler", "-fPIC"]
        else:
            command = [*build.compiler_command(), "-fPIC", f"-DTORCH_EXTENSION_NAME=occfast_{backend}", *include]
            command += build.cxx_flags(backend, march)
        jobs.append(([*command, "-c", str(source), "-o", str(output)], output))
    return jobs


def link_job(backend: Backend, objects: Sequence[Path], output: Path, *, portable: bool = False) -> Job:
    """Return the command that links objects into a module.

    A module of the CPU that is ``portable`` does not name the library of OpenMP: it takes the one that PyTorch has
    loaded, whatever that is called.  nvcc links the CUDA module, since only it knows where its libraries are: the
    program on the path may be a script that calls the real one.

    A module shows its ``PyInit_`` alone, also of the templates of the standard library, which hidden visibility leaves
    out: another library must not call those that were compiled for this processor.
    """
    files = [str(path) for path in objects]
    script = output.with_suffix(".map")
    script.write_text(f"{{ global: PyInit_occfast_{backend}; local: *; }};\n")
    if backend == "cuda":
        command = [str(build.nvcc()), "-shared", "-cudart", "shared", *files]
        command += ["-Xlinker", f"--version-script={script}"]
    else:
        command = [*build.compiler_command(), "-shared", *files, f"-Wl,--version-script={script}"]
        command += ["-Wl,-s"] if portable else ["-fopenmp"]
    return [*command, "-o", str(output)], output


def build_module(backend: Backend, folder: Path, march: str, architectures: tuple[str, ...] = ()) -> Path:
    """Build ``occfast_<backend>.so`` in a folder.

    Raises:
        CompileError: The compiler or the linker failed.
    """
    jobs = compile_jobs(backend, build.sources(backend), folder, march, architectures)
    run(jobs)
    linking = link_job(backend, [output for _, output in jobs], folder / f"occfast_{backend}.so")
    run([linking])
    return linking[1]


def check_cuda_version() -> None:
    """Compare nvcc with the CUDA of PyTorch, and with the C++ compilers that it supports, by PyTorch's own check.

    Raises:
        CompileError: Their major versions differ, or nvcc does not support the C++ compiler.
    """
    from torch.utils import cpp_extension

    check = getattr(cpp_extension, "_check_cuda_version", None)
    program = build.nvcc()
    if check is None or program is None or Path(program).parent.name != "bin":
        return
    before = cpp_extension.CUDA_HOME
    cpp_extension.CUDA_HOME = str(Path(program).parent.parent)  # the check looks for bin/nvcc there
    try:
        compiler = str(build.compiler())
        _, version = cpp_extension.get_compiler_abi_compatibility_and_version(compiler)
        check(Path(compiler).name, version)
    except RuntimeError as error:
        text, *values = error.args
        raise CompileError(str(text % tuple(values) if values else text)) from error
    finally:
        cpp_extension.CUDA_HOME = before


# -- the modules of a wheel ---------------------------------------------------------------------------------


def prebuild(wanted: Sequence[str], target: Path, work: Path) -> None:
    """Build the modules of a wheel and the file that describes them, ``modules.json``.

    Args:
        wanted: Names of variants of the CPU kernels (see ``build.VARIANTS``), and "cuda".
        target: Folder that receives the modules.
        work: Folder for the objects.

    Raises:
        ValueError: A name is unknown.
        CompileError: No compiler, an unsuitable one, or it failed.
    """
    machine = platform.machine()
    known = build.VARIANTS.get(machine, ())
    if unknown := [name for name in wanted if name not in (*known, "cuda")]:
        raise ValueError(f"OCCFAST_PREBUILD: expected names among {', '.join((*known, 'cuda'))}, got {unknown[0]!r}")
    command = build.compiler_command()
    if not command:
        raise CompileError("no C++ compiler (c++, g++, clang++) on the path; install one or set CXX")
    if "clang" in build.version_of(*command):
        raise CompileError(f"{command[0]} is Clang, whose OpenMP library PyTorch does not load; set CXX=g++")
    baseline = known[-1] if known else "native"
    variants = [name for name in known if name in wanted]
    modules: list[dict[str, Any]] = []
    jobs: list[Job] = []
    links: list[Job] = []
    if variants:
        # The bindings run no kernel, so that all variants share those of the oldest processor.
        bindings, *kernels = build.sources("cpu")
        shared = compile_jobs("cpu", [bindings], work, baseline)
        level = target / "cpu_level.so"
        source = build.source_root() / "cpu_level.cpp"
        jobs += shared
        flags = ["-O2", "-fPIC", f"-march={baseline}", "-fvisibility=hidden", "-shared", "-Wl,-s"]
        links.append(([*command, *flags, str(source), "-o", str(level)], level))
        for name in variants:
            own = compile_jobs("cpu", kernels, work, name)
            jobs += own
            output = target / f"occfast_cpu.{name}.so"
            links.append(link_job("cpu", [path for _, path in (*shared, *own)], output, portable=True))
            modules.append({"backend": "cpu", "variant": name, "file": output.name})
    if "cuda" in wanted:
        program = build.nvcc()
        if program is None:
            raise CompileError("no nvcc; install the CUDA toolkit or set CUDA_HOME")
        architectures = build.cuda_architectures()
        own = compile_jobs("cuda", build.sources("cuda"), _folder(work / "cuda"), baseline, architectures)
        jobs += own
        output = target / "occfast_cuda.so"
        links.append(link_job("cuda", [path for _, path in own], output))
        version = build.version_of(program)
        modules.append({"backend": "cuda", "file": output.name, "architectures": list(architectures), "nvcc": version})
    run(jobs)
    run(links)
    for path in target.glob("*.map"):
        path.unlink()
    for module in modules:
        module["sha256"] = build.file_digest(target / module["file"])
    stated = {
        "python": build.python_abi(),
        "machine": machine,
        "compiler": build.version_of(*command),
        "sources": build.source_digest(),
        "modules": modules,
    }
    (target / "modules.json").write_text(json.dumps(stated, indent=1) + "\n")


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path
