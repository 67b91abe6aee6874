"""Every operator that is read, in the forms that exporters write, against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from occfast.models.onnx.operators import OPERATORS  # noqa: E402
from tests.models.onnx_graphs import Node, check, graph, norm, random  # noqa: E402

W = random(6, 4, 3, 3, scale=0.3)
W2 = random(6, 2, 3, 3, scale=0.3)
D = random(4, 1, 3, 3, scale=0.3)
T = random(4, 6, 3, 3, scale=0.3)
V = random(288, 5, scale=0.1)
I = np.int64  # noqa: E741


def one(op: str, given: str = "x", tensors: dict[str, Any] | None = None, opset: int = 13, **attributes: Any) -> Any:
    """Return a case of one node, named after its operator, version and attributes."""
    about = " ".join(f"{key}={value}" for key, value in attributes.items())
    return pytest.param([(op, given, "y", attributes)], tensors or {}, opset, id=f"{op}-{opset} {given} {about}")


def many(name: str, nodes: list[Node], tensors: dict[str, Any] | None = None, opset: int = 13) -> Any:
    return pytest.param(nodes, tensors or {}, opset, id=f"{name}-{opset}")


def ints(*values: int) -> np.ndarray:
    return np.array(values, I)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


CASES = [
    # Convolutions: the images are [N, 4, 9, 8].
    one("Conv", "x w", {"w": W}),
    one("Conv", "x w b", {"w": W, "b": random(6)}, pads=[1, 1, 1, 1], strides=[2, 1], kernel_shape=[3, 3]),
    one("Conv", "x w", {"w": W2}, group=2, dilations=[2, 1], pads=[2, 1, 2, 1]),
    one("Conv", "x w", {"w": D}, group=4, pads=[0, 1, 2, 0]),
    one("Conv", "x w", {"w": W[:, :, :1, :1]}, pads=[1, 1, 1, 1]),
    one("Conv", "x w", {"w": W}, pads=[5, 5, 5, 5]),
    *(
        one("Conv", "x w", {"w": W[:, :, :k, :k]}, auto_pad=auto, strides=[s, s], dilations=[d, d])
        for auto in ("SAME_UPPER", "SAME_LOWER", "VALID")
        for k, s, d in ((3, 2, 1), (2, 2, 1), (2, 1, 1))
    ),
    one("ConvTranspose", "x w b", {"w": T, "b": random(6)}, strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
    one("ConvTranspose", "x w", {"w": T[:, :3]}, group=2, dilations=[2, 1]),
    # Pooling.
    *(
        one(op, kernel_shape=[3, 2], strides=[2, 2], pads=pads, ceil_mode=ceil, opset=13)
        for op in ("MaxPool", "AveragePool")
        for pads in ([0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1], [1, 0, 0, 1])
        for ceil in (0, 1)
    ),
    one("MaxPool", kernel_shape=[2, 2], pads=[1, 1, 0, 0]),
    one("MaxPool", kernel_shape=[2, 2], dilations=[2, 3], storage_order=0),
    one("MaxPool", kernel_shape=[2, 2], opset=8),
    one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER"),
    one("AveragePool", kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_UPPER"),
    one("AveragePool", kernel_shape=[2, 2], auto_pad="SAME_LOWER"),
    one("AveragePool", kernel_shape=[3, 3], auto_pad="VALID"),
    one("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    one("AveragePool", kernel_shape=[3, 3], pads=[1, 0, 0, 1], count_include_pad=1, opset=19),
    one("GlobalAveragePool"),
    one("GlobalMaxPool"),
    # Norms.
    one("BatchNormalization", "x ng nb nm nv", norm("n", 4), epsilon=1e-3),
    one("BatchNormalization", "x ng nb nm nv", norm("n", 4), epsilon=1e-3, momentum=0.1, opset=15, training_mode=0),
    one("BatchNormalization", "x ng nb nm nv", norm("n", 4), opset=8, spatial=1),
    many("BatchNormalization of features", [("Flatten", "x", "f", {}), ("BatchNormalization", "f ng nb nm nv", "y", {})], norm("n", 288)),
    many("BatchNormalization, not spatial", [("Flatten", "x", "f", {}), ("BatchNormalization", "f ng nb nm nv", "y", {"spatial": 0})], norm("n", 288), 8),
    one("InstanceNormalization", "x s b", {"s": random(4), "b": random(4)}, epsilon=1e-3),
    one("LayerNormalization", "x s b", {"s": random(8), "b": random(8)}, 17),
    one("LayerNormalization", "x s", {"s": random(4, 9, 8)}, 17, axis=1, epsilon=1e-3),
    one("LRN", size=3, alpha=0.01, beta=0.6, bias=2.0),
    one("LpNormalization", axis=1, p=2),
    one("LpNormalization", axis=1, p=1),
    # Linear layers.
    many("Gemm", [("Flatten", "x", "f", {}), ("Gemm", "f w b", "y", {"alpha": 0.5, "beta": 2.0})], {"w": V, "b": random(5)}),
    many("Gemm, transposed", [("Flatten", "x", "f", {"axis": -3}), ("Gemm", "f w", "y", {"transB": 1})], {"w": V.T.copy()}),
    many("Gemm, one bias", [("Flatten", "x", "f", {}), ("Gemm", "f w b", "y", {})], {"w": V, "b": random(1, 1)}, 9),
    many("MatMul and bias", [("Flatten", "x", "f", {}), ("MatMul", "f w", "m", {}), ("Add", "b m", "y", {})], {"w": V, "b": random(5)}),
    many("MatMul of two", [("Transpose", "x", "t", {"perm": [0, 1, 3, 2]}), ("MatMul", "x t", "y", {})]),
    one("MatMul", "x w", {"w": random(8, 5)}),
    one("MatMul", "w x", {"w": random(5, 9)}),
    # Activations.
    *(one(op) for op in ("Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "Exp", "Erf", "Abs", "Neg", "Elu", "Selu")),
    *(one(op) for op in ("Sin", "Cos", "Floor", "Ceil", "Sign", "Round", "LeakyRelu", "HardSigmoid")),
    *(one(op, opset=14) for op in ("HardSwish",)),
    *(many(op, [("Exp", "x", "e", {}), (op, "e", "y", {})]) for op in ("Log", "Sqrt", "Reciprocal")),
    one("Mish", opset=18),
    one("Gelu", opset=20),
    one("Gelu", opset=20, approximate="tanh"),
    one("Elu", alpha=0.3),
    one("Celu", alpha=0.3),
    one("LeakyRelu", alpha=0.3),
    one("ThresholdedRelu", alpha=0.3),
    one("HardSigmoid", alpha=1 / 6, beta=0.5),
    one("HardSigmoid", alpha=0.3, beta=0.4),
    one("Clip", min=0.0, max=0.5, opset=6 + 1),
    one("Clip", max=0.5, opset=9),
    one("Clip", "x a b", {"a": np.float32(0), "b": np.float32(6)}),
    one("Clip", "x - b", {"b": np.float32(0.4)}),
    one("Clip", "x a", {"a": np.float32(0)}),
    one("PRelu", "x s", {"s": random(4, 1, 1)}),
    one("PRelu", "x s", {"s": random(1, 4, 1, 1)}, 9),
    one("PRelu", "x s", {"s": random(1)}),
    many("PRelu of features", [("Flatten", "x", "f", {}), ("PRelu", "f s", "y", {})], {"s": random(288)}),
    many("PRelu of Keras", [("Transpose", "x", "t", {"perm": [0, 2, 3, 1]}), ("PRelu", "t s", "y", {})], {"s": random(1, 1, 4)}),
    *(one(op, opset=v, axis=a) for op in ("Softmax", "LogSoftmax") for v, a in ((11, 1), (11, 3), (13, 1), (13, -1))),
    one("Dropout", opset=9, ratio=0.3),
    one("Dropout", "x r", {"r": np.float32(0.3)}),
    many("Identity of a weight", [("Identity", "a", "w", {}), ("Conv", "x w", "y", {})], {"a": W}),
    # Arithmetic.
    *(one(op, "x c", {"c": random(4, 1, 1) + 3}) for op in ("Add", "Sub", "Mul", "Div")),
    *(one(op, "c x", {"c": np.float32(0.7)}) for op in ("Add", "Sub", "Mul")),
    *(one(op, "x c x", {"c": np.float32(0.7)}) for op in ("Max", "Min", "Sum", "Mean")),
    one("Pow", "x c", {"c": np.float32(2)}),
    one("Pow", "x c", {"c": I(3)}),
    many("Where", [("Greater", "x z", "c", {}), ("Mul", "x a", "n", {}), ("Where", "c x n", "y", {})], {"z": np.float32(0), "a": np.float32(0.2)}),
    many("Where of Less and Not", [("Less", "x z", "c", {}), ("Not", "c", "d", {}), ("Where", "d x z", "y", {})], {"z": np.float32(0)}),
    many("Cast there and back", [("Greater", "x z", "c", {}), ("Cast", "c", "f", {"to": 1}), ("Add", "f x", "y", {})], {"z": np.float32(0)}),
    # Reductions.
    *(one(f"Reduce{op}", axes=[2, 3], keepdims=k) for op in ("Mean", "Max", "Min", "L1", "L2", "SumSquare", "LogSumExp") for k in (0, 1)),
    one("ReduceSum", axes=[1], opset=11),
    one("ReduceSum", "x a", {"a": ints(1, -1)}),
    one("ReduceMean", "x a", {"a": ints(2, 3)}, 18),
    one("ReduceMax", "x a", {"a": ints(1)}, 20, keepdims=0),
    # Shapes.
    *(
        many(f"Flatten from {axis}", [("Flatten", "x", "f", {"axis": axis}), ("Neg", "f", "n", {}), ("Reshape", "n s", "y", {})], {"s": ints(-1, 288)})
        for axis in (2, -1, 4)
    ),
    one("Reshape", "x s", {"s": ints(0, -1)}),
    one("Reshape", "x s", {"s": ints(-1, 288)}),
    one("Reshape", "x s", {"s": ints(0, 2, 2, 9, 8)}),
    many("Reshape of rows", [("Reshape", "x s", "r", {}), ("Reshape", "r t", "y", {})], {"s": ints(-1, 8), "t": ints(-1, 288)}),
    many("Reshape by Shape", [
        ("Shape", "x", "s", {}), ("Gather", "s zero", "n", {}), ("Unsqueeze", "n", "n1", {"axes": [0]}),
        ("Concat", "n1 rest", "t", {"axis": 0}), ("Reshape", "x t", "y", {}),
    ], {"zero": I(0), "rest": ints(-1)}, 11),
    many("Reshape by Shape", [
        ("Shape", "x", "s", {}), ("Slice", "s a b", "n", {}), ("Gather", "s all", "hw", {}), ("ReduceProd", "hw", "p", {"keepdims": 1}),
        ("Div", "p two", "q", {}), ("Concat", "n two q", "t", {"axis": 0}), ("Reshape", "x t", "y", {}),
    ], {"a": ints(0), "b": ints(1), "all": ints(1, 2, 3), "two": ints(2)}, 13),
    many("channel shuffle", [
        ("Reshape", "x s", "a", {}), ("Transpose", "a", "b", {"perm": [0, 2, 1, 3, 4]}), ("Reshape", "b t", "y", {}),
    ], {"s": ints(-1, 2, 2, 9, 8), "t": ints(-1, 4, 9, 8)}),
    many("attention", [
        ("Reshape", "x s", "a", {}), ("Transpose", "a", "b", {"perm": [0, 2, 1]}), ("MatMul", "a b", "c", {}),
        ("Mul", "c h", "d", {}), ("Softmax", "d", "e", {"axis": -1}), ("MatMul", "e a", "y", {}),
    ], {"s": ints(0, 4, -1), "h": np.float32(0.1)}),
    many("class token", [
        ("Reshape", "x s", "a", {}), ("Shape", "x", "b", {}), ("Gather", "b zero", "n", {}), ("Unsqueeze", "n first", "n1", {}),
        ("Concat", "n1 rest", "t", {"axis": 0}), ("Expand", "c t", "d", {}), ("Concat", "d a", "y", {"axis": 1}),
    ], {"s": ints(0, 4, 72), "zero": I(0), "first": ints(0), "rest": ints(1, 72), "c": random(1, 1, 72)}),
    many("Expand by ConstantOfShape and Where", [
        ("ConstantOfShape", "r", "ones", {"value": onnx.helper.make_tensor("v", 7, [1], [1])}), ("Mul", "ones m", "m1", {}),
        ("Equal", "e m1", "q", {}), ("Where", "q ones e", "t", {}), ("Expand", "c t", "d", {}), ("Add", "x d", "y", {}),
    ], {"r": ints(4), "m": I(-1), "e": ints(-1, 4, 9, 8), "c": random(1, 4, 1, 1)}),
    many("Range and Size", [
        ("Range", "a b c", "r", {}), ("Cast", "r", "f", {"to": 1}), ("Size", "f", "n", {}), ("Cast", "n", "m", {"to": 1}),
        ("Div", "f m", "g", {}), ("Add", "x g", "y", {}),
    ], {"a": I(0), "b": I(8), "c": I(1)}),
    many("Mod and LessOrEqual", [
        ("Mod", "a b", "m", {}), ("LessOrEqual", "m b", "c", {}), ("Cast", "c", "f", {"to": 1}), ("Mul", "x f", "g", {}), ("Cast", "m", "h", {"to": 1}), ("Add", "g h", "y", {}),
    ], {"a": ints(*range(-4, 4)), "b": ints(3)}, 16),
    one("Transpose", perm=[0, 3, 1, 2]),
    many("Squeeze", [("GlobalAveragePool", "x", "p", {}), ("Squeeze", "p", "y", {"axes": [2, -1]})], opset=11),
    many("Squeeze", [("GlobalAveragePool", "x", "p", {}), ("Squeeze", "p a", "y", {})], {"a": ints(2, 3)}),
    many("Unsqueeze", [("Unsqueeze", "x", "u", {"axes": [1, -1]}), ("Neg", "u", "y", {})], opset=11),
    one("Unsqueeze", "x a", {"a": ints(1, 4)}),
    one("Tile", "x r", {"r": ints(1, 2, 1, 3)}),
    # Parts and joins.
    one("Slice", starts=[1, 2], ends=[3, 10**9], axes=[1, 3], opset=9),
    one("Slice", "x s e a t", {"s": ints(0, 1), "e": ints(9, 2**62), "a": ints(-2, -1), "t": ints(2, 3)}),
    one("Slice", "x s e a t", {"s": ints(-1), "e": ints(-(2**62)), "a": ints(1), "t": ints(-1)}),
    one("Slice", "x s e a t", {"s": ints(5), "e": ints(1), "a": ints(3), "t": ints(-2)}),
    one("Slice", "x s e", {"s": ints(0, 1), "e": ints(2**62, 3)}),
    one("Gather", "x i", {"i": ints(2, 1, 0)}, axis=1),
    one("Gather", "x i", {"i": ints(3, 2, 1, 0)}, axis=1),
    one("Gather", "x i", {"i": ints(-1, 0)}, axis=2),
    one("Gather", "x i", {"i": I(-2)}, axis=1),
    many("Split", [("Split", "x", "a b", {"axis": 1}), ("Sub", "a b", "y", {})], opset=11),
    many("Split", [("Split", "x", "a b", {"axis": 1, "split": [1, 3]}), ("Mul", "a b", "y", {})], opset=9),
    many("Split", [("Split", "x s", "a b", {"axis": 1}), ("Mul", "a b", "y", {})], {"s": ints(1, 3)}),
    many("Split", [("Split", "x", "a b c", {"axis": 2, "num_outputs": 3}), ("Sum", "a b c", "y", {})], opset=18),
    many("Split", [("Split", "x", "a b", {"axis": 3, "num_outputs": 2}), ("Concat", "b a", "y", {"axis": 3})], opset=18),
    many("Concat", [("Neg", "x", "n", {}), ("Concat", "x n x", "y", {"axis": -3})]),
    one("Pad", pads=[0, 0, 1, 2, 0, 0, 0, 1], value=0.5, opset=10),
    one("Pad", "x p v", {"p": ints(0, 1, 0, 2, 0, 0, 3, 1), "v": np.float32(0.5)}),
    one("Pad", "x p", {"p": ints(0, 0, 1, 2, 0, 0, 3, 1)}, mode="reflect"),
    one("Pad", "x p", {"p": ints(0, 0, 1, 2, 0, 0, 3, 1)}, mode="edge"),
    one("Pad", "x p - a", {"p": ints(1, 2, 3, 0), "a": ints(2, 3)}, 18),
    one("Pad", "x p", {"p": ints(0, 0, -1, 2, 0, 0, 3, -2)}),
    one("DepthToSpace", blocksize=2, mode="CRD"),
    # Resizing.
    one("Upsample", "x s", {"s": floats(1, 1, 2, 2)}, 9, mode="nearest"),
    *(
        one("Resize", "x - s", {"s": floats(1, 1, *scale)}, mode="nearest", coordinate_transformation_mode=place, nearest_mode=rounding)
        for place, rounding, scale in (
            ("asymmetric", "floor", (2, 3)),
            ("asymmetric", "round_prefer_floor", (2, 3)),
            ("half_pixel", "round_prefer_floor", (2, 2)),
            ("half_pixel", "round_prefer_ceil", (1.5, 0.5)),
            ("pytorch_half_pixel", "ceil", (2, 0.6)),
            ("align_corners", "round_prefer_floor", (2, 3)),
        )
    ),
    one("Resize", "x e e s", {"e": floats(), "s": ints(1, 4, 18, 4)}, 11, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    one("Resize", "x - s", {"s": floats(1, 1, 2, 3)}, mode="linear"),
    one("Resize", "x - s", {"s": floats(1, 1, 2, 3)}, mode="linear", coordinate_transformation_mode="align_corners"),
    one("Resize", "x - s", {"s": floats(2, 0.5)}, 18, mode="linear", axes=[2, 3], coordinate_transformation_mode="pytorch_half_pixel"),
    one("Resize", "x - s", {"s": floats(1, 1, 2, 2)}, mode="cubic", cubic_coeff_a=-0.75),
]  # fmt: skip


@pytest.mark.parametrize(("nodes", "tensors", "opset"), CASES)
def test_operator(nodes: list[Node], tensors: dict[str, Any], opset: int, tmp_path: Path) -> None:
    batch = 1 if opset == 11 and nodes[0][0] == "Resize" else "N"  # the sizes that it gives hold the batch
    images = torch.randn(3, 4, 9, 8, generator=torch.Generator().manual_seed(1))
    check(graph(nodes, tensors, opset=opset, shape=(batch, 4, 9, 8)), tmp_path / "m.onnx", images)


def test_every_operator_has_a_case() -> None:
    tried = {node[0] for case in CASES for node in case.values[0]}
    missing = {"ArgMax", "ArgMin", "And", "Or", "CastLike", "Constant", "GreaterOrEqual", "SpaceToDepth"}
    assert set(OPERATORS) - tried == missing
