"""One door for recognizers of any kind of file."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from occfast import DataError
from occfast.models import PRESETS, PaperNet, Preprocessing, Recognizer, build, load
from occfast.models.weights import Trained

SHAPE = (100, 100)
IMAGES = torch.rand(2, 1, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return PaperNet(6).eval()


def check(found: Recognizer, kind: str, network: nn.Module) -> None:
    assert found.kind == kind
    assert not found.network.training
    with torch.no_grad():
        torch.testing.assert_close(found.network(IMAGES), network(IMAGES))


def test_own_weights(network: nn.Module, tmp_path: Path) -> None:
    spec = {"name": "paper", "classes": 6, "arguments": {}}
    how = Preprocessing(SHAPE, "gray")
    path = Trained(network, how, spec, [*"abcdef"]).save(tmp_path / "net.safetensors")
    found = load(path)
    check(found, "weights", network)
    assert found.preprocessing == how and found.people == [*"abcdef"]
    with torch.no_grad():
        torch.testing.assert_close(found.embedding()(IMAGES), network.features(IMAGES))  # type: ignore[operator]
    with pytest.raises(
        ValueError, match=r"preset: only valid for files that do not record .*, but for the alignment: "
    ):
        load(path, preset="sface")


@pytest.mark.parametrize("nested", [False, True])
def test_state_dict_of_another_program(network: nn.Module, tmp_path: Path, nested: bool) -> None:
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state} if nested else state, tmp_path / "net.pth")
    how = {"classes": 6, "channels": 1, "size": SHAPE}
    check(load(tmp_path / "net.pth", network="paper", **how), "weights", network)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no architecture is recorded in this file; name it with network="):
        load(tmp_path / "net.pth")


def test_torchscript(network: nn.Module, tmp_path: Path) -> None:
    torch.jit.trace(network, IMAGES).save(str(tmp_path / "net.pt"))  # type: ignore[no-untyped-call]
    check(load(tmp_path / "net.pt"), "torchscript", network)
    with pytest.raises(ValueError, match="network: a TorchScript file holds its own architecture, got 'paper'"):
        load(tmp_path / "net.pt", network="paper")


def test_program_of_torch_export(network: nn.Module, tmp_path: Path) -> None:
    batch = torch.export.Dim("batch", min=1)
    torch.export.save(torch.export.export(network, (IMAGES,), dynamic_shapes=({0: batch},)), tmp_path / "net.pt2")
    with pytest.raises(ValueError, match=r"give trust=True \(--trust\)"):
        load(tmp_path / "net.pt2")
    found = load(tmp_path / "net.pt2", trust=True)
    check(found, "torch.export", network)
    with torch.no_grad():
        torch.testing.assert_close(found.embedding()(IMAGES), network(IMAGES))
    with pytest.raises(ValueError, match=r"network: a torch\.export file holds its own architecture, got 'paper'"):
        load(tmp_path / "net.pt2", network="paper", trust=True)


def test_onnx(network: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    from occfast.train import export_onnx

    how = Preprocessing(SHAPE, "gray")
    trained = Trained(network, how, {"name": "paper", "classes": 6, "arguments": {}}, [*"abcdef"])
    export_onnx(trained, tmp_path / "net.onnx", output="logits")
    found = load(tmp_path / "net.onnx")
    check(found, "onnx", network)
    assert found.preprocessing == how and found.size == SHAPE and found.channels == 1 and found.note == ""
    with pytest.raises(ValueError, match="network: an ONNX file holds its own architecture"):
        load(tmp_path / "net.onnx", network="paper")


def test_onnx_with_an_operator_that_is_not_followed(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [helper.make_node("Erf", ["x"], ["y"]), helper.make_node("Det", ["y"], ["z"])]
    shapes = [
        helper.make_tensor_value_info(name, kind, dims) for name, dims in (("x", ["n", 1, 8, 8]), ("z", ["n", 1]))
    ]
    graph = helper.make_graph(nodes, "g", shapes[:1], shapes[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, tmp_path / "net.onnx")
    found = load(tmp_path / "net.onnx")
    assert found.kind == "onnx, dense" and "Det" in found.note
    images = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(found.network(images), torch.linalg.det(torch.erf(images)), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="runs on the CPU only"):
        found.to(torch.device("cuda"))


def test_onnx_of_open_size(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["y"]), helper.make_node("Flatten", ["y"], ["z"])]
    shapes = [
        helper.make_tensor_value_info(name, kind, dims) for name, dims in (("x", ["n", 3, "h", "w"]), ("z", ["n", 3]))
    ]
    graph = helper.make_graph(nodes, "g", shapes[:1], shapes[1:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "net.onnx"
    )
    found = load(tmp_path / "net.onnx", size=(20, 30))
    assert found.kind == "onnx" and found.size == (20, 30) and found.channels == 3
    images = torch.rand(2, 3, 20, 30)
    torch.testing.assert_close(found.network(images), images.mean((2, 3)))
    assert load(tmp_path / "net.onnx", preset="sphereface").size == (112, 96)


def test_pickled_module(network: nn.Module, tmp_path: Path) -> None:
    torch.save(network, tmp_path / "net.pt")
    with pytest.raises(DataError, match="runs code when it is loaded"):
        load(tmp_path / "net.pt")
    with pytest.raises(DataError, match=r"it holds a Python object, .*PaperNet\); .* leave out network= .* trust=True"):
        load(tmp_path / "net.pt", network="paper", trust=True)
    check(load(tmp_path / "net.pt", trust=True), "pickle", network)
    torch.save({"lr": 0.1}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"expected a pickled torch\.nn\.Module, got dict"):
        load(tmp_path / "other.pt", trust=True)


def test_a_pickled_module_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net_of_this_folder.py").write_text("import torch\n\nclass Net(torch.nn.Flatten):\n    pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    torch.save(importlib.import_module("net_of_this_folder").Net(), "net.pt")
    monkeypatch.setattr(sys, "path", sys.path[:-1])
    monkeypatch.delitem(sys.modules, "net_of_this_folder")
    assert load("net.pt", trust=True).network(IMAGES).shape == (len(IMAGES), IMAGES[0].numel())


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_weights_of_another_kind_are_not_cast(network: nn.Module, tmp_path: Path, dtype: torch.dtype) -> None:
    how: dict[str, Any] = {"network": "paper", "classes": 6, "channels": 1, "size": SHAPE}
    state = network.state_dict()
    first = next(iter(state))
    torch.save({**state, first: state[first].to(dtype)}, tmp_path / "net.pth")
    with pytest.raises(ValueError, match=rf"don't fit the network: {first} has dtype .*, expected float32"):
        load(tmp_path / "net.pth", **how)
    torch.save({name: tensor.double() for name, tensor in state.items()}, tmp_path / "net.pth")
    check(load(tmp_path / "net.pth", **how), "weights", network)


def test_function() -> None:
    found = load("occfast.models:PaperNet", classes=6, channels=1, size=SHAPE)
    assert isinstance(found.network, PaperNet) and found.kind == "function"


def test_folders(network: nn.Module, tmp_path: Path) -> None:
    spec = {"name": "paper", "classes": 6, "arguments": {}}
    trained = Trained(network, Preprocessing(SHAPE, "gray"), spec)
    plain = tmp_path / "plain"
    plain.mkdir()
    with pytest.raises(FileNotFoundError, match="there is no network in"):
        load(plain)
    trained.save(plain / "model.safetensors")
    check(load(plain), "weights", network)
    trained.save(plain / "other.safetensors")
    with pytest.raises(ValueError, match=r"several networks \(model\.safetensors, other\.safetensors\)"):
        load(plain)

    hub = tmp_path / "models--someone--net"
    for name in ("0a1b", "2c3d"):
        (hub / "snapshots" / name).mkdir(parents=True)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("2c3d\n")
    trained.save(hub / "snapshots" / "2c3d" / "model.safetensors")
    check(load(hub), "weights", network)
    (hub / "refs" / "main").write_text("../../../plain")
    with pytest.raises(DataError, match="expected the name of a snapshot"):
        load(hub)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load(tmp_path / "nothing.onnx")


def test_every_preset_prepares_what_it_says() -> None:
    """The input of a white, a black and a colored pixel, from the documented formula of each family."""
    pixel = torch.tensor([200, 100, 50], dtype=torch.uint8)
    x = pixel.double()
    dlib = (x - torch.tensor([122.782, 117.001, 104.298], dtype=torch.float64)) / 256
    wanted = {
        "insightface": (x - 127.5) / 127.5,
        "arcface": x,
        "adaface": ((x / 255 - 0.5) / 0.5).flip(0),
        "sface": x,
        "facenet": (x - 127.5) / 128,
        "dlib": dlib,
        "sphereface": (x - 127.5) / 128,
    }
    assert wanted.keys() == PRESETS.keys()
    for name, preset in PRESETS.items():
        image = pixel[None, :, None, None].expand(1, 3, *preset.preprocessing.size)
        found = preset.preprocessing(image)[0, :, 5, 7].double()
        torch.testing.assert_close(found, wanted[name], rtol=1e-6, atol=1e-6)


def test_preset_for_a_file_that_records_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(build("mobilefacenet", channels=3, size=(112, 96)).state_dict(), tmp_path / "net.pth")
    found = load(tmp_path / "net.pth", network="mobilefacenet", preset="sphereface")
    assert found.template == "sphereface-112x96" and found.prepare((3, 250, 250)).size == (112, 96)
    assert found.prepare((3, 250, 250), color="BGR").color == "BGR"
    with pytest.raises(ValueError, match="color: the network takes 3 channels, got 'gray'"):
        found.prepare((3, 250, 250), color="gray", mean=0.5, std=0.5)
    with pytest.raises(ValueError, match="preset: expected one of insightface"):
        load(tmp_path / "net.pth", network="mobilefacenet", preset="nobody")


def test_one_number_for_each_channel() -> None:
    how = Preprocessing((4, 4), "BGR", mean=(0.1, 0.2, 0.3), std=[0.5, 0.6, 0.7])  # type: ignore[arg-type]
    image = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    torch.testing.assert_close(how(image), (image.flip(1) / 255 - mean) / std)
    assert Preprocessing.from_json(how.to_json()) == how
    assert Preprocessing((4, 4), "RGB", mean=(0.5, 0.5, 0.5)) == Preprocessing((4, 4), "RGB", mean=0.5)
    torch.testing.assert_close(torch.tensor(how.scaled(1.0)), (1 - mean.flatten()) / std.flatten())
    for wrong, message in (
        ({"mean": (0.5, 0.4)}, "mean: expected one number, or one for each of three channels, got 2"),
        ({"std": (0.5, 0.4, 0.0)}, r"std\[2\]: expected a number above 0"),
        ({"mean": (0.5, 0.4, float("nan"))}, r"mean\[2\]: expected a"),
    ):
        with pytest.raises(ValueError, match=message):
            Preprocessing((4, 4), "RGB", **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mean: expected one number for gray images, got 3"):
        Preprocessing((4, 4), "gray", mean=(0.1, 0.2, 0.3))
    with pytest.raises(TypeError, match="mean: expected a number"):
        Preprocessing((4, 4), "RGB", mean="0.5")  # type: ignore[arg-type]
