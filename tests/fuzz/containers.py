"""Mutation inside containers, with checksums and lengths put right, so that what lies inside is reached."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

Mutate = Callable[[random.Random, bytes, list[bytes]], bytes]
#: Values that replace those of a JSON file.
VALUES: tuple[object, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63, 2**70, -(2**63), 10**400, 0.5, -0.0, 1e-300, 1e300, 1e400),
    *(float("nan"), "", "a", "nan", "7", "\0", "é" * 40, "../x", "os:system", [], [[]], {}, [0], [1, 2], [1e9] * 3),
    *({"a": 1}, {"size": [1, 2]}, [None], ["a"] * 4, [{}], [[0, 0, 0, 0]]),
)


def mutate_zip(chance: random.Random, data: bytes, others: list[bytes], mutate: Mutate) -> bytes:
    """Change the content of one or two members of a zip archive, or drop or repeat one."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except Exception:  # a mutated archive
        return mutate(chance, data, others)
    if not members:
        return mutate(chance, data, others)
    for _ in range(chance.choice((1, 1, 2))):
        name = chance.choice(list(members))
        kind = chance.randrange(12)
        if kind == 0 and len(members) > 1:
            del members[name]
        elif kind == 1:
            members[name] = members[chance.choice(list(members))]
        else:
            members[name] = _mutate_member(chance, members[name], mutate)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def _mutate_member(chance: random.Random, content: bytes, mutate: Mutate) -> bytes:
    """Change an array of NumPy, by its header or its elements, or any other bytes."""
    if content[:6] != b"\x93NUMPY" or len(content) < 10 or chance.random() < 0.2:
        return mutate(chance, content, [content])
    length = struct.unpack("<H", content[8:10])[0]
    header, elements = content[10 : 10 + length], content[10 + length :]
    text = _text_of(header, elements)
    if text is not None and chance.random() < 0.8:  # JSON in a text of one element
        changed = mutate_json(chance, text, mutate).decode("utf-8", "replace")
        header = f"{{'descr': '<U{len(changed)}', 'fortran_order': False, 'shape': (), }}".encode()
        elements = changed.encode("utf-32-le", "replace")
    elif chance.random() < 0.5:
        header = mutate(chance, header, [header])
    else:
        elements = mutate(chance, elements, [elements])
    return content[:8] + struct.pack("<H", min(len(header), 65535)) + header[:65535] + elements


def _text_of(header: bytes, elements: bytes) -> bytes | None:
    if b"'<U" not in header or b"'shape': ()" not in header:
        return None
    return elements.decode("utf-32-le", "replace").encode("utf-8", "replace")


def mutate_json(chance: random.Random, data: bytes, mutate: Mutate) -> bytes:
    """Replace, drop or repeat values of a JSON text; now and then change its bytes."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return mutate(chance, data, [data])
    if chance.random() < 0.15:
        return mutate(chance, data, [data])
    if chance.random() < 0.02:
        return b"[" * chance.choice((100, 3000, 100_000)) + data
    for _ in range(chance.choice((1, 1, 2))):
        value = _changed(chance, value)
    try:
        return json.dumps(value).encode()
    except (ValueError, RecursionError):
        return data


def _changed(chance: random.Random, value: object) -> object:
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        kind = chance.randrange(10)
        if kind == 0:
            return {k: v for k, v in value.items() if k != key}
        if kind == 1:
            return {**value, chance.choice(("a", "kind", "x" * 40)): chance.choice(VALUES)}
        return {**value, key: _changed(chance, value[key])}
    if isinstance(value, list) and value and chance.random() < 0.8:
        at = chance.randrange(len(value))
        kind = chance.randrange(8)
        if kind == 0:
            return value[:at] + value[at + 1 :]
        if kind == 1:
            return [*value, value[at]]
        return [*value[:at], _changed(chance, value[at]), *value[at + 1 :]]
    return chance.choice(VALUES)


def mutate_safetensors(chance: random.Random, data: bytes, mutate: Mutate) -> bytes:
    """Change the description in the metadata, the table of tensors or the tensors of a safetensors file."""
    if len(data) < 8:
        return mutate(chance, data, [data])
    length = struct.unpack("<Q", data[:8])[0]
    header, tensors = data[8 : 8 + length], data[8 + length :]
    try:
        table = json.loads(header)
        described = table["__metadata__"]["occfast"].encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return mutate(chance, data, [data])
    kind = chance.random()
    if kind < 0.7:
        text = mutate_json(chance, described, mutate)
        table["__metadata__"]["occfast"] = text.decode("utf-8", "replace")
        header = json.dumps(table).encode()
    elif kind < 0.85:
        header = mutate_json(chance, header, mutate)
    else:
        return mutate(chance, data, [data])
    return struct.pack("<Q", len(header)) + header + tensors


def mutate_onnx(chance: random.Random, data: bytes, mutate: Mutate) -> bytes:
    """Change nodes, their attributes, shapes or tensors of an ONNX file, or drop or repeat some."""
    import onnx

    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception:  # a mutated file
        return mutate(chance, data, [data])
    try:
        for _ in range(chance.choice((1, 1, 2, 4))):
            _change_network(chance, model, mutate)
    except UnicodeDecodeError:  # a name that was mutated
        return mutate(chance, data, [data])
    return bytes(model.SerializeToString())


def _change_network(chance: random.Random, model: Any, mutate: Mutate) -> None:
    graph = model.graph
    kind = chance.randrange(8)
    if kind == 0 and model.opset_import:
        model.opset_import[0].version = chance.choice((6, 7, 8, 9, 10, 11, 12, 13, 14, 18, 20, 22, 23, 2**40))
    elif kind == 1 and graph.input:
        dims = graph.input[0].type.tensor_type.shape.dim
        for dim in dims:
            if chance.random() < 0.3:
                dim.dim_value = chance.choice(WHOLE)
    elif kind in (2, 3) and graph.initializer:
        _change_tensor(chance, chance.choice(graph.initializer), mutate)
    elif graph.node:
        _change_node(chance, chance.choice(graph.node), graph, mutate)


#: Sizes, steps, axes and counts.
WHOLE = (
    0,
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    16,
    100,
    -1,
    -2,
    -3,
    -4,
    4096,
    2**20,
    2**31 - 1,
    2**31,
    2**32,
    2**62,
    -(2**31),
    -(2**63),
)
_OPERATORS = (
    "Conv", "ConvTranspose", "MaxPool", "AveragePool", "Gemm", "MatMul", "Reshape", "Flatten", "Transpose", "Slice", "Split",
    "Pad", "Resize", "Concat", "Gather", "Expand", "Tile", "Range", "ConstantOfShape", "Div", "Mod", "Pow", "Squeeze",
    "Unsqueeze", "ReduceMean", "Softmax", "PRelu", "BatchNormalization", "LayerNormalization", "LRN", "Clip", "Cast", "Where",
    "Upsample", "Identity", "Shape", "Constant", "DepthToSpace", "GlobalMaxPool", "InstanceNormalization", "HardSigmoid",
    "Add", "Loop", "QLinearConv",
)  # fmt: skip


def _change_tensor(chance: random.Random, tensor: Any, mutate: Mutate) -> None:
    kind = chance.randrange(6)
    if kind == 0:
        tensor.data_type = chance.randrange(24)
    elif kind == 1 and tensor.dims:
        tensor.dims[chance.randrange(len(tensor.dims))] = chance.choice(WHOLE)
    elif kind == 2:
        tensor.dims.append(chance.choice(WHOLE))
    elif kind == 3:
        tensor.data_location = chance.randrange(2)
        for key in ("location", "offset", "length"):
            value = chance.choice(("w.bin", "../w.bin", "/etc/passwd", "0", "4", "-4", "9" * 20, "", "\0"))
            tensor.external_data.add(key=key, value=value)
    elif tensor.data_type == 7 and len(tensor.raw_data) % 8 == 0:  # shapes, axes, steps
        values = [chance.choice(WHOLE) if chance.random() < 0.5 else 1 for _ in range(len(tensor.raw_data) // 8)]
        tensor.raw_data = struct.pack(f"<{len(values)}q", *values)
    else:
        tensor.raw_data = mutate(chance, tensor.raw_data, [tensor.raw_data])


def _change_node(chance: random.Random, node: Any, graph: Any, mutate: Mutate) -> None:
    names = [*(n.output[0] for n in graph.node if n.output), *(t.name for t in graph.initializer), "x", ""]
    kind = chance.randrange(9)
    if kind == 0:
        node.op_type = chance.choice(_OPERATORS)
    elif kind == 1 and node.input:
        node.input[chance.randrange(len(node.input))] = chance.choice(names)
    elif kind == 2:
        node.input.append(chance.choice(names))
    elif kind == 3:
        node.output.append(chance.choice(names))
    elif kind == 4:
        made = type(node)(op_type=chance.choice(_OPERATORS), output=["made"])
        made.input.extend(chance.choice(names[-9:]) for _ in range(chance.randrange(4)))
        graph.node.insert(0, made)
        node.input.append("made")
    elif kind == 5 and node.attribute:
        del node.attribute[chance.randrange(len(node.attribute))]
    elif node.attribute:
        attribute = chance.choice(node.attribute)
        if attribute.ints and chance.random() < 0.8:
            attribute.ints[chance.randrange(len(attribute.ints))] = chance.choice(WHOLE)
        elif chance.random() < 0.2:
            attribute.ints.append(chance.choice(WHOLE))
        elif chance.random() < 0.2:
            attribute.type = chance.randrange(1, 12)
        elif attribute.HasField("t"):
            _change_tensor(chance, attribute.t, mutate)
        else:
            attribute.i, attribute.f = (
                chance.choice(WHOLE),
                chance.choice((0.0, -1.0, 1e30, float("nan"), float("inf"))),
            )
