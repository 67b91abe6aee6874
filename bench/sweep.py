"""``python -m bench.sweep``: the exact sweep compared with Captum, MONAI and plain PyTorch.

    python -m bench.sweep                 # W1 with three occluders and W2; takes tens of minutes
    python -m bench.sweep --positions 500 # 500 random positions of each image, instead of all (W1) and 1,536 (W2)
    python -m bench.sweep --quick         # W1, 20x20, a sample of the positions
    python -m bench.sweep --workloads resnet34 --occluders 20x40 --output my.json
    python -m bench.sweep --budgets       # only occfast, with batches of 1 to 32 MiB of rectangles (default: 16)
    python -m bench.sweep --memory        # memory that each contender adds; takes minutes

All contenders run in turn, round after round, in one process with the same number of threads. A rate is the median
over the rounds. Peers and dense sweeps run at the best of the batch sizes tried. A JSON file and a Markdown table are
written after every occluder.

If only a sample of an image's positions is evaluated, the cost that all positions of an image share is divided among
fewer positions; a full sweep has a higher rate.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.harness import RESULTS, caption, environment, lively, write
from occfast.models import PaperNet, iresnet18, resnet34
from occfast.native import ops
from occfast.sweep import occlusion_map
from occfast.sweep.evaluators.incremental.device import CPU
from occfast.sweep.evaluators.incremental.evaluator import IncrementalEvaluator
from occfast.sweep.evaluators.scorer import Scorer
from occfast.sweep.geometry import SweepGrid
from occfast.sweep.memory import return_freed

WORKLOADS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "paper": (lambda: PaperNet(1000), (1, 100, 100)),
    "resnet34": (lambda: resnet34(1000), (3, 128, 96)),
    "iresnet18": (lambda: iresnet18(), (3, 112, 112)),
}
SAMPLE = {"paper": None, "resnet34": 1536, "iresnet18": 1536}  # positions of an image; None: all
# Optimizations, added one by one.
STEPS: dict[str, dict[str, Any]] = {
    "rectangles": {"fuse": False, "fold_tail": False, "share_early": False},
    "+ fused convolution": {"fuse": True, "fold_tail": False, "share_early": False},
    "+ folded tail": {"fuse": True, "fold_tail": True, "share_early": False},
    "+ early sharing": {"fuse": True, "fold_tail": True, "share_early": True},
}


def trim() -> None:
    """Return free memory of the heap to the system; otherwise a block that reuses it adds no resident memory."""
    gc.collect()
    return_freed(torch.device("cpu"))


class Peak:
    """Peak of the resident memory that a block adds, in MiB, sampled every few milliseconds."""

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
    """Return positions per second and the peak of added memory in MiB."""
    with Peak() as peak:
        started = time.perf_counter()
        count = run()
        seconds = time.perf_counter() - started
    return count / seconds, peak.mib


def dense(
    model: Callable[[Tensor], Tensor], image: Tensor, grid: SweepGrid, batch: int, native: bool, count: int
) -> int:
    """Evaluate ``count`` positions densely on copies made by PyTorch or by occfast (``native``)."""
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
    """Run a peer and return the number of images that it passes to the model."""
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
    return counted(
        model,
        lambda: Occlusion(model).attribute(
            image,
            sliding_window_shapes=window,
            target=0,
            baselines=0,
            strides=(image.shape[1], step, step),
            perturbations_per_eval=batch,
        ),
    )


def monai(model: nn.Module, image: Tensor, occluder: tuple[int, int], batch: int) -> int:
    from monai.visualize.occlusion_sensitivity import OcclusionSensitivity

    peer = OcclusionSensitivity(model, mask_size=occluder, n_batch=batch, overlap=0.6, activate=False, verbose=False)
    return counted(model, lambda: peer(image))


def incremental(evaluator: IncrementalEvaluator, image: Tensor, positions: Tensor) -> int:
    """Evaluate positions of one image, including its clean activations and the work that its positions share."""
    evaluator.start(image, torch.zeros(1, 1, 1, 1))
    evaluator.outputs(positions)
    return len(positions)


def self_check(model: nn.Module, image: Tensor, occluder: tuple[int, int]) -> dict[str, Any]:
    """Measure the share of a full map of one image that is spent on comparing positions with the dense sweep."""
    spent, real = [0.0], Scorer._check_evaluator

    def timed_check(self: Scorer, *given: Tensor) -> None:
        assert self._evaluator is not None
        self._evaluator.outputs(torch.zeros(1, dtype=torch.int64))  # compute what all positions share before timing
        started = time.perf_counter()
        real(self, *given)
        spent[0] += time.perf_counter() - started

    Scorer._check_evaluator = timed_check  # type: ignore[method-assign, assignment]
    try:
        m = occlusion_map(model, image, None, occluder, score="similarity_drop", method="incremental", progress=False)
    finally:
        Scorer._check_evaluator = real  # type: ignore[method-assign]
    return {
        "who": "self-check",
        "seconds": round(spent[0], 3),
        "of_seconds": round(m.seconds, 2),
        "positions": m.n_evaluations,
        "share": round(spent[0] / m.seconds, 4),
    }


def floors(evaluators: dict[str, IncrementalEvaluator]) -> dict[str, float]:
    """Return the ratio of the multiply-adds of the dense sweep and each variant, without rounding up rectangles."""
    found = {}
    for name, evaluator in evaluators.items():
        whole = part = 0.0
        for step in evaluator.plan.steps:
            if not step.is_map:
                whole += step.unfolded or step.macs
                part += step.macs
                continue
            area = 1.0
            for axis in (0, 1):
                area *= float(np.sum(evaluator.plan.lengths(step, axis), 0).mean())
            whole += step.macs * step.size[0] * step.size[1]
            part += step.macs * area
        found[name] = whole / part
    return found


def run(workload: str, occluder: tuple[int, int], options: argparse.Namespace) -> list[dict[str, Any]]:
    build, shape = WORKLOADS[workload]
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = lively(build())
    last = lively(build()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = torch.rand(1, *shape)
    grid = SweepGrid.over(shape[1:], occluder)
    sample = 64 if options.quick else 256
    wanted = options.positions or (grid.positions // 8 if options.quick else SAMPLE[workload] or grid.positions)
    positions = torch.randperm(grid.positions)[:wanted].sort().values
    contenders: dict[str, list[Callable[[], int]]] = {}
    batches = (8,) if options.quick else (4, 8, 16, 32, 64)
    contenders["plain PyTorch"] = [lambda b=b: dense(last, image, grid, b, False, sample) for b in batches]
    contenders["occfast dense"] = [lambda b=b: dense(last, image, grid, b, True, sample) for b in batches]
    if not options.no_compile:
        compiled = torch.compile(last, dynamic=False)  # compiled for each batch size
        contenders["torch.compile"] = [
            lambda b=b: dense(compiled, image, grid, b, False, sample) for b in ((8,) if options.quick else (8, 32))
        ]
    if importlib.util.find_spec("captum"):
        step = 16 if options.quick else 8
        contenders["Captum"] = [lambda b=b: captum(model, image, occluder, step, b) for b in batches]
    if importlib.util.find_spec("monai"):
        contenders["MONAI"] = [
            lambda b=b: monai(model, image, occluder, b) for b in batches[:: 2 if options.quick else 3]
        ]
    evaluators = {
        name: IncrementalEvaluator(model, grid, image, expected=len(positions), **given)
        for name, given in STEPS.items()
    }
    for name, evaluator in evaluators.items():
        contenders[name] = [lambda e=evaluator: incremental(e, image, positions)]
    # Choose the best setting of each, then run the rounds.
    chosen, memory, failed = {}, {}, {}
    for name, settings in contenders.items():
        try:
            tried = [0.0]
            if len(settings) > 1:
                for setting in settings:
                    setting()
                tried = [timed(setting)[0] for setting in settings]
            chosen[name] = settings[tried.index(max(tried))]
            trim()
            memory[name] = timed(chosen[name])[1]
        except Exception as error:
            if name in evaluators or name in ("plain PyTorch", "occfast dense"):
                raise
            failed[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"  # a peer may fail
    rates: dict[str, list[float]] = {name: [] for name in chosen}
    for _ in range(options.rounds):
        for name, contender in chosen.items():
            rates[name].append(timed(contender)[0])
    floor = floors(evaluators)
    middle = {name: statistics.median(values) for name, values in rates.items()}
    best = max(middle[name] for name in ("plain PyTorch", "Captum") if name in middle)
    about: dict[str, Any] = {"workload": workload, "occluder": f"{occluder[0]}x{occluder[1]}"}
    rows = [{**about, "who": name, "failed": reason} for name, reason in failed.items()]
    for name, rate in middle.items():
        row: dict[str, Any] = {
            **about,
            "who": name,
            "positions_per_second": round(rate, 1),
            "ratio": round(rate / best, 2),
            "spread": [round(min(rates[name]), 1), round(max(rates[name]), 1)],
            "peak_mib": round(memory[name]),
        }
        beside = ""
        if name in floor:
            row |= {
                "positions": len(positions),
                "of_positions": grid.positions,
                "floor": round(floor[name], 2),
                "of_floor": round(rate / best / floor[name], 2),
                "predicted": round(evaluators[name].forecast().speedup, 2),
            }
            beside = f"  floor {row['floor']:.2f}x, {row['of_floor']:.0%} of it, predicted {row['predicted']:.2f}x"
        rows.append(row)
        print(
            f"{row['workload']:<10} {row['occluder']:<7} {name:<20} {rate:9.1f}/s {row['ratio']:6.2f}x "
            f"{row['peak_mib']:6} MiB{beside}",
            flush=True,
        )
    for name, reason in failed.items():
        print(f"{workload:<10} {about['occluder']:<7} {name:<20} failed: {reason}", flush=True)
    if (workload, occluder) == ("paper", (20, 20)):
        rows.append({**about, **self_check(model, image, occluder)})
        print(
            f"{workload:<10} {about['occluder']:<7} self-check: {rows[-1]['share']:.2%} of a call for "
            f"{grid.positions} positions",
            flush=True,
        )
    return rows


def markdown(result: dict[str, Any]) -> str:
    """Return the tables of a result: one per workload, with a row per contender and two columns per occluder."""
    lines = [
        f"{caption(result)}.",
        "Positions a second, and the ratio to the faster of plain PyTorch and Captum (each at its best batch).",
    ]
    if any(row["who"] == "batch" for row in result["rows"]):
        lines[1:] = [
            "Positions a second by the bytes of one layer's rectangles in a batch.",
            "",
            "| workload | occluder | MiB | |",
            "| --- | --- | ---: | ---: |",
        ]
        return (
            "\n".join(
                lines
                + [
                    f"| {r['workload']} | {r['occluder']} | {r['mib']}{' (used)' if r['used'] else ''} | "
                    f"{r['positions_per_second']} |"
                    for r in result["rows"]
                ]
            )
            + "\n"
        )
    if any(row["who"] == "memory" for row in result["rows"]):
        named = {(row["workload"], row["occluder"]): "" for row in result["rows"]}
        lines[1:] = [
            "MiB that a sweep adds to the resident memory at most; peers and dense sweeps with eight images a batch.",
            "",
            f"| | {' | '.join(' '.join(pair) for pair in named)} |",
            f"| --- |{' ---: |' * len(named)}",
        ]
        for name in dict.fromkeys(row["name"] for row in result["rows"]):
            found = {
                (r["workload"], r["occluder"]): str(r.get("mib", "failed")) for r in result["rows"] if r["name"] == name
            }
            lines.append(f"| {name} | {' | '.join((named | found).values())} |")
        return "\n".join(lines) + "\n"
    for workload in dict.fromkeys(row["workload"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["workload"] == workload]
        boxes = list(dict.fromkeys(row["occluder"] for row in rows))
        ours = next((row for row in rows if "of_positions" in row), None)
        evaluated = f", {ours['positions']:,} of {ours['of_positions']:,} positions" if ours else ""
        lines += [
            "",
            f"**{workload}**{evaluated}",
            "",
            f"| | {' | | '.join(boxes)} | |",
            f"| --- |{' ---: | --- |' * len(boxes)}",
        ]
        for who in dict.fromkeys(row["who"] for row in rows if row["who"] != "self-check"):
            cells = []
            for box in boxes:
                row: dict[str, Any] = next((r for r in rows if (r["who"], r["occluder"]) == (who, box)), {})
                if "failed" in row:
                    cells += ["failed", row["failed"].replace("|", "/")]
                elif "ratio" in row:
                    predicted = f", {row['predicted']:.2f}× predicted" if who == list(STEPS)[-1] else ""
                    floor = f" ({row['of_floor']:.0%} of {row['floor']:.2f}×{predicted})" if "floor" in row else ""
                    cells += [f"{row['positions_per_second']}", f"{row['ratio']:.2f}×{floor}"]
                else:
                    cells += ["", ""]
            lines.append(f"| {who} | {' | '.join(cells)} |")
        for row in rows:
            if row["who"] == "self-check":
                lines += ["", f"The self-check takes {row['share']:.2%} of a call for {row['positions']:,} positions."]
    return "\n".join(lines) + "\n"


def budgets(workload: str, occluder: tuple[int, int], rounds: int) -> list[dict[str, Any]]:
    """Measure positions per second by the size of a batch, in bytes of one layer's rectangles."""
    build, shape = WORKLOADS[workload]
    model, image = lively(build()), torch.rand(1, *shape)
    grid = SweepGrid.over(shape[1:], occluder)
    evaluator = IncrementalEvaluator(model, grid, image)
    positions = torch.arange(grid.positions)[grid.positions // 3 : grid.positions // 3 + 2000]
    evaluator.start(image, torch.zeros(1, 1, 1, 1))
    evaluator.outputs(positions)
    used, sizes = CPU.layer_bytes, [n << 20 for n in (1, 2, 4, 8, 16, 32)]
    rates: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size in sizes:
            evaluator.plan = replace(evaluator.plan, profile=replace(CPU, layer_bytes=size))
            started = time.perf_counter()
            evaluator.outputs(positions)
            rates[size].append(len(positions) / (time.perf_counter() - started))
    rows = []
    for size in sizes:
        rows.append(
            {
                "workload": workload,
                "occluder": f"{occluder[0]}x{occluder[1]}",
                "who": "batch",
                "mib": size >> 20,
                "positions_per_second": round(statistics.median(rates[size]), 1),
                "used": size == used,
            }
        )
        print(
            f"{workload:<10} {rows[-1]['occluder']:<7} {size >> 20:3} MiB {rows[-1]['positions_per_second']:9.1f}/s"
            f"{'  (used)' if size == used else ''}",
            flush=True,
        )
    return rows


def memory(workload: str, occluder: tuple[int, int]) -> list[dict[str, Any]]:
    """Measure the peak memory that each contender adds in the second of two runs, peers with batches of eight."""
    build, shape = WORKLOADS[workload]
    torch.manual_seed(0)
    model, image = lively(build()), torch.rand(1, *shape)
    last = lively(build()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    grid = SweepGrid.over(shape[1:], occluder)
    positions = torch.arange(grid.positions)[grid.positions // 3 :][: 2000 if workload == "paper" else 512]

    def ours(given: dict[str, Any]) -> int:  # includes the plan, the copy of the weights and the activations
        evaluator = IncrementalEvaluator(model, grid, image, expected=grid.positions, **given)
        return incremental(evaluator, image, positions)

    contenders: dict[str, Callable[[], int]] = {
        "plain PyTorch": lambda: dense(last, image, grid, 8, False, 64),
        "occfast dense": lambda: dense(last, image, grid, 8, True, 64),
    }
    if importlib.util.find_spec("captum"):
        contenders["Captum"] = lambda: captum(model, image, occluder, 8, 8)
    if importlib.util.find_spec("monai"):
        contenders["MONAI"] = lambda: monai(model, image, occluder, 8)
    contenders |= {name: lambda given=given: ours(given) for name, given in STEPS.items()}
    rows = []
    for name, contender in contenders.items():
        row: dict[str, Any] = {"workload": workload, "occluder": f"{occluder[0]}x{occluder[1]}", "who": "memory"}
        row["name"] = name
        try:
            contender()
            trim()
            row["mib"] = round(timed(contender)[1])
        except Exception as error:
            if name not in ("Captum", "MONAI"):
                raise
            row["failed"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        rows.append(row)
        print(f"{workload:<10} {row['occluder']:<7} {name:<20} {row.get('mib', 'failed'):>6} MiB", flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.sweep", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="W1, 20x20, a sample")
    parser.add_argument(
        "--workloads", nargs="+", choices=WORKLOADS, help="default: all; with --quick the paper's network"
    )
    parser.add_argument("--occluders", nargs="+", default=None, metavar="HxW")
    parser.add_argument("--positions", type=int, help="random positions per image; default: all of W1, 1,536 of W2")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--budgets", action="store_true", help="compare sizes of occfast's batches instead")
    parser.add_argument("--memory", action="store_true", help="compare the memory that each contender adds instead")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--output", type=Path, default=RESULTS / "sweep-cpu.json")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    rows: list[dict[str, Any]] = []
    result = {**environment("captum", "monai"), "quick": options.quick, "rows": rows}
    for workload in options.workloads or (["paper"] if options.quick else list(WORKLOADS)):
        given = options.occluders or (
            ["20x20"] if options.quick else ["20x20", "20x40", "40x40"] if workload == "paper" else ["20x40"]
        )
        for text in given:
            height, width = (int(v) for v in text.split("x"))
            if options.budgets:
                rows += budgets(workload, (height, width), options.rounds)
            elif options.memory:
                rows += memory(workload, (height, width))
            else:
                rows += run(workload, (height, width), options)
            write(options.output, result, markdown(result))
    print(f"ratio: to the faster of plain PyTorch and Captum; written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
