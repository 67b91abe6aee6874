"""Measured numbers in README and docs are those of the files that hold them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.predictions import predict
from tools import fill_figures

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("page", fill_figures.pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_show_the_files_numbers(page: Path) -> None:
    text = page.read_text()
    assert fill_figures.fill(text, page.name) == text, "run python -m tools.fill_figures"
    opened, closed = text.count("<!-- figure:"), text.count("<!-- end -->")
    assert opened == closed == len(fill_figures.MARK.findall(text))


def test_figures_follow_the_files() -> None:
    adaptive = json.loads((ROOT / "bench/results/estimate-cpu.json").read_text())["adaptive"]["adaptive"]
    assert fill_figures.figures()["adaptive-captum"] == f"{adaptive['times_captum']:.0f}×"
    shown = "<!-- figure: adaptive-captum -->101×<!-- end --> and <!-- figure: roc-sklearn --><!-- end -->"
    assert fill_figures.fill(shown, "page") == (
        f"<!-- figure: adaptive-captum -->{adaptive['times_captum']:.0f}×<!-- end --> and "
        f"<!-- figure: roc-sklearn -->{fill_figures.figures()['roc-sklearn']}<!-- end -->"
    )
    with pytest.raises(SystemExit, match="page: no figure 'speed'"):
        fill_figures.fill("<!-- figure: speed -->1<!-- end -->", "page")


def test_readme_shows_slow_cases_too() -> None:
    names = {match[1] for match in fill_figures.MARK.findall((ROOT / "README.md").read_text())}
    assert {"predicted-iresnet50-20x40", "predicted-iresnet100-20x40", "one-image-captum", "search-sklearn"} <= names


@pytest.mark.parametrize("case", [("paper", (20, 40), 1), ("iresnet50", (20, 40), 4)], ids=str)
def test_predictions_are_what_explain_says(case: tuple[str, tuple[int, int], int]) -> None:
    rows = json.loads((ROOT / "bench/results/predictions.json").read_text())["rows"]
    assert predict(*case) in rows, "run python -m bench.predictions"
