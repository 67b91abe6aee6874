"""ONNX files say what PyTorch says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from occfast import LargeMarginCosine
from occfast.models import PaperNet, Preprocessing, iresnet18
from occfast.train import Trained

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from occfast.train import export_onnx  # noqa: E402


def settled(network: nn.Module) -> nn.Module:
    """With norms that do something."""
    random = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.copy_(0.1 * torch.randn(module.num_features, generator=random))
            module.running_var.copy_(torch.rand(module.num_features, generator=random) + 0.5)
    return network.eval()


def paper() -> Trained:
    spec = {"name": "paper", "classes": 5, "arguments": {"width": 0.125, "batch_norm": True}}
    p = Preprocessing((100, 100), alignment={"template": "paper-100"})
    return Trained(settled(PaperNet(5, width=0.125, batch_norm=True)), p, spec, list("abcde"))


def arcface() -> Trained:
    spec = {"name": "iresnet18", "classes": None, "arguments": {"width": 4, "feature_size": 16}}
    network = settled(iresnet18(width=4, size=(32, 24), feature_size=16))
    return Trained(network, Preprocessing((32, 24), "BGR"), spec, list("abc"), LargeMarginCosine(16, 3))


@pytest.mark.parametrize(("make", "output"), [(paper, "logits"), (paper, "features"), (arcface, "features")])
def test_onnxruntime_agrees_at_any_batch(make: type[Trained], output: str, tmp_path: Path) -> None:
    trained = make()
    path = tmp_path / "model.onnx"
    result = export_onnx(trained, path, output=output)
    assert result.largest_difference < 1e-5 and result.batches == [1, 3, 8] and result.output == output
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    stored = torch.randint(0, 256, (5, trained.preprocessing.channels, *trained.preprocessing.size), dtype=torch.uint8)
    metadata = session.get_modelmeta().custom_metadata_map
    preprocessing = Preprocessing.from_json(metadata["preprocessing"])  # all that a user of the file has
    assert preprocessing == trained.preprocessing and json.loads(metadata["network"]) == trained.spec
    images = preprocessing(stored)
    [got] = session.run(None, {"images": images.contiguous().numpy()})
    with torch.no_grad():
        expected = trained.embed(stored) if output == "features" else trained.classifier()(images)
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert got.shape == (5, result.size)
    assert session.get_inputs()[0].shape[0] == "batch"
    assert str(Path.home()) not in path.read_bytes().decode("latin1")


def test_weights_without_a_description_are_exported_by_their_architecture(tmp_path: Path) -> None:
    from occfast import cli

    network = settled(iresnet18(size=(32, 32)))
    torch.save({"net_state_dict": {f"model.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "w.pth")
    path, images = tmp_path / "w.onnx", torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    given = ["--network", "iresnet18", "--size", "32x32", "--color", "BGR", "--std", "0.25", "-o", str(path)]
    cli.app(["export", str(tmp_path / "w.pth"), *given, "--opset", "19"], standalone_mode=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    preprocessing = Preprocessing.from_json(session.get_modelmeta().custom_metadata_map["preprocessing"])
    assert preprocessing == Preprocessing((32, 32), "BGR", std=0.25)
    [got] = session.run(None, {"images": preprocessing(images).contiguous().numpy()})
    expected = network(preprocessing(images)).detach().numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * float(abs(expected).max()))
    assert {o.domain: o.version for o in onnx.load(path).opset_import}[""] == 19
    for arguments, message in (
        (given[:2], "--size: required with --network"),
        (given[:4], "--color: required with --network"),
        (["--size", "32x32"], "--size: only valid with --network"),
        ([*given[:3], "32", *given[4:]], "--size: expected height x width as in 20x40, got '32'"),
        ([], "no architecture is recorded in this file; name it with network= .--network."),
    ):
        with pytest.raises(ValueError, match=message):
            cli.app(["export", str(tmp_path / "w.pth"), *arguments], standalone_mode=False)


def test_a_preset_is_recorded_whole(tmp_path: Path) -> None:
    from occfast import cli
    from occfast.data import TEMPLATES
    from occfast.models import load

    torch.save(settled(iresnet18()).state_dict(), tmp_path / "w.pth")
    given = ["export", str(tmp_path / "w.pth"), "--network", "iresnet18", "-o", str(tmp_path / "w.onnx")]
    cli.app([*given, "--preset", "adaface"], standalone_mode=False)
    found = load(tmp_path / "w.onnx").preprocessing
    assert found is not None and found.alignment is not None
    assert (found.size, found.color, found.mean, found.std) == ((112, 112), "BGR", 0.5, 0.5)
    assert found.alignment["template"] == "arcface-112"
    assert tuple(map(tuple, found.alignment["points"])) == TEMPLATES["arcface-112"].points
    for arguments, message in (
        (["--preset", "adaface", "--size", "112x112"], "--size: not valid together with --preset"),
        (["--preset", "none"], "preset: expected one of insightface"),
    ):
        with pytest.raises(ValueError, match=message):
            cli.app([*given, *arguments], standalone_mode=False)
    with pytest.raises(ValueError, match="--preset: only valid with --network"):
        cli.app(["export", str(tmp_path / "w.onnx"), "--preset", "adaface"], standalone_mode=False)


class Unstable(nn.Module):
    """Answers otherwise each time."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :4] + torch.rand(1)


def test_nothing_is_written_where_answers_differ(tmp_path: Path) -> None:
    trained = Trained(Unstable(), Preprocessing((8, 8)), {"name": "x:y", "classes": None, "arguments": {}})
    with pytest.raises(ValueError, match=r"expected onnxruntime to agree with PyTorch within 0.0001"):
        export_onnx(trained, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="output: expected one of 'features', 'logits', got 'scores'"):
        export_onnx(trained, tmp_path / "model.onnx", output="scores")
    with pytest.raises(ValueError, match="classifier: expected a network that was trained to classify"):
        export_onnx(trained, tmp_path / "model.onnx", output="logits")
    assert not (tmp_path / "model.onnx").exists()
