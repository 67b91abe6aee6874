"""``python -m bench.triplet_memory``: ``memory="linear"`` beside ``memory="quadratic"``.

Both run in turns in one process, forward and backward together, and the best of the rounds is compared; the relative
difference of their gradients is in the same row. Peak memory is that of a new process. The result is written to
``bench/results/triplet-memory.json``.

The floor of both is the matrix products. Quadratic: 3 B² D operations (the distances are symmetric). Linear: 8 B² D,
since each row of the distances is computed twice, and the gradients by the anchor and by the candidate of a pair are
two products. So 2.7 times the time is expected where products are all, and less where mining costs as well.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from bench.harness import RESULTS, environment, write
from bench.triplet import batch, peak_memory, step
from occfast.losses import BatchTripletLoss, Mining

_MININGS: tuple[Mining, ...] = ("all", "violating", "semihard", "hardest")


def measure(b: int, k: int, d: int, mining: Mining, rounds: int) -> dict[str, Any]:
    """Time both, and compare their gradients."""
    x, y = batch(b, k, d)
    losses = {memory: BatchTripletLoss(mining=mining, memory=memory) for memory in ("quadratic", "linear")}
    gradients = {}
    for memory, loss in losses.items():
        at = x.clone().requires_grad_()
        loss(at, y).backward()
        assert at.grad is not None
        gradients[memory] = at.grad.double()
    apart = (gradients["linear"] - gradients["quadratic"]).norm() / gradients["quadratic"].norm()
    times: dict[str, list[float]] = {memory: [] for memory in losses}
    for _ in range(rounds):
        for memory, loss in losses.items():
            times[memory].append(step(loss, x, y))
    best = {memory: min(taken) for memory, taken in times.items()}
    return {
        "batch": b,
        "per_class": k,
        "dim": d,
        "mining": mining,
        "rounds": rounds,
        **{f"{memory}_seconds": seconds for memory, seconds in best.items()},
        "ratio": best["linear"] / best["quadratic"],
        "gradients_apart": float(apart),
    }


def main() -> None:
    """Measure times and peaks, and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--batches", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--large", type=int, nargs="*", default=[65_536], help="batches to measure the peak of")
    parser.add_argument("--dim", type=int, default=320)
    parser.add_argument("--per-class", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "triplet-memory.json")
    chosen = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    rows = []
    for b in chosen.batches:
        for mining in _MININGS:
            rows.append(measure(b, chosen.per_class, chosen.dim, mining, chosen.rounds))
            print(rows[-1], flush=True)
    peaks = []
    quadratic, linear = ([(b, name) for b in chosen.batches] for name in ("quadratic", "linear"))
    for b, memory in quadratic + linear + [(b, "linear") for b in chosen.large]:
        peaks.append(peak_memory(b, chosen.per_class, chosen.dim, "violating", f"occfast, {memory}"))
        print(peaks[-1], flush=True)
    write(chosen.output, {**environment(), "rows": rows, "memory": peaks})


if __name__ == "__main__":
    main()
