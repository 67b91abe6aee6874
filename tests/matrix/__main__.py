"""Run the matrix: ``python -m tests.matrix``, or ``make test-matrix``.

Cells that have a result are left out, so an interrupted run continues; ``--redo`` runs them again.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from functools import lru_cache
from pathlib import Path

from occfast.native.processor import features
from tests.poisoned import build as poisoned

from . import kernels
from .cells import CELLS, Cell, processor
from .environments import ROOT, NotHere, compiler_version, interpreter, prepare, versions
from .report import Result, load, save

SELECTION = "not slow and not cuda"
#: Results that the others are compared with: fused products, the least that all of today's processors have.
_BASELINE = next(cell for cell in CELLS if cell.name == "kernels-g++-v3")


def main(arguments: list[str] | None = None) -> int:
    """Run cells; return 1 if one failed."""
    parser = argparse.ArgumentParser("python -m tests.matrix", description=__doc__)
    parser.add_argument("cells", nargs="*", metavar="CELL", help="cells to run (default: all)")
    parser.add_argument("--list", action="store_true", help="list the cells")
    parser.add_argument("--redo", action="store_true", help="also run cells that have a result")
    parser.add_argument("--output", type=Path, default=ROOT / "build/matrix", help="folder of the results")
    parser.add_argument("--work", type=Path, default=ROOT / "build/matrix", help="folder of environments and logs")
    parser.add_argument(
        "--pythons", type=Path, action="append", default=[], help="an interpreter, or a folder of interpreters"
    )
    parser.add_argument(
        "--use", action="append", default=[], metavar="CELL=PYTHON", help="run a cell in an existing environment"
    )
    parser.add_argument("--nice", type=int, default=0, help="lower the priority by this much")
    options = parser.parse_args(arguments)
    by_name = {cell.name: cell for cell in CELLS}
    unknown = sorted(set(options.cells) - by_name.keys())
    if unknown:
        parser.error(f"cells: expected names among {', '.join(by_name)}, got {', '.join(unknown)}")
    if options.list:
        for cell in CELLS:
            print(f"{cell.name:24} {cell.what}")
        return 0
    os.nice(options.nice)
    existing = dict(entry.split("=", 1) for entry in options.use)
    chosen = [by_name[name] for name in options.cells] or list(CELLS)
    for cell in chosen:
        before = load(options.output).get(cell.name)
        if before is not None and before.status != "not run" and not options.redo:
            print(f"{cell.name}: {before.status} before")
            continue
        print(f"{cell.name}: {cell.what} ...", flush=True)
        result = run(cell, options.work, options.pythons, existing.get(cell.name))
        save(options.output, {**load(options.output), cell.name: result})
        counts = f"{result.passed} passed, {result.failed} failed, {result.skipped} skipped"
        print(f"{cell.name}: {result.status}, {result.reason or counts}, {result.seconds:.0f} s", flush=True)
    results = load(options.output)
    return int(any(results[cell.name].status == "failed" for cell in chosen))


def run(cell: Cell, work: Path, pythons: list[Path], existing: str | None) -> Result:
    """Run a cell and return its result; output goes to its log."""
    folder = work / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    log.write_text("")
    result = Result(cell.name, cell.what, "not run", processor=processor(), commit=_commit())
    result.date = datetime.date.today().isoformat()
    try:
        if cell.feature and cell.feature not in features():
            raise NotHere(f"the processor has no {cell.feature}")
        result.versions["compiler"] = compiler_version(cell.compiler)
        if cell.runner:
            result.versions["emulator"] = compiler_version(cell.runner)
        started = time.perf_counter()
        if cell.tests:
            _run_tests(cell, folder, log, pythons, existing, result)
        else:
            _run_kernels(cell, folder, log, result)
        result.seconds = result.seconds or round(time.perf_counter() - started, 1)
    except NotHere as error:
        result.reason = str(error)
    return result


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


def _run_kernels(cell: Cell, folder: Path, log: Path, result: Result) -> None:
    """Compare the results of a build with those of the baseline, and those of one thread with those of three."""
    result.command = shlex.join(["python", "-m", "tests.matrix", cell.name])
    try:
        program = kernels.compile_program(cell.compiler, cell.flags, folder / "kernels")
        found = kernels.run_program(program, cell.runner)
        threads = kernels.run_program(program, cell.runner, threads=3)
        wrong = set(kernels.differing(threads, found, products=True))
        if cell is not _BASELINE and _BASELINE.feature in features():
            fused = "-march=x86-64-v2" not in cell.flags
            wrong.update(kernels.differing(found, _baseline(folder.parent), products=fused))
    except RuntimeError as error:
        log.write_text(str(error))
        result.status, result.reason, result.failed = "failed", str(error).splitlines()[-1], 1
        return
    log.write_text("\n".join(sorted(wrong)))
    result.passed, result.failed = len(found) - len(wrong), len(wrong)
    result.status = "failed" if wrong else "passed"
    result.reason = f"other bits: {', '.join(sorted(wrong)[:5])}" if wrong else ""


@lru_cache(maxsize=1)
def _baseline(work: Path) -> kernels.Results:
    return kernels.run_program(kernels.compile_program(_BASELINE.compiler, _BASELINE.flags, work / "baseline"))


def _run_tests(cell: Cell, folder: Path, log: Path, pythons: list[Path], existing: str | None, result: Result) -> None:
    if existing:
        python = Path(existing)
    elif cell.packages == "present":
        python = Path(sys.executable)
    else:
        python = prepare(folder / "environment", interpreter(cell.python, pythons), cell.packages, log)
    found = versions(python, cell.environment)
    if cell.python and not found["python"].startswith(f"{cell.python}."):
        raise NotHere(f"--use {cell.name}: expected Python {cell.python}, got {found['python']}")
    result.versions = {**found, **result.versions}
    junit = folder / "junit.xml"
    junit.unlink(missing_ok=True)
    variables = {"OMP_NUM_THREADS": "1", **cell.environment}
    rest = ["-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider", "-m", SELECTION]
    rest += cell.tests
    shown = [f"{name}={value}" for name, value in variables.items()]
    result.command = shlex.join([*shown, "python", *rest])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    if cell.poisoned:
        if reason := poisoned.missing():
            raise NotHere(reason)
        environment["LD_PRELOAD"] = str(poisoned.library())
    started = time.perf_counter()
    with log.open("a") as out:
        subprocess.run(
            [str(python), *rest, f"--junitxml={junit}"], cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT
        )
    result.seconds = round(time.perf_counter() - started, 1)
    if not junit.exists():
        result.status, result.reason, result.failed = "failed", "pytest wrote no report", 1
        return
    suite = next(ElementTree.parse(junit).getroot().iter("testsuite"))
    counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    result.failed, result.skipped = counts["failures"] + counts["errors"], counts["skipped"]
    result.passed = counts["tests"] - result.failed - result.skipped
    broken = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    result.status = "failed" if broken or not result.passed else "passed"
    result.reason = ", ".join(broken[:5])


if __name__ == "__main__":
    sys.exit(main())
