"""``python -m bench.audit_intervals``: how often the intervals of an audit hold the true rates.

Each simulation draws people, and images of them whose features scatter around a person's own center by an amount of
the person's own. A covering adds scatter. The truth comes from one population of many people, at the threshold that
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
    base = PairScores.of(clean, clean, labels, highest=4 * fmr, symmetric=True)
    threshold, drawn_threshold = people.threshold(base, fmr)
    probe = PairScores.of(clean, covered, labels, highest=4 * fmr, symmetric=False, thresholds=(threshold,))
    found = {
        name: people.fnmr(scores, threshold, drawn_threshold)
        for name, scores in (("uncovered", base), ("covered", probe))
    }
    (value, drawn), (value_covered, drawn_covered) = found["uncovered"], found["covered"]
    found["increase"] = value_covered - value, drawn_covered - drawn
    found["FMR under the covering"] = people.fmr(probe, probe.matches[0])
    own, drawn_own = people.threshold(probe, fmr)
    found["covered, at its own threshold"] = people.fnmr(probe, own, drawn_own)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.audit_intervals", description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=400)
    parser.add_argument("--people", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--resamples", type=int, default=500)
    parser.add_argument("--population", type=int, default=2500)
    parser.add_argument("--output", type=Path, default=RESULTS / "audit-intervals.json")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    generator = torch.Generator().manual_seed(0)
    whole = draw(options.population, generator)
    rows: list[dict[str, Any]] = []
    result = {**environment(), "confidence": 0.95, "rows": rows}
    for fmr in FMRS:
        truth = rates(People(options.population, 1, 0.95, 0), *whole, fmr)
        for count in options.people:
            held: dict[str, list[bool]] = {}
            widths: dict[str, list[float]] = {}
            for k in range(options.simulations):
                people = People(count, options.resamples, 0.95, k)
                for name, (value, drawn) in rates(people, *draw(count, generator), fmr).items():
                    low, high = (
                        people.interval(drawn) if name == "increase" else people.rate(value, drawn, count).interval
                    )
                    held.setdefault(name, []).append(bool(low <= truth[name][0] <= high))
                    widths.setdefault(name, []).append(high - low)
            for name in held:
                row = {
                    "fmr": fmr,
                    "people": count,
                    "images each": EACH,
                    "rate": name,
                    "truth": round(truth[name][0], 5),
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
