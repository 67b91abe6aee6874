"""The networks' results on LFW's pairs, and their differences with intervals over seeds and images.

A difference varies with the seed of the networks and with the people of the pairs. Its variance is estimated as the sum
of two: the variance of the seeds' differences over their number, and that of the mean over seeds when people are
resampled, all seeds and networks on the same resample. What depends on both is counted in each, so intervals are a
little too wide rather than too narrow. Their quantile is Student's with Satterthwaite's degrees of freedom. Thresholds
are those of the folds; they are not chosen again in a resample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....evaluate.resampling import pair_weights
from ....files import read_npz
from ...graph import Done
from ...values import CONFIDENCE, Comparison
from .settings import TrunkSettings

Floats = NDArray[np.float64]
#: What scores are summarized by, as in :func:`~occfast.reproduce.trigueros2018.steps.distributions`.
SCORES = ("gap", "decidability", "std_same", "std_different")
#: Most seeds that :func:`seeds_needed` names.
_MOST = 100_000


class TrunkResults:
    """The results of the steps.

    Args:
        settings: of the run.
        steps: the finished steps by name.
        same: whether each pair of LFW shows one person, bool [P].
        people: the person on each side, int64 [P, 2].
    """

    def __init__(
        self, settings: TrunkSettings, steps: Mapping[str, Done], same: NDArray[np.bool_], people: NDArray[np.int64]
    ) -> None:
        self.settings, self.steps, self.same, self.people = settings, steps, same, people
        self._resampled: dict[tuple[str, str], Floats] = {}
        self._files: dict[Path, dict[str, NDArray[Any]]] = {}

    def facts(self, step: str, network: str) -> list[Mapping[str, Any]]:
        """Return what "networks" or "verify" tells of a network, for each seed."""
        return [self._step(step, network, seed).result["networks"][network] for seed in self.settings.seeds]

    def _step(self, step: str, network: str, seed: int) -> Done:
        end = network.partition(" ")[0][1:]
        return self.steps[f"seed {seed}: {f'{step} {end}'.rstrip()}"]

    def values(self, network: str, what: str, step: str = "verify", factor: float = 1.0) -> tuple[float, ...]:
        """Return a number of a network for each seed."""
        return tuple(factor * float(found[what]) for found in self.facts(step, network))

    def choices(self) -> Mapping[str, Any]:
        """Return the results of the steps that choose hyperparameters."""
        names = ("A", "B and C", "occluders")
        return {name: self.steps[f"choose {name}"].result for name in names if f"choose {name}" in self.steps}

    # -- comparisons ----------------------------------------------------------------------------------------

    def compare(
        self, name: str, pairs: Sequence[tuple[str, str]], what: str = "accuracy", *, sign: int = 1
    ) -> Comparison:
        """Compare networks on LFW's pairs.

        Args:
            name: of the comparison.
            pairs: networks (a, b); the difference a − b is averaged over them.
            what: "accuracy", in points, or one of :data:`SCORES`, in hundredths but for the decidability.
            sign: −1 for b − a.
        """
        factor = sign * (1.0 if what == "decidability" else 100.0)
        seen = np.mean([np.subtract(self.values(a, what), self.values(b, what)) for a, b in pairs], 0)
        drawn = np.mean([self._draws(a, what) - self._draws(b, what) for a, b in pairs], 0)
        return judged(name, factor * seen, factor * drawn.mean(1))

    def _draws(self, network: str, what: str) -> Floats:
        """Return a figure of a network in each resample of people for each seed, [R, S]."""
        if (network, what) not in self._resampled:
            for key, value in (self._accuracies if what == "accuracy" else self._moments)(network).items():
                self._resampled[network, key] = value
        return self._resampled[network, what]

    @cached_property
    def _weights(self) -> NDArray[np.float32]:
        blocks = pair_weights(self.people, self.settings.resamples, 0, "64MiB")
        return np.concatenate([block.astype(np.float32) for block in blocks])

    def _stored(self, file: str, network: str) -> Floats:
        """Read an array of the step "verify" for each seed, [P, S]."""
        found = []
        for seed in self.settings.seeds:
            path = self._step("verify", network, seed).folder / file
            if path not in self._files:
                self._files[path] = read_npz(path)
            found.append(self._files[path][network].astype(np.float64))
        return np.stack(found, 1)

    def _accuracies(self, network: str) -> dict[str, Floats]:
        total = self._weights.sum(1, dtype=np.float64)[:, None]
        correct = self._stored("correct.npz", network).astype(np.float32)
        return {"accuracy": (self._weights @ correct).astype(np.float64) / total}

    def _moments(self, network: str) -> dict[str, Floats]:
        scores = self._stored("scores.npz", network)
        means, variances = [], []
        for kind in (self.same, ~self.same):
            weight = self._weights[:, kind].astype(np.float64)
            weight /= weight.sum(1, keepdims=True)
            center = scores[kind].mean(0)
            apart = scores[kind] - center
            mean = weight @ apart
            means.append(mean + center)
            variances.append(weight @ apart**2 - mean**2)
        gap = means[0] - means[1]
        return {
            "gap": gap,
            "decidability": np.abs(gap) / np.sqrt((variances[0] + variances[1]) / 2),
            "std_same": np.sqrt(variances[0]),
            "std_different": np.sqrt(variances[1]),
        }


def judged(name: str, seen: Floats, drawn: Floats) -> Comparison:
    """Make a comparison with an interval over seeds and images.

    Args:
        name: of the comparison.
        seen: difference of each seed, [S].
        drawn: mean difference over seeds in each resample of the people, [R].
    """
    if len(seen) < 2:
        low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return Comparison(name, tuple(map(float, seen)), over_images=(float(low), float(high)))
    mean, seeds, images = float(seen.mean()), float(seen.var(ddof=1)), float(drawn.var(ddof=1))
    half = half_width(seeds, images, len(seen))
    needed = seeds_needed(mean, seeds, images, len(seen)) if abs(mean) <= half else None
    return Comparison(name, tuple(map(float, seen)), whole=(mean - half, mean + half), seeds_needed=needed)


def half_width(seeds: float, images: float, count: int) -> float:
    """Return half of the width of the 95 % interval.

    Args:
        seeds: variance of the difference from seed to seed.
        images: variance of the mean difference over resamples of people.
        count: number of seeds.
    """
    from scipy.stats import t

    over_seeds = seeds / count
    total = over_seeds + images
    if total == 0:
        return 0.0
    freedom = math.inf if over_seeds == 0 else (count - 1) * (total / over_seeds) ** 2
    return float(t.ppf((1 + CONFIDENCE) / 2, min(freedom, 1e6))) * math.sqrt(total)


def seeds_needed(mean: float, seeds: float, images: float, count: int) -> int | None:
    """Return the number of seeds whose interval excludes 0 if nothing else changes; None if no number's does."""
    low, high = count, _MOST
    if abs(mean) <= half_width(seeds, images, high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if abs(mean) > half_width(seeds, images, middle) else (middle, high)
    return high


__all__ = ["SCORES", "TrunkResults", "half_width", "judged", "seeds_needed"]
