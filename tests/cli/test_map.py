"""``occfast map`` from the outside: every kind of model file, results, resumption, processes, refusals."""

from __future__ import annotations

import csv
import json
import os
import subprocess
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
from occfast.cli.networks import load_any
from occfast.models import PaperNet, Preprocessing
from occfast.train.weights import Trained

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (22, 18)


class Net(nn.Sequential):
    def __init__(self, classes: int = 3) -> None:
        super().__init__(
            nn.Conv2d(1, 5, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(45, classes)
        )


def factory() -> nn.Module:
    """What a user's module:function is."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net = Net()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(2)
    return net


FACTORY = "tests.cli.test_map:factory"


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
    out = run(FACTORY, folder, "-o", "6x5", "-o", "4x4", "--output", tmp_path / "maps", "--stride", 2)
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
    (m,) = run(FACTORY, folder, "--output", tmp_path, "-o", "6x5", "--method", method, "--score", score)["maps"]
    assert m["method"] == method and m["precision"] is None and (m["estimate"] is None) == (method == "dense")
    header = Path(m["files"]["table"]).read_text().splitlines()[0]
    assert ("low,high" in header) == (method == "sampled")


def test_precision(folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    common = (FACTORY, folder, "-o", "6x5", "--output", tmp_path, "--score", "similarity_drop")
    plain, low = (run(*common, *more)["maps"][0] for more in ((), ("--precision", "bf16")))
    assert low["precision"] == "bf16" and low["mean"] != plain["mean"]
    assert abs(low["mean"] - plain["mean"]) < 0.02
    assert "precision: 'tf32' is of GPUs" in refusal(
        capsys, monkeypatch, *common, "--precision", "tf32", "--device", "cpu"
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
    common = (folder, "-o", "6x5", "--stride", 3, "--output")
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
        assert "--trust, if you know where it is from" in says(tmp_path / name, folder)
        assert "not a file of weights" in says(tmp_path / name, folder, "--network", FACTORY)
    assert not (tmp_path / "ran-code").exists()
    assert "name it with --network" in says(tmp_path / "weights.pt", folder)
    assert "there is no file" in says(tmp_path / "none.pt", folder)
    assert "can't be imported" in says("no.module:here", folder)
    assert "don't fit the network" in says(tmp_path / "weights.pt", folder, "--network", "paper", "--classes", 3)
    (tmp_path / "half.pt").write_bytes((tmp_path / "weights.pt").read_bytes()[:700])
    assert "half.pt" in says(tmp_path / "half.pt", folder)
    assert "expected height x width as in 20x40, got 'big'" in says(FACTORY, folder, "-o", "big")
    assert "--fill: expected black" in says(FACTORY, folder, "--fill", "plaid")
    assert "no such file or folder, and not a known data set" in says(FACTORY, tmp_path / "nothing")
    (tmp_path / "people.txt").write_text("x\ny\nz\n")
    assert "whom the network knows, got none" in says(FACTORY, folder, "--people", tmp_path / "people.txt")


def test_a_description_that_names_code_needs_trust(tmp_path: Path) -> None:
    spec = {"name": FACTORY, "classes": None, "arguments": {}}
    path = Trained(factory().eval(), Preprocessing(SHAPE, "gray"), spec, []).save(tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="runs only with trust=True"):
        load_any(str(path))
    assert load_any(str(path), trust=True).preprocessing == Preprocessing(SHAPE, "gray")
    built = load_any("occfast.models:PaperNet", classes=4, channels=1, size=(100, 100)).network
    assert isinstance(built, PaperNet) and not built.training


def test_limit_and_resume(folder: Path, tmp_path: Path) -> None:
    out = run(FACTORY, folder, "--output", tmp_path, "-o", "6x5", "--limit", 4, "--keep-wrong", "--seed", 3)
    assert out["images"] == 4 and out["maps"][0]["images"] == 4
    (tmp_path / "map-6x5.checkpoint").write_bytes(b"no checkpoint")
    result = CliRunner().invoke(
        app,
        ["map", FACTORY, str(folder), "--output", str(tmp_path), "-o", "6x5", "--resume", "--quiet", "--color", "gray"],
    )
    assert isinstance(result.exception, occfast.DataError)
    run(FACTORY, folder, "--output", tmp_path, "-o", "6x5")  # without --resume an old one is forgotten


def test_torchrun(folder: Path, tmp_path: Path) -> None:
    one = run(FACTORY, folder, "--output", tmp_path / "one", "-o", "6x5", "--method", "incremental")["maps"][0]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--master-port=0",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "localhost:0",
        "-m",
        "occfast",
        "map",
        FACTORY,
        str(folder),
        "-o",
        "6x5",
        "--output",
        str(tmp_path / "two"),
        "--method",
        "incremental",
        "--color",
        "gray",
        "--json",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    two = json.loads(done.stdout)["maps"][0]  # one process speaks
    a, b = (occfast.OcclusionMap.load(m["files"]["map"]) for m in (one, two))
    assert np.array_equal(a.values, b.values) and a.n_evaluations == b.n_evaluations
