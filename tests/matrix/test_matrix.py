"""The tool that runs the matrix, and its committed results."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests.matrix import __main__ as matrix
from tests.matrix import kernels
from tests.matrix.cells import CELLS, Cell
from tests.matrix.environments import ROOT, NotHere, interpreter, lowest
from tests.matrix.report import Result, load, save

RESULTS = ROOT / "results/matrix"


def test_the_committed_table_has_every_cell(tmp_path: Path) -> None:
    results = load(RESULTS)
    assert list(results) == [cell.name for cell in CELLS]
    save(tmp_path, results)
    assert (tmp_path / "matrix.md").read_text() == (RESULTS / "matrix.md").read_text()
    for result in results.values():
        if result.status == "not run":
            assert result.reason and not result.passed
        else:
            assert result.command and result.versions and result.date and result.passed + result.failed > 0
    assert not re.search(r"[\s=\"(]/\w", (RESULTS / "matrix.json").read_text()), "a path of a machine"


def test_lowest_versions_are_those_declared() -> None:
    found = lowest()
    assert "torch==2.11" in found and "numpy==2.0" in found and "omegaconf==2.3" in found
    assert not any("occfast" in entry for entry in found)


def test_results_are_read_and_compared() -> None:
    values = np.array([1.0, 2.0], np.float32)
    output = b"normals float32 2\n" + values.tobytes() + b"multiply/x float64 1\n" + np.array([3.0]).tobytes()
    found = kernels.read(output)
    assert list(found) == ["normals", "multiply/x"] and found["normals"].tolist() == [1.0, 2.0]
    assert kernels.differing(found, found, products=True) == []
    last_bit = {**found, "multiply/x": np.nextafter(found["multiply/x"], 4.0)}
    assert kernels.differing(last_bit, found, products=False) == []
    assert kernels.differing(last_bit, found, products=True) == ["multiply/x"]
    other = {**found, "normals": np.nextafter(found["normals"], np.float32(4))}
    assert kernels.differing(other, found, products=False) == ["normals"]
    assert kernels.differing({"normals": values}, found, products=False) == ["multiply/x"]


def test_what_is_not_there_is_not_run(tmp_path: Path) -> None:
    with pytest.raises(NotHere, match=r"no python9\.9 on the path or under --pythons"):
        interpreter("9.9", [tmp_path])
    for cell, reason in (
        (Cell("x", "x", compiler="no-such-compiler"), "no-such-compiler is not on the path"),
        (Cell("x", "x", feature="no_such_feature"), "the processor has no no_such_feature"),
    ):
        result = matrix.run(cell, tmp_path, [], None)
        assert (result.status, result.reason) == ("not run", reason)


def test_results_are_kept_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    ran = []

    def run(cell: Cell, *_: object) -> Result:
        ran.append(cell.name)
        return Result(
            cell.name, cell.what, "passed" if cell.name != "clang" else "failed", passed=3, versions={"a": "1"}
        )

    monkeypatch.setattr(matrix, "run", run)
    where = ["--output", str(tmp_path)]
    assert matrix.main(["isa-avx2", *where]) == 0
    assert matrix.main(["isa-avx2", "clang", *where]) == 1
    assert ran == ["isa-avx2", "clang"]
    assert matrix.main(["isa-avx2", "--redo", *where]) == 0
    assert ran == ["isa-avx2", "clang", "isa-avx2"]
    assert list(load(tmp_path)) == ["isa-avx2", "clang"]
    with pytest.raises(SystemExit):
        matrix.main(["isa-mmx"])
    assert "cells: expected names among kernels-g++-v2" in capsys.readouterr().err


@pytest.mark.slow
def test_kernels_are_equal_on_every_instruction_set(tmp_path: Path) -> None:
    for name in ("kernels-g++-v2", "kernels-g++-v3", "kernels-g++-v4", "kernels-g++-native"):
        result = matrix.run(next(cell for cell in CELLS if cell.name == name), tmp_path, [], None)
        assert result.status != "failed", result.reason
