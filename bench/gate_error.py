"""``python -m bench.gate_error``: how often ``occfast gate`` fails a recognizer that is not worse, or finds a loss.

Each repetition draws people and two recognizers' features of the same faces: a person's center, and scatter around it
by an amount of the person's own; coverings add scatter. The two recognizers share a part of all of it (``correlation``,
of each random number), and are exchangeable: where no loss is planted, neither is better. The power cases scatter the
second recognizer's features more, so that the FNMR at the main FMR is five points higher in large populations:

- ``everywhere``: all images, five points uncovered;
- ``covering``: only under the second covering, five points there.

For comparison, ``holm`` is how often Holm's correction of the same figures, each tested by itself, would fail it.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench.harness import RESULTS, environment, write
from occfast.audit.figures import UNCOVERED, Figure, Resampled
from occfast.audit.gate import gated
from occfast.audit.judge import Judge
from occfast.audit.paired import differences
from occfast.audit.rates import People

DIMENSIONS, EACH = 32, 5
FMRS, FMR = [1e-2, 1e-3], 1e-3
#: Scatter that a covering adds, as a multiple of that of a person's center.
COVERINGS = {"light": 0.3, "medium": 0.55, "heavy": 0.8}
LOSS = 0.05
_PLANTED = {"everywhere": UNCOVERED, "covering": "medium"}


class Features(NamedTuple):
    """Features of one recognizer, uncovered and by covering."""

    uncovered: Tensor
    covered: dict[str, Tensor]


def draw(
    people: int, correlation: float, generator: torch.Generator, *, loss: str = "", more: float = 0.0
) -> tuple[list[Features], Tensor]:
    """Return the features of two recognizers and the labels.

    Args:
        people: Number of people.
        correlation: Correlation of the two recognizers' random numbers.
        generator: Random numbers.
        loss: Where the second scatters more: "everywhere" or "covering".
        more: By how much, as a share.
    """
    labels = torch.arange(people).repeat_interleave(EACH)

    def both(*shape: int) -> list[Tensor]:
        common, *own = (torch.randn(*shape, generator=generator) for _ in range(3))
        return [math.sqrt(correlation) * common + math.sqrt(1 - correlation) * x for x in own]

    center, amount, scatter = both(people, DIMENSIONS), both(people, 1), both(len(labels), DIMENSIONS)
    covering = {name: (both(people, 1), both(len(labels), DIMENSIONS)) for name in COVERINGS}
    found = []
    for k in range(2):
        extra = 1 + more if k == 1 and loss == "everywhere" else 1.0
        clean = center[k][labels] + extra * 0.5 * torch.exp(0.3 * amount[k])[labels] * scatter[k]
        covered = {}
        for name, size in COVERINGS.items():
            own, noise = covering[name]
            extra = 1 + more if k == 1 and loss == "covering" and name == _PLANTED["covering"] else 1.0
            covered[name] = clean + extra * size * torch.exp(0.3 * own[k])[labels] * noise[k]
        found.append(Features(clean, covered))
    return found, labels


def figures(features: Features, labels: Tensor, people: People) -> dict[Figure, Resampled]:
    """Return the figures of an audit."""
    judge = Judge(people, features.uncovered, labels, FMRS, FMR, both=False)
    judge.condition(UNCOVERED, 0.0, features.uncovered, {})
    for name, covered in features.covered.items():
        judge.condition(name, 0.1, covered, {})
    return gated(judge.figures)


def planted(loss: str, more: float, *names: str, populations: int = 8, people: int = 400) -> list[float]:
    """Return how much the FNMR at the main FMR rises under these coverings, on average over populations."""
    found = []
    for seed in range(populations):
        generator = torch.Generator().manual_seed(10**6 + seed)
        pair, labels = draw(people, 0.5, generator, loss=loss, more=more)
        rates = []
        for features in pair:
            judge = Judge(People(people, 1, 0.95, 0), features.uncovered, labels, [FMR], FMR, both=False)
            each = {UNCOVERED: features.uncovered, **features.covered}
            rates.append([judge.fnmr(name, each[name]).value for name in names])
        found.append(np.subtract(rates[1], rates[0]))
    mean: list[float] = np.mean(found, 0).tolist()
    return mean


def amount_of(loss: str) -> float:
    """Return the additional scatter that raises the FNMR by five points."""
    low, high = 0.0, 0.4
    for _ in range(7):
        middle = (low + high) / 2
        low, high = (middle, high) if planted(loss, middle, _PLANTED[loss])[0] < LOSS else (low, middle)
    return (low + high) / 2


def holm_fails(first: dict[Figure, Resampled], second: dict[Figure, Resampled], level: float) -> bool:
    """Return whether Holm's correction of single normal tests finds any figure worse."""
    smallest = 1.0
    for figure in first:
        apart = second[figure].drawn - first[figure].drawn
        value = second[figure].value - first[figure].value
        worse = -value if figure.higher_is_better else value
        error = float(np.nanstd(apart))
        if error > 0:
            smallest = min(smallest, 0.5 * math.erfc(worse / error / math.sqrt(2)))
    return smallest <= level / len(first)


def share_failed(
    loss: str, more: float, correlation: float, people: int, repetitions: int, resamples: int, level: float
) -> dict[str, Any]:
    """Return how often the gate fails the second recognizer."""
    failed = holm = there = 0
    for number in range(repetitions):
        generator = torch.Generator().manual_seed(number)
        pair, labels = draw(people, correlation, generator, loss=loss, more=more)
        resampled = People(people, resamples, 0.95, number)
        first, second = (figures(features, labels, resampled) for features in pair)
        found = differences(first, second, people=people, level=level, alternative="worse")
        failed += any(d.significant for d in found)
        there += any(d.significant for d in found if d.figure.covering == _PLANTED.get(loss))
        holm += holm_fails(first, second, level)
    about: dict[str, Any] = {"failed": failed / repetitions, "holm": holm / repetitions, "figures": len(found)}
    return {**about, "failed_where_planted": there / repetitions} if loss else about


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gate_error", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=1000, help="repetitions without a loss")
    parser.add_argument("--power-repetitions", type=int, default=200, help="repetitions with a loss")
    parser.add_argument("--resamples", type=int, default=500)
    parser.add_argument("--cases", type=int, help="only the first cases")
    parser.add_argument("--output", type=Path, default=RESULTS / "gate-error.json")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    rows: list[dict[str, Any]] = []
    about = {"images each": EACH, "fmrs": FMRS, "level": 0.05, "resamples": options.resamples}
    result = {**environment(), **about, "rows": rows}
    more = {"": 0.0, **{loss: amount_of(loss) for loss in _PLANTED}}
    names = (UNCOVERED, *COVERINGS)
    rises = {
        loss: {name: round(rise, 4) for name, rise in zip(names, planted(loss, x, *names), strict=True)}
        for loss, x in more.items()
        if loss
    }
    # Errors of both kinds on 500 faces; false alarms of less similar recognizers; a loss under one covering on 1,000.
    cases = [(0.8, loss, 100) for loss in more] + [(0.5, "", 100), (0.8, "covering", 200)]
    for correlation, loss, people in cases[: options.cases]:
        count = options.power_repetitions if loss else options.repetitions
        found = share_failed(loss, more[loss], correlation, people, count, options.resamples, 0.05)
        about = {"correlation": correlation, "faces": people * EACH, "people": people, "loss": loss or "none"}
        rows.append({**about, "fnmr rises": rises.get(loss, {}), "repetitions": count, **found})
        print(rows[-1], flush=True)
        write(options.output, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
