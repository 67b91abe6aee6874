"""Small networks in ONNX files, and what is done with those that are read."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from occfast.models.onnx import read_onnx
from tests.models.onnx_graphs import Node, graph, insightface, norm, random, tensorflow

_MOST = 1 << 22  # numbers and products of the networks that are run


def networks() -> list[bytes]:
    """Return files that are read: of several exporters, shape arithmetic, all kinds of windows and parts."""
    whole = {"s": np.array([0, 2, -1, 9, 8]), "t": np.array([0, -1, 9, 8]), "p": np.array([0, 0, 1, 2, 0, 0, 0, 1])}
    shuffle: list[Node] = [
        ("Reshape", "x s", "a", {}),
        ("Transpose", "a", "b", {"perm": [0, 2, 1, 3, 4]}),
        ("Reshape", "b t", "c", {}),
        ("Pad", "c p", "y", {}),
    ]
    parts: list[Node] = [
        ("Split", "x", "a b", {"axis": 1}),
        ("Concat", "b a", "c", {"axis": 1}),
        ("Slice", "c s e i t", "d", {}),
        ("Resize", "d - r", "f", {"mode": "nearest"}),
        ("ReduceMean", "f", "y", {"axes": [2, 3]}),
    ]
    ranges = {"s": np.array([1, 0]), "e": np.array([7, 9]), "i": np.array([2, 3]), "t": np.array([2, 1])}
    sizes: list[Node] = [
        ("Shape", "x", "s", {}),
        ("Gather", "s zero", "n", {}),
        ("Unsqueeze", "n first", "n1", {}),
        ("Div", "d two", "q", {}),
        ("Concat", "n1 q rest", "t", {"axis": 0}),
        ("Reshape", "x t", "r", {}),
        ("Expand", "c s", "e", {}),
        ("MatMul", "r w", "m", {}),
        ("Softmax", "m", "y", {}),
    ]
    numbers = {
        "zero": np.int64(0),
        "first": np.array([0]),
        "d": np.array([8]),
        "two": np.array([2]),
        "rest": np.array([-1]),
    }
    windows: list[Node] = [
        ("Conv", "x w", "a", {"pads": [1, 0, 1, 2], "strides": [2, 1], "group": 2}),
        ("MaxPool", "a", "b", {"kernel_shape": [2, 2], "ceil_mode": 1, "pads": [0, 0, 1, 1]}),
        ("AveragePool", "b", "c", {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"}),
        ("ConvTranspose", "c v", "d", {"strides": [2, 2]}),
        ("BatchNormalization", "d ng nb nm nv", "e", {}),
        ("GlobalAveragePool", "e", "g", {}),
        ("Squeeze", "g", "y", {"axes": [2, 3]}),
    ]
    weights = {"w": random(6, 2, 3, 3), "v": random(6, 4, 2, 2), **norm("n", 4)}
    made = [
        graph(*insightface(8, (12, 10)), opset=8, shape=(1, 3, 12, 10), listed=True),
        graph(*tensorflow(True), shape=(1, 12, 10, 3)),
        graph(shuffle, whole),
        graph(parts, {**ranges, "r": np.array([1, 1, 2, 2], np.float32)}, opset=13),
        graph(sizes, {**numbers, "c": random(1, 4, 1, 1), "w": random(72, 3)}),
        graph(windows, weights, opset=11),
    ]
    return [model.SerializeToString() for model in made]


@torch.no_grad()
def read_network(path: Path) -> object:
    """Read a network, and run it if that is little work; what was read has to run and to answer for each image."""
    (path.parent / "w.bin").write_bytes(bytes(64))
    module = read_onnx(path)
    if math.prod((module.channels, *module.size)) > _MOST:
        return module
    images = torch.rand(2, module.channels, *module.size)
    counter = _Counter(copy.deepcopy(module).to("meta"))
    shape = counter.run(images.to("meta")).shape
    if counter.work < _MOST:
        assert module(images).shape == shape and shape[0] == 2
    return module


class _Counter(torch.fx.Interpreter):
    """Counts about the products of a network, without memory for its numbers."""

    work = 0

    def run_node(self, n: torch.fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            weight = getattr(self.fetch_attr(str(n.target)), "weight", None) if n.op == "call_module" else None
            self.work += result.numel() * (64 + (weight[0].numel() if weight is not None else 0))
        return result
