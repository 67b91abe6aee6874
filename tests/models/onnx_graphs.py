"""ONNX files built node by node, as exporters write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from occfast.models.onnx import OnnxNetwork, read_onnx

#: (operator, names of its arguments, names of its results, attributes)
Node = tuple[str, str, str, dict[str, Any]]


def graph(
    nodes: Sequence[Node],
    tensors: Mapping[str, Any] | None = None,
    *,
    opset: int = 13,
    shape: Sequence[int | str] = ("N", 4, 9, 8),
    listed: bool = False,
    kind: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """Return a network with the input "x" and the output "y"; ``-`` stands for an argument that is left out.

    ``listed``: initializers are inputs too, as old exporters write them.
    """
    made = [
        helper.make_node(op, [i.replace("-", "") for i in given.split()], results.split(), **attributes)
        for op, given, results, attributes in nodes
    ]
    arrays = {name: np.asarray(array) for name, array in (tensors or {}).items()}
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    inputs = [helper.make_tensor_value_info("x", kind, list(shape))]
    if listed:
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in initializers]
    output = helper.make_tensor_value_info("y", kind, None)
    made_graph = helper.make_graph(made, "g", inputs, [output], initializers)
    return helper.make_model(made_graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def norm(name: str, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights of a batch normalization under names with this beginning: ``g``, ``b``, ``m``, ``v``."""
    rng = np.random.default_rng(seed)
    made = {"g": rng.uniform(0.5, 1.5, count), "b": rng.normal(0, 0.2, count), "m": rng.normal(0, 0.2, count)}
    made["v"] = rng.uniform(0.5, 1.5, count)
    return {name + key: value.astype(np.float32) for key, value in made.items()}


@torch.no_grad()
def check(model: onnx.ModelProto, path: Path, images: Tensor, tolerance: float = 1e-5) -> nn.Module:
    """Read a network and compare it with ONNX Runtime on these images together and on the first alone."""
    onnx.save(model, path)
    module, runtime = read_onnx(path), OnnxNetwork(path)
    for batch in (images, images[:1]):
        got, expected = module(batch), runtime(batch)
        assert got.shape == expected.shape and got.dtype == expected.dtype
        assert expected.isfinite().all() and expected.std() > 0
        worst = float((got - expected).abs().max() / expected.abs().max())
        assert worst <= tolerance, worst
    return module


def insightface(opset: int, size: tuple[int, int] = (28, 24)) -> tuple[list[Node], dict[str, Any]]:
    """A small network as insightface's recognizers are written, for images of an even size."""
    tensors = {
        "mean": np.float32(127.5), "std": np.float32(0.0078125),
        "conv0": random(8, 3, 3, 3, scale=0.3), "slope0": np.abs(random(8, 1, 1)) * 0.3,
        "conv1": random(8, 8, 3, 3, seed=1, scale=0.2), "slope1": np.abs(random(8, 1, 1, seed=1)) * 0.3,
        "conv2": random(8, 8, 3, 3, seed=2, scale=0.2), "down": random(8, 8, 1, 1, seed=3, scale=0.5),
        "fc": random(16, 8 * (size[0] // 2) * (size[1] // 2), seed=4, scale=0.05), "fcb": random(16, seed=5, scale=0.1),
    }  # fmt: skip
    for name, count in (("n0", 8), ("a", 8), ("c", 8), ("d", 8), ("e", 8), ("l", 8), ("f", 16)):
        tensors.update(norm(name, count, seed=count + ord(name[0])))
    three = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "group": 1, "dilations": [1, 1]}
    bn: dict[str, Any] = {"epsilon": 2e-5, "momentum": 0.9, **({"spatial": 1} if opset < 9 else {})}
    nodes: list[Node] = [
        ("Identity", "x", "data", {}),
        ("Sub", "data mean", "centered", {}),
        ("Mul", "centered std", "scaled", {}),
        ("Conv", "scaled conv0", "c0", {**three, "strides": [1, 1]}),
        ("BatchNormalization", "c0 n0g n0b n0m n0v", "b0", bn),
        ("PRelu", "b0 slope0", "r0", {}),
        ("BatchNormalization", "r0 ag ab am av", "u1", bn),
        ("Conv", "u1 conv1", "u2", {**three, "strides": [1, 1]}),
        ("BatchNormalization", "u2 cg cb cm cv", "u3", bn),
        ("PRelu", "u3 slope1", "u4", {}),
        ("Conv", "u4 conv2", "u5", {**three, "strides": [2, 2]}),
        ("BatchNormalization", "u5 dg db dm dv", "u6", bn),
        ("Conv", "r0 down", "s1", {"kernel_shape": [1, 1], "strides": [2, 2]}),
        ("BatchNormalization", "s1 eg eb em ev", "s2", bn),
        ("Add", "u6 s2", "sum", {}),
        ("BatchNormalization", "sum lg lb lm lv", "last", bn),
        ("Dropout", "last", "dropped", {"ratio": 0.4}) if opset < 12 else ("Identity", "last", "dropped", {}),
        ("Flatten", "dropped", "flat", {}),
        ("Gemm", "flat fc fcb", "feature", {"transB": 1, "alpha": 1.0, "beta": 1.0}),
        ("BatchNormalization", "feature fg fb fm fv", "y", {**bn, **({"spatial": 0} if opset < 9 else {})}),
    ]
    return nodes, tensors


def tensorflow(between: bool) -> tuple[list[Node], dict[str, Any]]:
    """A network as tf2onnx writes it: images [N, H, W, C]; ``between``: with transpositions around each convolution."""
    tensors = {"w": random(8, 3, 3, 3, scale=0.4), "b": random(8), "d": random(8, 1, 3, 3, scale=0.4)}
    tensors |= {"s": np.abs(random(1, 1, 8)) * 0.4, "fc": random(8, 5), "fcb": random(5), **norm("n", 8)}
    tensors |= {"zero": np.float32(0), "six": np.float32(6)}
    front, back = {"perm": [0, 3, 1, 2]}, {"perm": [0, 2, 3, 1]}
    nodes: list[Node] = [
        ("Transpose", "x", "x1", front),
        ("Conv", "x1 w b", "c", {"auto_pad": "SAME_UPPER", "strides": [2, 2], "kernel_shape": [3, 3]}),
        ("BatchNormalization", "c ng nb nm nv", "n", {"epsilon": 1e-3}),
    ]
    if between:
        nodes += [("Transpose", "n", "n1", back), ("Clip", "n1 zero six", "r1", {}), ("Transpose", "r1", "r", front)]
    else:
        nodes += [("Clip", "n zero six", "r", {})]
    nodes += [
        ("Conv", "r d", "e", {"auto_pad": "SAME_UPPER", "group": 8, "kernel_shape": [3, 3]}),
        ("Transpose", "e", "e1", back),
        ("PRelu", "e1 s", "p1", {}),
        ("Transpose", "p1", "p", front),
        ("Add", "r p", "a", {}),
        ("Transpose", "a", "a1", back),
        ("ReduceMean", "a1", "m", {"axes": [1, 2], "keepdims": 0}),
        ("MatMul", "m fc", "k", {}),
        ("Add", "k fcb", "y", {}),
    ]
    return nodes, tensors
