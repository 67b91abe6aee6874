"""Mutation inside containers, with checksums and lengths put right, so that what lies inside is reached."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable

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
