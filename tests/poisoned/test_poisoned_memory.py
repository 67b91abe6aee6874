"""Nothing that is computed depends on memory that was not written (see ``memory.c``)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from occfast.native import loader
from tests.poisoned import build

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(bool(build.missing()), reason=str(build.missing()))


def run(*arguments: str, timeout: float = 600) -> int:
    """Run tests in a process with poisoned memory and return how many passed."""
    loader.module("cpu")  # built here, in ordinary memory
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=build.environment(), capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and "skipped" not in done.stdout, done.stdout[-2000:]
    return int(passed[1])


def test_sweeps() -> None:
    assert run("-m", "not slow", "tests/poisoned/check_results.py") >= 20


def test_losses_and_occluders() -> None:
    of_losses = [
        f"tests/losses/test_triplet.py::{name}" for name in ("test_same_bits_for_any_threads", "test_permutation")
    ]
    of_occluders = "tests/native/test_occluder_ops.py::test_native_equals_the_twin_to_the_bit"
    assert run("-m", "not slow", *of_losses, of_occluders) >= 3


@pytest.mark.slow
def test_everything() -> None:
    assert run("tests/poisoned/check_results.py", timeout=3000) >= 80
    files = ("tests/losses/test_triplet.py", "tests/occlude/test_noisy.py", "tests/native/test_occluder_ops.py")
    assert run("-m", "not slow and not cuda", *files) >= 50
