"""The boundary between Python and C++: structs with named fields, enumerations, exported symbols."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from enum import IntEnum
from pathlib import Path

import pytest
import torch

from occfast.native import build, enums, loader, ops

NATIVE = loader.module("cpu")
STRUCTS = {name: value for name, value in vars(NATIVE).items() if isinstance(value, type)}
#: Structs of csrc/ that never cross the boundary as objects.
INSIDE = {"Shape", "Strides", "Cuts", "NoiseKinds"}


def members(text: str) -> list[str]:
    """Return the names of the members of a C++ struct without functions."""
    names = []
    for declaration in re.sub(r"//[^\n]*", "", text).split(";"):
        first, *more = declaration.split(",")
        if first.strip():
            names += [re.sub(r"\[\d*\]", "", part).strip(" *\n").split()[-1].lstrip("*") for part in (first, *more)]
    return names


def declared() -> dict[str, list[str]]:
    """Return the members of every struct that api.h declares or includes."""
    root = build.source_root()
    texts = [root / "api.h", *(root / "core" / name for name in ("mining.h", "occluder.h", "window.h"))]
    found: dict[str, list[str]] = {}
    for path in texts:
        for name, body in re.findall(r"^struct (\w+) \{\n(.*?)^\};", path.read_text(), re.MULTILINE | re.DOTALL):
            found[name] = members(body.split("OCCFAST_HD")[0])
    return found


def test_every_field_of_every_struct_is_bound() -> None:
    """A member without a binding would silently be 0."""
    found = declared()
    assert found["Grid"] == [
        "rows",
        "columns",
        "first_row",
        "first_column",
        "row_step",
        "column_step",
        "height",
        "width",
    ]
    assert found["GatherPieces"][-3:] == ["column_edges", "padding", "itemsize"]
    assert {"Pairs", "TripletParams", "OccluderParams", "ExecContext", "Convolution"} <= STRUCTS.keys()
    for name, value in STRUCTS.items():
        assert sorted(value.fields) == sorted(found[name]), name
    assert found.keys() - STRUCTS.keys() - INSIDE == {"Window"}  # a result inside the kernels


@pytest.mark.parametrize("name", sorted(STRUCTS))
def test_a_missing_or_unknown_field_is_named(name: str) -> None:
    with pytest.raises(TypeError, match=rf"^{name}: {STRUCTS[name].fields[0]} is missing$"):
        STRUCTS[name]()
    with pytest.raises(TypeError, match=rf"^{name}: every field must be given by name$"):
        STRUCTS[name](*range(len(STRUCTS[name].fields)))


def test_the_order_of_the_names_does_not_matter_and_functions_name_the_struct() -> None:
    assert NATIVE.workers(context=NATIVE.ExecContext(stream=None, threads=2)) == 2
    with pytest.raises(TypeError, match="expected an object of SweepAccumulate, got None"):
        NATIVE.sweep_accumulate(None, NATIVE.ExecContext(threads=1, stream=0))
    with pytest.raises(TypeError, match="expected an object of ExecContext, got 1"):
        NATIVE.sweep_accumulate(NATIVE.SweepAccumulate(scores=0, images=0, per_image=0, sum=0, squares=0), 1)


def test_objects_are_freed() -> None:
    before = sys.getrefcount(NATIVE.Grid)
    for _ in range(100):
        NATIVE.Grid(**GRID)
        with pytest.raises(TypeError):
            NATIVE.Grid(**{**GRID, "rows": None})
    assert sys.getrefcount(NATIVE.Grid) < before + 10


GRID = dict.fromkeys(["rows", "columns", "first_row", "first_column", "row_step", "column_step", "height", "width"], 3)
WINDOWS = dict(
    maps=0,
    patches=None,
    out=0,
    images=0,
    origins=0,
    patch_origins=None,
    count=0,
    shape=(1, 1, 2, 2),
    height=1,
    width=1,
    patch_height=0,
    patch_width=0,
    padding=0,
    itemsize=4,
)
PARAMS = dict(
    seed=2**63 - 1,
    probability=0.5,
    min_height=1,
    max_height=2,
    min_width=1,
    max_width=2,
    min_level=0.0,
    max_level=1.0,
    min_intensity=0,
    max_intensity=1,
    kinds=[0, 3],
    gray=False,
)
TRIPLETS = dict(
    distance=enums.Distance.COSINE,
    mining=enums.Mining.ALL,
    hinge=True,
    statistics=False,
    margin=0.5,
    beta=0.5,
    seed=0,
    step=0,
)


@pytest.mark.parametrize(
    ("struct", "fields", "change", "words"),
    [
        ("Grid", GRID, {"rows": 1.5}, "Grid.rows: expected an integer in range, got 1.5"),
        ("Grid", GRID, {"rows": 2**63}, "Grid.rows: expected an integer in range, got 9223372036854775808"),
        ("Grid", GRID, {"depth": 1}, "Grid: there is no field 'depth'"),
        ("ExecContext", {"threads": 1, "stream": 0}, {"threads": 2**31}, "ExecContext.threads: expected an integer"),
        ("ExecContext", {"threads": 1, "stream": None}, {"stream": "0"}, "expected an address or None, got '0'"),
        ("GatherWindows", WINDOWS, {"shape": (1, 2, 3)}, r"shape: expected four integers \(N, C, H, W\)"),
        ("GatherWindows", WINDOWS, {"shape": 4}, r"shape: expected four integers \(N, C, H, W\), got 4"),
        ("GatherWindows", WINDOWS, {"padding": -1}, "padding: expected a non-negative integer in range, got -1"),
        ("OccluderParams", PARAMS, {"kinds": []}, r"kinds: expected one to four kinds of noise, got \[\]"),
        ("OccluderParams", PARAMS, {"kinds": [0, 1, 2, 3, 0]}, "kinds: expected one to four kinds of noise"),
        ("OccluderParams", PARAMS, {"kinds": [4]}, r"kinds: expected one to four kinds of noise, got \[4\]"),
        ("OccluderParams", PARAMS, {"gray": 1}, "gray: expected a bool, got 1"),
        ("OccluderParams", PARAMS, {"probability": "1"}, "probability: expected a number, got '1'"),
        ("TripletParams", TRIPLETS, {"mining": 5}, "mining: expected a value of the enumeration, got 5"),
        ("TripletParams", TRIPLETS, {"step": 2**32}, "step: expected a non-negative integer in range"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(struct: str, fields: dict, change: dict, words: str) -> None:
    STRUCTS[struct](**fields)
    with pytest.raises(TypeError, match=words):
        STRUCTS[struct](**{**fields, **change})


def test_a_struct_inside_another_has_a_class_of_its_own() -> None:
    with pytest.raises(TypeError, match=r"OccludePositions\.grid: expected an object of its class, got None"):
        NATIVE.OccludePositions(
            images=0,
            out=0,
            fill=0,
            positions=0,
            count=0,
            itemsize=1,
            shape=(1, 1, 1, 1),
            strides=(1, 1, 1, 1),
            fill_strides=(0, 0, 0, 0),
            grid=None,
        )


def test_enumerations_are_those_of_the_module() -> None:
    """Python's enumerations serve code without a native module; the module's are the kernels' own."""
    ours = {
        name: {member.name: int(member) for member in value}
        for name, value in vars(enums).items()
        if isinstance(value, type) and issubclass(value, IntEnum) and value is not IntEnum
    }
    assert ours == NATIVE.enums
    assert (enums.SLOTS, enums.NOT_OCCLUDED) == (NATIVE.SLOTS, NATIVE.NOT_OCCLUDED)


def test_tables_of_names_cover_the_enumerations() -> None:
    for table, enum in (
        (ops.SCORES, enums.Score),
        (ops.KINDS, enums.NoiseKind),
        (ops.DISTANCES, enums.Distance),
        (ops.MININGS, enums.Mining),
    ):
        assert list(table.values()) == list(enum) and [name.upper() for name in table] == [e.name for e in enum]


def exported(library: Path) -> set[str]:
    """Return the symbols that a library defines for others, demangled."""
    done = subprocess.run(["nm", "-DC", "--defined-only", str(library)], capture_output=True, text=True, check=True)
    return {line.split(" ", 2)[2] for line in done.stdout.splitlines()}


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not on the path")
def test_the_module_exports_its_entry_alone() -> None:
    """Both modules define the same functions; under RTLD_GLOBAL one must not call those of the other.

    Nor may any library call a template of the standard library that was compiled for this processor.
    """
    assert exported(Path(NATIVE.__file__)) == {"PyInit_occfast_cpu"}


def test_a_convolution_is_refused_without_a_native_one() -> None:
    """A CPU has one of float32 and float64."""
    assert ops.convolution_block(torch.zeros(1, device="meta")) == 0
    assert ops.convolution_block(torch.zeros(1, dtype=torch.int32)) == 0
    assert ops.convolution_block(torch.zeros(1)) > 0 and ops.convolution_block(torch.zeros(1).double()) > 0
    at = torch.zeros(1, dtype=torch.int64), torch.zeros((1, 2), dtype=torch.int64)
    for dtype in (torch.float16, torch.bfloat16):
        maps = torch.zeros((1, 1, 3, 3), dtype=dtype)
        assert ops.convolution_block(maps) == 0
        packed = ops.pack_convolution(torch.zeros((1, 1, 3, 3), dtype=dtype), None, 32)
        with pytest.raises(TypeError, match="maps: expected dtype float32 or float64, got"):
            ops.gather_windows(maps, *at, 3, 3, None, None, 0.0, *packed, 1, [3, 3, 1, 1, 1, 1, 0])


def test_the_worked_example_is_the_code() -> None:
    """Each code block of "Adding an op" quotes the sources, except for white space."""
    root = build.source_root()
    page = root.parent / "docs" / "method" / "native.md"
    if not page.is_file():
        pytest.skip("an installed package has no docs")
    sources = "".join(
        path.read_text()
        for folder, pattern in ((root, "*.[hc]*"), (Path(ops.__file__).parent, "*.py"))
        for path in folder.rglob(pattern)
        if path.is_file()
    )
    blocks = re.findall(r"^ {4}```\w+\n(.*?)^ {4}```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        assert "".join(block.split()) in "".join(sources.split()), block
