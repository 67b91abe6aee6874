"""``make gpu-check`` as far as it runs without a GPU: arguments, errors, reports, and a dry run."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import pytest
import torch

from bench.gpu import __main__ as gpu_check
from bench.gpu import convolutions, sweeps
from bench.gpu.clocks import Timing
from bench.gpu.tests import read_junit


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_fails(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu", "--output", str(tmp_path / "x.json")],
        cwd=gpu_check.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("gpu-check: no GPU: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "x.json").exists()


def test_an_unknown_part_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        gpu_check.main(["--device", "cpu", "--skip", "tests,kernel"])
    assert stopped.value.code == 2
    assert f"expected parts among {', '.join(gpu_check.PARTS)}, got kernel" in capsys.readouterr().err


def test_a_dry_run_writes_every_row(tmp_path, capsys):
    calls = []

    def clock(*functions):  # runs each workload once; every call "takes" 2 ms, 1 of them on the host
        calls.append(functions)
        functions[0]()
        return Timing(2e-3, 1e-3)

    output = tmp_path / "deep" / "result.json"
    assert gpu_check.main(["--device", "cpu", "--output", str(output)], clock) == 0
    result = json.loads(output.read_text())
    assert result["errors"] == {} and result["skipped"] == ["sanitizer", "tests"]
    assert {row["op"] for row in result["kernels"]} == {
        "occlude_positions",
        "sweep_score",
        "sweep_accumulate",
        "gather_windows",
        "draw_occluders",
        "paint_occluders",
    }
    bandwidth = 2 * 2**24 / 2e-3
    assert result["ceilings"]["copy_bytes_per_s"] == bandwidth
    for row in result["kernels"]:
        assert row["bytes_per_s"] == pytest.approx(row["bytes"] / 2e-3)
        assert row["host_seconds"] == 1e-3
        assert row["share_of_floor"] == pytest.approx(row["bytes"] / 2e-3 / bandwidth)
    assert any("twin_seconds" in row for row in result["kernels"])
    assert result["sweep"][0]["occfast_positions_per_s"] == pytest.approx(8 / 2e-3)
    assert [row["as"] for row in result["exact"]] == list(sweeps.EXACT)
    for row in result["exact"]:
        assert row["positions_per_s"] == pytest.approx(16 / 2e-3) and row["predicted"] > 0
        assert row["difference"] < (0.05 if "bf16" in row["as"] else 1e-5) and row["replayed"] == 0
    assert [row["mining"] for row in result["triplet"]] == ["violating", "all", "semihard"]
    flop = 2 * 32 * 16 * (8 + 2)
    assert result["identify"]["flop_per_s"] == pytest.approx(flop / 2e-3)
    timed = sum(1 + ("twin_seconds" in row) for row in result["kernels"])
    layers = result["convolutions"]  # bfloat16 has no fused convolution on a CPU
    assert {row["as"] for row in layers} == {"fp32", "tf32"} and len({row["layer"] for row in layers}) == 9
    for row in layers:
        assert row["difference"] < 1e-5 and row["flop"] > 0 and row["bytes"] > 0
        rate = result["ceilings"][f"{row['as']}_flop_per_s"]
        assert row["share_of_peak"] == pytest.approx(row["flop"] / rate / 2e-3)
        assert row["share_of_floor"] >= row["share_of_peak"]
    # The exact sweep: dense in three precisions, incremental in each with and without graphs, and fused.
    others = 4 + timed + 2 + 12 + 4 + 1  # ceilings, kernels, sweep, exact, triplet, identify
    assert len(calls) == others + 2 * len(layers)
    assert [row["steps"] for row in result["training"]["loop"]] == [2, 2]
    assert result["training"]["triplets"][0]["ratio"] > 0
    printed = capsys.readouterr().out
    assert (
        "paint_occluders" in printed
        and "dense sweep W1" in printed
        and "20x20 bf16, graphs" in printed
        and "of the matrix rate" in printed
        and str(output) in printed
    )


def test_an_error_in_one_part_leaves_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "dense_sweep", lambda *_: 1 / 0)
    output = tmp_path / "result.json"
    arguments = [
        "--device",
        "cpu",
        "--skip",
        "kernels,convolutions,exact,triplet,identify,training",
        "--output",
        str(output),
    ]
    assert gpu_check.main(arguments, lambda *functions: Timing(1.0, 1.0)) == 1
    result = json.loads(output.read_text())
    assert "division" in result["errors"]["sweep"] and result["ceilings"]["fp32_flop_per_s"] == 2 * 256**3
    assert "sweep: FAILED" in capsys.readouterr().out


def test_a_test_report_is_read(tmp_path):
    report = tmp_path / "report.xml"
    (tmp_path / "test_it.py").write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): assert 0\n@pytest.mark.skip\ndef test_c(): pass\n"
    )
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
    )
    found = read_junit(report)
    assert (found["tests"], found["failures"], found["skipped"]) == (3, 1, 1)
    assert found["failed"] == ["test_it::test_b"]
    environment = gpu_check.environment()
    assert "FAILED" in gpu_check.table(
        {"environment": environment, "seconds": 0.0, "tests": {"ok": False, "ran": 2, **found}}
    )


def test_the_network_is_that_of_the_workload():
    network = sweeps.w1_network()
    flops = []
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda layer, _, out: flops.append(2 * out.numel() * layer.weight[0].numel()))
    assert network(torch.zeros(1, 1, 100, 100)).shape == (1, 1000)
    assert len(flops) == 10 and sum(flops) / 1e9 == pytest.approx(1.53, abs=0.02)


@torch.no_grad()
def test_both_sweeps_give_the_same_map():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(30 * 24, 3))
    images = torch.randn(2, 1, 30, 24)
    found = sweeps._sweepers(network, images, torch.arange(2 * 30 * 24))
    maps = {name: sweep().clone() for name, sweep in found.items()}
    assert torch.equal(maps["pytorch"], maps["occfast"])
    assert 0 < maps["occfast"].mean() < 1


def test_the_floors_of_the_convolutions_are_counted():
    rows = convolutions.floors()
    assert [row["outputs"] for row in rows] == [32, 64, 64, 128, 96, 192, 128, 256, 160]  # the last one is folded
    for row, (before, after) in zip(rows, itertools.pairwise([1, *(row["outputs"] for row in rows)]), strict=True):
        assert row["flop"] == pytest.approx(2 * row["pixels"] * after * 9 * before)
    # A single position of the whole image would take 25,000 pixels in the first two stages.
    assert all(row["pixels"] < 400 for row in rows) and rows[0]["read"] == 0
    assert 150e6 < sum(row["flop"] for row in rows) < 300e6
