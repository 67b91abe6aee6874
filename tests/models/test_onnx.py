"""Networks in ONNX files as modules that sweeps follow: equal to ONNX Runtime, planned as the module they were."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import occfast
from occfast import DataError
from occfast.models import MobileFaceNet, PaperNet, iresnet18, resnet50
from occfast.sweep.evaluators.incremental.explain import Explanation
from tests.networks import lively

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from occfast.models.onnx import OnnxNetwork, UnsupportedOperator, read_onnx  # noqa: E402
from tests.models.onnx_graphs import Node, check, graph, insightface, random, tensorflow  # noqa: E402

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "paper": (lambda: PaperNet(7, width=0.1), (1, 100, 100)),
    "paper with norms": (lambda: PaperNet(None, width=0.1, batch_norm=True), (1, 100, 100)),
    "iresnet18": (lambda: iresnet18(width=8, size=(64, 48), feature_size=32), (3, 64, 48)),
    "mobilefacenet": (lambda: MobileFaceNet(size=(64, 48)), (3, 64, 48)),
    "resnet50": (lambda: resnet50(7, width=8), (3, 64, 48)),
}


def network(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    made = make().eval()
    lively(made)
    return made.eval(), shape


def exported(model: nn.Module, shape: tuple[int, ...], how: str, path: Path) -> Path:
    """Export a network: by "dynamo", or by the old exporter for a version of the operators, of a fixed batch or not."""
    kind, _, version = how.partition(" ")
    example = torch.rand(2 if kind != "fixed" else 1, *shape)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if kind == "dynamo":
            torch.onnx.export(
                model, (example,), path, dynamo=True, opset_version=int(version), verbose=False, external_data=False,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )  # fmt: skip
        else:
            given: dict[str, Any] = {"input_names": ["i"], "output_names": ["o"]}
            axes = {"i": {0: "n"}, "o": {0: "n"}} if kind == "open" else None
            torch.onnx.export(model, (example,), path, dynamo=False, opset_version=int(version), dynamic_axes=axes, **given)  # fmt: skip
    return path


def plan(model: nn.Module, size: tuple[int, int]) -> list[tuple[Any, ...]]:
    """Return the maps of a plan: their sizes, the rectangles that are computed, and what positions share."""
    found: Explanation = occfast.explain(model, size, (16, 12))
    assert found.reason == "" and found.whole_from
    return [(layer.size, layer.rectangle, layer.shared) for layer in found.layers if layer.size is not None]


@torch.no_grad()
def largest_difference(a: nn.Module, b: nn.Module, images: Tensor) -> float:
    got, expected = a(images), b(images)
    assert got.shape == expected.shape
    return float((got - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("paper", "dynamo 18"),
        ("paper", "open 9"),
        ("paper", "fixed 17"),
        ("paper with norms", "fixed 9"),
        ("iresnet18", "dynamo 20"),
        ("iresnet18", "open 11"),
        ("iresnet18", "fixed 13"),
        ("mobilefacenet", "open 13"),
        ("resnet50", "open 17"),
        ("resnet50", "fixed 10"),
    ],
)
def test_an_exported_network_is_planned_as_the_network(name: str, how: str, tmp_path: Path) -> None:
    model, shape = network(name)
    path = exported(model, shape, how, tmp_path / "m.onnx")
    module, runtime = read_onnx(path), OnnxNetwork(path)
    assert (module.channels, *module.size) == shape and not module.training
    for batch in (1, 3):
        images = torch.rand(batch, *shape) * 2 - 1
        assert largest_difference(module, runtime, images) < 1e-5
        assert largest_difference(module, model, images) < 1e-5
    assert plan(module, shape[1:]) == plan(model, shape[1:])


@pytest.mark.parametrize(("name", "score"), [("paper", "score_drop"), ("iresnet18", "similarity_drop")])
def test_an_exact_map_equals_that_of_onnx_runtime(name: str, score: Any, tmp_path: Path) -> None:
    model, shape = network(name)
    path = exported(model, shape, "fixed 13", tmp_path / "m.onnx")
    images, labels = torch.rand(2, *shape) * 2 - 1, torch.tensor([0, 1]) if score == "score_drop" else None
    given: dict[str, Any] = {"stride": 4, "score": score, "fill": 0.0, "progress": False}
    exact, dense = (
        occfast.occlusion_map(m, images, labels, (16, 12), method=method, **given)
        for m, method in ((read_onnx(path), "incremental"), (OnnxNetwork(path), "dense"))
    )
    assert (exact.method, dense.method) == ("incremental", "dense") and np.ptp(dense.values) > 1e-3
    assert np.abs(exact.values - dense.values).max() <= 1e-4 * np.ptp(dense.values)


# Other exporters --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, "None", 2])
@pytest.mark.parametrize("opset", [8, 9, 11, 14])
def test_insightface(opset: int, batch: int | str, tmp_path: Path) -> None:
    nodes, tensors = insightface(opset)
    model = graph(nodes, tensors, opset=opset, shape=(batch, 3, 28, 24), listed=opset < 11)
    module = check(model, tmp_path / "m.onnx", torch.rand(3, 3, 28, 24) * 255)
    explained = occfast.explain(module, (28, 24), (8, 8))
    assert explained.reason == "" and explained.whole_from == "flatten"
    assert [name.rpartition("_")[0] for name, _ in module.named_children()].count("batch_norm") == 7


class ResidualNHWC(nn.Module):
    """What :func:`tensorflow` writes."""

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        super().__init__()
        t = {name: torch.from_numpy(np.asarray(value)) for name, value in tensors.items()}
        self.pad = nn.ZeroPad2d((0, 1, 0, 1))
        self.conv, self.deep = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False)
        self.conv.weight.data, self.conv.bias.data, self.deep.weight.data = t["w"], t["b"], t["d"]  # type: ignore[union-attr]
        self.norm, self.prelu, self.fc = nn.BatchNorm2d(8, 1e-3), nn.PReLU(8), nn.Linear(8, 5)
        self.norm.weight.data, self.norm.bias.data = t["ng"], t["nb"]
        self.norm.running_mean, self.norm.running_var = t["nm"], t["nv"]
        self.prelu.weight.data = t["s"].reshape(-1)
        self.fc.weight.data, self.fc.bias.data = t["fc"].T.contiguous(), t["fcb"]

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.norm(self.conv(self.pad(x))))
        return self.fc((x + self.prelu(self.deep(x))).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize("batch", [1, "unk__1"])
def test_tensorflow(between: bool, batch: int | str, tmp_path: Path) -> None:
    nodes, tensors = tensorflow(between)
    model = graph(nodes, tensors, shape=(batch, 32, 28, 3))
    module = check(model, tmp_path / "m.onnx", torch.randn(3, 3, 32, 28))
    assert (module.channels, module.size) == (3, (32, 28))
    twin = ResidualNHWC(tensors).eval()
    assert largest_difference(module, twin, torch.randn(3, 3, 32, 28)) < 1e-5
    assert plan(module, (32, 28)) == plan(twin, (32, 28))


@pytest.mark.parametrize("how", ["gate", "divided", "scaled inside", "sigmoid"])
def test_activations_of_several_nodes(how: str, tmp_path: Path) -> None:
    tensors = {"w": random(4, 4, 3, 3), "z": np.float32(0), "six": np.float32(6), "three": np.float32(3)}
    tensors |= {"s": np.float32(1 / 6)}
    nodes: list[Node] = [("Conv", "x w", "c", {})]
    shifted: list[Node] = [("Add", "c three", "a", {}), ("Clip", "a z six", "b", {})]
    nodes += {
        "gate": [("HardSigmoid", "c", "a", {"alpha": 1 / 6, "beta": 0.5}), ("Mul", "a c", "y", {})],
        "divided": [*shifted, ("Mul", "c b", "d", {}), ("Div", "d six", "y", {})],
        "scaled inside": [*shifted, ("Mul", "s b", "d", {}), ("Mul", "c d", "y", {})],
        "sigmoid": [("Sigmoid", "c", "a", {}), ("Mul", "c a", "y", {})],
    }[how]  # type: ignore[operator]
    module = check(graph(nodes, tensors), tmp_path / "m.onnx", torch.randn(3, 4, 9, 8))
    assert [type(m) for m in module.children()] == [nn.Conv2d, nn.SiLU if how == "sigmoid" else nn.Hardswish]


@pytest.mark.parametrize("how", ["last", "first", "within", "product", "half as division", "another root"])
def test_gelu_by_parts(how: str, tmp_path: Path) -> None:
    tensors = {"w": random(4, 4, 3, 3), "one": np.float32(1), "two": np.float32(2), "half": np.float32(0.5)}
    tensors |= {"root": np.float32(2**0.5 if how != "another root" else 1.5), "over": np.float32(0.5**0.5)}
    inner: Node = ("Mul", "over c", "d", {}) if how == "product" else ("Div", "c root", "d", {})
    bell: list[Node] = [("Conv", "x w", "c", {}), inner, ("Erf", "d", "e", {}), ("Add", "e one", "b", {})]
    nodes: list[Node] = {
        "first": [("Mul", "c half", "h", {}), ("Mul", "h b", "y", {})],
        "within": [("Mul", "half b", "h", {}), ("Mul", "c h", "y", {})],
        "half as division": [("Mul", "c b", "h", {}), ("Div", "h two", "y", {})],
    }.get(how, [("Mul", "c b", "h", {}), ("Mul", "h half", "y", {})])  # type: ignore[arg-type]
    module = check(graph([*bell, *nodes], tensors), tmp_path / "m.onnx", torch.randn(3, 4, 9, 8))
    kinds = [type(m) for m in module.children()]
    assert kinds == [nn.Conv2d, nn.GELU] if how != "another root" else nn.GELU not in kinds


# The batch size ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [[1, 288], [1, -1], [-1, 288], [0, -1], [1, 4, 72]])
@pytest.mark.parametrize("batch", [1, "N"])
def test_a_batch_that_was_written_as_a_number(target: list[int], batch: int | str, tmp_path: Path) -> None:
    tensors = {"t": np.array(target, np.int64), "f": np.array([1, -1], np.int64)}
    nodes: list[Node] = [("Relu", "x", "r", {}), ("Reshape", "r t", "a", {}), ("Reshape", "a f", "y", {})]
    onnx.save(graph(nodes, tensors, shape=(batch, 4, 9, 8)), tmp_path / "m.onnx")
    images = torch.randn(5, 4, 9, 8)
    assert torch.equal(read_onnx(tmp_path / "m.onnx")(images), images.relu().flatten(1))
    onnx.save(graph(nodes, tensors, shape=(1, 4, 9, 8)), tmp_path / "m.onnx")
    assert torch.equal(OnnxNetwork(tmp_path / "m.onnx")(images), images.relu().flatten(1))


@pytest.mark.parametrize(
    ("nodes", "tensors", "what"),
    [
        ([("Transpose", "x", "y", {"perm": [1, 0, 2, 3]})], {}, "an output of"),
        ([("ReduceMean", "x", "y", {"axes": [0]})], {}, "a reduction of the batch"),
        ([("Concat", "x x", "y", {"axis": 0})], {}, "joined to a larger batch"),
        ([("Gather", "x i", "y", {})], {"i": np.array([0])}, "images of the batch"),
        ([("Softmax", "x", "y", {"axis": 0})], {}, None),
    ],
)
def test_networks_that_mix_the_images_of_a_batch(
    nodes: list[Node], tensors: dict[str, Any], what: str | None, tmp_path: Path
) -> None:
    onnx.save(graph(nodes, tensors), tmp_path / "m.onnx")
    if what is None:  # the sweep's own check finds it
        images = torch.randn(2, 4, 9, 8)
        assert torch.allclose(read_onnx(tmp_path / "m.onnx")(images), images.softmax(0))
        return
    with pytest.raises(UnsupportedOperator, match=what):
        read_onnx(tmp_path / "m.onnx")


# What is said of other files --------------------------------------------------------------------------


def saved(path: Path, *args: Any, **kwargs: Any) -> Path:
    onnx.save(graph(*args, **kwargs), path)
    return path


def test_missing_operators_are_named_together(tmp_path: Path) -> None:
    nodes: list[Node] = [
        ("DequantizeLinear", "x s", "a", {}), ("Det", "a", "b", {}), ("Relu", "b", "c", {}), ("NonZero", "x", "unused", {}),
        ("FusedConv", "c", "y", {"domain": "com.microsoft"}),
    ]  # fmt: skip
    path = saved(tmp_path / "m.onnx", nodes, {"s": np.float32(1)})
    with pytest.raises(UnsupportedOperator, match=r"m.onnx: expected operators that can be followed, got ") as found:
        read_onnx(path)
    assert found.value.operators == ("DequantizeLinear (quantized)", "Det", "com.microsoft::FusedConv")
    assert found.value.opset == 13 and "opset 13" in str(found.value)
    again = pickle.loads(pickle.dumps(found.value))
    assert str(again) == str(found.value) and isinstance(again, ValueError) and not isinstance(again, DataError)


@pytest.mark.parametrize(
    ("nodes", "tensors", "what"),
    [
        ([("Conv", "x x", "y", {})], {}, r"Conv \(weights that depend on the images\)"),
        ([("Relu", "x", "y", {"slope": 1.0})], {}, r"Relu \(attribute slope\)"),
        ([("MaxPool", "x", "p y", {"kernel_shape": [2, 2]})], {}, r"MaxPool \(outputs besides the first\)"),
        ([("Cast", "x", "y", {"to": 11})], {}, r"Cast \(images to float64\)"),
        ([("ArgMax", "x", "y", {})], {}, r"ArgMax \(indices as a result\)"),
        ([("Dropout", "x r t", "y", {})], {"r": np.float32(0.5), "t": np.array(True)}, r"Dropout \(training mode\)"),
    ],
)
def test_forms_that_are_not_followed(nodes: list[Node], tensors: dict[str, Any], what: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperator, match=what):
        read_onnx(saved(tmp_path / "m.onnx", nodes, tensors))


@pytest.mark.parametrize("opset", [6, 23])
def test_other_versions(opset: int, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperator, match=rf"a version outside 7 to 22 \(opset {opset}\)"):
        read_onnx(saved(tmp_path / "m.onnx", [("Relu", "x", "y", {})], opset=opset))


@pytest.mark.parametrize(
    ("nodes", "tensors", "what"),
    [
        ([("Conv", "x w", "y", {})], {"w": random(6, 3, 3, 3)}, r"node 0 \(Conv\): weights of \[6, 3, 3, 3\]"),
        ([("Conv", "x w", "y", {"strides": [0, 1]})], {"w": random(6, 4, 3, 3)}, "at least 1 for attribute strides"),
        ([("Conv", "x w", "y", {"strides": 2})], {"w": random(6, 4, 3, 3)}, "attribute strides has another type"),
        ([("MaxPool", "x", "y", {"kernel_shape": [99, 1]})], {}, "a window of 99 on 9"),
        ([("BatchNormalization", "x g g g g", "y", {})], {"g": random(3)}, r"expected weight of \[4\] in float32, got \[3\]"),
        ([("Reshape", "x t", "y", {})], {"t": np.array([0, 7])}, r"can't take the shape \[0, 7\]"),
        ([("Add", "x c", "y", {})], {"c": random(5)}, "its arguments don't fit"),
        ([("Add", "x c", "y", {})], {"c": np.float64(1)}, "its arguments are of torch.float32 and torch.float64"),
        ([("Gather", "x i", "y", {"axis": 1})], {"i": np.array([4])}, r"expected indices in \[-4, 4\)"),
        ([("Relu", "z", "y", {})], {}, "nothing has the name 'z'"),
        ([("Relu", "b", "y", {}), ("Relu", "x", "b", {})], {}, "node 0 reads a later one"),
        ([("Relu", "y", "y", {})], {}, "node 0 reads a later one"),
        ([("Relu", "x", "y", {}), ("Abs", "x", "y", {})], {}, "'y' has two"),
        ([("Identity", "c", "y", {})], {"c": random(5)}, "an output that depends on the images"),
        ([("Pad", "x p", "y", {})], {"p": np.array([0, 0, 2**14, 0, 0, 0, 0, 2**14])}, "numbers for an image"),
        ([("Expand", "c s", "e", {}), ("Add", "e e", "f", {}), ("ReduceMax", "f", "m", {}), ("Add", "x m", "y", {})],
         {"c": random(1), "s": np.array([2**20, 2**7])}, "much larger than the file"),
        ([("ConstantOfShape", "s", "e", {}), ("Add", "x e", "y", {})], {"s": np.array([2**40, 2**30])}, "node 0"),
        ([("Div", "a z", "s", {}), ("Reshape", "x s", "y", {})], {"a": np.array([0, -1]), "z": np.array([0])}, "divides by 0"),
        ([("Mod", "a z", "s", {}), ("Reshape", "x s", "y", {})], {"a": np.array([0, -1]), "z": np.array([0])}, "divides by 0"),
    ],
)  # fmt: skip
def test_damaged_networks(nodes: list[Node], tensors: dict[str, Any], what: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", nodes, tensors)
    with pytest.raises(DataError, match=r"m.onnx: .*" + what):
        read_onnx(path)


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"\x08\x07junk", b"\xff" * 999])
def test_files_that_are_no_networks(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(DataError, match=r"m.onnx: not a readable ONNX file"):
        read_onnx(tmp_path / "m.onnx")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_onnx(tmp_path / "n.onnx")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="expected a regular file"):
        read_onnx(tmp_path / "pipe")


def test_inputs_of_other_forms(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with pytest.raises(ValueError, match=r"expected one input \[N, C, H, W\], got"):
        read_onnx(saved(path, [("Relu", "x", "y", {})], shape=(1, 3, 5)))
    with pytest.raises(ValueError, match="expected images of float32"):
        read_onnx(saved(path, [("Cast", "x", "y", {"to": 1})], kind=2))


def test_numbers_of_tensors_that_are_not_all_there(tmp_path: Path) -> None:
    model = graph([("Add", "x c", "y", {})], {"c": random(4, 1, 1)})
    stored = model.graph.initializer[0]
    for change, what in (
        ({"raw_data": stored.raw_data[:-1]}, "expected 4 elements of <f4, got 15 bytes"),
        ({"dims": [2**31, 2**31]}, "expected a shape"),
        ({"dims": [-4]}, "expected a shape"),
        ({"dims": [5]}, "expected 5 elements"),
        ({"data_type": 8}, "expected numbers, got the type of elements 8"),
    ):
        changed = copy.deepcopy(model)
        for key, value in change.items():
            if key == "dims":
                del changed.graph.initializer[0].dims[:]
                changed.graph.initializer[0].dims.extend(value)
            else:
                setattr(changed.graph.initializer[0], key, value)
        onnx.save(changed, tmp_path / "m.onnx")
        with pytest.raises(DataError, match=rf"m.onnx: tensor 'c': {what}"):
            read_onnx(tmp_path / "m.onnx")


# Data outside the file --------------------------------------------------------------------------------


def external(folder: Path, location: str, *, offset: str = "0", length: str = "", times: int = 1) -> Path:
    """Write a network whose weights lie in another file."""
    names = [f"c{k}" for k in range(times)]
    nodes = [("Add", f"{'x' if k == 0 else f'y{k - 1}'} c{k}", f"y{k}", {}) for k in range(times - 1)]
    nodes.append(("Add", f"{'x' if times == 1 else f'y{times - 2}'} c{times - 1}", "y", {}))
    model = graph(nodes, {name: random(4, 9, 8) for name in names})
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.data_location = 1
        for key, value in (("location", location), ("offset", offset), ("length", length)):
            if value:
                tensor.external_data.add(key=key, value=value)
    folder.mkdir(exist_ok=True)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def test_external_data_of_the_folder(tmp_path: Path) -> None:
    images = torch.randn(2, 4, 9, 8)
    for location in ("w.bin", "./deep/w.bin"):
        path = external(tmp_path / "net", location, offset="8", length="1152")
        data = tmp_path / "net" / location
        data.parent.mkdir(exist_ok=True)
        data.write_bytes(b"12345678" + random(4, 9, 8).tobytes())
        assert torch.equal(read_onnx(path)(images), images + torch.from_numpy(random(4, 9, 8)))
    linked = tmp_path / "link"
    linked.symlink_to(tmp_path / "net")  # the folder itself may be reached by a link
    assert torch.equal(read_onnx(linked / "m.onnx")(images), images + torch.from_numpy(random(4, 9, 8)))


def test_external_data_elsewhere(tmp_path: Path) -> None:
    net = tmp_path / "net"
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(4096))
    net.mkdir()
    (net / "link.bin").symlink_to(secret)
    (net / "here").symlink_to(tmp_path)
    (net / "short.bin").write_bytes(bytes(7))
    (net / "folder").mkdir()
    os.mkfifo(net / "pipe")
    for location, what in (
        ("../secret.bin", "expected a file in the folder"),
        ("a/../../secret.bin", "expected a file in the folder"),
        ("..\\secret.bin", "expected a file in the folder"),
        (str(secret), "expected a file in the folder"),
        ("c:secret.bin", "expected a file in the folder"),
        ("", "expected a file in the folder"),
        ("a\0b", "expected a file in the folder"),
        ("link.bin", "is a link"),
        ("here/secret.bin", "is a link"),
        ("none.bin", "can't be read: No such file"),
        ("x" * 5000, "can't be read: File name too long"),
        ("folder", "regular file|Is a directory"),
        ("pipe", "regular file"),
        ("short.bin", "has 7 bytes, the data end at 1,152"),
    ):
        with pytest.raises(DataError, match=what):
            read_onnx(external(net, location))
    for offset, length in (("-1", ""), ("x", ""), ("0", "9999999999999"), ("0", "-4")):
        with pytest.raises(DataError, match="tensor 'c0': expected"):
            read_onnx(external(net, "short.bin", offset=offset, length=length))


def test_external_data_that_are_used_often(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(random(4, 9, 8).tobytes())
    read_onnx(external(tmp_path, "w.bin", times=2))
    with pytest.raises(DataError, match="more than twice the size of the files"):
        read_onnx(external(tmp_path, "w.bin", times=90))


# The module -------------------------------------------------------------------------------------------


def test_float16_is_computed_in_float32(tmp_path: Path) -> None:
    nodes, tensors = insightface(11)
    half = {name: np.asarray(value, np.float16) for name, value in tensors.items()}
    path = saved(tmp_path / "half.onnx", nodes, half, opset=11, shape=(1, 3, 28, 24), kind=10)
    module = read_onnx(path)
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    whole = {name: np.asarray(value, np.float32) for name, value in half.items()}
    same = read_onnx(saved(tmp_path / "m.onnx", nodes, whole, opset=11, shape=(1, 3, 28, 24)))
    images = torch.rand(2, 3, 28, 24) * 255
    assert torch.equal(module(images), same(images))


def test_names_do_not_become_code(tmp_path: Path) -> None:
    evil = "a'\"\n__import__('os').abort()#"
    model = graph([("Conv", "x w", "c", {}), ("Add", "c b", "y", {})], {"w": random(4, 4, 3, 3), "b": random(4, 1, 1)})
    for node in model.graph.node:
        node.name = evil
        node.input[:] = [evil + name for name in node.input]
        node.output[:] = [evil + name for name in node.output]
    for entry in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        entry.name = evil + entry.name
    onnx.save(model, tmp_path / "m.onnx")
    module = read_onnx(tmp_path / "m.onnx")
    assert "abort" not in module.code and set(module.state_dict()) == {"conv_1.weight", "constant_1"}
    assert module.input_name == evil + "x"
    assert module(torch.rand(2, 4, 9, 8)).shape == (2, 4, 7, 6)


def test_the_module(tmp_path: Path) -> None:
    nodes, tensors = insightface(11)
    path = saved(tmp_path / "m.onnx", nodes, tensors, opset=11, shape=(1, 3, "h", "w"))
    with pytest.raises(ValueError, match=r"size: .*m.onnx leaves it open"):
        read_onnx(path)
    with pytest.raises(ValueError, match=r"channels: .*has images of"):
        read_onnx(path, size=(28, 24), channels=1)
    state = torch.get_rng_state()
    module = read_onnx(path, size=(28, 24))
    assert torch.equal(state, torch.get_rng_state())
    assert (module.size, module.channels, module.preprocessing, module.opset) == ((28, 24), 3, None, 11)
    images = torch.rand(2, 3, 28, 24)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(images), module(images)) and other.size == (28, 24)
        with pytest.raises(ValueError, match=r"images: expected \[N, 3, 28, 24\], got \[2, 3, 24, 28\]"):
            other(images.transpose(2, 3))
    module(images).sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    assert module.double()(images.double()).dtype == torch.float64


def test_preprocessing_is_read(tmp_path: Path) -> None:
    from occfast.models import Preprocessing

    described = Preprocessing((9, 8), "gray", 0.25, 2.0)
    model = graph([("Relu", "x", "y", {})], shape=("N", "c", "h", "w"))
    onnx.helper.set_model_props(model, {"preprocessing": described.to_json()})
    onnx.save(model, tmp_path / "m.onnx")
    module = read_onnx(tmp_path / "m.onnx")
    assert module.preprocessing == described == OnnxNetwork(tmp_path / "m.onnx").preprocessing
    assert (module.channels, module.size) == (1, (9, 8))
    onnx.helper.set_model_props(model, {"preprocessing": "{"})
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(DataError, match="not a description of preprocessing"):
        read_onnx(tmp_path / "m.onnx")
