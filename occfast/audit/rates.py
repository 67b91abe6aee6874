"""False matches and false non-matches of all pairs of a set of faces, with intervals from a bootstrap over people.

Terms follow ISO/IEC 19795-1: a pair of one person is genuine, one of two people an impostor pair; FMR and FNMR are the
shares of impostor pairs that match and of genuine pairs that do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..evaluate.curves import Interval, allowed_accepts, binomial_interval
from ..evaluate.resampling import rate_interval

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_BLOCK = 2**22  # numbers of one block of resamples
_ROWS = 256  # references that are compared at a time


@dataclass(frozen=True)
class Rate:
    """A rate with its confidence interval.

    Attributes:
        value: The rate, in [0, 1].
        interval: Percentile interval of a bootstrap over people; where all pairs agree, that of Clopper and Pearson
            with one trial for each person.
    """

    value: float
    interval: Interval

    def as_dict(self) -> dict[str, Any]:
        """Return the values for JSON."""
        return {"value": self.value, "interval": list(self.interval)}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} % ({100 * low:.1f}-{100 * high:.1f} %)"


@dataclass(frozen=True, eq=False)
class PairScores:
    """Scores of all pairs of reference and probe.

    Attributes:
        genuine: Scores of the genuine pairs, ascending, [G].
        genuine_people: Person of each of them, numbered from 0, [G].
        genuine_probes: Number of its probe, [G].
        impostor: The highest scores of impostor pairs, descending, [K].
        impostor_people: The two people of each of them, [K, 2].
        images: Number of images of each person, [people].
        n_impostor: Number of all impostor pairs.
        matches: For each threshold that was asked for, the number of impostor pairs at or above it by their two
            people, [people, people].
    """

    genuine: Floats
    genuine_people: Ints
    genuine_probes: Ints
    impostor: Floats
    impostor_people: Ints
    images: Ints
    n_impostor: int
    matches: list[Ints]

    @classmethod
    def of(
        cls,
        references: Tensor,
        probes: Tensor,
        labels: Tensor,
        *,
        highest: float,
        symmetric: bool,
        thresholds: tuple[float, ...] = (),
    ) -> PairScores:
        """Compare all images with all others.

        Args:
            references, probes: Features of the same N images, float [N, D], normalized here.
            labels: Person on each image, int64 [N], all numbers below the number of people.
            highest: Share of the impostor pairs that is kept, in (0, 1].
            symmetric: Whether pair (i, j) equals pair (j, i), as where references and probes are the same; each pair
                then counts once.
            thresholds: Thresholds for ``matches``.
        """
        first, second = (torch.nn.functional.normalize(x.double(), dim=1) for x in (references, probes))
        n, people = len(labels), int(labels.max()) + 1
        images = labels.bincount(minlength=people)
        total = int((n * n - int((images**2).sum())) // (2 if symmetric else 1))
        keep = min(total, math.ceil(highest * total) + 1000)
        genuine: list[tuple[Tensor, Tensor, Tensor]] = []
        impostor, sides = torch.empty(0, dtype=torch.float64), torch.empty(0, 2, dtype=torch.int64)
        matches = [torch.zeros(people * people, dtype=torch.int64) for _ in thresholds]
        column = torch.arange(n)
        floor = -math.inf
        for start in range(0, n, _ROWS):
            row = column[start : start + _ROWS]
            scores = first[row] @ second.T
            counted = row[:, None] < column if symmetric else row[:, None] != column
            same = labels[row][:, None] == labels
            i, j = (same & counted).nonzero(as_tuple=True)
            genuine.append((scores[i, j], labels[row][i], j))
            others = counted & ~same
            for table, threshold in zip(matches, thresholds, strict=True):
                i, j = (others & (scores >= threshold)).nonzero(as_tuple=True)
                table += (labels[row][i] * people + labels[j]).bincount(minlength=people * people)
            i, j = (others & (scores >= floor)).nonzero(as_tuple=True)
            impostor = torch.cat([impostor, scores[i, j]])
            sides = torch.cat([sides, torch.stack([labels[row][i], labels[j]], 1)])
            if len(impostor) > 2 * keep or start + _ROWS >= n:
                impostor, order = impostor.topk(min(keep, len(impostor)))
                sides, floor = sides[order], float(impostor[-1]) if len(impostor) == keep else -math.inf
        values, who, probe = (torch.cat(parts) for parts in zip(*genuine, strict=True))
        values, order = values.sort()
        return cls(
            values.numpy(),
            who[order].numpy(),
            probe[order].numpy(),
            impostor.numpy(),
            sides.numpy(),
            images.numpy(),
            total,
            [table.reshape(people, people).numpy() for table in matches],
        )


class People:
    """Resamples of people, drawn with replacement; the same for all that is compared.

    Args:
        people: Number of people.
        resamples: Number of resamples.
        confidence: Confidence level, in (0, 1).
        seed: Random seed.
    """

    def __init__(self, people: int, resamples: int, confidence: float, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.times: Ints = random.multinomial(people, np.full(people, 1 / people), size=resamples)
        self.confidence, self.seed = confidence, seed

    def threshold(self, scores: PairScores, fmr: float) -> tuple[float, Floats]:
        """Return the lowest threshold whose FMR is at most ``fmr``, and that of each resample.

        It is NaN for resamples of one person alone, here and in all rates.
        """
        ends = np.flatnonzero(np.r_[np.diff(scores.impostor) != 0, True])
        distinct = scores.impostor[ends]

        def chosen(accepted: NDArray[Any], allowed: NDArray[Any]) -> Floats:
            """Return the lowest of the drawn scores at which few enough match, else one above all drawn scores."""
            count = (accepted <= allowed[:, None] * (1 + 1e-12) + 1e-9).sum(1)
            most = np.where(count > 0, accepted[np.arange(len(accepted)), np.maximum(count, 1) - 1], 0)
            first = np.minimum((accepted < np.maximum(most, 1)[:, None]).sum(1), len(distinct) - 1)
            found: Floats = np.where(most > 0, distinct[first], np.nextafter(distinct[first], np.inf))
            return found

        value = chosen(ends[None] + 1, np.array([fmr * scores.n_impostor]))[0]
        first, second = scores.impostor_people.T
        allowed, start = fmr * self._impostors(scores), 0
        parts = []
        for times in self._blocks(len(first)):
            weight = (times[:, first] * times[:, second]).cumsum(1)[:, ends]
            parts.append(chosen(weight, allowed[start : start + len(times)]))
            start += len(times)
        return float(value), np.where(allowed > 0, np.concatenate(parts), np.nan)  # NaN where one person was drawn

    def fnmr(self, scores: PairScores, threshold: float, thresholds: Floats) -> tuple[float, Floats]:
        """Return the FNMR at a threshold, and that of each resample at its own."""
        value = np.searchsorted(scores.genuine, threshold) / len(scores.genuine)
        parts, start = [], 0
        for times in self._blocks(len(scores.genuine)):
            weight = times[:, scores.genuine_people].cumsum(1)
            rejected = np.searchsorted(scores.genuine, thresholds[start : start + len(times)])
            row = np.arange(len(times))
            below = np.where(rejected > 0, weight[row, np.maximum(rejected, 1) - 1], 0)
            below = np.where(np.isnan(thresholds[start : start + len(times)]), np.nan, below)
            with np.errstate(invalid="ignore"):
                parts.append(below / weight[:, -1])  # NaN also where nobody with two images was drawn
            start += len(times)
        return float(value), np.concatenate(parts)

    def fmr(self, scores: PairScores, matches: Ints) -> tuple[float, Floats]:
        """Return the FMR that a table of :attr:`PairScores.matches` shows, and that of each resample."""
        times = self.times.astype(float)
        accepted = ((times @ matches) * times).sum(1)
        with np.errstate(invalid="ignore"):
            drawn = accepted / self._impostors(scores)  # NaN where one person was drawn
        return float(matches.sum() / scores.n_impostor), drawn

    def _impostors(self, scores: PairScores) -> Floats:
        """Return the number of impostor pairs in each resample."""

        def ordered(images: Floats) -> Floats:
            counted: Floats = images.sum(-1) ** 2 - (images**2).sum(-1)
            return counted

        images = scores.images.astype(float)
        number: Floats = ordered(self.times * images) * (scores.n_impostor / ordered(images))
        return number

    def rate(self, value: float, drawn: Floats, people: int) -> Rate:
        """Return a rate with its interval; ``people`` is the number of people behind it."""
        if value in (0.0, 1.0):
            return Rate(value, binomial_interval(round(value * people), people, self.confidence))
        return Rate(value, self.interval(drawn))

    def share(self, hits: NDArray[np.bool_], people: Ints) -> Rate:
        """Return the share of hits, bool [N], of these people, [N]."""
        interval = rate_interval(hits, people, self.confidence, len(self.times), self.seed)
        return Rate(float(hits.mean()), interval)

    def interval(self, drawn: Floats) -> Interval:
        """Return the percentile interval of resamples; those that are NaN are left out."""
        alpha = (1 - self.confidence) / 2
        low, high = np.nanquantile(drawn, [alpha, 1 - alpha])
        return Interval(float(low), float(high))

    def _blocks(self, width: int) -> list[Ints]:
        size = max(1, _BLOCK // max(width, 1))
        return [self.times[k : k + size] for k in range(0, len(self.times), size)]


def supported(fmr: float, n_impostor: int) -> bool:
    """Return whether an FMR allows at least one false match among the pairs."""
    return allowed_accepts(fmr, n_impostor) >= 1
