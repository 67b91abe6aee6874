"""``occfast evaluate`` on other formats of networks, several networks, and one's own folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from occfast.data.align import fit
from occfast.models import Preprocessing, build
from occfast.models.weights import Trained
from tests.evaluate.test_embedding import POINTS
from tests.evaluate.test_protocols import Done, occfast  # noqa: F401 - a fixture

Run = Callable[..., Done]
PEOPLE = [f"person {k:02d}" for k in range(24)]


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for person in PEOPLE:
        (tmp_path / "faces" / person).mkdir(parents=True)
        pattern = random.integers(0, 180, (7, 6)).repeat(8, 0).repeat(8, 1)
        for k in range(3):
            pixels = (pattern + random.integers(0, 70, pattern.shape)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "faces" / person / f"{k}.png")
    return tmp_path / "faces"


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build("paper", 3, channels=1, size=(100, 100), width=0.1).eval()


def save(path: Path, seed: int = 0, alignment: dict | None = None) -> Path:
    spec = {"name": "paper", "classes": 3, "arguments": {"width": 0.1}}
    path.parent.mkdir(exist_ok=True)
    return Trained(network(seed), Preprocessing((100, 100), "gray", alignment=alignment), spec).save(path)


def test_a_folder_of_people_needs_no_list_of_pairs(tmp_path: Path, faces: Path, occfast: Run) -> None:  # noqa: F811
    save(tmp_path / "net.safetensors")
    done = occfast("evaluate", "folder", "faces", "-m", "net.safetensors", "--resize", "--json", "-q")
    assert done.returncode == 0, done.stderr
    about = json.loads(done.stdout)
    row = about["rows"][0]
    assert row["n_same"] == row["n_different"] > 0 and len(row["folds"]) == 10 and row["accuracy"] is not None
    assert about["settings"]["model_name"] == "net" and about["settings"]["data"] == "faces"
    assert row["people"]["auc"][0] <= row["auc"] <= row["people"]["auc"][1]
    failed = occfast("evaluate", "folder", "faces", "-m", "net.safetensors", "--resize", "-o", "b", "--folds", 13)
    assert failed.returncode == 2 and "folds: expected at most 12" in failed.stderr


def test_several_networks_in_one_report(tmp_path: Path, faces: Path, occfast: Run) -> None:  # noqa: F811
    a, b = save(tmp_path / "a" / "best.safetensors", 1), save(tmp_path / "b" / "best.safetensors", 2)
    arguments = ("evaluate", "search", "faces", "-m", a, "-m", b, "--resize", "--occlude", "block:20x40@50,50", "-q")
    done = occfast(*arguments)
    assert done.returncode == 0, done.stderr
    about = json.loads((tmp_path / "evaluation" / "report.json").read_text())
    assert {row["model"] for row in about["rows"]} == {"a/best", "b/best"} and len(about["rows"]) == 4
    assert [d["second"] for d in about["differences"]] == ["b/best"] * 2
    assert "a/best, b/best" in done.stdout
    for wrong, message in (
        (("-m", tmp_path / "none.safetensors", "-m", b), "none.safetensors"),
        (("-m", b, "-m", b), "--model: expected different networks"),
    ):
        failed = occfast("evaluate", "search", "faces", "--resize", "-o", "other", *wrong)
        assert failed.returncode == 2 and message in failed.stderr, failed.stderr
    # Nothing is replaced by another network's report.
    one = ("evaluate", "search", "faces", "--resize", "-q")
    failed = occfast(*one, "-m", save(tmp_path / "c.safetensors", 3), "--resume")
    assert failed.returncode == 2 and "evaluation holds a report of another network" in failed.stderr
    assert occfast(*arguments, "--resume").returncode == 0
    assert occfast(*arguments, "--resume", "--overwrite").returncode == 2
    assert occfast(*one, "-m", a, "--overwrite").returncode == 0
    assert "models" not in json.loads((tmp_path / "evaluation" / "report.json").read_text())["settings"]


def test_resizing_does_not_stand_in_for_alignment(tmp_path: Path, faces: Path, occfast: Run) -> None:  # noqa: F811
    alignment = fit(POINTS[None], "paper-100", gray=True).alignment.as_dict()
    weights = save(tmp_path / "net.safetensors", alignment=alignment)
    arguments = ("evaluate", "search", "faces", "-m", weights, "-q")
    failed = occfast(*arguments, "--resize")
    assert failed.returncode == 2 and "--resize: the weights expect faces aligned to paper-100" in failed.stderr
    failed = occfast(*arguments)
    assert failed.returncode == 2 and "occfast data landmarks" in failed.stderr and "--landmarks" in failed.stderr
    assert occfast(*arguments, "--aligned").returncode == 0
    failed = occfast(*arguments, "--aligned", "--template", "paper-100", "-o", "other")
    assert failed.returncode == 2 and "--aligned: not valid together with --template" in failed.stderr


def rows(done: Done) -> list[dict]:
    assert done.returncode == 0, done.stderr
    return [row["metrics"] for row in json.loads(done.stdout)["rows"]]


def test_every_format_gives_the_same_figures(tmp_path: Path, faces: Path, occfast: Run) -> None:  # noqa: F811
    weights = save(tmp_path / "net.safetensors")
    whole = network().features if hasattr(network(), "features") else network()
    example = torch.zeros(2, 1, 100, 100)

    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner.features(x)

    module = Features().eval()
    assert torch.equal(module(example), whole(example))
    torch.jit.trace(module, example).save(tmp_path / "script.pt")
    torch.save(network().state_dict(), tmp_path / "plain.pt")
    arguments = ("evaluate", "search", "faces", "--resize", "--json", "-q")
    expected = rows(occfast(*arguments, "-m", weights, "-o", "a"))
    settings = ("--size", "100x100", "--color", "gray")
    assert rows(occfast(*arguments, "-m", "script.pt", *settings, "-o", "b")) == expected
    torch.save({"state_dict": network().state_dict()}, tmp_path / "wrapped.pt")
    failed = occfast(*arguments, "-m", "plain.pt", *settings, "-o", "c")
    assert failed.returncode == 2 and "--network" in failed.stderr
    failed = occfast(*arguments, "-m", "script.pt", "--size", "60x60", "--color", "gray", "-o", "d")
    assert failed.returncode == 2 and "model: failed on images" in failed.stderr and "Traceback" not in failed.stderr
    failed = occfast(*arguments, "-m", "script.pt", "--size", "60", "-o", "d")
    assert failed.returncode == 2 and "--size: expected height x width" in failed.stderr


def test_onnx(tmp_path: Path, faces: Path, occfast: Run) -> None:  # noqa: F811
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from occfast.evaluate.fingerprints import fingerprint
    from occfast.models.onnx import OnnxNetwork
    from occfast.train import export_onnx, load_network

    weights = save(tmp_path / "net.safetensors")
    export_onnx(load_network(weights), tmp_path / "net.onnx")
    arguments = ("evaluate", "search", "faces", "--resize", "--json", "-q")
    expected = rows(occfast(*arguments, "-m", weights, "-o", "a"))
    done = occfast(*arguments, "-m", "net.onnx", "-o", "b")
    assert rows(done) == expected
    loaded = OnnxNetwork(tmp_path / "net.onnx")
    x = torch.rand(3, 1, 100, 100)
    assert loaded.size == (100, 100) and torch.allclose(loaded(x), network().features(x), atol=1e-4)
    assert fingerprint(loaded) != fingerprint(network())
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x07junk")
    failed = occfast(*arguments, "-m", "bad.onnx", "-o", "c")
    assert failed.returncode == 2 and "bad.onnx: not a readable ONNX file" in failed.stderr
