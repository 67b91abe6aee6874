"""``python -m bench.false_alarms``: how often ``OcclusionMap.compare`` reports a difference where there is none.

Each repetition draws the scores of two maps that do not differ in the mean, compares them at 5 % and counts a false
alarm if any position is significant. The cases differ in the distribution of the scores of single images:

- ``error``: two networks with the same smooth chance of an error at each position of an image, errors drawn apart.
- ``score_drop``: the same with heavy-tailed scores.
- ``skewed``: differences that are not symmetric, so that the test is only approximate.
- ``people``: four images of each person with a part in common; signs flip by person.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from bench.harness import RESULTS, environment, write
from occfast.sweep import OcclusionMap, SweepGrid

Scores = tuple[NDArray[Any], NDArray[Any], NDArray[np.int64] | None]

GRID = SweepGrid.over((48, 40), (10, 20), stride=2)  # 24 x 20 positions
IMAGES = 60


def _smooth(generator: np.random.Generator, n: int, width: float = 2.5) -> NDArray[np.float64]:
    """Return random fields [n, rows, columns] of unit variance, as smooth as maps of a wide occluder."""
    noise = generator.normal(size=(n, GRID.rows, GRID.columns))
    found: NDArray[np.float64] = gaussian_filter(noise, (0, width, width), mode="wrap")
    return found / float(found.std())


def _error(generator: np.random.Generator) -> Scores:
    chance = _smooth(generator, IMAGES) - 1.0 + _smooth(generator, 1)
    first, second = (chance + _smooth(generator, IMAGES) > 0 for _ in range(2))
    return first.astype(np.uint8), second.astype(np.uint8), None


def _score_drop(generator: np.random.Generator) -> Scores:
    image = _smooth(generator, IMAGES)
    first, second = (np.sinh(1.5 * _smooth(generator, IMAGES)) + image for _ in range(2))
    return first, second, None


def _skewed(generator: np.random.Generator) -> Scores:
    first = np.exp(0.5 * _smooth(generator, IMAGES)) - np.exp(0.125)
    return first, 0.3 * _smooth(generator, IMAGES), None


def _people(generator: np.random.Generator) -> Scores:
    people = np.repeat(np.arange(IMAGES // 2), 4)
    first, second = (_smooth(generator, IMAGES // 2)[people] + 0.5 * _smooth(generator, len(people)) for _ in range(2))
    return first, second, people


CASES: dict[str, Callable[[np.random.Generator], Scores]] = {
    "error": _error,
    "score_drop": _score_drop,
    "skewed": _skewed,
    "people": _people,
}


def _map(scores: NDArray[Any], score: str) -> OcclusionMap:
    n = len(scores)
    return OcclusionMap(
        values=scores.mean(0, dtype=np.float64),
        standard_error=np.zeros(scores.shape[1:]),
        per_image=scores if scores.dtype == np.uint8 else scores.astype(np.float32),
        grid=GRID,
        score=score,
        method="dense",
        n_images=n,
        n_skipped=0,
        n_evaluations=scores.size,
        seconds=0.0,
        mean_image=np.zeros((1, *GRID.image), np.float32),
        image_indices=np.arange(n),
    )


def false_alarms(case: str, repetitions: int, flips: int, seed: int = 0) -> float:
    """Return the share of repetitions of a case with a significant position."""
    score = "error" if case == "error" else "score_drop"
    alarms = 0
    for number in range(repetitions):
        generator = np.random.default_rng([seed, list(CASES).index(case), number])
        first, second, people = CASES[case](generator)
        found = _map(first, score).compare(_map(second, score), flips=flips, seed=number, groups=people)
        alarms += bool(found.significant.any())
    return alarms / repetitions


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=RESULTS / "false-alarms.json")
    options = parser.parse_args()
    rows = []
    for case in CASES:
        share = false_alarms(case, options.repetitions, options.flips)
        rows.append({"case": case, "level": 0.05, "repetitions": options.repetitions, "false_alarms": share})
        print(f"{case:<12} {share:.1%}", flush=True)
    about = {"positions": GRID.positions, "images": IMAGES, "flips": options.flips}
    write(options.output, {**environment("scipy"), **about, "rows": rows})


if __name__ == "__main__":
    main()
