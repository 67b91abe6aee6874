"""The report: intervals over seeds, orderings that fail first, and a page that a browser shows whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from occfast import DataError
from occfast.reproduce.graph import Done
from occfast.reproduce.report import Picture, Report, Table, duration, size
from occfast.reproduce.values import Claim, Comparison, Finding, Number, interval
from tests.browser import CHROMIUM, LOOKS, look, look_over

RESULTS = Path(__file__).resolve().parents[2] / "results"


def test_interval_is_students():
    assert interval((1.0,)) is None
    low, high = interval((1.0, 2.0, 3.0))  # t = 4.3027 with two degrees of freedom, s = 1
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), rel=1e-6)
    random = np.random.default_rng(0)
    inside = [low < 5 < high for low, high in (interval(random.normal(5, 2, 3)) for _ in range(2000))]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)


def test_numbers_as_text():
    assert Number((97.5,), (2.5,), 92.9, 10.99).text == "97.50 ± 2.50"
    assert Number((97.5,), (2.5,), 92.9, 10.99).paper_text == "92.9 ± 10.99"
    assert Number((1.0, 2.0, 3.0), (1.0, 1.0, 4.0), digits=1).text == "2.0 ± 2.0 [-0.5, 4.5]"
    assert (
        Number((1.0,)).paper_text == "" and Number(()).text == "–" and Number((1.0,), paper=82.51).paper_text == "82.51"
    )


def test_a_claim_holds_if_all_of_it_does():
    up, down = Comparison("a above b", (1.0, 2.0, 1.5)), Comparison("c above d", (1.0, -2.0, 0.5))
    assert up.holds and up.clear and not down.holds and not down.clear
    assert (
        Claim("both", (up,)).holds
        and not Claim("both", (up, down)).holds
        and Claim("both", (up, down)).count == "1 of 2"
    )
    assert up.text.startswith("a above b: +1.50 [+0.26, +2.74], on 3 of 3 seeds")
    assert not Comparison("equal", (0.0,)).holds and not Comparison("equal", (0.0,)).clear


@pytest.fixture
def report() -> Report:
    figure = Figure(figsize=(4, 3))
    figure.subplots().plot([1, 2, 3])
    return Report(
        paper="trigueros2018",
        title="A <title>",
        lead="What it is.",
        scale="smoke",
        seeds=(0, 1, 2),
        settings={"stride": 4},
        data={"people": 3},
        command="occfast reproduce trigueros2018 --seeds 0,1,2",
        claims=[
            Claim("this holds", (Comparison("x above y", (1.0, 2.0, 3.0)),)),
            Claim("this fails", (Comparison("p above q", (-1.0, -2.0, 0.1)), Comparison("r above s", (1.0, 1.0, 1.1)))),
        ],
        tables=[
            Table(
                "Table 1",
                "Accuracy in %.",
                ["network", "20×20"],
                {"A": [Number((90.0, 91.0, 92.0), (1.0,) * 3, 92.9, 10.99)]},
                command="occfast reproduce trigueros2018 --table 1",
            )
        ],
        pictures=[Picture("Figure 1", "A line.", "a line", figure)],
        differences=[("other data", "other figures")],
        notes=["Somebody is missing."],
        steps=[
            Done("train A", Path("train-A"), {}, 61.2, "CPU, 1 thread", 1, "2018-06-10T12:00:00"),
            Done("train B", Path("train-B"), {}, 6000.0, "CPU, 1 thread", 2, "2018-06-10T13:00:00"),
        ],
    )


def test_files(report, tmp_path):
    page = report.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "report.md", "report.json", "figure-1.png"}
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["command"] == report.command and found["cost"]["seconds"] == 6061.2
    cell = found["tables"][0]["rows"]["A"][0]
    assert cell["values"] == [90.0, 91.0, 92.0] and cell["paper"] == 92.9 and cell["mean"] == 91.0
    assert [claim["holds"] for claim in found["claims"]] == [True, False]
    text = (tmp_path / "report.md").read_text()
    assert text.index("this fails") < text.index("this holds")
    assert text.index("p above q: -0.97") < text.index("## Table 1") and "r above s" not in text
    assert "| A | 91.00 ± 1.00 [88.52, 93.48] (92.9 ± 10.99) |" in text and "![a line](figure-1.png)" in text
    assert "1 of the paper's 2 orderings hold in full at this scale (3 seeds)." in text
    assert "A &lt;title&gt;" in page.read_text()


def test_one_seed_says_that_it_tells_nothing_of_chance(report):
    one = replace(report, seeds=(0,))
    assert "chance in training is not in them" in one.to_html() and "With one seed" not in report.to_html()
    assert "All 1 orderings" in replace(report, claims=report.claims[:1]).verdict()
    assert "not requested" in replace(report, claims=()).verdict()


def test_orderings_beyond_the_paper_count_apart(report):
    more = replace(report, claims=[*report.claims, replace(report.claims[0], beyond=True)])
    assert more.verdict() == (
        "1 of the paper's 2 orderings hold in full at this scale (3 seeds); 1 of 1 additional orderings hold."
    )


def test_a_table_says_what_brackets_are_where_it_has_some(report):
    alone = replace(report, tables=[replace(report.tables[0], rows={"A": [Number((90.0,))]}, note="A note.")])
    assert "The paper's numbers are in brackets." in report.to_markdown()
    assert "\nA note.\n" in alone.to_markdown() and "in brackets" not in alone.to_markdown()


def test_units():
    assert [duration(s) for s in (3.0, 600.0, 7200.0, 1e6)] == ["3.0 s", "10.0 min", "2.0 h", "11.6 days"]
    assert [size(b) for b in (12, 2_000, 3_500_000, 2e9)] == ["12 B", "2.0 kB", "3.5 MB", "2.0 GB"]


def test_intervals_over_images_stand_in_for_one_seed_alone():
    one = Comparison("a above b", (1.0,), (0.2, 1.7))
    assert one.clear and one.text == "a above b: +1.00 [+0.20, +1.70]"
    assert not replace(one, over_images=(-0.2, 1.7)).clear and not Comparison("a above b", (1.0,)).clear
    assert replace(one, differences=(1.0, 1.2), over_images=None).interval == interval((1.0, 1.2))
    assert Number((1.0,), over_images=(0.2, 1.7), signed=True).text == "+1.00 [+0.20, +1.70]"


def test_findings_are_clear_or_within_noise(report):
    found = [
        Finding("It rose.", Comparison("rose", (1.0,), (0.2, 1.7))),
        Finding("It fell.", Comparison("fell", (-1.0,), (-1.7, -0.2))),
        Finding("Whether it changed remains open.", Comparison("open", (1.0,), (-0.2, 2.1))),
    ]
    one = replace(report, seeds=(0,), claims=(), findings=found, findings_note="What the intervals cover.")
    assert one.verdict() == "2 of 3 differences exceed the noise (1 seed): their 95 % intervals exclude 0."
    page, text = one.to_html(), one.to_markdown()
    assert page.count('<li class="clear">') == 2 and page.count('<li class="unclear">') == 1
    assert "- **clear**: It fell." in text and "- within noise: Whether it changed remains open." in text
    assert "What the intervals cover." in page and "What the intervals cover." in text
    assert [(f["text"], f["clear"]) for f in one.as_dict()["findings"]] == [(f.text, f.clear) for f in found]


def test_the_highest_mean_of_each_column_is_marked(report):
    table = replace(report.tables[0], rows={"A": [Number((90.0,))], "B": [Number((91.0,))]}, best=True)
    page = replace(report, tables=[table]).to_html()
    assert page.count('<td class="best">') == 1 and '<td class="best">91.00' in page
    assert '<td class="best">' not in report.to_html()


def test_a_report_is_read_back(report, tmp_path):
    more = replace(
        report,
        findings=[Finding("It rose.", Comparison("rose", (1.0,), (0.2, 1.7)))],
        cards=[("3", "faces")],
        steps=[*report.steps, replace(report.steps[0], name="map", result={"evaluations": 700})],
    )
    page = more.write(tmp_path / "first")
    again = Report.load(tmp_path / "first")
    assert again.to_html() == page.read_text() and again.to_markdown() == more.to_markdown()
    assert json.dumps(again.as_dict()) == json.dumps(more.as_dict())
    again.write(tmp_path / "second")
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()


def test_a_report_of_the_first_version_is_read(report, tmp_path):
    report.write(tmp_path)
    path = tmp_path / "report.json"
    content = json.loads(path.read_text())
    for name in ("title", "lead", "pictures", "findings", "findings_note"):
        del content[name]
    del content["cost"]["cards"], content["tables"][0]["best"]
    for step in content["cost"]["steps"]:
        del step["evaluations"]
    for cell in content["tables"][0]["rows"]["A"]:
        del cell["over_images"], cell["signed"]
    for claim in content["claims"]:
        for one in claim["comparisons"]:
            del one["over_images"], one["interval"]
    path.write_text(json.dumps({**content, "version": 1}))
    found = Report.load(tmp_path)
    assert found.title == "trigueros2018: the paper beside occfast (smoke)" and found.verdict() == report.verdict()
    assert found.tables[0].rows == report.tables[0].rows and found.claims == report.claims
    assert [picture.name for picture in found.pictures] == ["Figure 1"] and "image/png" in found.to_html()


@pytest.mark.parametrize("folder", sorted(RESULTS.glob("*/small")), ids=lambda path: path.parent.name)
def test_stored_results_render(folder):
    """As committed: the numbers and figures give the same Markdown, and the page holds every figure and number."""
    found = Report.load(folder)
    assert found.to_markdown() == (folder / "report.md").read_text()
    page = found.to_html()
    assert page.count('src="data:image/png;base64,') == len(found.pictures) == len(list(folder.glob("*.png")))
    for table in found.tables:
        assert all(cell.text in page for cells in table.rows.values() for cell in cells)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"kind": "other"}, "expected a report"),
        ({"version": 3}, "expected a report"),
        ({"tables": [{"name": "Table 1"}]}, "incomplete report"),
        (
            {"pictures": [{"name": "F", "caption": "", "alt": "", "file": "../../gone.png"}]},
            r"gone\.png: can.t be read: No such file",
        ),
    ],
)
def test_damaged_reports_are_refused(report, tmp_path, change, match):
    report.write(tmp_path)
    path = tmp_path / "report.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=match):
        Report.load(tmp_path)


def test_markdown_holds_no_html_of_the_data(report):
    text = replace(report, notes=["Left out: <script>alert(1)</script>."]).to_markdown()
    assert "<script>" not in text and "&lt;script&gt;" in text


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@LOOKS
def test_a_browser_shows_it_whole(report, tmp_path, how):
    found = look_over(report.write(tmp_path), tmp_path, **how)
    assert found["images"] == [{"name": "a line", "loaded": True}]
    assert found["tables"]["table-1"] == [["network", "20×20"], ["A", "91.00 ± 1.00 [88.52, 93.48] paper 92.9 ± 10.99"]]
    assert [row[0] for row in found["tables"]["cost"][1:]] == ["train A", "train B", "total"]
    assert found["claims"] == ["fails", "holds"]
    text = found["text"]
    assert text.index("Somebody is missing") < text.index("Results") < text.index("Table 1")


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_browser_would_see_a_broken_picture(report, tmp_path):
    page = report.write(tmp_path)
    page.write_text(page.read_text().replace("data:image/png;base64,", "data:image/png;base64,AAAA"))
    assert look(page, tmp_path)["images"][0]["loaded"] is False
