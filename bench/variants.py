"""``python -m bench.variants``: speed of the kernels that a wheel brings, relative to ``-march=native``.

    python -m bench.variants                       # all variants that this processor can run; takes minutes
    python -m bench.variants --variants x86-64-v4  # one of them
    python -m bench.variants --output my.json

Builds the modules of a wheel in a temporary folder and the module of ``-march=native`` in the cache, loads all of
them into one process with one thread, and lets them run each workload in turn, round after round. Times are CPU times.
``speed`` is the time of ``-march=native`` divided by that of the variant, from the fastest rounds of both: 1 is as
fast. ``difference`` is the largest difference of the results from those of ``-march=native``, relative to their largest
number.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness import RESULTS, caption, environment, lively, write
from occfast import BatchTripletLoss, NoisyOccluder
from occfast.losses import Mining
from occfast.models import PaperNet
from occfast.native import build, compile, loader, ops, prebuilt
from occfast.sweep import SweepGrid, occlusion_map

#: A workload returns what it computed.
Run = Callable[[], Tensor]
NATIVE = "native"


def noise(dtype: torch.dtype) -> Run:
    images = torch.rand(256, 1, 100, 100)
    images = (images * 255).to(dtype) if dtype == torch.uint8 else images.to(dtype)
    occluder, ids = NoisyOccluder(size=(20, 40), seed=0), torch.arange(256)
    return lambda: occluder(images, ids)


def copies() -> Run:
    images, grid = torch.rand(4, 1, 100, 100), SweepGrid.over((100, 100), (20, 40))
    positions = torch.randint(0, 4 * grid.positions, (256,))
    fill = torch.zeros(1, 1, 1, 1)
    return lambda: ops.occlude_positions(images, fill, positions, grid.native())


def score(classes: int) -> Run:
    outputs, labels = torch.randn(256, classes), torch.randint(0, classes, (4,))
    scores, bad = torch.zeros(4, 10_000, dtype=torch.float64), torch.zeros(1, dtype=torch.int32)
    positions = torch.randint(0, 40_000, (256,))

    def run() -> Tensor:
        ops.sweep_score(outputs, positions, 10_000, 0, scores, bad, labels, None, None)
        return scores

    return run


def windows(channels: int, fused: bool) -> Run:
    maps = torch.randn(4, channels, 50, 50).contiguous(memory_format=torch.channels_last)
    images, origins = torch.arange(256) % 4, torch.randint(-2, 40, (256, 2))
    if not fused:
        return lambda: ops.gather_windows(maps, images, origins, 12, 12, None, None, 0.0)
    weight, bias = torch.randn(2 * channels, channels, 3, 3), torch.randn(2 * channels)
    packed, packed_bias = ops.pack_convolution(weight, bias, ops.convolution_block(maps))
    geometry = [3, 3, 1, 1, 1, 1, 1]
    return lambda: ops.gather_windows(
        maps, images, origins, 12, 12, None, None, 0.0, packed, packed_bias, 2 * channels, geometry
    )


def sweep() -> Run:
    """Map one image exactly at every fourth position: occfast's kernels, and PyTorch's for the rest."""
    model, image = lively(PaperNet(1000)), torch.rand(1, 1, 100, 100)

    def run() -> Tensor:
        m = occlusion_map(
            model, image, occluder=(20, 20), stride=4, score="similarity_drop", method="incremental", progress=False
        )
        return torch.as_tensor(m.values)

    return run


def triplets(mining: Mining, n: int, statistics: bool) -> Run:
    x, y = F.normalize(torch.randn(n, 128)), torch.arange(n) // 8
    rule = BatchTripletLoss(mining=mining, statistics=statistics)

    def run() -> Tensor:
        at = x.clone().requires_grad_()
        rule(at, y).backward()
        assert at.grad is not None
        return at.grad

    return run


WORKLOADS: dict[str, Callable[[], Run]] = {
    "noisy occluders, float32": lambda: noise(torch.float32),
    "noisy occluders, uint8": lambda: noise(torch.uint8),
    "noisy occluders, bfloat16": lambda: noise(torch.bfloat16),
    "occluded copies": copies,
    "sweep score, 10,575 classes": lambda: score(10_575),
    "gathered windows, 64 channels": lambda: windows(64, fused=False),
    "fused convolution, 32 to 64 channels": lambda: windows(32, fused=True),
    "fused convolution, 96 to 192 channels": lambda: windows(96, fused=True),
    "exact sweep, one image": sweep,
    "triplet loss, all, 512": lambda: triplets("all", 512, True),
    "triplet loss, violating, 512": lambda: triplets("violating", 512, True),
    "triplet loss, semihard, 512": lambda: triplets("semihard", 512, True),
    "triplet loss, hardest, 2,048": lambda: triplets("hardest", 2048, False),
}


def modules(variants: list[str], folder: Path, finished: Path | None) -> dict[str, ModuleType]:
    """Return the modules by name: that of ``-march=native``, and those of a wheel, built now or finished."""
    with mock.patch.dict(os.environ, {"OCCFAST_MARCH": NATIVE}):
        found = {NATIVE: loader.module("cpu")}
    target, work = finished or folder / "prebuilt", folder / "work"
    if finished is None:
        target.mkdir()
        work.mkdir()
        compile.prebuild(variants, target, work)
    with mock.patch.object(prebuilt, "FOLDER", target):
        runnable = prebuilt.runnable_variants()
    prebuilt.provide_openmp()
    for name in variants:
        if name in runnable:
            found[name] = loader._import("cpu", target.resolve() / f"occfast_cpu.{name}.so")
    return found


def compare(make: Callable[[], Run], found: dict[str, ModuleType], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Time a workload with each module in turn and return a row for each variant."""
    runs: dict[str, Run] = {}
    results: dict[str, Tensor] = {}
    for name, module in found.items():
        with mock.patch.dict(loader._modules, {"cpu": module}):
            torch.manual_seed(0)
            runs[name] = make()
            results[name] = runs[name]().clone()
    repeats: dict[str, int] = {}
    times: dict[str, list[float]] = {name: [] for name in found}
    for name, module in found.items():
        with mock.patch.dict(loader._modules, {"cpu": module}):
            started = time.process_time()
            runs[name]()
            repeats[name] = max(1, round(seconds / max(time.process_time() - started, 1e-6)))
    again = min(repeats.values())
    for k in range(rounds):
        order = list(found.items())
        for name, module in order if k % 2 == 0 else order[::-1]:
            with mock.patch.dict(loader._modules, {"cpu": module}):
                gc.collect()
                started = time.process_time()
                for _ in range(again):
                    runs[name]()
                times[name].append((time.process_time() - started) / again)
    rows = []
    for name in found:
        if name == NATIVE:
            continue
        apart = (results[name].double() - results[NATIVE].double()).abs().max()
        rows.append(
            {
                "variant": name,
                "speed": min(times[NATIVE]) / min(times[name]),
                "median_speed": statistics.median(a / b for a, b in zip(times[NATIVE], times[name], strict=True)),
                "native_seconds": min(times[NATIVE]),
                "difference": float(apart / results[NATIVE].double().abs().max().clamp(min=1e-300)),
            }
        )
    return rows


def main() -> None:
    known = build.VARIANTS[platform.machine()]
    parser = argparse.ArgumentParser(prog="python -m bench.variants", description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="*", choices=known, default=list(known))
    parser.add_argument("-k", default="", help="only workloads whose name contains this")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.1, help="CPU time of a round of one module")
    parser.add_argument("--modules", type=Path, help="folder of finished modules (occfast/native/prebuilt of a wheel)")
    parser.add_argument("--output", type=Path, default=RESULTS / "variants.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        found = modules(options.variants, Path(folder), options.modules)
        for name, make in WORKLOADS.items():
            if options.k not in name:
                continue
            for row in compare(make, found, options.rounds, options.seconds):
                rows.append({"workload": name, **row})
                print(f"{name:40} {row['variant']:10} {row['speed']:6.3f} {row['difference']:.1e}", flush=True)
    compiler = build.version_of(*build.compiler_command())
    result = {**environment(), "compiler": compiler, "rows": rows}
    write(options.output, result, table(result))


def table(result: dict[str, Any]) -> str:
    names = list(dict.fromkeys(row["variant"] for row in result["rows"]))
    cells = {(row["workload"], row["variant"]): f"{row['speed']:.2f}" for row in result["rows"]}
    lines = [caption(result), "", f"Speed relative to `-march=native`, {result['compiler']}.", ""]
    lines += [f"| workload | {' | '.join(names)} |", f"| --- |{' ---: |' * len(names)}"]
    for workload in dict.fromkeys(row["workload"] for row in result["rows"]):
        lines.append(f"| {workload} | {' | '.join(cells[workload, name] for name in names)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
