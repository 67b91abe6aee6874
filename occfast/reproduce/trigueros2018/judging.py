"""Intervals over seeds and images for differences between networks.

A difference varies with the seed of the networks and with the images, or the people, that it is measured on. Its
variance is estimated as the sum of two: the variance of the seeds' differences over their number, and that of the mean
over seeds when images or people are resampled. What depends on both is counted in each, so intervals are a little too
wide rather than too narrow. Their quantile is Student's with Satterthwaite's degrees of freedom.
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...evaluate.resampling import pair_weights
from ..values import CONFIDENCE, Comparison

Floats = NDArray[np.float64]
#: What scores are summarized by, as in :func:`~occfast.reproduce.trigueros2018.steps.distributions`.
SCORES = ("gap", "decidability", "std_same", "std_different")
#: Most seeds that :func:`seeds_needed` names.
_MOST = 100_000


class PairDraws:
    """Resamples of the people of pairs, the same for all networks and seeds.

    Args:
        people: the person on each side, int64 [P, 2].
        resamples: number R of resamples.
    """

    def __init__(self, people: NDArray[np.int64], resamples: int) -> None:
        self._people, self._resamples = people, resamples

    @cached_property
    def _weights(self) -> NDArray[np.float32]:
        blocks = pair_weights(self._people, self._resamples, 0, "64MiB")
        return np.concatenate([block.astype(np.float32) for block in blocks])

    def accuracies(self, correct: NDArray[np.generic]) -> Floats:
        """Return the accuracy in each resample for each seed, [R, S]. The thresholds are not chosen again.

        Args:
            correct: whether each pair is classified correctly, [P, S].
        """
        total = self._weights.sum(1, dtype=np.float64)[:, None]
        right: Floats = (self._weights @ correct.astype(np.float32)).astype(np.float64)
        return np.asarray(right / total)

    def moments(self, scores: Floats, same: NDArray[np.bool_]) -> dict[str, Floats]:
        """Return each of :data:`SCORES` in each resample for each seed, [R, S].

        Args:
            scores: of the pairs, [P, S].
            same: whether each pair shows one person, [P].
        """
        means, variances = [], []
        for kind in (same, ~same):
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
        drawn: mean difference over seeds in each resample of the images or people, [R].
    """
    if len(seen) < 2:
        low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return Comparison(name, tuple(map(float, seen)), over_images=(float(low), float(high)))
    mean, seeds, images = float(seen.mean()), float(seen.var(ddof=1)), float(drawn.var(ddof=1))
    half = half_width(seeds, images, len(seen))
    needed = seeds_needed(mean, seeds, images, len(seen)) if abs(mean) <= half else None
    more = data_needed(mean, images) if needed is None and 0 < abs(mean) <= half else None
    whole = mean - half, mean + half
    return Comparison(name, tuple(map(float, seen)), whole=whole, seeds_needed=needed, data_needed=more)


def half_width(seeds: float, images: float, count: int) -> float:
    """Return half of the width of the 95 % interval.

    Args:
        seeds: variance of the difference from seed to seed.
        images: variance of the mean difference over resamples of images or people.
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


def data_needed(mean: float, images: float) -> float:
    """Return how many times as many images exclude 0 with very many seeds if nothing else changes."""
    return half_width(0.0, images, 2) ** 2 / mean**2


__all__ = ["SCORES", "PairDraws", "data_needed", "half_width", "judged", "seeds_needed"]
