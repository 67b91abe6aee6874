"""``occfast map`` from the outside: every kind of model file, results, resumption, processes, refusals."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import occfast
from occfast.cli import app
from occfast.cli import main as run_main
from occfast.models import PaperNet, Preprocessing, load
from occfast.models.weights import Trained
from tests.processes import torchrun

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (22, 18)


class Net(nn.Sequential):
    def __init__(self, classes: int = 3) -> None:
        super().__init__(
            nn.Conv2d(1, 5, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(45, classes)
        )


def factory() -> nn.Module:
    """Build a network, as a user's module:function does."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net = Net()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(2)
    return net


FACTORY = "tests.cli.test_map:factory"


def embedder() -> nn.Module:
    """An embedding network: its outputs are no classes."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return Net(9)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven images of three people, named so that the network is right about them."""
    generator = torch.Generator().manual_seed(2)
    net = factory().eval()
    for k in range(7):
        image = (255 * torch.rand(SHAPE, generator=generator)).to(torch.uint8)
        with torch.no_grad():
            who = int(net(image[None, None].float() / 127.5 - 1).argmax())
        place = tmp_path / "faces" / f"person{who}" / f"{k}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(place)
    for who in range(3):  # each has one, right or wrong
        place = tmp_path / "faces" / f"person{who}" / "wrong.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full(SHAPE, 40 * who + 60, np.uint8)).save(place)
    return tmp_path / "faces"


def run(*arguments: object) -> dict:
    result = CliRunner().invoke(app, ["map", *map(str, arguments), "--quiet", "--json", "--color", "gray"])
    assert result.exit_code == 0, result.output + repr(result.exception)
    return json.loads(result.stdout)


def test_maps_pictures_pages_and_tables(folder: Path, tmp_path: Path) -> None:
    out = run(FACTORY, folder, "--occluder", "6x5", "--occluder", "4x4", "-o", tmp_path / "maps", "--stride", 2)
    assert out["images"] == 10 and [m["occluder"] for m in out["maps"]] == [[6, 5], [4, 4]]
    for m in out["maps"]:
        files = m["files"]
        loaded = occfast.OcclusionMap.load(files["map"])
        assert loaded.values.shape == (11, 9) and loaded.n_images == m["images"] and m["images"] + m["left_out"] == 10
        assert Path(files["picture"]).stat().st_size > 5000 and "<html" in Path(files["page"]).read_text()
        rows = list(csv.DictReader(Path(files["table"]).read_text().splitlines()))
        assert len(rows) == 99
        p = loaded.distribution(0.4).probabilities  # of all pixels; the table has every second one
        assert all(abs(float(r["probability"]) - float(p[int(r["row"]), int(r["column"])])) < 1e-7 for r in rows)
        values = np.array([float(r["value"]) for r in rows]).reshape(11, 9)
        assert np.allclose(values, loaded.values, atol=1e-6)
        assert (rows[1]["row"], rows[1]["column"]) == ("0", "2")
    assert not list((tmp_path / "maps").glob("*.checkpoint"))
    # The same by the Python call.
    images = torch.stack([torch.from_numpy(np.array(Image.open(p))) for p in sorted(folder.glob("*/*.png"))])
    labels = torch.tensor([int(p.parent.name[-1]) for p in sorted(folder.glob("*/*.png"))])
    mine = occfast.occlusion_map(
        factory().eval(), images[:, None].float() / 127.5 - 1, labels, (6, 5), stride=2, fill=-1.0, progress=False
    )
    assert np.array_equal(mine.values, occfast.OcclusionMap.load(out["maps"][0]["files"]["map"]).values)


@pytest.mark.parametrize("method", ["adaptive", "sampled", "dense"])
@pytest.mark.parametrize("score", ["error", "similarity_drop"])
def test_methods_and_scores(folder: Path, tmp_path: Path, method: str, score: str) -> None:
    (m,) = run(FACTORY, folder, "--output", tmp_path, "--occluder", "6x5", "--method", method, "--score", score)["maps"]
    assert m["method"] == method and m["precision"] is None and (m["estimate"] is None) == (method == "dense")
    header = Path(m["files"]["table"]).read_text().splitlines()[0]
    assert ("low,high" in header) == (method == "sampled")


def other_factory() -> nn.Module:
    """Another network of the same people."""
    net = factory()
    with torch.no_grad():
        net[0].weight.mul_(-0.7)
    return net


def test_comparison_with_an_earlier_run(folder: Path, tmp_path: Path) -> None:
    settings = ("--occluder", "6x5", "--stride", 4, "--keep-misclassified", "--score", "score_drop")
    first = run(FACTORY, folder, *settings, "-o", tmp_path / "a")
    assert first["maps"][0]["comparison"] is None
    other = "tests.cli.test_map:other_factory"
    out = run(other, folder, *settings, "-o", tmp_path / "b", "--compare", tmp_path / "a")
    about = out["maps"][0]["comparison"]
    assert about["images"] == 10 and about["groups"] == 3 and about["flips"] == 4 and about["exact"]
    mine, theirs = (occfast.OcclusionMap.load(tmp_path / run / "map-6x5.npz") for run in "ba")
    people = [int(p.parent.name[-1]) for p in sorted(folder.glob("*/*.png"))]
    assert mine.compare(theirs, groups=people).about() == about
    assert 'id="comparison"' in Path(out["maps"][0]["files"]["page"]).read_text()
    # A finished map is compared without being computed again.
    again = run(other, folder, *settings, "-o", tmp_path / "b", "--compare", tmp_path / "a", "--resume")
    assert again["maps"][0]["comparison"] == about and again["maps"][0]["seconds"] == out["maps"][0]["seconds"]
    # Other settings cost the comparison and not the map; a missing folder is named before any work.
    arguments = [other, folder, "--occluder", "6x5", "--stride", 2, "--score", "score_drop", "-o", tmp_path / "c"]
    result = CliRunner().invoke(
        app, ["map", *map(str, arguments), "--compare", str(tmp_path / "a"), "--color", "gray", "--quiet"]
    )
    assert result.exit_code == 0 and "no comparison (grid: expected maps with the same grid" in result.output
    result = CliRunner().invoke(app, ["map", *map(str, arguments), "--compare", str(tmp_path / "none"), "--overwrite"])
    assert isinstance(result.exception, ValueError) and "--compare: expected a folder" in str(result.exception)


def test_shapes_regions_and_averages(folder: Path, tmp_path: Path) -> None:
    covered = np.zeros((6, 9), np.uint8)
    covered[1:4, 2:8] = 255
    Image.fromarray(covered).save(tmp_path / "patch.png")
    settings = ("--stride", 3, "--region", "2,3,20,15", "--score", "probability_drop", "--fill", "blur")
    out = run(
        FACTORY,
        folder,
        *("--occluder", "disk:7", "--occluder", tmp_path / "patch.png", "--occluder", "5x4"),
        *(*settings, "-o", tmp_path / "maps"),
    )
    assert [m["occluders"] for m in out["maps"]] == ["mask 7x7", "3x6", "5x4"]
    assert [Path(m["files"]["map"]).stem for m in out["maps"]] == ["map-disk-7x7", "map-patch", "map-5x4"]
    maps = [occfast.OcclusionMap.load(m["files"]["map"]) for m in out["maps"]]
    assert all(m.values.shape == (6, 4) and m.score == "probability_drop" for m in maps)
    boxes = ("--occluder", "disk:7", "--occluder", "5x4", "--average")
    (mean,) = run(FACTORY, folder, *boxes, *settings, "-o", tmp_path / "mean")["maps"]
    assert Path(mean["files"]["map"]).name == "map-average.npz" and mean["occluders"] == "mask 7x7, 5x4"
    found = occfast.OcclusionMap.load(mean["files"]["map"]).values
    np.testing.assert_allclose(found, (maps[0].values + maps[2].values) / 2, rtol=1e-5, atol=1e-7)
    for wrong, message in (
        (("--occluder", "ring:7"), "--occluder: expected height x width as in 20x40, disk:30 or a .png, got 'ring:7'"),
        (("--region", "1,2,3"), "--region: expected top,left,bottom,right as in 10,20,60,80, got '1,2,3'"),
    ):
        result = CliRunner().invoke(app, ["map", FACTORY, str(folder), *wrong, "-o", str(tmp_path / "wrong")])
        assert isinstance(result.exception, ValueError) and message in str(result.exception)


def test_precision(folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    common = (FACTORY, folder, "--occluder", "6x5", "--output", tmp_path, "--score", "similarity_drop")
    plain, low = (run(*common, *more)["maps"][0] for more in ((), ("--precision", "bf16", "--overwrite")))
    assert low["precision"] == "bf16" and low["mean"] != plain["mean"]
    assert abs(low["mean"] - plain["mean"]) < 0.02
    assert "precision: 'tf32' is of GPUs" in refusal(
        capsys, monkeypatch, *common, "--precision", "tf32", "--device", "cpu", "--overwrite", "--color", "gray"
    )


def test_every_kind_of_model_gives_the_same_map(folder: Path, tmp_path: Path) -> None:
    net = factory().eval()
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    torch.save(net, tmp_path / "pickled.pt")
    torch.jit.script(net).save(str(tmp_path / "script.pt"))
    from safetensors.torch import save_file

    save_file(net.state_dict(), tmp_path / "plain.safetensors")
    preparation = Preprocessing(SHAPE, "gray")
    spec = {"name": FACTORY, "classes": None, "arguments": {}}
    Trained(net, preparation, spec, ["person2", "person0", "person1"]).save(tmp_path / "described.safetensors")
    common = (folder, "--occluder", "6x5", "--stride", 3, "--output")
    expected = run(FACTORY, *common, tmp_path / "a")["maps"][0]
    for name, more in {
        "weights.pt": ["--network", FACTORY],
        "plain.safetensors": ["--network", FACTORY],
        "script.pt": [],
        "pickled.pt": ["--trust"],
    }.items():
        m = run(tmp_path / name, *common, tmp_path / name.replace(".", "-"), *more)["maps"][0]
        a, b = (occfast.OcclusionMap.load(one["files"]["map"]) for one in (m, expected))
        assert np.array_equal(a.values, b.values) and a.n_images == b.n_images, name
    # The weights say whom the classes stand for: here in another order, so that other images are right.
    m = run(tmp_path / "described.safetensors", *common, tmp_path / "d", "--trust")["maps"][0]
    assert m["images"] != expected["images"]


def refusal(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    monkeypatch.setattr(sys, "argv", ["occfast", "map", *map(str, arguments), "--quiet"])
    with pytest.raises(SystemExit) as stopped:
        run_main()
    assert stopped.value.code == 2
    return capsys.readouterr().err


def refused(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """The one line that a command is refused with."""
    text = refusal(capsys, monkeypatch, *arguments)
    assert text.count("\n") == 1 and text.startswith("occfast: "), text
    return text.removeprefix("occfast: ").rstrip()


class Evil:
    def __reduce__(self) -> tuple:
        return (Path("ran-code").touch, ())


def test_refusals(folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)

    def says(*arguments: object) -> str:
        text = refusal(capsys, monkeypatch, *arguments)
        assert text.count("\n") == 1 and text.startswith("occfast: "), text
        return text

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    torch.save(factory(), tmp_path / "pickled.pt")
    torch.save(factory().state_dict(), tmp_path / "weights.pt")
    for name in ("evil.pt", "pickled.pt"):
        assert "(--trust), if you know where it is from" in says(tmp_path / name, folder)
        assert "not a file of weights" in says(tmp_path / name, folder, "--network", FACTORY)
    assert not (tmp_path / "ran-code").exists()
    assert "name it with network= (--network)" in says(tmp_path / "weights.pt", folder)
    assert "there is no file" in says(tmp_path / "none.pt", folder)
    assert "can't be imported" in says("no.module:here", folder)
    assert "don't fit the network" in says(tmp_path / "weights.pt", folder, "--network", "paper", "--classes", 3)
    (tmp_path / "half.pt").write_bytes((tmp_path / "weights.pt").read_bytes()[:700])
    assert "half.pt" in says(tmp_path / "half.pt", folder)
    assert "expected height x width as in 20x40, got 'big'" in says(FACTORY, folder, "--occluder", "big")
    assert "--fill: expected black" in says(FACTORY, folder, "--fill", "plaid")
    assert "expected images of 30x30, the size of the network's input, got 22x18; align them" in says(
        FACTORY, folder, "--size", "30x30"
    )
    assert "no such file or folder, and not a known data set" in says(FACTORY, tmp_path / "nothing")
    (tmp_path / "people.txt").write_text("x\ny\nz\n")
    assert "people who are classes of the network, got none" in says(
        FACTORY, folder, "--people", tmp_path / "people.txt"
    )


def test_a_network_of_another_input_size_is_one_line(tmp_path: Path, capsys, monkeypatch) -> None:
    path = tmp_path / "net.pt"
    torch.jit.trace(nn.Sequential(nn.Flatten(), nn.Linear(3 * 20 * 20, 4)), torch.zeros(1, 3, 20, 20)).save(str(path))
    photos = [tmp_path / "faces" / "a" / f"{k}.png" for k in range(2)]
    photos[0].parent.mkdir(parents=True)
    for k, photo in enumerate(photos):
        Image.new("RGB", (32, 32), (90 * k, 60, 90)).save(photo)
    how = ("--resize", "--output", tmp_path / "out")
    mapped = refused(capsys, monkeypatch, path, tmp_path / "faces", "--score", "similarity_drop", *how)
    monkeypatch.setattr(sys, "argv", ["occfast", "pair", *map(str, (path, *photos, *how))])
    with pytest.raises(SystemExit):
        run_main()
    for message in (mapped, capsys.readouterr().err):
        assert re.search(
            r"model: fails on images of shape \[3, 32, 32\] \(.*shapes.*\); see --color and --size$", message
        )
        assert "\n" not in message.rstrip()


def test_a_description_that_names_code_needs_trust(tmp_path: Path) -> None:
    spec = {"name": FACTORY, "classes": None, "arguments": {}}
    path = Trained(factory().eval(), Preprocessing(SHAPE, "gray"), spec, []).save(tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="runs only with trust=True"):
        load(str(path))
    assert load(str(path), trust=True).preprocessing == Preprocessing(SHAPE, "gray")
    built = load("occfast.models:PaperNet", classes=4, channels=1, size=(100, 100)).network
    assert isinstance(built, PaperNet) and not built.training


def test_limit(folder: Path, tmp_path: Path) -> None:
    more = ("--limit", 4, "--keep-misclassified", "--seed", 3)
    out = run(FACTORY, folder, "-o", tmp_path, "--occluder", "6x5", *more)
    assert out["images"] == 4 and out["maps"][0]["images"] == 4 and out["maps"][0]["left_out"] == 0


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}


def test_resume_and_overwrite(folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    """A stopped run continues, finished occluders are read back, and nothing is lost silently."""
    common = (FACTORY, folder, "--color", "gray", "--batch-size", 16, "-o", tmp_path / "maps")
    both = ("--occluder", "6x5", "--occluder", "4x4")
    whole = run(FACTORY, folder, "--batch-size", 16, "-o", tmp_path / "whole", *both)
    assert (
        refused(capsys, monkeypatch, *common, "--resume", "--overwrite")
        == "--resume: not valid together with --overwrite"
    )

    # Stopped in the second occluder.
    import occfast.sweep.methods.exact as exact

    visits: list[tuple[int, int]] = []
    visit = exact.ExactSweep.visit

    def stop_in_the_second(self, n: int) -> None:
        visits.append(self.grid.occluder)
        if self.grid.occluder == (4, 4):
            self.report = lambda done, total: (_ for _ in ()).throw(KeyboardInterrupt)
        visit(self, n)

    monkeypatch.setattr(exact.ExactSweep, "visit", stop_in_the_second)
    interrupted = CliRunner().invoke(app, ["map", *map(str, (*common, *both)), "--quiet"])
    assert interrupted.exit_code != 0 and visits == [(6, 5), (4, 4)]
    monkeypatch.setattr(exact.ExactSweep, "visit", lambda self, n: (visits.append(self.grid.occluder), visit(self, n)))
    maps = tmp_path / "maps"
    before = content(maps)
    assert set(before) == {f"map-6x5{e}" for e in (".npz", ".png", ".html", ".csv")} | {"map-4x4.checkpoint"}

    # Without a flag: refused, and nothing changes.
    for boxes in (both, both[:2], both[2:]):
        text = refused(capsys, monkeypatch, *common, *boxes)
        assert "--resume continues the run" in text and "--overwrite replaces" in text
    assert content(maps) == before

    # Other settings are refused with --resume, and nothing changes.
    assert "of another sweep: stride" in refused(capsys, monkeypatch, *common, *both, "--resume", "--stride", 2)
    assert content(maps) == before

    # --resume sweeps what is missing, and writes files that are missing.
    (maps / "map-6x5.png").unlink()
    visits.clear()
    out = run(*common[:2], *common[4:], *both, "--resume")
    assert visits == [(4, 4)]
    for one, other in zip(out["maps"], whole["maps"], strict=True):
        a, b = (occfast.OcclusionMap.load(m["files"]["map"]) for m in (one, other))
        assert np.array_equal(a.values, b.values) and a.n_evaluations == b.n_evaluations
    assert {p.suffix for p in maps.iterdir()} == {".npz", ".png", ".html", ".csv"} and len(list(maps.iterdir())) == 8

    # All is finished: nothing is swept. Another image is noticed.
    visits.clear()
    assert run(*common[:2], *common[4:], *both, "--resume")["maps"] == out["maps"] and not visits
    picture = next(folder.glob("*/0.png"))
    Image.fromarray(255 - np.array(Image.open(picture))).save(picture)
    assert "the images or labels are not those" in refused(capsys, monkeypatch, *common, *both, "--resume")
    run(*common[:2], *common[4:], *both, "--overwrite")
    assert visits == [(6, 5), (4, 4)]


def test_a_foreign_file_is_never_overwritten(folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    (tmp_path / "map-6x5.checkpoint").write_bytes(b"no checkpoint")
    common = (FACTORY, folder, "-o", tmp_path, "--occluder", "6x5", "--color", "gray")
    for flags in ((), ("--resume",), ("--overwrite",)):
        assert "map-6x5.checkpoint" in refused(capsys, monkeypatch, *common, *flags)
    assert (tmp_path / "map-6x5.checkpoint").read_bytes() == b"no checkpoint"


def test_a_full_disk_loses_no_sweep(folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    """The map can't be written: the finished sweep stays in the checkpoint."""
    import occfast.sweep.maps as maps
    import occfast.sweep.methods.exact as exact

    common = (FACTORY, folder, "-o", tmp_path, "--occluder", "6x5", "--color", "gray")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "map could not be written: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(maps, "write_npz", full)
        assert "No space left" in refused(capsys, patched, *common)
    assert (tmp_path / "map-6x5.checkpoint").exists()
    monkeypatch.setattr(exact.ExactSweep, "visit", lambda self, n: pytest.fail("it sweeps again"))
    out = run(FACTORY, folder, "-o", tmp_path, "--occluder", "6x5", "--resume")
    assert out["maps"][0]["images"] > 0 and not list(tmp_path.glob("*.checkpoint"))


def test_what_is_left_out_is_said(folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    box = ("--occluder", "6x5")
    common = (folder, *box, "--color", "gray", "-o", tmp_path / "maps")
    text = refused(capsys, monkeypatch, "tests.cli.test_map:embedder", *common)
    assert "model: 9 outputs, but 3 people are in the data set" in text and "--score similarity_drop" in text
    assert "--people" in text and not (tmp_path / "maps").exists()
    names = tmp_path / "people.txt"
    names.write_text("person0\nperson1\n")
    text = refused(capsys, monkeypatch, FACTORY, *common, "--people", names)
    assert "model: 3 outputs, but 2 people are named as its classes" in text
    names.write_text("person1\nperson2\nperson0\n")  # in the wrong order: most images seem misclassified
    result = CliRunner().invoke(app, ["map", FACTORY, *map(str, common), "--people", str(names)])
    assert result.exit_code == 0, result.output
    assert "images are misclassified even without an occluder and are left out" in result.stderr
    assert "misclassified ones left out)" in result.stdout
    assert re.search(r"occluder 6x5: 10 images, 396 positions each, 3,960 evaluations, about \d+ s\n", result.stderr)
    m = run("tests.cli.test_map:embedder", folder, *box, "-o", tmp_path / "embedding", "--score", "similarity_drop")[
        "maps"
    ][0]
    assert m["images"] == 10 and m["left_out"] == 0
    m = run(FACTORY, folder, "-o", tmp_path / "drop", "--occluder", "6x5", "--score", "score_drop")["maps"][0]
    assert m["images"] == 10 and m["left_out"] == 0  # nothing is left out unless asked for
    skip = run(FACTORY, folder, *box, "-o", tmp_path / "skip", "--score", "score_drop", "--skip-misclassified")["maps"][
        0
    ]
    assert skip["left_out"] > 0


def test_a_long_sweep_is_forecast(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is that of forward passes, divided by the predicted speed-up of the exact sweep."""
    from occfast.cli import map as command

    monkeypatch.setattr(command, "seconds_each", lambda *_: 5000.0)
    monkeypatch.setattr(command, "_speedup", lambda *_: 2.0)
    common = ["map", FACTORY, str(folder), "--occluder", "6x5", "--stride", "9", "--color", "gray"]
    told = {}
    for method in ("auto", "dense", "adaptive"):
        result = CliRunner().invoke(app, [*common, "-o", str(tmp_path / method), "--method", method])
        assert result.exit_code == 0, result.output
        told[method] = re.search(r"([\d,]+) evaluations, about ([\d,]+) h (\d+) min(.*)", result.stderr)
        assert told[method] is not None
    for method, faster in (("auto", 2), ("dense", 1), ("adaptive", 1)):
        total, hours, minutes, rest = told[method].groups()
        assert (
            abs(int(total.replace(",", "")) * 5000 / faster / 60 - (60 * int(hours.replace(",", "")) + int(minutes)))
            <= 0.5
        )
        assert "takes a fraction" in rest if method == "adaptive" else "a larger --stride" in rest


def test_the_time_of_a_forward_pass_and_the_speed_up_are_measured() -> None:
    import time

    from occfast.cli.forecast import seconds_each
    from occfast.cli.map import _speedup
    from occfast.sweep import SweepGrid

    def slow(images: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        return images

    assert 0.02 / 8 <= seconds_each(slow, torch.rand(64, 1, 9, 9)) < 0.1
    assert _speedup(slow, (9, 9), SweepGrid.over((9, 9), (3, 3)), None, 4) == 1.0  # a function is swept densely
    with pytest.raises(ValueError, match=r"model: fails on images of shape \[1, 9, 9\] \(.*\); see --color and --size"):
        seconds_each(torch.nn.Conv2d(3, 4, 3), torch.rand(2, 1, 9, 9))


def test_the_share_of_rejected_images(folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    """A finished map gets it with --resume, without another sweep."""
    common = ("tests.cli.test_map:embedder", folder, "--occluder", "6x5", "--stride", "4", "-o", tmp_path / "maps")
    score = ("--score", "similarity_drop")
    first = run(*common, *score)["maps"][0]
    saved = occfast.OcclusionMap.load(first["files"]["map"])
    threshold = round(float(1 - np.median(saved.per_image)), 6)
    given = ("--threshold", str(threshold))
    m = run(*common, *score, *given, "--resume")["maps"][0]
    wanted = (1 - saved.per_image.astype(float) < threshold).mean(0)
    assert 0 < m["rejected"] == pytest.approx(wanted.mean()) and m["most_rejected"] == wanted.max()
    with Path(m["files"]["table"]).open() as file:
        table = list(csv.DictReader(file))
    np.testing.assert_allclose([float(row["rejected"]) for row in table], wanted.ravel(), rtol=1e-5)
    assert "they are rejected" in Path(m["files"]["page"]).read_text()
    for more in ((), (*score, "--method", "sampled")):
        text = refused(capsys, monkeypatch, *common, *given, *more, "--overwrite")
        assert "--threshold: only valid with --score mismatch, or with" in text
    again = (*common[:-1], tmp_path / "mismatch", "--score", "mismatch")
    exact = run(*again, *given)["maps"][0]
    assert exact["accuracy"] == pytest.approx(1 - wanted.mean()) and "rejected" not in exact
    text = refused(capsys, monkeypatch, *again, "--overwrite")
    assert "--threshold: required by --score mismatch" in text
    text = refused(capsys, monkeypatch, *common, "--threshold", "1.5", *score, "--overwrite")
    assert "--threshold: expected a number above -1 and at most 1, got 1.5" in text


def test_help_is_for_newcomers() -> None:
    text = CliRunner().invoke(app, ["map", "--help"], env={"COLUMNS": "200"}).output
    for option in ("--occluder", "--output", "-o", "--resume", "--overwrite", "--landmarks", "--keep-misclassified"):
        assert option in text
    assert "Compute occlusion maps" in text and "Number of classes of --network." in text


def test_torchrun(folder: Path, tmp_path: Path) -> None:
    one = run(FACTORY, folder, "--output", tmp_path / "one", "--occluder", "6x5", "--method", "incremental")["maps"][0]
    printed = torchrun(
        *("-m", "occfast", "map", FACTORY, folder, "--occluder", "6x5", "--output", tmp_path / "two"),
        *("--method", "incremental", "--color", "gray", "--json"),
        launcher=("--master-port=0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"),
    )
    two = json.loads(printed)["maps"][0]  # one process speaks
    a, b = (occfast.OcclusionMap.load(m["files"]["map"]) for m in (one, two))
    assert np.array_equal(a.values, b.values) and a.n_evaluations == b.n_evaluations


def test_a_picture_that_is_none_is_refused_at_once(folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name, message in (("pipe", "expected a regular file"), ("cut", "cut.png: "), ("none", "No such file")):
        text = refused(
            capsys, monkeypatch, FACTORY, folder, "--occluder", tmp_path / f"{name}.png", "-o", tmp_path / "m"
        )
        assert message in text and "Traceback" not in text


def test_two_occluders_of_one_name_are_refused(folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        Image.fromarray(np.full((3, 3), 255, np.uint8)).save(tmp_path / place / "glasses.png")
    pictures = [tmp_path / place / "glasses.png" for place in ("a", "b")]
    for name, two in (("6x5", ("6x5", "6X5")), ("glasses", pictures)):
        options = [part for each in two for part in ("--occluder", each)]
        text = refused(capsys, monkeypatch, FACTORY, folder, *options, "-o", tmp_path / "maps")
        assert f"--occluder: expected each name once, got {name!r} twice" in text
