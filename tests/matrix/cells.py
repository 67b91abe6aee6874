"""The cells of the matrix: what is run, with which interpreter, packages, compiler and instruction set."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from typing import Literal

from occfast.native.processor import features, model_name

#: Tests whose results depend on the compiler or the processor.
NATIVE = (
    "tests/native",
    "tests/occlude",
    "tests/losses",
    "tests/sweep/test_geometry.py",
    "tests/sweep/test_incremental.py",
    "tests/sweep/test_precision.py",
    "tests/poisoned",
    "tests/sweep/test_occlusion_map.py",
    "tests/train/test_cpu.py",
    "--ignore=tests/native/test_cuda_compile.py",
    "--ignore=tests/native/test_cuda_emulated.py",
)
WHOLE = ("tests",)

Packages = Literal["present", "pinned", "newest", "torch 2.11", "lowest"]


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        name: Name on the command line.
        what: Description for the table.
        tests: Arguments of pytest; empty: the kernels are run without Python (``kernels.py``).
        python: Version of the interpreter; "": the one that runs the matrix, with its packages.
        packages: Packages of the cell's environment; "present": none is made.
        environment: Environment variables.
        compiler: C++ compiler.
        flags: Flags of the compiler, for kernels without Python.
        runner: Program that runs what is compiled for another processor.
        feature: Feature of the processor that the cell needs, as Linux names it.
        poisoned: Whether memory holds NaN until it is written (``tests/poisoned``).
    """

    name: str
    what: str
    tests: tuple[str, ...] = ()
    python: str = ""
    packages: Packages = "present"
    environment: dict[str, str] = field(default_factory=dict)
    compiler: str = "g++"
    flags: tuple[str, ...] = ()
    runner: str = ""
    feature: str = ""
    poisoned: bool = False


def _instruction_set(name: str, what: str, march: str, onednn: str, aten: str, feature: str) -> Cell:
    limits = {"OCCFAST_MARCH": march, "ONEDNN_MAX_CPU_ISA": onednn, "ATEN_CPU_CAPABILITY": aten}
    limits = {key: value for key, value in limits.items() if value}
    return Cell(f"isa-{name}", what, NATIVE, environment=limits, feature=feature)


_LEVELS = (("v2", "ssse3"), ("v3", "avx2"), ("v4", "avx512bw"))
_SANITIZE = ("-O1", "-g1", "-fno-omit-frame-pointer", "-march=native")

CELLS: tuple[Cell, ...] = (
    *(
        Cell(
            f"kernels-{compiler}-{level}",
            f"every kernel, {compiler} -march=x86-64-{level}",
            compiler=compiler,
            flags=(f"-march=x86-64-{level}",),
            feature=feature,
        )
        for compiler in ("g++", "clang++")
        for level, feature in _LEVELS
    ),
    Cell("kernels-g++-native", "every kernel, g++ -march=native", flags=("-march=native",)),
    Cell("kernels-clang++-native", "every kernel, clang++ -march=native", compiler="clang++", flags=("-march=native",)),
    Cell(
        "kernels-aarch64",
        "every kernel on 64-bit ARM with NEON, emulated by QEMU",
        compiler="aarch64-linux-gnu-g++",
        flags=("-march=armv8-a", "-static"),
        runner="qemu-aarch64",
    ),
    Cell(
        "kernels-asan",
        "every kernel under AddressSanitizer and UBSan",
        flags=(*_SANITIZE, "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    ),
    _instruction_set("sse4.1", "everything limited to SSE4.1", "x86-64-v2", "SSE41", "default", "ssse3"),
    _instruction_set("avx2", "everything limited to AVX2", "x86-64-v3", "AVX2", "avx2", "avx2"),
    _instruction_set(
        "avx512", "everything limited to AVX-512 without bfloat16", "x86-64-v4", "AVX512_CORE", "avx512", "avx512bw"
    ),
    _instruction_set("native", "everything the processor has", "native", "", "", ""),
    _instruction_set("amx", "oneDNN with AMX", "native", "AVX512_CORE_AMX", "", "amx_bf16"),
    Cell("poisoned", "memory holds NaN until it is written", NATIVE, poisoned=True),
    Cell("clang", "kernels built by clang++", NATIVE, compiler="clang++", environment={"CXX": "clang++"}),
    Cell("python3.10", "the whole selection, Python 3.10, PyTorch 2.11", WHOLE, "3.10", "torch 2.11"),
    Cell("lowest", "the whole selection, lowest declared versions of all packages", WHOLE, "3.11", "lowest"),
    Cell("python3.11", "the whole selection, Python 3.11, pinned versions", WHOLE, "3.11", "pinned"),
    Cell("python3.12", "native part, Python 3.12, newest packages", NATIVE, "3.12", "newest"),
    Cell("python3.13", "native part, Python 3.13, newest packages", NATIVE, "3.13", "newest"),
    Cell("python3.14", "native part, Python 3.14, newest packages", NATIVE, "3.14", "newest"),
)


def processor() -> str:
    """Return the model of the processor and the widest instruction sets that it has."""
    model = model_name() or platform.machine()
    wide = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in features()]
    return f"{model} ({', '.join(wide)})" if wide else model
