"""``python -m bench.audit_intervals``: how often the intervals of an audit hold the true rates.

Each simulation draws people, and images of them whose features scatter around a person's own center by an amount of
the person's own. A covering adds scatter. The truth is the mean over large populations, each at the threshold that
gives the FMR there; the intervals come from a sample, with the threshold chosen on it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.harness import RESULTS, environment, write
from occfast.audit.rates import PairScores, People

DIMENSIONS, EACH = 32, 4
FMRS = (1e-2, 1e-3)


def draw(people: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return uncovered and covered features, and labels."""
    labels = torch.arange(people).repeat_interleave(EACH)
    center = torch.randn(people, DIMENSIONS, generator=generator)
    scatter = (0.55 * torch.exp(0.3 * torch.randn(people, 1, generator=generator)))[labels]
    features = center[labels] + scatter * torch.randn(len(labels), DIMENSIONS, generator=generator)
    covering = 0.8 * torch.exp(0.3 * torch.randn(people, 1, generator=generator))[labels]
    covered = features + covering * torch.randn(len(labels), DIMENSIONS, generator=generator)
    return features, covered, labels


def rates(people: People, clean: Tensor, covered: Tensor, labels: Tensor, fmr: float) -> dict[str, Any]:
    """Return the rates by name, each with its resamples."""
    base = PairScores.of(clean, clean, labels, fmr=fmr, symmetric=True)
    threshold, drawn_threshold = people.threshold(base, fmr)
    every = np.append(drawn_threshold, threshold)
    band = float(every.min()), float(every.max())
    probe = PairScores.of(clean, covered, labels, fmr=fmr, symmetric=False, band=band)
    (uncovered,) = people.fnmr(base, (threshold, drawn_threshold))
    own = people.threshold(probe, fmr)
    covered_rate, at_own = people.fnmr(probe, (threshold, drawn_threshold), own)
    found = {
        "uncovered": uncovered,
        "covered": covered_rate,
        "increase": (covered_rate[0] - uncovered[0], covered_rate[1] - uncovered[1]),
    }
    found["FMR under the covering"] = people.fmr(probe, threshold, drawn_threshold)
    found["covered, at its own threshold"] = at_own
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.audit_intervals", description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=400)
    parser.add_argument("--people", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--resamples", type=int, default=500)
    parser.add_argument("--population", type=int, default=1500)
    parser.add_argument("--populations", type=int, default=20)
    parser.add_argument("--output", type=Path, default=RESULTS / "audit-intervals.json")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    generator = torch.Generator().manual_seed(0)
    wholes = [draw(options.population, generator) for _ in range(options.populations)]
    rows: list[dict[str, Any]] = []
    result = {**environment(), "confidence": 0.95, "rows": rows}
    for fmr in FMRS:
        alone = People(options.population, 1, 0.95, 0)
        values = [{name: found[0] for name, found in rates(alone, *whole, fmr).items()} for whole in wholes]
        truth = {name: float(np.mean([value[name] for value in values])) for name in values[0]}
        for count in options.people:
            held: dict[str, list[bool]] = {}
            widths: dict[str, list[float]] = {}
            for k in range(options.simulations):
                people = People(count, options.resamples, 0.95, k)
                for name, (value, drawn) in rates(people, *draw(count, generator), fmr).items():
                    low, high = (
                        people.interval(drawn) if name == "increase" else people.rate(value, drawn, count).interval
                    )
                    held.setdefault(name, []).append(bool(low <= truth[name] <= high))
                    widths.setdefault(name, []).append(high - low)
            for name in held:
                row = {
                    "fmr": fmr,
                    "people": count,
                    "images each": EACH,
                    "rate": name,
                    "truth": round(truth[name], 5),
                    "held": round(float(np.mean(held[name])), 4),
                    "mean width": round(float(np.mean(widths[name])), 4),
                    "simulations": options.simulations,
                }
                rows.append(row)
                print(
                    f"FMR {fmr:g}, {count} people, {name}: truth {row['truth']}, held in {100 * row['held']:.1f} %",
                    flush=True,
                )
            write(options.output, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
