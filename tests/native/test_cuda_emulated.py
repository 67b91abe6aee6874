"""The CUDA kernels, run on the CPU under AddressSanitizer and UBSan (see tests/emulator/cuda_runtime.h)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from occfast.native import loader
from occfast.native.enums import Mining
from tests.emulator import build

pytestmark = pytest.mark.skipif(bool(build.missing()), reason=str(build.missing()))


def run(*command: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env={**build.environment(), **more}, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def planted() -> Path:
    return build.program(build.HERE / "planted.cu")


def run_planted(planted: Path, case: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ASAN_OPTIONS": "exitcode=99", "UBSAN_OPTIONS": "halt_on_error=1"}
    return subprocess.run([str(planted), case], env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("case", ["block_sum", "warp_sum", "votes", "trap", "limits", "copy", "products"])
def test_the_emulator_runs_blocks_and_warps_as_a_gpu_does(planted, case):
    done = run_planted(planted, case)
    assert done.returncode == 0, done.stderr


def test_a_reduction_without_barriers_goes_wrong(planted):
    # Shows that the correct sums above depend on the barriers.
    assert run_planted(planted, "hasty_sum").returncode == 3


def test_an_asynchronous_copy_has_not_arrived_before_its_thread_waits(planted):
    assert run_planted(planted, "hasty_copy").returncode == 3


@pytest.mark.parametrize(
    ("case", "report"),
    [
        ("past_the_end", "heap-buffer-overflow"),
        ("past_shared", "heap-buffer-overflow"),
        ("past_static", "out of bounds|global-buffer-overflow"),
        ("past_stack", "out of bounds|stack-buffer-overflow"),
        ("overflow", "signed integer overflow"),
        ("misaligned", "misaligned address"),
        ("lonely_barrier", "deadlock: not every thread reaches this"),
        ("absent_lane", "reads a lane that takes no part"),
        ("misaligned_copy", "misaligned address"),
        ("some_lanes", "reads a lane that takes no part"),
    ],
)
def test_planted_errors_are_reported(planted, case, report):
    done = run_planted(planted, case)
    assert done.returncode not in (0, 3, 4)
    assert re.search(report, done.stderr), done.stderr


def test_mining_takes_few_barriers():
    """Sums and minima cross a warp by shuffles: an anchor takes six barriers, whatever is mined; further loads of
    positives take two more each, and random negatives one a positive."""
    lines = run(str(build.program(build.HERE / "barriers.cu"))).stdout.split("\n")[:-1]
    assert len(lines) == 10
    for members, mining, barriers in (line.split() for line in lines):
        most = {"10": 6, "300": 8}[members] + (int(members) if int(mining) == Mining.SEMIHARD_RANDOM else 0)
        assert 4 <= float(barriers) <= most, (members, mining, barriers)


def test_the_sanitizer_watches_the_arrays_of_a_python_process():
    code = """
import ctypes, importlib.util, os
spec = importlib.util.spec_from_file_location("occfast_emulated", os.environ["OCCFAST_EMULATED"])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
words = ctypes.create_string_buffer(4 * 1000)
values = ctypes.create_string_buffer(4 * 1000)
context = module.ExecContext(threads=1, stream=None)
module.normals(words=ctypes.addressof(words), n=COUNT, values=ctypes.addressof(values), context=context)
print("returned")
"""
    for count, clean in ((1000, True), (1001, False)):
        done = run(sys.executable, "-c", code.replace("COUNT", str(count)), OCCFAST_EMULATED=str(build.module()))
        assert ("returned" in done.stdout) is clean, done.stderr
        assert (done.returncode == 0) is clean
        assert ("heap-buffer-overflow" in done.stderr) is not clean, done.stderr


def test_kernels_against_the_cpu_and_the_twins():
    loader.module("cpu")  # built here, so that no compiler runs under the sanitizer
    check = build.HERE / "check_kernels.py"
    done = run(
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "--capture=sys",
        "-p",
        "no:cacheprovider",
        str(check),
        OCCFAST_EMULATED=str(build.module()),
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[:6000]}"
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= 100 and "skipped" not in done.stdout, done.stdout[-2000:]
