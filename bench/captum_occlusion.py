"""``python -m bench.captum_occlusion``: ``occfast.captum.Occlusion`` against Captum's, the same call in one process.

    python -m bench.captum_occlusion          # the paper's network (W1) and two residual networks
    python -m bench.captum_occlusion --quick  # W1 alone, one round

The contenders take turns, round after round; a time is the median over the rounds. Captum runs at the best of several
``perturbations_per_eval``. "occfast" makes an object for each call, "occfast, kept plan" calls one object again, as for
further images. ``--cpu-time`` counts processor time, for a busy machine; use one thread then (``OMP_NUM_THREADS=1``).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.harness import RESULTS, environment, lively, write
from occfast import explain
from occfast.captum import Occlusion
from occfast.models import PaperNet, iresnet18, resnet34

# network, shape of an image, images, window, stride
WORKLOADS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int], int, tuple[int, int], int]] = {
    "paper, stride 5": (lambda: PaperNet(1000), (1, 100, 100), 1, (20, 40), 5),
    "paper, stride 2": (lambda: PaperNet(1000), (1, 100, 100), 1, (20, 40), 2),
    "paper, stride 5, 4 images": (lambda: PaperNet(1000), (1, 100, 100), 4, (20, 40), 5),
    "iresnet18, stride 5": (lambda: iresnet18(), (3, 112, 112), 1, (20, 40), 5),
    "resnet34, stride 5": (lambda: resnet34(1000), (3, 128, 96), 1, (20, 40), 5),
}
BATCHES = (1, 8, 16, 64)


def run(name: str, rounds: int, clock: Callable[[], float]) -> list[dict[str, Any]]:
    """Return a row for each contender of a workload."""
    from captum.attr import Occlusion as Peer

    build, shape, count, (height, width), stride = WORKLOADS[name]
    model = lively(build())
    images = torch.rand((count, *shape), generator=torch.Generator().manual_seed(0))
    given: dict[str, Any] = dict(
        sliding_window_shapes=(shape[0], height, width), strides=(shape[0], stride, stride), target=0
    )

    def theirs(batch: int) -> torch.Tensor:
        return Peer(model).attribute(images, perturbations_per_eval=batch, **given)  # type: ignore[no-any-return]

    def ours() -> torch.Tensor:
        return Occlusion(model).attribute(images, **given)

    kept = Occlusion(model)
    calls: dict[str, Callable[[], torch.Tensor]] = {"occfast": ours}
    calls["occfast, kept plan"] = lambda: kept.attribute(images, **given)
    calls |= {f"Captum {batch}": (lambda batch=batch: theirs(batch)) for batch in BATCHES}
    calls["occfast, kept plan"]()  # makes the plan, and builds the kernels
    seconds: dict[str, list[float]] = {who: [] for who in calls}
    found: dict[str, torch.Tensor] = {}
    for _ in range(rounds):
        for who, call in calls.items():
            began = clock()
            found[who] = call()
            seconds[who].append(clock() - began)
    windows = count * (-(-(shape[1] - height) // stride) + 1) * (-(-(shape[2] - width) // stride) + 1)
    best = min((who for who in calls if who.startswith("Captum")), key=lambda who: statistics.median(seconds[who]))
    mine = statistics.median(seconds["occfast"])
    with torch.no_grad():
        scale = float(model(images).abs().max())
    plan = explain(model, shape[1:], (height, width), stride=stride, border="valid")
    return [
        {
            "workload": name,
            "who": who,
            "best": who == best,
            "windows": windows,
            "seconds": round(statistics.median(times), 4),
            "rounds": [round(each, 4) for each in times],
            "occfast_is": round(statistics.median(times) / mine, 3),
            "difference": float((found[who] - found[best]).abs().max()) / scale,
            "predicted": round(plan.speedup, 2),
        }
        for who, times in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS / "captum-occlusion-cpu.json")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    rows = []
    for name in list(WORKLOADS)[: 1 if options.quick else None]:
        rows += run(name, 1 if options.quick else options.rounds, clock)
        for row in rows:
            if row["workload"] == name:
                print(f"{name:<26} {row['who']:<18} {row['seconds']:8.3f} s  {row['occfast_is']:.2f}x", flush=True)
        about = {"clock": "processor time" if options.cpu_time else "wall"}
        write(options.output, {**environment("captum"), **about, "rows": rows})


if __name__ == "__main__":
    main()
