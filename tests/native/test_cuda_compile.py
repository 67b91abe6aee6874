"""Every CUDA kernel compiles for each tested architecture without a warning or a spill, and links."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

import pybind11
import pytest
import torch

from occfast.native import build, compile, loader
from tests.native import ptx

pytestmark = pytest.mark.skipif(build.nvcc() is None, reason="nvcc is neither on the path nor under CUDA_HOME")
#: What only the module of the CPU has: on a GPU the libraries of PyTorch do it.
CPU_ONLY = {"multiply", "MatrixProduct"}
KERNEL_FILES = [path for path in build.sources("cuda") if path.suffix == ".cu"]


class Kernel(NamedTuple):
    name: str
    spill_stores: int
    spill_loads: int
    registers: int


def kernels(report: str) -> list[Kernel]:
    """Parse the report of ``-Xptxas -v`` for each kernel."""
    pattern = re.compile(
        r"Compiling entry function '(?P<name>\w+)'.*?(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill "
        r"loads.*?Used (?P<registers>\d+) registers",
        re.DOTALL,
    )
    return [Kernel(m["name"], int(m["stores"]), int(m["loads"]), int(m["registers"])) for m in pattern.finditer(report)]


def compile_text(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    source = folder / "planted.cu"
    source.write_text(text)
    return build.nvcc_compile(source, folder / "planted.o", build.CUDA_ARCHITECTURES[0])


@pytest.fixture(scope="module")
def objects(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("objects")


def test_both_backends_have_the_same_stems():
    assert {path.stem for path in KERNEL_FILES} >= {"sweep", "occlude"}
    assert [p.stem for p in build.sources("cpu")] == [p.stem for p in build.sources("cuda")]


@pytest.mark.parametrize("architecture", build.CUDA_ARCHITECTURES)
@pytest.mark.parametrize("source", KERNEL_FILES, ids=lambda path: path.name)
def test_kernels_compile_without_warnings_or_spills(objects, source, architecture):
    done = build.nvcc_compile(source, objects / f"{source.stem}.{architecture}.o", architecture)
    assert done.returncode == 0, done.stdout + done.stderr
    found = kernels(done.stderr)
    assert found and len(found) == done.stderr.count("Compiling entry function"), done.stderr
    for kernel in found:
        assert (kernel.spill_stores, kernel.spill_loads) == (0, 0), kernel
        assert 0 < kernel.registers <= 255


def test_a_warning_is_an_error(tmp_path):
    assert compile_text("__global__ void fine(int* out) { *out = 1; }", tmp_path).returncode == 0
    done = compile_text("__global__ void odd(int* out) { int unused = 2; *out = 1; }", tmp_path)
    assert done.returncode != 0 and "unused" in done.stdout + done.stderr


def test_a_spill_is_an_error(tmp_path):
    # 48 values that live across a barrier, in 32 registers.
    text = """
    __global__ void __launch_bounds__(1024, 2) crowded(const float* from, float* to) {
      float value[48];
      #pragma unroll
      for (int k = 0; k < 48; ++k) value[k] = from[threadIdx.x + k * 1024];
      __syncthreads();
      #pragma unroll
      for (int k = 0; k < 48; ++k) to[threadIdx.x + ((k * 7) % 48) * 1024] = value[k] * value[(k * 5) % 48];
    }"""
    done = compile_text(text, tmp_path)
    assert done.returncode != 0, done.stderr
    assert "spill" in (done.stdout + done.stderr).lower()


PLANTED_LOOP = """
__global__ void scaled(const float* from, float* to, int count, int per) {
  for (int k = threadIdx.x; k < count; k += 32) to[k] = from[k / per];
}"""


def test_loops_and_divisions_are_found(tmp_path):
    source = tmp_path / "planted.cu"
    source.write_text(PLANTED_LOOP)
    [kernel] = ptx.kernels(source, tmp_path)
    assert "scaled" in kernel.name and kernel.innermost
    # The compiler may unroll the loop: each of its stores has a division.
    for loop in kernel.innermost:
        assert loop.divisions() == loop.count(r"\bst\.global") == loop.count(r"\bld\.global") >= 1
    source.write_text(PLANTED_LOOP.replace("k / per", "k"))
    assert all(loop.divisions() == 0 for loop in ptx.kernels(source, tmp_path)[0].innermost)


def test_gathering_a_word_takes_few_instructions(objects):
    """Four loads are in flight, and neither a word nor a pixel takes a division. PTX has about as many instructions
    as sm_90 runs, apart from divisions: 23 to 28 a word there."""
    found = ptx.kernels(build.source_root() / "cuda" / "gather.cu", objects)
    assert len(found) == 8  # two kinds of windows, four sizes of words
    for kernel in found:
        *_, pixels, words = kernel.innermost
        assert pixels.count(r"\bst\.shared") == 1 and len(pixels.instructions) <= 50
        stores = [k for k, text in enumerate(words.instructions) if "st.global" in text]
        loads = [k for k, text in enumerate(words.instructions) if "ld.global.nc" in text]
        assert len(stores) == len(loads) == 4 and max(loads) < min(stores)
        assert len(words.instructions) <= 30 * len(stores)
        assert words.divisions() == pixels.divisions() == 0
        if "gather_kernelILi16" in kernel.name:
            assert words.count(r"ld\.global\.nc\.v4") == words.count(r"st\.global\.v4") == 4


def test_the_products_of_a_convolution_take_few_other_instructions(objects):
    """The exact ones mostly multiply and add; a step of the others has a product for each 16 x 8 of a warp's outputs."""
    found = ptx.kernels(build.source_root() / "cuda" / "convolve.cu", objects)
    assert len(found) == 28  # two kinds of windows; five arithmetics, all but one with three kinds of tiles
    for kernel in found:
        [products] = [loop for loop in kernel.innermost if loop.count(r"\bfma\.rn|\bmma\.sync")]
        assert products.divisions() == 0 and not products.count(r"\b(ld|st)\.(global|local)")
        kind, scheme, width = re.search(  # type: ignore[union-attr]
            r"convolve_kernelI(?:NS_)?(f|d|4Half|8BFloat16)E?NS0_\d(Scalars|Matrices)ELi(32|64)E", kernel.name
        ).groups()
        if scheme == "Scalars":
            adds = products.count(rf"\bfma\.rn\.f{'32' if kind == 'f' else '64'}\b")
            assert adds == {"f": 4, "d": 2}[kind] * int(width)
            assert len(products.instructions) <= 1.5 * adds and not kernel.count(r"\bmma\.sync")
        else:
            types = {"f": "tf32.tf32", "4Half": "f16.f16", "8BFloat16": "bf16.bf16"}[kind]
            columns = int(width) // 8
            assert kernel.count(rf"\bmma\.sync.*\.f32\.{types}\.f32") == products.count(r"\bmma\.sync") == 2 * columns
            assert products.count(r"\bcvt\.rna\.tf32") == (8 + 2 * columns if kind == "f" else 0)
        copies = [loop for loop in kernel.innermost if loop.count(r"\bcp\.async\.c")]
        assert copies and all(loop.divisions() == 0 for loop in copies)


def test_painting_a_quad_takes_no_division(objects):
    """Threads walk over the quads of the box alone, and step from one to the next by additions."""
    found = [k for k in ptx.kernels(build.source_root() / "cuda" / "occlude.cu", objects) if "paint_kernel" in k.name]
    assert len(found) == 4  # types of images
    for kernel in found:
        # The loops that compute noise: over the channels of a quad, quads, lines and images.
        loops = sorted((x for x in kernel.loops if x.count(r"\bmul\.(wide|hi)\.u32") >= 15), key=lambda x: len(x[0]))
        assert len(loops) == 4
        _, quads, lines, images = loops
        assert quads.divisions() == 0 and lines.divisions() > 0
        assert images.divisions() <= 12


def _runtime_folder() -> Path | None:
    # The program on the path may be a script that calls nvcc.
    output = subprocess.run([str(build.nvcc()), "--dryrun", "x.cu"], capture_output=True, text=True).stderr
    folders = [Path(folder) for folder in re.findall(r'"-L([^"]+)"', output)]
    return next((folder.resolve() for folder in folders if (folder / "libcudart.so").exists()), None)


def test_the_module_links_and_defines_every_function(objects):
    """The whole of ``occfast_cuda``, linked as on a machine with a GPU and imported; no kernel runs.

    The nvcc on the path may be a script that calls the real one, so nothing is known of where its libraries are.
    """
    runtime = _runtime_folder()
    if runtime is None:
        pytest.skip("libcudart.so is not beside nvcc")
    architecture = build.CUDA_ARCHITECTURES[-1]
    parts = [str(objects / "bindings.o")]
    for source in KERNEL_FILES:
        parts.append(str(objects / f"{source.stem}.{architecture}.o"))
        if not Path(parts[-1]).exists():
            assert build.nvcc_compile(source, Path(parts[-1]), architecture).returncode == 0
    include = [f"-I{folder}" for folder in (sysconfig.get_path("include"), pybind11.get_include(), build.source_root())]
    module = objects / "occfast_cuda.so"
    compiler, bindings = str(build.compiler()), str(build.source_root() / "bindings.cpp")
    command = [compiler, "-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-DOCCFAST_CUDA"]
    command += ["-DTORCH_EXTENSION_NAME=occfast_cuda", *include, "-c", bindings, "-o", parts[0]]
    compile.run([(command, Path(parts[0]))])
    compile.run([compile.link_job("cuda", [Path(part) for part in parts], module)])
    # A function that api.h declares and no file defines would be an undefined symbol at the import (RTLD_NOW).
    # The module of the CPU, whose functions have the same names, is loaded first, with its symbols for everyone.
    code = f"""
import importlib.util, os, sys
from occfast.native import loader
sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
cpu = loader.module("cpu")
assert cpu.workers(cpu.ExecContext(threads=2, stream=None)) == 2
sys.setdlopenflags(os.RTLD_NOW)
spec = importlib.util.spec_from_file_location("occfast_cuda", {str(module)!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
context = module.ExecContext(threads=2, stream=None)
assert module.workers(context) == 1
module.normals(words=0, n=0, values=0, context=context)  # nothing to do: no launch
try:
    module.normals(words=0, n=1, values=0, context=context) if {not torch.cuda.is_available()} else None
except RuntimeError as error:
    assert "normals failed: " in str(error)
else:
    assert {torch.cuda.is_available()}
print(*sorted(name for name in dir(module) if name[0] != "_"))
"""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(runtime)}  # a CUDA build of PyTorch brings the library
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    names = {name for name in dir(loader.module("cpu")) if name[0] != "_"}
    assert names >= CPU_ONLY and set(done.stdout.split()) == names - CPU_ONLY
