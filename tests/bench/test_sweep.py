"""``python -m bench.sweep`` on a network of seconds: its rows, its table, and a peer that fails."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import pytest
import torch

from bench import sweep
from tests.conftest import TinyNet


def failing(*_: Any) -> int:
    raise RuntimeError("no compiler was found\nmore")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    monkeypatch.setattr(sweep, "WORKLOADS", {"paper": (TinyNet, (1, 34, 28)), "other": (TinyNet, (1, 30, 30))})
    monkeypatch.setattr(sweep, "SAMPLE", {"paper": None, "other": 100})
    monkeypatch.setattr(sweep, "captum", failing)
    monkeypatch.setattr(sweep, "monai", lambda model, image, *_: len(model(image)))
    monkeypatch.setattr(torch, "compile", lambda model, **_: failing)
    monkeypatch.setattr(sweep.importlib.util, "find_spec", lambda name: name == "captum")

    def run(*arguments: str) -> tuple[dict[str, Any], str]:
        output = tmp_path / "made" / "sweep.json"
        monkeypatch.setattr(sys, "argv", ["bench.sweep", *arguments, "--output", str(output)])
        grad = torch.is_grad_enabled()
        try:
            assert sweep.main() == 0
        finally:
            torch.set_grad_enabled(grad)
        return json.loads(output.read_text()), output.with_suffix(".md").read_text()

    return run


def test_rows_and_table(tiny: Any) -> None:
    result, table = tiny("--rounds", "1", "--occluders", "20x20", "8x9")
    rows = {(row["workload"], row["occluder"], row["who"]): row for row in result["rows"]}
    assert len(rows) == len(result["rows"]) == 2 * 2 * 8 + 1
    for workload, positions, of in (("paper", 34 * 28, 34 * 28), ("other", 100, 900)):
        for occluder in ("20x20", "8x9"):
            for who in ("Captum", "torch.compile"):
                assert rows[workload, occluder, who]["failed"] == "RuntimeError: no compiler was found"
            assert rows[workload, occluder, "plain PyTorch"]["ratio"] == 1
            for who in sweep.STEPS:
                row = rows[workload, occluder, who]
                assert (row["positions"], row["of_positions"]) == (positions, of) and row["floor"] >= 1
    check = rows["paper", "20x20", "self-check"]
    assert check["positions"] == 34 * 28 and 0 < check["share"] < 1
    assert "| Captum | failed | RuntimeError: no compiler was found |" in table
    assert "**other**, 100 of 900 positions" in table and "The self-check takes" in table
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {6}


def test_budgets(tiny: Any) -> None:
    result, table = tiny("--budgets", "--rounds", "1", "--workloads", "paper", "--occluders", "8x8")
    assert [row["mib"] for row in result["rows"]] == [1, 2, 4, 8, 16, 32]
    assert [row["mib"] for row in result["rows"] if row["used"]] == [16] and "| 16 (used) |" in table


def test_memory(tiny: Any) -> None:
    result, table = tiny("--memory", "--workloads", "paper", "--occluders", "8x8", "4x4")
    assert {row["name"] for row in result["rows"]} >= {"plain PyTorch", "occfast dense", *sweep.STEPS}
    assert all(("failed" in row) == (row["name"] == "Captum") for row in result["rows"])
    assert all(row.get("mib", 0) >= 0 for row in result["rows"]) and "| | paper 8x8 | paper 4x4 |" in table


def test_peak_sees_memory_that_was_free_in_the_heap() -> None:
    blocks = [
        bytes([n % 256]) * (1 << 16) for n in range(512)
    ]  # 32 MiB in pieces that the heap keeps when they are freed
    del blocks
    sweep.trim()
    with sweep.Peak() as peak:
        blocks = [bytes([n % 256]) * (1 << 16) for n in range(512)]
        time.sleep(0.02)
    assert len(blocks) == 512 and 30 < peak.mib < 100
