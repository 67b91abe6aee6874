"""Reading and checking of ONNX files, as of unknown origin."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import DataError
from ...files import read_bytes
from ...packages import require
from ..preprocessing import Preprocessing
from .tensors import Tensors

#: The format's own limit.
MAX_BYTES = (1 << 31) - 1
MOST_NODES = 100_000
_FLOATS = {1: "float32", 10: "float16", 16: "bfloat16"}


@dataclass(frozen=True)
class OnnxFile:
    """The parts of an ONNX file that a reader needs.

    Attributes:
        path: The file.
        nodes: The nodes (NodeProto) that the first output needs, in their order.
        initializers: TensorProto of each name.
        tensors: Reads them.
        opset: Version of the operator set.
        input: Name of the images.
        shape: Their four dimensions; None where the file leaves one open.
        output: Name of the first output.
        preprocessing: How images become the input, as the metadata record it.
    """

    path: Path
    nodes: list[Any]
    initializers: dict[str, Any]
    tensors: Tensors
    opset: int
    input: str
    shape: tuple[int | None, ...]
    output: str
    preprocessing: Preprocessing | None

    @property
    def last(self) -> bool:
        """Whether images are [N, H, W, C]."""
        return channels_last(self.shape[1:])

    @property
    def dimensions(self) -> tuple[int | None, int | None, int | None]:
        """Channels, height and width of the images; None where neither the shape nor the metadata state one."""
        first, second, third = self.shape[1:]
        found = (third, first, second) if self.last else (first, second, third)
        if self.preprocessing is None:
            return found
        stated = (self.preprocessing.channels, *self.preprocessing.size)
        return tuple(a if b is None else b for a, b in zip(stated, found, strict=True))  # type: ignore[return-value]


def read_file(path: str | os.PathLike[str]) -> OnnxFile:
    """Read and check an ONNX file.

    Raises:
        FileNotFoundError: There is no such file.
        DataError: The file is damaged or not an ONNX file.
        MissingPackage: The package onnx is not installed.
        ValueError: The network doesn't have one input of four dimensions.
    """
    require("an ONNX network", "onnx", extra="export")
    import onnx

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    content = read_bytes(path, MAX_BYTES)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as error:  # protobuf's errors have no common class in all of its versions
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not a readable ONNX file ({reason:.200})") from error
    size = len(content)
    del content
    graph = model.graph
    try:
        _check_texts(model)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a readable ONNX file ({error})") from error
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if len(graph.node) > MOST_NODES:
        raise DataError(f"{path}: expected at most {MOST_NODES:,} nodes, got {len(graph.node):,}")
    if not graph.node or not graph.output or len(versions) != 1:
        raise DataError(f"{path}: not a readable ONNX file (it has no nodes, no output or no version of its operators)")
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    inputs = [entry for entry in graph.input if entry.name not in initializers]
    shapes = [_shape(entry, path) for entry in inputs]
    if len(inputs) != 1 or len(shapes[0]) != 4:
        raise ValueError(f"{path}: expected one input [N, C, H, W], got {[list(shape) for shape in shapes[:9]]}")
    kind = inputs[0].type.tensor_type.elem_type
    if kind not in _FLOATS:
        raise ValueError(f"{path}: expected images of {' or '.join(_FLOATS.values())}, got the type {kind}")
    described = [entry.value for entry in model.metadata_props if entry.key == "preprocessing"]
    return OnnxFile(
        path,
        _needed(graph, inputs[0].name, graph.output[0].name, path),
        initializers,
        Tensors(path, size),
        versions[0],
        inputs[0].name,
        shapes[0],
        graph.output[0].name,
        Preprocessing.from_json(described[0], str(path)) if described else None,
    )


def _check_texts(model: Any) -> None:
    """Raise UnicodeDecodeError for names that are no UTF-8. The package protobuf gives them as bytes, or raises it."""
    graph = model.graph
    for node in graph.node:
        _check_each(node.op_type, node.domain, *node.input, *node.output)
        for attribute in node.attribute:
            _check_each(attribute.name, attribute.ref_attr_name)
            if attribute.HasField("t"):
                _check_places(attribute.t)
    for tensor in graph.initializer:
        _check_each(tensor.name)
        _check_places(tensor)
    for entry in (*graph.input, *graph.output):
        _check_each(entry.name)
    for entry in (*model.metadata_props, *model.opset_import):
        _check_each(entry.domain if hasattr(entry, "domain") else entry.key, getattr(entry, "value", ""))


def _check_places(tensor: Any) -> None:
    for entry in tensor.external_data:
        _check_each(entry.key, entry.value)


def _check_each(*texts: Any) -> None:
    for text in texts:
        if isinstance(text, bytes):
            text.decode()


def _shape(entry: Any, path: Path) -> tuple[int | None, ...]:
    shape: list[int | None] = []
    for dim in entry.type.tensor_type.shape.dim:
        fixed = dim.WhichOneof("value") == "dim_value"
        if fixed and dim.dim_value > 1 << 31:
            raise DataError(f"{path}: expected sizes of images, got {dim.dim_value}")
        # Some exporters write 0 or -1 for an open dimension.
        shape.append(dim.dim_value if fixed and dim.dim_value > 0 else None)
    return tuple(shape)


def channels_last(dims: Sequence[int | None]) -> bool:
    """Return whether the three dimensions of images are [H, W, C], as exporters from TensorFlow have them."""
    first, _, last = dims
    return last in (1, 3, 4) and (first is None or first > 4)


def _needed(graph: Any, given: str, output: str, path: Path) -> list[Any]:
    """Return the nodes on which the output depends, and check that each comes after those that it reads."""
    maker: dict[str, int] = {}
    for k, node in enumerate(graph.node):
        for name in node.output:
            if name and (name in maker or name == given):
                raise DataError(f"{path}: expected one node for each name, {name!r:.80} has two")
            maker[name] = k
    maker.pop("", None)
    wanted, seen = [output], set[int]()
    while wanted:
        name = wanted.pop()
        k = maker.get(name, -1)
        if k < 0 or k in seen:
            continue
        seen.add(k)
        for source in graph.node[k].input:
            if maker.get(source, -1) >= k:
                raise DataError(f"{path}: expected nodes in the order of their use, node {k} reads a later one")
            wanted.append(source)
    return [graph.node[k] for k in sorted(seen)]


__all__ = ["OnnxFile", "channels_last", "read_file"]
