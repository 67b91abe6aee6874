"""``python -m bench.sweep``: the exact sweep against Captum, MONAI and plain PyTorch.

    python -m bench.sweep                 # W1 with three occluders and W2, tens of minutes
    python -m bench.sweep --quick         # W1, 20x20, a sample of the positions
    python -m bench.sweep --workloads resnet34 --occluders 20x40 --output my.json
    python -m bench.sweep --budgets       # only occfast, with batches of 1 to 32 MiB of rectangles (8 are used)

All contenders run in turn, round after round, in one process with the same threads; a rate is the
median over the rounds.  Peers and dense sweeps run at the best of the batch sizes tried.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from occfast.native import ops
from occfast.native.build import instruction_set
from occfast.sweep import incremental as incremental_module
from occfast.sweep.geometry import SweepGrid
from occfast.sweep.incremental import IncrementalEvaluator
from tests import networks

WORKLOADS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "paper": (lambda: networks.Yi(1000), (1, 100, 100)),
    "resnet34": (lambda: networks.ResNet((3, 4, 6, 3)), (3, 128, 96)),
    "iresnet18": (lambda: networks.IResNet((2, 2, 2, 2)), (3, 112, 112)),
}
# What is added in turn.
STEPS: dict[str, dict[str, bool]] = {
    "rectangles": {"fuse": False, "fold_tail": False, "share_early": False},
    "+ fused convolution": {"fuse": True, "fold_tail": False, "share_early": False},
    "+ folded tail": {"fuse": True, "fold_tail": True, "share_early": False},
    "+ early sharing": {"fuse": True, "fold_tail": True, "share_early": True},
}


class Peak:
    """The resident memory that a block adds at most, in MiB, sampled every few milliseconds."""

    def __enter__(self) -> Peak:
        self._stop = threading.Event()
        self._first = self._most = self._resident()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.mib = (max(self._most, self._resident()) - self._first) / 256

    @staticmethod
    def _resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self._most = max(self._most, self._resident())


def timed(run: Callable[[], int]) -> tuple[float, float]:
    """Positions a second, and MiB."""
    with Peak() as peak:
        started = time.perf_counter()
        count = run()
        seconds = time.perf_counter() - started
    return count / seconds, peak.mib


def dense(
    model: Callable[[Tensor], Tensor], image: Tensor, grid: SweepGrid, batch: int, native: bool, count: int
) -> int:
    """``count`` positions, each a forward pass of a copy that was made in PyTorch or by occfast."""
    fill = torch.zeros(1, 1, 1, 1)
    positions = torch.linspace(0, grid.positions - 1, count).long()
    for part in positions.split(batch):
        if native:
            copies = ops.occlude_positions(image, fill, part, grid.native())
        else:
            copies = image.repeat(len(part), 1, 1, 1)
            for copy, p in zip(copies, part.tolist(), strict=True):
                top, left, bottom, right = grid.window(p)
                copy[:, top:bottom, left:right] = 0
        model(copies.contiguous(memory_format=torch.channels_last))
    return count


def counted(model: nn.Module, run: Callable[[], Any]) -> int:
    """How many images a peer sends through the model."""
    seen = []
    handle = model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    try:
        run()
    finally:
        handle.remove()
    return sum(seen)


def captum(model: nn.Module, image: Tensor, occluder: tuple[int, int], step: int, batch: int) -> int:
    from captum.attr import Occlusion

    window = (image.shape[1], *occluder)
    return counted(model, lambda: Occlusion(model).attribute(image, sliding_window_shapes=window, target=0, baselines=0,
                                                             strides=(image.shape[1], step, step),
                                                             perturbations_per_eval=batch))  # fmt: skip


def monai(model: nn.Module, image: Tensor, occluder: tuple[int, int], batch: int) -> int:
    from monai.visualize import OcclusionSensitivity

    peer = OcclusionSensitivity(model, mask_size=occluder, n_batch=batch, overlap=0.6, activate=False, verbose=False)
    return counted(model, lambda: peer(image))


def incremental(evaluator: IncrementalEvaluator, image: Tensor, positions: Tensor) -> int:
    """Everything that one image costs: clean activations, what its positions share, the positions."""
    evaluator.start(image, torch.zeros(1, 1, 1, 1))
    evaluator.outputs(positions)
    return len(positions)


def floors(model: nn.Module, grid: SweepGrid, image: Tensor) -> dict[str, float]:
    """Multiply-adds of the dense sweep over those that each variant needs, with no rectangle rounded up."""
    found = {}
    for name, options in STEPS.items():
        evaluator = IncrementalEvaluator(model, grid, image, **options)
        whole = part = 0.0
        for step in evaluator.steps:
            if not step.is_map:
                whole += step.unfolded or step.macs
                part += step.macs
                continue
            area = 1.0
            for axis in (0, 1):
                area *= float(sum(evaluator._lengths(step, axis)).mean())
            whole += step.macs * step.size[0] * step.size[1]
            part += step.macs * area
        found[name] = whole / part
    return found


def run(workload: str, occluder: tuple[int, int], options: argparse.Namespace) -> list[dict[str, Any]]:
    build, shape = WORKLOADS[workload]
    torch.manual_seed(0)
    model = networks.lively(build())
    last = networks.lively(build()).to(memory_format=torch.channels_last)
    image = torch.rand(1, *shape)
    grid = SweepGrid.over(shape[1:], occluder)
    sample = 64 if options.quick else 256
    positions = torch.arange(grid.positions)
    if options.quick:
        positions = torch.randperm(grid.positions)[: grid.positions // 8].sort().values
    contenders: dict[str, list[Callable[[], int]]] = {}
    batches = (8,) if options.quick else (4, 8, 16, 32, 64)
    contenders["plain PyTorch"] = [lambda b=b: dense(last, image, grid, b, False, sample) for b in batches]
    contenders["occfast dense"] = [lambda b=b: dense(last, image, grid, b, True, sample) for b in batches]
    if not options.quick and not options.no_compile:
        compiled = torch.compile(last)
        contenders["torch.compile"] = [
            lambda b=b: dense(compiled, image, grid, b, False, sample // b * b) for b in (8, 32)
        ]
    if importlib.util.find_spec("captum"):
        step = 16 if options.quick else 8
        contenders["Captum"] = [lambda b=b: captum(model, image, occluder, step, b) for b in batches]
    if importlib.util.find_spec("monai"):
        contenders["MONAI"] = [
            lambda b=b: monai(model, image, occluder, b) for b in batches[:: 2 if options.quick else 3]
        ]
    evaluators = {name: IncrementalEvaluator(model, grid, image, **given) for name, given in STEPS.items()}
    for name, evaluator in evaluators.items():
        contenders[name] = [lambda e=evaluator: incremental(e, image, positions)]
    # The best setting of each, then rounds of all.
    chosen, memory = {}, {}
    for name, settings in contenders.items():
        if len(settings) > 1 or name in ("torch.compile",):
            for setting in settings:
                setting()
            rates = [timed(setting)[0] for setting in settings]
            chosen[name] = settings[rates.index(max(rates))]
        else:
            chosen[name] = settings[0]
        memory[name] = timed(chosen[name])[1]
    rates: dict[str, list[float]] = {name: [] for name in chosen}
    for _ in range(options.rounds):
        for name, contender in chosen.items():
            rates[name].append(timed(contender)[0])
    floor = floors(model, grid, image)
    middle = {name: statistics.median(values) for name, values in rates.items()}
    best = max(middle[name] for name in ("plain PyTorch", "Captum") if name in middle)
    rows = []
    for name, rate in middle.items():
        row: dict[str, Any] = {
            "workload": workload, "occluder": f"{occluder[0]}x{occluder[1]}", "who": name,
            "positions_per_second": round(rate, 1), "ratio": round(rate / best, 2),
            "spread": [round(min(rates[name]), 1), round(max(rates[name]), 1)], "peak_mib": round(memory[name]),
        }  # fmt: skip
        beside = ""
        if name in floor:
            row |= {"floor": round(floor[name], 2), "of_floor": round(rate / best / floor[name], 2),
                    "predicted": round(evaluators[name].predicted_speedup, 2)}  # fmt: skip
            beside = (f"  floor {row['floor']:.2f}x, {row['of_floor']:.0%} of it, "
                      f"predicted {row['predicted']:.2f}x")  # fmt: skip
        rows.append(row)
        print(f"{row['workload']:<10} {row['occluder']:<7} {name:<20} {rate:9.1f}/s {row['ratio']:6.2f}x "
              f"{row['peak_mib']:6} MiB{beside}", flush=True)  # fmt: skip
    return rows


def budgets(workload: str, occluder: tuple[int, int], rounds: int) -> list[dict[str, Any]]:
    """How the size of a batch matters: positions a second by the bytes of one layer's rectangles in it."""
    build, shape = WORKLOADS[workload]
    model, image = networks.lively(build()), torch.rand(1, *shape)
    grid = SweepGrid.over(shape[1:], occluder)
    evaluator = IncrementalEvaluator(model, grid, image)
    positions = torch.arange(grid.positions)[grid.positions // 3 : grid.positions // 3 + 2000]
    evaluator.start(image, torch.zeros(1, 1, 1, 1))
    evaluator.outputs(positions)
    used, sizes = incremental_module._CACHE, [n << 20 for n in (1, 2, 4, 8, 16, 32)]
    rates: dict[int, list[float]] = {size: [] for size in sizes}
    try:
        for _ in range(rounds):
            for size in sizes:
                incremental_module._CACHE = size
                started = time.perf_counter()
                evaluator.outputs(positions)
                rates[size].append(len(positions) / (time.perf_counter() - started))
    finally:
        incremental_module._CACHE = used
    rows = []
    for size in sizes:
        rows.append({
            "workload": workload, "occluder": f"{occluder[0]}x{occluder[1]}", "who": "batch", "mib": size >> 20,
            "positions_per_second": round(statistics.median(rates[size]), 1), "used": size == used,
        })  # fmt: skip
        print(f"{workload:<10} {rows[-1]['occluder']:<7} {size >> 20:3} MiB {rows[-1]['positions_per_second']:9.1f}/s"
              f"{'  (used)' if size == used else ''}", flush=True)  # fmt: skip
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.sweep", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="W1, 20x20, a sample")
    parser.add_argument(
        "--workloads", nargs="+", choices=WORKLOADS, help="default: all; with --quick the paper's network"
    )
    parser.add_argument("--occluders", nargs="+", default=None, metavar="HxW")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--budgets", action="store_true", help="compare sizes of occfast's own batches instead")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent / "results" / "sweep-cpu.json")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    rows = []
    for workload in options.workloads or (["paper"] if options.quick else list(WORKLOADS)):
        given = options.occluders or (
            ["20x20"] if options.quick else ["20x20", "20x40", "40x40"] if workload == "paper" else ["20x40"]
        )
        for text in given:
            height, width = (int(v) for v in text.split("x"))
            if options.budgets:
                rows += budgets(workload, (height, width), options.rounds)
            else:
                rows += run(workload, (height, width), options)
    versions = {name: metadata.version(name) for name in ("torch", "captum", "monai") if importlib.util.find_spec(name)}
    result = {
        "date": str(date.today()), "threads": options.threads, "processor": platform.processor() or platform.machine(),
        "features": [f for f in instruction_set().split() if f in ("avx2", "avx512f", "fma")], "versions": versions,
        "quick": options.quick, "rows": rows,
    }  # fmt: skip
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"ratio: to the faster of plain PyTorch and Captum; written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
