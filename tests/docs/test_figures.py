"""Measured numbers in README and docs are those of the files that hold them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bench.predictions import predict
from bench.scaling import PAPERS, scaling
from occfast.reproduce import Paper
from occfast.reproduce.trigueros2018.steps import SWEEP_SPEEDUP
from tests.docs.pages import outside
from tools import fill_figures

ROOT = Path(__file__).resolve().parents[2]

# A ratio ("7.4×", not the size 20×40), "3 times faster" and a rate ("400 images/s").
MEASURED = re.compile(r"\d×(?!\d)|\d times (?:as fast|faster|fewer|slower)|/s\b")
# Not measured: a data sheet's bandwidth, and the rate that a prediction needs.
ALLOWED = ("3.35 TB/s", "0.9 GB/s")


@pytest.mark.parametrize("page", fill_figures.pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_show_the_files_numbers(page: Path) -> None:
    text = page.read_text()
    assert fill_figures.fill(text, page.name) == text, "run python -m tools.fill_figures"
    opened, closed = text.count("<!-- figure:"), text.count("<!-- end -->")
    assert opened == closed == len(fill_figures.MARK.findall(text))
    # A comment at the start of a line makes the whole line HTML: links and bold in it would not show.
    assert not re.search(r"^ {0,3}<!-- figure: [\w-]+ -->.", text, re.MULTILINE), "begin the line with a word"


@pytest.mark.parametrize("page", fill_figures.pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_measured_number_is_typed_by_hand(page: Path) -> None:
    assert not _typed(page.read_text()), "keep the number in bench/results or results and mark it as a figure"


def test_numbers_typed_by_hand_are_found() -> None:
    text = "Faces of 20×40.\n<!-- figure: speed -->7.4×<!-- end --> faster\n```\n9×\n```\nAt 0.9 GB/s.\n"
    assert _typed(text) == []
    wrong = ["7.4× faster", "| 12× |", "4.0 times fewer", "400 images/s", "0.8 GB/s"]
    assert _typed(text + "\n".join(wrong)) == wrong


def _typed(text: str) -> list[str]:
    """Return the lines with a measured number outside figures and code."""
    text = outside(fill_figures.MARK.sub("", text))
    for allowed in ALLOWED:
        text = text.replace(allowed, "")
    return [line for line in text.split("\n") if MEASURED.search(line)]


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


def test_predicted_costs_use_the_measured_speed_of_the_sweep() -> None:
    known = fill_figures.figures()
    for (height, width), speedup in SWEEP_SPEEDUP.items():
        assert f"{speedup:.1f}×" == known[f"sweep-{height}x{width}-plain"], "bench/results/sweep-cpu.json"


@pytest.mark.parametrize("paper", PAPERS)
def test_scaling_is_what_the_dry_run_predicts(paper: Paper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OCCFAST_DATA", raising=False)
    (row,) = (
        row for row in json.loads((ROOT / "bench/results/scaling.json").read_text())["rows"] if row["paper"] == paper
    )
    assert scaling(paper, row["rate"]) == row, "run python -m bench.scaling"
