"""The CPU kernels without Python: ``tests/native/kernels.cpp`` built with a compiler and flags, run, and compared."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from occfast.native import build

PROGRAM = Path(__file__).resolve().parents[1] / "native" / "kernels.cpp"
#: Results that sum products with one rounding where the processor multiplies and adds in one step, else with two.
PRODUCTS = ("multiply/", "convolve_")

Results = dict[str, NDArray]


def compile_program(compiler: str, flags: Sequence[str], output: Path) -> Path:
    """Build the program with the flags of a native module, except the instruction set, and those given."""
    found = shutil.which(compiler)
    if found is None:
        raise FileNotFoundError(f"{compiler} is not on the path")
    common = [flag for flag in build.cxx_flags("cpu") if not flag.startswith("-march=")]
    _, *kernels = build.sources("cpu")
    command = [found, *common, *flags, f"-I{build.source_root()}", str(PROGRAM), *map(str, kernels), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return output


def run_program(program: Path, runner: str = "", threads: int = 1) -> Results:
    """Run the program and return its results by name."""
    command = [*([runner] if runner else []), str(program), str(threads)]
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}\n{done.stderr.decode()[-4000:]}")
    return read(done.stdout)


def read(output: bytes) -> Results:
    """Read what the program writes."""
    found: Results = {}
    at = 0
    while at < len(output):
        end = output.index(b"\n", at)
        name, dtype, count = output[at:end].decode().split()
        size = int(count) * np.dtype(dtype).itemsize
        found[name] = np.frombuffer(output, dtype, int(count), end + 1)
        at = end + 1 + size
    return found


def differing(found: Results, expected: Results, products: bool) -> list[str]:
    """Return the names of results that are not as expected.

    Args:
        found: Results.
        expected: Results of another build.
        products: Whether sums of products are to be equal to the bit as well. Otherwise they are to agree up to
            rounding.
    """
    wrong = sorted(found.keys() ^ expected.keys())
    for name in found.keys() & expected.keys():
        a, b = found[name], expected[name]
        if a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes():
            continue
        if (
            products
            or not name.startswith(PRODUCTS)
            or a.shape != b.shape
            or not np.allclose(a, b, rtol=0, atol=64 * np.finfo(a.dtype).eps * max(1.0, float(np.abs(b).max())))
        ):
            wrong.append(name)
    return sorted(wrong)
