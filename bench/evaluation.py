"""``python -m bench.evaluation``: the protocols compared with scikit-learn and plain loops, and rates of occlusions.

    python -m bench.evaluation                 # takes minutes
    python -m bench.evaluation --quick         # a tenth of the sizes
    python -m bench.evaluation --only roc      # folds, roc, search, pairs or occlusions

The contenders run in turn in one process, and the best of the rounds is reported. Ratios, unlike times, carry over to
other machines. Added memory is the largest increase of resident memory during a run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.harness import RESULTS, environment, write
from bench.sweep import Peak
from occfast import evaluate
from occfast.occlude.named import named_occlusion

#: Name of the workload, unit, number of units per run, and contenders by name.
Workload = tuple[str, str, int, dict[str, Callable[[], Any]]]


def drawn(count: int, apart: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    same = np.tile(np.repeat([True, False], max(1, count // 20)), 10)[:count]
    return random.normal(size=len(same)) + apart * same, same


def folds(scale: int) -> Iterator[Workload]:
    scores, same = drawn(6000)
    ids = np.arange(6000) // 600

    def grid() -> float:
        """Choose among 400 thresholds in each fold, as evaluation scripts do."""
        thresholds = np.linspace(scores.min(), scores.max(), 400)
        accuracies = []
        for fold in range(10):
            train, test = ids != fold, ids == fold
            best = max(thresholds, key=lambda t: ((scores[train] >= t) == same[train]).mean())
            accuracies.append(((scores[test] >= best) == same[test]).mean())
        return float(np.mean(accuracies))

    def every() -> float:
        """Choose among all scores as thresholds: exact, in quadratic time."""
        accuracies = []
        for fold in range(10):
            train, test = ids != fold, ids == fold
            best = max(scores[train], key=lambda t: ((scores[train] >= t) == same[train]).mean())
            accuracies.append(((scores[test] >= best) == same[test]).mean())
        return float(np.mean(accuracies))

    yield (
        "10 folds of 6,000 pairs, with ROC, AUC, EER, TAR@FAR and intervals",
        "pairs",
        6000,
        {
            "occfast": lambda: evaluate.verification(scores, same, 10),
            "plain loop, 400 thresholds, accuracy alone": grid,
            "plain loop, all thresholds, accuracy alone": every,
        },
    )


def roc(scale: int) -> Iterator[Workload]:
    from sklearn.metrics import auc, roc_curve

    for name, share, dtype in (("half of one person", 0.5, np.float64), ("1 % of one person", 0.01, np.float32)):
        count = 10**7 // scale
        random = np.random.default_rng(1)
        same = random.random(count) < share
        scores = (random.normal(size=count) + 2 * same).astype(dtype)

        def ours(scores: np.ndarray = scores, same: np.ndarray = same) -> float:
            return evaluate.roc(scores, same).auc

        def theirs(scores: np.ndarray = scores, same: np.ndarray = same) -> float:
            far, tar, _ = roc_curve(same, scores)
            return float(auc(far, tar))

        assert abs(ours() - theirs()) < 1e-9
        yield (
            f"ROC and AUC of {count:,} {np.dtype(dtype).name} scores, {name}",
            "scores",
            count,
            {"occfast": ours, "scikit-learn roc_curve + auc": theirs},
        )


def search(scale: int) -> Iterator[Workload]:
    from sklearn.neighbors import NearestNeighbors

    random = torch.Generator().manual_seed(2)
    g, n, d = 13_000 // scale, 2000 // scale, 512
    labels = torch.arange(g) // 3
    centers = torch.randn(int(labels[-1]) + 1, d, generator=random)
    gallery = centers[labels] + 2 * torch.randn(g, d, generator=random)
    probe_labels = torch.randint(0, len(centers), (n,), generator=random)
    probes = centers[probe_labels] + 2 * torch.randn(n, d, generator=random)
    unit, unit_probes = torch.nn.functional.normalize(gallery), torch.nn.functional.normalize(probes)

    def loop() -> float:
        hits = 0
        for probe, label in zip(unit_probes, probe_labels, strict=True):
            hits += bool((labels[(unit @ probe).topk(5).indices] == label).any())
        return hits / n

    def sklearn() -> float:
        found = NearestNeighbors(n_neighbors=5, metric="cosine", algorithm="brute").fit(gallery.numpy())
        nearest = found.kneighbors(probes.numpy(), return_distance=False)
        return float((labels.numpy()[nearest] == probe_labels.numpy()[:, None]).any(1).mean())

    def ours() -> float:
        return evaluate.identification(gallery, labels, probes, probe_labels, (1, 5), count="images").ranks[5]

    assert abs(ours() - loop()) < 1e-9 and abs(ours() - sklearn()) < 1e-9
    yield (
        f"rank-1 and rank-5 of {n:,} probes among {g:,} images, D = {d}",
        "probes",
        n,
        {
            "occfast, images counted": ours,
            "occfast, people counted": lambda: evaluate.identification(gallery, labels, probes, probe_labels),
            "scikit-learn NearestNeighbors": sklearn,
            "plain loop, a probe at a time": loop,
        },
    )


def pairs(scale: int) -> Iterator[Workload]:
    from sklearn.metrics import auc, roc_curve

    random = torch.Generator().manual_seed(3)
    for n, whole in ((2000, True), (13_232 // scale, False)):
        labels = torch.randint(0, n // 3, (n,), generator=random)
        centers = torch.randn(n // 3, 512, generator=random)
        features = centers[labels] + 2 * torch.randn(n, 512, generator=random)
        contenders: dict[str, Callable[[], Any]] = {
            "occfast, streaming": lambda f=features, y=labels: evaluate.all_pairs_roc(f, y)
        }
        if whole:

            def matrix(f: torch.Tensor = features, y: torch.Tensor = labels) -> float:
                x = torch.nn.functional.normalize(f)
                row, column = torch.triu_indices(len(x), len(x), 1)
                far, tar, _ = roc_curve((y[row] == y[column]).numpy(), (x @ x.T)[row, column].numpy())
                return float(auc(far, tar))

            contenders["whole matrix, scikit-learn"] = matrix
        count = n * (n - 1) // 2
        yield f"ROC over all {count:,} pairs of {n:,} features", "pairs", count, contenders


def occlusions(scale: int) -> Iterator[Workload]:
    face = torch.tensor([[51.7, 38.3], [51.5, 73.5], [71.7, 56.0], [92.4, 41.5], [92.2, 70.7]])
    random = torch.Generator().manual_seed(4)
    n = 256 // scale
    images = torch.randint(0, 256, (n, 3, 112, 112), dtype=torch.uint8, generator=random)
    landmarks = face + torch.randn(n, 5, 2, generator=random)
    for name in ("eyes", "sunglasses", "mask:surgical", "block:20x40"):
        cover = named_occlusion(name)
        yield f"{name}, {n} RGB images of 112×112", "images", n, {"occfast": lambda c=cover: c(images, landmarks)}


PARTS = {"folds": folds, "roc": roc, "search": search, "pairs": pairs, "occlusions": occlusions}


def measure(workload: Workload, rounds: int) -> list[dict[str, Any]]:
    name, unit, items, contenders = workload
    best = {who: float("inf") for who in contenders}
    memory = {}
    for who, run in contenders.items():  # the first run is a warm-up too
        with Peak() as peak:
            started = time.perf_counter()
            run()
            best[who] = time.perf_counter() - started
        memory[who] = peak.mib
    for _ in range(rounds):
        for who, run in contenders.items():
            if best[who] > 20:
                continue
            started = time.perf_counter()
            run()
            best[who] = min(best[who], time.perf_counter() - started)
    ours = next(seconds for who, seconds in best.items() if who.startswith("occfast"))
    return [
        {
            "workload": name,
            "who": who,
            "seconds": seconds,
            "rate": items / seconds,
            "unit": unit,
            "added_memory_mib": round(memory[who], 1),
            "occfast_is": seconds / ours,
        }
        for who, seconds in best.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.evaluation", description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=list(PARTS), action="append")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=RESULTS / "evaluation.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    print("| workload | who | seconds | a second | added memory | occfast is |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for part in options.only or PARTS:
        for workload in PARTS[part](10 if options.quick else 1):
            for row in measure(workload, options.rounds):
                ratio = "" if row["occfast_is"] == 1 else f"{row['occfast_is']:.1f}×"
                print(
                    f"| {row['workload']} | {row['who']} | {row['seconds']:.4f} | {row['rate']:,.0f} {row['unit']} | "
                    f"{row['added_memory_mib']:,.0f} MiB | {ratio} |",
                    flush=True,
                )
                rows.append(row)
    write(options.output, {**environment("scikit-learn", "scipy"), "rows": rows})


if __name__ == "__main__":
    main()
