"""``python -m bench.intervals``: how often the demo's bootstrap intervals hold the true difference, by simulation.

Each round draws 80 images from a population of 20,000 and compares two networks on them. An image has a difficulty and
a hill somewhere in its map; a network fails at a location where hill and difficulty, and its own noise, pass its
threshold. The true differences are those over the whole population. The share of the rounds whose interval holds them
is written with its Clopper-Pearson interval.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from bench.harness import RESULTS, environment, write
from occfast.reproduce.trigueros2018.effects import Effects, Measured

_SIDE = 9  # locations of a map: _SIDE²
_POPULATION = 20_000
#: Thresholds of the two networks; the second is the stronger one.
_THRESHOLDS = {"weak": 1.0, "strong": 1.4}


def population(seed: int) -> dict[str, NDArray[np.uint8]]:
    """Return whether each network recognizes each image at each location, uint8 [images, locations]."""
    random = np.random.default_rng(seed)
    rows, columns = np.divmod(np.arange(_SIDE**2), _SIDE)
    # Hills lie around the upper middle, as the eyes do, so that the mean maps are not flat.
    y, x = random.normal(3, 1.5, (_POPULATION, 1)), random.normal(4, 2.0, (_POPULATION, 1))
    hill = 1.5 * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * 2.0**2))
    difficulty = random.normal(0, 0.6, (_POPULATION, 1))
    found = {}
    for name, threshold in _THRESHOLDS.items():
        noise = random.normal(0, 0.3, (_POPULATION, 1)) + random.normal(0, 0.2, hill.shape)
        found[name] = (hill + difficulty + noise < threshold).astype(np.uint8)
    return found


def coverage(rounds: int, images: int, seed: int = 0) -> dict[str, Any]:
    """Return the shares of rounds whose intervals hold the true differences of means and standard deviations."""
    everyone = population(seed)
    maps = {name: found.mean(0) for name, found in everyone.items()}
    true = {
        "mean": 100 * (maps["strong"].mean() - maps["weak"].mean()),
        "standard deviation": 100 * (maps["strong"].std() - maps["weak"].std()),
    }
    held = dict.fromkeys(true, 0)
    random = np.random.default_rng([seed, 1])
    for k in range(rounds):
        drawn = random.choice(_POPULATION, images, replace=False)
        numbers = np.arange(images)
        measured = {name: Measured(numbers, found[drawn], numbers) for name, found in everyone.items()}
        effect = Effects(measured, seed=k, resamples=2000).compare("strong", "weak")
        intervals = {"mean": effect.mean_interval, "standard deviation": effect.std_interval}
        for name, (low, high) in intervals.items():
            held[name] += low <= true[name] <= high
    return {
        "rounds": rounds,
        "images": images,
        "locations": _SIDE**2,
        "true_differences": true,
        "coverage": {name: count / rounds for name, count in held.items()},
        "interval": {name: _exact(count, rounds) for name, count in held.items()},
    }


def _exact(count: int, of: int) -> tuple[float, float]:
    low = float(beta.ppf(0.025, count, of - count + 1)) if count else 0.0
    high = float(beta.ppf(0.975, count + 1, of - count)) if count < of else 1.0
    return low, high


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.intervals", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--images", type=int, default=80)
    parser.add_argument("--output", type=Path, default=RESULTS / "intervals.json")
    options = parser.parse_args()
    result = environment() | coverage(options.rounds, options.images)
    write(options.output, result)
    print(f"{result['coverage']}, written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
