"""CUDA tests, and compute-sanitizer on them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from bench.harness import ROOT
from occfast.native import build


def tail(output: str | bytes | None) -> str:
    """Return the end of a program's output."""
    return (output.decode(errors="replace") if isinstance(output, bytes) else output or "")[-3000:]


def read_junit(path: Path) -> dict[str, Any]:
    """Read counts and the names of failed tests from a JUnit file."""
    suite = next(ElementTree.parse(path).getroot().iter("testsuite"))
    counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return {**counts, "failed": failed, "seconds": round(float(suite.get("time", 0)), 1)}


def run_tests(limit: float) -> dict[str, Any]:
    """Run ``pytest -m cuda``; ok if at least one test ran and none failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-o",
            "addopts=",
            "-p",
            "no:cacheprovider",
            "-m",
            "cuda",
            f"--junitxml={report}",
            "tests",
        ]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired as error:
            return {"ok": False, "error": f"stopped after {limit:.0f} s", "output": tail(error.stdout)}
        if not report.exists():
            return {"ok": False, "error": "pytest wrote no report", "output": (done.stdout + done.stderr)[-3000:]}
        found = read_junit(report)
    ran = found["tests"] - found["skipped"]
    return {
        "ok": done.returncode == 0 and ran > 0,
        "ran": ran,
        **found,
        **({} if done.returncode == 0 else {"output": done.stdout[-3000:]}),
    }


def find_sanitizer() -> str | None:
    """Return the path of compute-sanitizer, on the path or beside nvcc, or None."""
    near = [str(Path(nvcc).resolve().parent) for nvcc in (build.nvcc(),) if nvcc]
    for folder in (None, *near, "/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer"):
        if path := shutil.which("compute-sanitizer", path=folder):
            return path
    return None


def run_sanitizer(limit: float) -> dict[str, Any]:
    """Run memcheck and racecheck on the device tests, for occfast's kernels only, each within half the limit."""
    program = find_sanitizer()
    if program is None:
        return {"ok": True, "skipped": "compute-sanitizer is neither on the path nor beside nvcc"}
    help_text = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=60).stdout
    # The option that selects kernels has had several names.
    option = next((o for o in ("--kernel-name", "--kernel-regex", "--filter") if o in help_text), None)
    found: dict[str, Any] = {"ok": True}
    for tool in ("memcheck", "racecheck"):
        command = [
            program,
            "--tool",
            tool,
            "--error-exitcode",
            "86",
            *([option, "kns=occfast"] if option else []),
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-o",
            "addopts=",
            "-p",
            "no:cacheprovider",
            "tests/native/test_cuda_device.py",
            "-k",
            "copies or scores or sums or draws or paint or words or gather or convolved or triplet",
        ]
        started = time.perf_counter()
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=limit / 2,
                env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            )
        except subprocess.TimeoutExpired as error:
            found[tool] = {"ok": None, "error": f"stopped after {limit / 2:.0f} s", "output": tail(error.stdout)}
            continue
        summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", done.stdout)
        passed = re.search(r"(\d+) passed", done.stdout)
        ok = done.returncode == 0 and bool(summary) and passed is not None
        found[tool] = {
            "ok": ok,
            "summary": summary[-1:],
            "passed": int(passed[1]) if passed else 0,
            "seconds": round(time.perf_counter() - started, 1),
            **({} if ok else {"output": (done.stdout + done.stderr)[-3000:]}),
        }
        found["ok"] = found["ok"] and ok
    return found
