"""A short run of the torture; ``make torture`` takes half an hour. See docs/reliability.md."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.parsers import targets

ROOT = Path(__file__).resolve().parents[1]


def torture(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "tests.torture", *arguments, "--report", str(report), "--keep", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return dict(json.loads(report.read_text()))


def test_kills_disks_and_writers(tmp_path: Path) -> None:
    only = [word for name in ("map adaptive", "train classify", "convert") for word in ("--only", name)]
    counts = ["--kills", "15", "--disks", "1", "--writers", "1", "--workers", "1", "--minutes", "0"]
    report = torture(tmp_path, "kills", "disks", "writers", *only, *counts, "--no-build", "--no-reproduce")
    totals = report["totals"]
    assert totals["kills"] >= 15 and totals["full_disks"] == totals["pairs_of_writers"] == 5
    assert {row["command"].partition(" ")[0] for row in report["kills"]} == {"map", "train", "convert"}
    assert sum(row["at_operations"] for row in report["kills"]) >= 3
    assert all(totals[name] == 0 for name in ("findings", "differences", "losses", "half_written", "litter"))
    assert all(row["operations"] > 3 for row in report["kills"])


def test_thousands_of_files(tmp_path: Path) -> None:
    slow = ("recipe", "weights", "image", "template", "state dict", "mask generators")
    fast = [name for name in targets() if name not in slow]
    only = [word for name in fast for word in ("--only", name)]
    report = torture(tmp_path, "fuzz", *only, "--inputs", "80", "--workers", "1", "--minutes", "0", "--seed", "7")
    parsers = {row["parser"] for row in report["fuzz"]}
    assert parsers >= set(fast)  # --only also takes names that begin alike
    assert report["totals"]["fuzz_inputs"] == 80 * len(parsers) and report["totals"]["findings"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["late rename", "loss"])
def test_faults_are_found(fault: str, tmp_path: Path) -> None:
    """A file that is written under its final name, and a checkpoint that is removed too early, do not pass."""
    planted = {
        "late rename": "import occfast.data.convert as c; c.write_atomically = lambda path, content: "
        "(path.open('wb').write(content[:-1]), path.open('ab').write(content[-1:]))",
        "loss": "import occfast.data.record_file as r; r.RecordWriter.finish = staticmethod(lambda path: False)",
    }
    runner = "import sys, tests.torture.__main__ as t; sys.exit(t.main())"
    command = [sys.executable, "-c", f"{planted[fault]}; {runner}", "kills", "--only", "convert recordio"]
    command += ["--kills", "60", "--workers", "1", "--minutes", "0", "--no-build", "--no-reproduce"]
    report = tmp_path / "report.json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--report", str(report), "--keep", str(tmp_path)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout[-3000:]
    totals = json.loads(report.read_text())["totals"]
    assert totals["half_written" if fault == "late rename" else "losses"] >= 1
