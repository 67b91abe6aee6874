"""Results of the cells, as JSON and as a table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from .cells import CELLS


@dataclass
class Result:
    """Result of a cell.

    Attributes:
        name, what: Those of the cell.
        status: "passed", "failed" or "not run".
        reason: Why it was not run, or what failed.
        command: Command line that repeats it by hand.
        versions: Versions of Python, packages, compiler and emulator.
        processor, date, seconds: Of the run.
        passed, failed, skipped: Numbers of tests or, without Python, of results.
    """

    name: str
    what: str
    status: Literal["passed", "failed", "not run"]
    reason: str = ""
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    processor: str = ""
    date: str = ""
    commit: str = ""
    seconds: float = 0.0
    passed: int = 0
    failed: int = 0
    skipped: int = 0


def load(folder: Path) -> dict[str, Result]:
    """Return the results of a folder by name; none if there is no file."""
    path = folder / "matrix.json"
    if not path.exists():
        return {}
    return {entry["name"]: Result(**entry) for entry in json.loads(path.read_text())}


def save(folder: Path, results: dict[str, Result]) -> None:
    """Write ``matrix.json`` and ``matrix.md``, in the order of the cells."""
    folder.mkdir(parents=True, exist_ok=True)
    ordered = [results[cell.name] for cell in CELLS if cell.name in results]
    text = json.dumps([asdict(result) for result in ordered], indent=1, ensure_ascii=False) + "\n"
    (folder / "matrix.json").write_text(text)
    (folder / "matrix.md").write_text(table(ordered))


_HEAD = """\
# Compilers, instruction sets, Python and package versions

Written by `make test-matrix`. Counts are of tests or, for kernels without Python, of results; `matrix.json` has the
command, versions, date and commit of each cell.

| cell | what runs | versions | passed | failed | skipped | time |
| --- | --- | --- | ---: | ---: | ---: | ---: |
"""


def table(results: list[Result]) -> str:
    """Return the results as a page of Markdown."""
    rows = []
    for result in results:
        versions = ", ".join(f"{name} {value}" for name, value in result.versions.items())
        if result.status == "not run":
            rows.append(f"| {result.name} | {result.what} | not run: {result.reason} | | | | |")
            continue
        counts = f"{result.passed:,} | {result.failed:,} | {result.skipped:,} | {result.seconds:,.0f} s"
        rows.append(f"| {result.name} | {result.what} | {versions} | {counts} |")
    processors = sorted({result.processor for result in results if result.processor})
    dates = sorted({result.date for result in results if result.date})
    lines = [_HEAD + "\n".join(rows), ""]
    if dates:
        when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
        lines.append(f"Run on {'; '.join(processors)}, {when}.")
    failed = [f"- {result.name}: {result.reason}" for result in results if result.status == "failed"]
    if failed:
        lines += ["", "Failed:", "", *failed]
    return "\n".join(lines) + "\n"
