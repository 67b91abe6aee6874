"""Reading the committed files, and formats of numbers and tables."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

from occfast.reproduce.values import interval as student

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench" / "results"


def read(name: str) -> Any:
    """Read a file of ``bench/results`` by its name."""
    return json.loads((BENCH / f"{name}.json").read_text())


def row_of(name: str, **wanted: object) -> dict[str, Any]:
    """Return the one row of a file whose fields have the values wanted."""
    found = [row for row in read(name)["rows"] if all(row.get(key) == value for key, value in wanted.items())]
    if len(found) != 1:
        raise SystemExit(f"{name}.json: expected one row with {wanted}, got {len(found)}")
    return dict(found[0])


def times(value: float) -> str:
    """Return a ratio as 7.4× or 119×."""
    return f"{value:.1f}×" if value < 9.95 else f"{value:.0f}×"


def percent(shares: list[float]) -> str:
    """Return the range of some shares, in whole per cent."""
    low, high = (f"{round(100 * share)}".replace("-", "−") for share in (min(shares), max(shares)))
    return f"{low} to {high} %"


def with_paper(cell: dict[str, Any], paper: float | None) -> str:
    """Return a mean with the paper's value in brackets."""
    return f"{cell['mean']:.1f}" + ("" if paper is None else f" ({paper:g})")


def duration(seconds: float) -> str:
    """Return a time in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3000 else f"{seconds / 3600:.1f} h"


def span(values: list[float]) -> str:
    """Return the range of percentages."""
    return f"{min(values):.2f} to {max(values):.2f} %"


def change(values: list[float], digits: int) -> str:
    """Return the mean of independent values and its Student's interval."""
    found = student(values)
    assert found is not None
    return f"{mean(values):+.{digits}f} [{found[0]:+.{digits}f}, {found[1]:+.{digits}f}]".replace("-", "−")


def signed(value: float, digits: int) -> str:
    """Return a number with its sign, as +13 or −0.018; what rounds to zero has none."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else text[1:]


def power(value: float) -> str:
    """Return a number as 3.4·10¹⁷."""
    exponent = len(f"{value:.0f}") - 1
    return f"{value / 10**exponent:.1f}·10" + str(exponent).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def markdown(header: list[str], cells: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *cells]
    return "\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n\n"
