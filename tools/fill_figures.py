"""``python -m tools.fill_figures``: write the measured numbers into README and docs, from the files that hold them.

    <!-- figure: adaptive-captum -->96×<!-- end -->

A figure has a name and stands between two comments, which neither GitHub nor the site shows. ``figures`` computes all
values from the JSON files under ``bench/results`` and ``results``. ``--check`` writes nothing and exits with 1 if a
page differs; a test does the same. ``--list`` prints names and values.
"""

from __future__ import annotations

import argparse
import re
from functools import cache
from pathlib import Path

from tools.figure_values import audits, benchmarks, coverage, reports
from tools.figure_values.formats import ROOT

MARK = re.compile(r"(<!-- figure: ([\w-]+) -->)(.*?)(<!-- end -->)", re.DOTALL)


@cache
def figures() -> dict[str, str]:
    """Return every figure by its name."""
    found: dict[str, str] = {}
    parts = (
        benchmarks.sweeps(),
        benchmarks.predictions(),
        benchmarks.plan(),
        benchmarks.estimates(),
        benchmarks.comparisons(),
        benchmarks.captum(),
        benchmarks.verification(),
        benchmarks.calibration(),
        audits.audits(),
        coverage.coverage(),
        benchmarks.noise(),
        benchmarks.losses(),
        benchmarks.stages(),
        benchmarks.pipelines(),
        benchmarks.evaluation(),
        reports.pdsn(),
        reports.demo(),
        reports.costs(),
        reports.torture(),
    )
    for part in parts:
        if twice := found.keys() & part.keys():
            raise SystemExit(f"two figures have the name {', '.join(sorted(twice))}")
        found |= part
    return found


def fill(text: str, page: str) -> str:
    """Return the text of a page with every figure at its present value."""
    known = figures()

    def value(match: re.Match[str]) -> str:
        if match[2] not in known:
            raise SystemExit(f"{page}: no figure {match[2]!r} in tools/fill_figures.py")
        return match[1] + known[match[2]] + match[4]

    return MARK.sub(value, text)


def pages() -> list[Path]:
    """Return the pages whose figures are filled in."""
    return [ROOT / "README.md", ROOT / "occfast/covered/card.md", *sorted((ROOT / "docs").rglob("*.md"))]


def main() -> None:
    """Fill in the pages, or only check or list the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page differs")
    parser.add_argument("--list", action="store_true", help="print every figure")
    arguments = parser.parse_args()
    if arguments.list:
        for name, value in figures().items():
            print(f"{name:32} {value}")
        return
    differ = []
    for page in pages():
        text, name = page.read_text(), page.relative_to(ROOT).as_posix()
        if (filled := fill(text, name)) != text:
            differ.append(name)
            if not arguments.check:
                page.write_text(filled)
    print("\n".join(differ) or "nothing to change")
    raise SystemExit(bool(differ and arguments.check))


if __name__ == "__main__":
    main()
