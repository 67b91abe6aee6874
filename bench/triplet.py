"""``python -m bench.triplet``: triplet losses compared with pytorch-metric-learning and plain PyTorch.

Forward and backward are timed together; the result is written to ``bench/results/triplet.json``. Providers run in turn
in one process, and the best of the rounds is reported. Ratios, unlike times, carry over to other machines. Peak memory
(``--memory``) is measured in a new process for each row.

The floor of a step on B embeddings of D numbers of s bytes, whatever the method:

- two matrix products: half of 2 B² D operations for the distances, which are symmetric, and 2 B² D for the gradient:
  3 B² D floating-point operations;
- passes over B² entries: write the distances, read them and write the counts, read both and write the weights, read
  the weights: 5 s + 2 · 4 bytes per entry, if B² entries do not fit into the cache.

``floor_fraction`` is (3 B² D / rate of PyTorch's matrix product in this dtype) / measured time. It exceeds 1 if
occfast's product is faster than PyTorch's.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness import RESULTS, environment, installed, write
from occfast.losses import BatchTripletLoss, Mining, TripletLoss

PEER = "pytorch-metric-learning"


def batch(b: int, k: int, d: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return embeddings as in the middle of training, noise around a center for each class, and labels."""
    random = torch.Generator().manual_seed(0)
    y = torch.arange(b) // k
    centers = torch.randn(int(y[-1]) + 1, d, generator=random)
    return F.normalize(torch.randn(b, d, generator=random) + 0.5 * centers[y]).to(dtype), y


def plain(mining: str, margin: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the straightforward loss in PyTorch: a [B, B, B] mask over one matrix of distances."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        squares = x.square().sum(1)
        d = (squares[:, None] + squares - 2 * x @ x.T).clamp(min=0)
        same = y[:, None] == y
        positive = same & ~torch.eye(len(y), dtype=torch.bool)
        hinge = d[:, :, None] - d[:, None, :] + margin
        mask = positive[:, :, None] & ~same[:, None, :]
        if mining != "all":
            mask = mask & (hinge > 0)
        return (hinge.clamp(min=0) * mask).sum() / mask.sum().clamp(min=1)

    return loss


def peer(mining: str, margin: float) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return pytorch-metric-learning's same loss at its best setting, or None if it has none."""
    from pytorch_metric_learning import distances, losses, miners, reducers

    metric = distances.LpDistance(normalize_embeddings=False, power=2)
    if mining in ("all", "violating"):  # the default reducer averages over violating triplets
        reducer = reducers.MeanReducer() if mining == "all" else None
        found: Callable[[Tensor, Tensor], Tensor] = losses.TripletMarginLoss(
            margin=margin, distance=metric, reducer=reducer
        )
        return found
    loss = losses.TripletMarginLoss(margin=margin, distance=metric, reducer=reducers.MeanReducer())
    miner: Any
    if mining == "semihard":
        miner = miners.TripletMarginMiner(margin=margin, type_of_triplets="semihard", distance=metric)
    elif mining == "hardest":
        miner = miners.BatchHardMiner(distance=metric)
    else:
        return None
    return lambda x, y: loss(x, y, miner(x, y))


def provider(name: str, mining: Mining, margin: float = 0.5) -> Callable[[Tensor, Tensor], Tensor] | None:
    if name == "occfast":
        return TripletLoss(margin, mining=mining)
    if name == "occfast, no statistics":
        return TripletLoss(margin, mining=mining, statistics=False)
    if name == "occfast, Eq. 9":
        return BatchTripletLoss(margin, mining=mining, memory="quadratic")
    if name in ("occfast, quadratic", "occfast, linear"):
        return BatchTripletLoss(margin, mining=mining, memory="linear" if name.endswith("linear") else "quadratic")
    return peer(mining, margin) if name == PEER else plain(mining, margin)


def step(loss_fn: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    at = x.clone().requires_grad_()
    start = time.perf_counter()
    loss_fn(at, y).backward()
    return time.perf_counter() - start


def candidates(b: int, k: int) -> int:
    return b * (k - 1) * (b - k)


def library_rate(d: int, dtype: torch.dtype) -> float:
    """Measure floating-point operations per second of PyTorch's matrix product."""
    a, b = torch.randn(2048, d, dtype=dtype), torch.randn(d, 2048, dtype=dtype)
    best = min(_timed(lambda: a @ b) for _ in range(5))
    return 2 * 2048 * 2048 * d / best


def _timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(b: int, k: int, d: int, mining: Mining, rounds: int, limits: dict[str, int]) -> list[dict[str, Any]]:
    x, y = batch(b, k, d)
    rate = library_rate(d, x.dtype)
    names = ["occfast", "occfast, no statistics", "occfast, Eq. 9"]
    names += [name for name in (PEER, "plain PyTorch") if _fits(name, b, k, limits) and provider(name, mining)]
    if mining in ("semihard", "semihard_random", "hardest") and "plain PyTorch" in names:
        names.remove("plain PyTorch")
    losses = {name: provider(name, mining) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        for name, loss_fn in losses.items():
            slow = times[name] and times[name][0] > 2.0
            if loss_fn is None or (turn == 0 and _is_slow(name, b, k)) or (slow and turn > 1):
                continue  # runs of seconds need no warm-up and few rounds
            taken = step(loss_fn, x, y)
            if turn > 0:
                times[name].append(taken)
    best = min(times["occfast"])
    rows = []
    for name in names:
        rows.append(
            {
                "provider": name,
                "version": installed({PEER: PEER, "plain PyTorch": "torch"}.get(name, "occfast")),
                "batch": b,
                "per_class": k,
                "dim": d,
                "mining": mining,
                "seconds": min(times[name]),
                "rounds": len(times[name]),
                "ratio": min(times[name]) / best,
                "candidates": candidates(b, k),
                "floor_fraction": 3 * b * b * d / rate / min(times[name]),
                "library_gflops": rate / 1e9,
            }
        )
    return rows


def _is_slow(name: str, b: int, k: int) -> bool:
    return not name.startswith("occfast") and candidates(b, k) > 5_000_000


def _fits(name: str, b: int, k: int, limits: dict[str, int]) -> bool:
    # Index tensors and a few arrays of that length for the peer; a mask of B³ for plain PyTorch.
    need = candidates(b, k) * 150 if name == PEER else b**3 * 10
    return name not in limits or need < limits[name] << 30


def peak_memory(b: int, k: int, d: int, mining: Mining, name: str) -> dict[str, Any]:
    """Measure the peak resident memory of a new process before and after one step."""
    # VmHWM is the peak of this process alone; ru_maxrss starts at that of the parent process.
    code = (
        "import json, re; from pathlib import Path; from bench import triplet as t\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) * 1024\n"
        f"x, y = t.batch(64, 8, {d}); f = t.provider({name!r}, {mining!r}); t.step(f, x, y)\n"
        "before = peak()\n"
        f"x, y = t.batch({b}, {k}, {d}); s = t.step(f, x, y)\n"
        "print(json.dumps([before, peak(), s]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    row: dict[str, Any] = {"provider": name, "batch": b, "per_class": k, "dim": d, "mining": mining}
    if done.returncode:
        return {**row, "failed": done.stderr.strip().splitlines()[-1] if done.stderr else f"exit {done.returncode}"}
    before, peak, seconds = json.loads(done.stdout)
    return {**row, "peak_bytes": peak, "before_bytes": before, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256, 1024, 2048, 4096])
    parser.add_argument("--per-class", type=int, nargs="+", default=[4, 8, 64])
    parser.add_argument("--dims", type=int, nargs="+", default=[320])
    parser.add_argument("--mining", nargs="+", default=["all", "violating", "semihard", "semihard_random", "hardest"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer-memory", type=int, default=8, help="GiB that a peer may need")
    parser.add_argument("--memory", type=int, nargs="*", default=[], help="batches to measure the peak memory of")
    parser.add_argument("--output", type=Path, default=RESULTS / "triplet.json")
    chosen = parser.parse_args()
    limits = {PEER: chosen.peer_memory, "plain PyTorch": chosen.peer_memory}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {PEER} {installed(PEER)}")
    rows = []
    for b in chosen.batches:
        for k in chosen.per_class:
            if 2 * k > b:
                continue
            for d in chosen.dims:
                for mining in chosen.mining:
                    for row in measure(b, k, d, mining, chosen.rounds, limits):
                        rows.append(row)
                        print(
                            f"B={b:<6} K={k:<3} D={d:<4} {mining:<16} {row['provider']:<26} "
                            f"{row['seconds'] * 1e3:10.2f} ms  {row['ratio']:8.2f} x  "
                            f"floor {row['floor_fraction']:.2f}",
                            flush=True,
                        )
    memory = []
    for b in chosen.memory:
        for name in ("occfast, Eq. 9", PEER):
            if not _fits(name, b, 8, limits) and name == PEER:
                continue
            memory.append(peak_memory(b, 8, chosen.dims[0], "violating", name))
            print(memory[-1], flush=True)
    write(chosen.output, {**environment(PEER), "rows": rows, "memory": memory})
    print(f"peak of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


if __name__ == "__main__":
    main()
