"""Predictions of a plan, and the calibration that they rest on."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import occfast
from occfast.sweep import calibrate, explain
from occfast.sweep.evaluators.incremental import rates as module
from occfast.sweep.evaluators.incremental.defaults import SECONDS
from occfast.sweep.evaluators.incremental.evaluator import IncrementalEvaluator
from occfast.sweep.evaluators.incremental.rates import rates
from occfast.sweep.geometry import SweepGrid
from tests import networks

CPU = torch.device("cpu")


@pytest.fixture
def calibrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Return the dtypes that were measured; measuring takes no time and gives the built-in rates, half as fast."""
    done: list[torch.dtype] = []

    def measure(dtype: torch.dtype, device: torch.device) -> tuple[dict[str, float], bool]:
        done.append(dtype)
        return {kind: (2.0 + len(done)) * value for kind, value in SECONDS.items()}, quiet[0]

    quiet = [True]
    monkeypatch.setenv("OCCFAST_CALIBRATION", "on")
    monkeypatch.setattr(module.loader, "cache_root", lambda: tmp_path)
    monkeypatch.setattr(module, "measure", measure)
    monkeypatch.setattr(module, "_known", {})
    monkeypatch.setattr(module.ops, "convolution_block", lambda tensor: 16)
    return done


def forget() -> None:
    module._known.clear()  # as a new process


def test_a_machine_is_measured_once(calibrations: list[torch.dtype], tmp_path: Path) -> None:
    first = rates(CPU, torch.float32)
    assert rates(CPU, torch.float32) == first and len(calibrations) == 1
    forget()
    assert rates(CPU, torch.float32) == first and len(calibrations) == 1
    rates(CPU, torch.float64)
    torch.set_num_threads(torch.get_num_threads() + 1)
    rates(CPU, torch.float32)
    assert len(calibrations) == 3 == len(list(tmp_path.glob("speed-*.json")))
    path = calibrate()
    assert path in list(tmp_path.glob("speed-*.json")) and len(calibrations) == 4
    assert rates(CPU, torch.float32)["relu"] > first["relu"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"quiet": true, "tries": 1, "seconds": {"relu": 1e-9}}', "null"])
def test_a_damaged_file_is_measured_anew(content: str, calibrations: list[torch.dtype], tmp_path: Path) -> None:
    first = rates(CPU, torch.float32)
    (path,) = tmp_path.glob("speed-*.json")
    path.write_text(content)
    forget()
    assert set(rates(CPU, torch.float32)) == set(first) and len(calibrations) == 2
    assert json.loads(path.read_text())["seconds"].keys() == first.keys()


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), 0.0, "fast", None])
def test_values_that_no_machine_has_are_measured_anew(
    value: object, calibrations: list[torch.dtype], tmp_path: Path
) -> None:
    rates(CPU, torch.float32)
    (path,) = tmp_path.glob("speed-*.json")
    content = json.loads(path.read_text())
    content["seconds"]["add"] = value
    path.write_text(json.dumps(content))
    forget()
    assert rates(CPU, torch.float32)["add"] > 0 and len(calibrations) == 2


def test_a_noisy_machine_is_measured_again_and_the_fastest_counts(
    calibrations: list[torch.dtype], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = module.measure
    monkeypatch.setattr(module, "measure", lambda dtype, device: (plain(dtype, device)[0], False))
    first = rates(CPU, torch.float32)
    for _ in range(5):
        forget()
        assert rates(CPU, torch.float32) == first  # later ones were slower
    assert len(calibrations) == 3


def test_a_cache_that_cannot_be_written(
    calibrations: list[torch.dtype], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(module.loader, "cache_root", lambda: tmp_path / "file" / "below")
    first = rates(CPU, torch.float32)
    assert rates(CPU, torch.float32) == first and len(calibrations) == 1
    assert calibrate() is None

    def no_home() -> Path:
        raise occfast.NativeUnavailable("no folder for the cache")

    monkeypatch.setattr(module.loader, "cache_root", no_home)
    forget()
    assert rates(CPU, torch.float32) and calibrate() is None


def test_calibration_is_switched_off(calibrations: list[torch.dtype], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCCFAST_CALIBRATION", "off")
    assert rates(CPU, torch.float32) == SECONDS and not calibrations
    monkeypatch.setenv("OCCFAST_CALIBRATION", "never")
    with pytest.raises(ValueError, match="OCCFAST_CALIBRATION: expected 'on' or 'off', got 'never'"):
        rates(CPU, torch.float32)


def test_measuring_takes_seconds_and_every_kind_is_measured() -> None:
    if module.ops.convolution_block(torch.empty(0)) == 0:
        pytest.skip("there is no native convolution")
    state = torch.random.get_rng_state()
    torch.set_num_threads(1)
    began = module.time.process_time()
    found, _ = module.measure(torch.float32)
    assert module.time.process_time() - began < 4  # others may use the machine meanwhile
    assert found.keys() == SECONDS.keys() and all(0 < value < 1e-3 for value in found.values())
    assert torch.equal(state, torch.random.get_rng_state())
    assert {kind for kind, _, _ in module._examples(torch.float32)} == SECONDS.keys()


def test_importing_measures_nothing(tmp_path: Path) -> None:
    code = "import occfast.sweep, occfast.sweep.evaluators.scorer"
    subprocess.run([sys.executable, "-c", code], check=True, env={**module.os.environ, "OCCFAST_CACHE": str(tmp_path)})
    assert not list(tmp_path.iterdir())


# -- what is counted -----------------------------------------------------------------------------------


def evaluator(net: nn.Module, size: tuple[int, int] = (48, 40), stride: int = 2) -> IncrementalEvaluator:
    grid = SweepGrid.over(size, (10, 12), stride=stride)
    return IncrementalEvaluator(networks.lively(net), grid, torch.rand(2, 3, *size))


class Head(nn.Module):
    """A body that is followed, and something between it and the pooling."""

    def __init__(self, between: Callable[..., Any]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        self.between, self.fc = between, nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.between(self.body(x)).mean((2, 3)))


def test_whole_maps_cost_time() -> None:
    free = evaluator(Head(nn.ReLU()), stride=1).forecast(images=50)
    group_norm = evaluator(Head(nn.GroupNorm(4, 16)), stride=1).forecast(images=50)
    attention = evaluator(Head(lambda x: x * x.flatten(2).softmax(-1).view(x.shape)), stride=1).forecast(images=50)
    assert group_norm.speedup < 0.85 * free.speedup and attention.speedup < 0.85 * free.speedup
    norm = next(layer for layer in group_norm.layers if layer.label == "groupnorm")
    assert norm.size is None and norm.cost > norm.dense > 0  # the map is pasted, then normalized


def test_few_positions_do_not_repay_the_set_up() -> None:
    speedups = [
        evaluator(networks.Yi(channels=3, width=4, size=48), (48, 48), stride).forecast().speedup
        for stride in (1, 4, 16)
    ]
    assert speedups[0] > speedups[1] > speedups[2] and speedups[2] < 1
    few = evaluator(networks.Yi(channels=3, width=4, size=48), (48, 48), 4)
    assert few.forecast(images=50).speedup > few.forecast(images=1).speedup


def test_forecasts_follow_the_speeds() -> None:
    made = evaluator(Head(nn.ReLU()))
    forecast = made.forecast(speeds=SECONDS)
    slower = made.forecast(speeds={kind: 3 * value for kind, value in SECONDS.items()})
    assert slower.dense == pytest.approx(3 * forecast.dense)
    assert slower.incremental == pytest.approx(3 * forecast.incremental)
    assert slower.speedup == pytest.approx(forecast.speedup)
    rows = forecast.rows()
    assert sum(row.cost for row in rows) * made.plan.expected == pytest.approx(forecast.incremental)
    assert {row.label for row in rows[-2:]} == {"calls", "set-up"}


def test_explain_and_auto_agree(caplog: pytest.LogCaptureFixture, tiny_net: nn.Module) -> None:
    images = torch.rand(1, 1, 17, 14)
    labels = tiny_net(images).argmax(1)
    plan = explain(tiny_net, (17, 14), (4, 5), stride=4)
    with caplog.at_level(logging.INFO, "occfast"):
        made = occfast.occlusion_map(tiny_net, images, labels, (4, 5), stride=4, score="score_drop", progress=False)
    assert plan.speedup < 1 and made.method == "dense"
    assert f"an incremental one would be {plan.speedup:.2f} times as fast" in caplog.text


def test_the_same_layout_whatever_the_speeds(calibrations: list[torch.dtype]) -> None:
    """Bits of an incremental sweep depend on its layout, so that must not depend on a measurement."""
    one = evaluator(Head(nn.ReLU()))
    rates(CPU, torch.float32)
    two = evaluator(Head(nn.ReLU()))
    assert all(torch.equal(a, b) for a, b in zip(one.plan.classes, two.plan.classes, strict=True))
    assert one.plan.shared == two.plan.shared
