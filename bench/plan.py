"""``python -m bench.plan``: predicted and measured times of sweeps of many kinds of networks, at strides 1 to 8.

    python -m bench.plan                            # all kinds; takes about twenty minutes on an idle machine
    python -m bench.plan --strides 4 8 --kinds vgg unet
    python -m bench.plan --cpu-time                 # one thread, on a machine that others use

One 112x112 image is swept with a 20x40 occluder. The incremental sweep and ``method="auto"`` are timed from the call
to the map. The dense sweep is timed likewise if it has few positions; of more, its set-up and the rate of a sample are
measured. Sweeps alternate, and the fastest of the repetitions counts. The first sweep of a network is not timed.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.harness import RESULTS, caption, environment, write
from bench.zoo import NETWORKS, SIZE, network
from occfast.sweep import SweepGrid, occlusion_map
from occfast.sweep.evaluators.dense import DenseEvaluator
from occfast.sweep.evaluators.incremental.evaluator import IncrementalEvaluator
from occfast.sweep.evaluators.incremental.rates import calibrate
from occfast.sweep.precision import float32_as

OCCLUDER = (20, 40)
STRIDES = (1, 2, 3, 4, 6, 8)
_WHOLE = 1000  # positions up to which a dense sweep is timed as a whole
_SAMPLE = 0.4  # seconds of a sample of a dense sweep

Clock = Callable[[], float]


def sweep(model: nn.Module, image: Tensor, stride: int, method: Any) -> str:
    made = occlusion_map(
        model, image, [0], OCCLUDER, stride=stride, score="score_drop", method=method, progress=False, group=False
    )
    return made.method


def seconds(clock: Clock, run: Callable[[], Any]) -> float:
    began = clock()
    run()
    return clock() - began


class Dense:
    """Dense sweeps of one network: the time of a whole one, or its set-up and its rate."""

    def __init__(self, model: nn.Module, image: Tensor, clock: Clock) -> None:
        self._model, self._image, self._clock = model, image, clock
        grid = SweepGrid.over(SIZE, OCCLUDER, stride=8)
        self._small = grid.positions
        self._evaluator = DenseEvaluator(model, SweepGrid.over(SIZE, OCCLUDER))
        self._evaluator.start(image, torch.zeros(1, 1, 1, 1))
        self._batch = self._evaluator.tune(4000, None)
        self.each, self._whole = math.inf, math.inf

    @torch.no_grad()
    def sample(self) -> None:
        """Measure the rate once more."""
        positions = torch.linspace(0, SIZE[0] * SIZE[1] - 1, self._batch).long()
        with float32_as("ieee"):
            self._evaluator.outputs(positions)
            began, done = self._clock(), 0
            while (spent := self._clock() - began) < _SAMPLE or done < 3:
                self._evaluator.outputs(positions)
                done += 1
        self.each = min(self.each, spent / done / self._batch)

    def whole(self) -> None:
        """Time a small sweep as a whole."""
        self._whole = min(self._whole, seconds(self._clock, lambda: sweep(self._model, self._image, 8, "dense")))

    def seconds(self, positions: int) -> float:
        """Return the time of a sweep: that of the small one, and the positions beyond at the rate."""
        return self._whole + (positions - self._small) * self.each


def measured(name: str, strides: list[int], clock: Clock, repetitions: int) -> list[dict[str, Any]]:
    """Measure a network at some strides."""
    model = network(name)
    image = torch.rand((1, 3, *SIZE), generator=torch.Generator().manual_seed(1))
    for method in ("dense", "incremental"):
        sweep(model, image, 16, method)
    dense = Dense(model, image, clock)
    rows = []
    for stride in strides:
        grid = SweepGrid.over(SIZE, OCCLUDER, stride=stride)
        with float32_as("ieee"):
            evaluator = IncrementalEvaluator(model, grid, image)
            forecast = evaluator.forecast()
        times = {"incremental": math.inf, "auto": math.inf}
        chosen = ""
        for _ in range(repetitions if stride >= 4 else 1):
            dense.sample()
            dense.whole()
            times["incremental"] = min(
                times["incremental"], seconds(clock, lambda s=stride: sweep(model, image, s, "incremental"))
            )
            if grid.positions <= _WHOLE:
                began = clock()
                chosen = sweep(model, image, stride, "auto")
                times["auto"] = min(times["auto"], clock() - began)
        own = dense.seconds(grid.positions)
        if not chosen:
            chosen = "incremental" if forecast.worth_it else "dense"
            planning = min(
                seconds(clock, lambda g=grid: IncrementalEvaluator(model, g, image).forecast().speedup) for _ in "12"
            )
            times["auto"] = times["incremental"] if chosen == "incremental" else own + planning
        row: dict[str, Any] = {
            "kind": name,
            "stride": stride,
            "positions": grid.positions,
            "whole_from": evaluator.plan.whole_from,
            "predicted": forecast.speedup,
            "measured": own / times["incremental"],
            "predicted_seconds": {"dense": forecast.dense, "incremental": forecast.incremental},
            "measured_seconds": {"dense": own, **times},
            "auto": chosen,
            "auto_ratio": own / times["auto"],
        }
        row["factor"] = max(row["predicted"] / row["measured"], row["measured"] / row["predicted"])
        rows.append({key: _rounded(value) for key, value in row.items()})
        print(
            f"{name:18} {stride} predicted {row['predicted']:6.2f} measured {row['measured']:6.2f} "
            f"off by {row['factor']:.2f}  dense {forecast.dense:7.2f} {own:7.2f} s  incremental "
            f"{forecast.incremental:7.2f} {times['incremental']:7.2f} s  auto {chosen[:3]} {row['auto_ratio']:.2f}",
            flush=True,
        )
    return rows


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the rows say about predictions and about ``method="auto"``."""
    factors = sorted(row["factor"] for row in rows)
    return {
        "kinds": len({row["kind"] for row in rows}),
        "cases": len(rows),
        "within_1.3": sum(factor <= 1.3 for factor in factors) / len(rows),
        "largest_factor": factors[-1],
        "ninth_of_ten": factors[math.ceil(0.9 * len(factors)) - 1],
        "auto_slowest": min(row["auto_ratio"] for row in rows),
        "auto_below_0.95": sum(row["auto_ratio"] < 0.95 for row in rows),
    }


def table(result: dict[str, Any]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "# Predicted and measured speed-ups of the incremental sweep",
        "",
        caption(result),
        "",
        "| kind | stride | predicted | measured | whole maps from | auto takes | auto against dense |",
        "| --- | ---: | ---: | ---: | --- | --- | ---: |",
    ]
    lines += [
        f"| {row['kind']} | {row['stride']} | {row['predicted']:.2f}x | {row['measured']:.2f}x | {row['whole_from']} | "
        f"{row['auto']} | {row['auto_ratio']:.2f}x |"
        for row in result["rows"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="*", default=list(NETWORKS), choices=list(NETWORKS), metavar="KIND")
    parser.add_argument("--strides", nargs="*", type=int, default=list(STRIDES))
    parser.add_argument("--repetitions", type=int, default=2, help="at strides of at least 4")
    parser.add_argument("--cpu-time", action="store_true", help="one thread, timed by the process's own time")
    parser.add_argument("--keep-calibration", action="store_true", help="use the rates that were measured before")
    parser.add_argument("--output", type=Path, default=RESULTS / "plan-cpu.json")
    options = parser.parse_args()
    logging.getLogger("occfast").setLevel(logging.ERROR)
    clock: Clock = time.perf_counter
    if options.cpu_time:
        torch.set_num_threads(1)
        clock = time.process_time
    if not options.keep_calibration:
        calibrate()
    rows: list[dict[str, Any]] = []
    for name in options.kinds:
        rows += measured(name, options.strides, clock, options.repetitions)
        result = {**environment(), "occluder": "20x40", "image": "112x112", "summary": summary(rows), "rows": rows}
        write(options.output, result, table(result))
    for key, value in summary(rows).items():
        print(f"{key:18} {value}")


if __name__ == "__main__":
    main()
