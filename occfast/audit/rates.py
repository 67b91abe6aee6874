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

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_BLOCK = 2**17  # numbers of one block of resamples: what stays in the cache
_ROWS = 256  # references that are compared at a time


@dataclass(frozen=True)
class Rate:
    """A rate with its confidence interval.

    Attributes:
        value: The rate, in [0, 1].
        interval: That of Clopper and Pearson for as many independent trials as have the variance of a bootstrap over
            people (Korn and Graubard 1998); where all pairs agree, for one trial for each person.
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
        above: Number of impostor pairs above the band by their two people, [people, people].
        band: Scores of the impostor pairs inside the band, descending, [M].
        band_people: The two people of each of them, [M, 2].
    """

    genuine: Floats
    genuine_people: Ints
    genuine_probes: Ints
    impostor: Floats
    impostor_people: Ints
    images: Ints
    n_impostor: int
    above: Ints
    band: Floats
    band_people: Ints

    @classmethod
    def of(
        cls,
        references: Tensor,
        probes: Tensor,
        labels: Tensor,
        *,
        fmr: float,
        symmetric: bool,
        band: tuple[float, float] | None = None,
    ) -> PairScores:
        """Compare all images with all others.

        Args:
            references, probes: Features of the same N images, float [N, D], normalized here.
            labels: Person on each image, int64 [N], all numbers below the number of people.
            fmr: Highest FMR whose threshold will be asked for; it decides how many impostor pairs are kept.
            symmetric: Whether pair (i, j) equals pair (j, i), as where references and probes are the same; each pair
                then counts once.
            band: Lowest and highest threshold at which impostor pairs will be counted; None: no such band.
        """
        first, second = (torch.nn.functional.normalize(x.double(), dim=1) for x in (references, probes))
        n, people = len(labels), int(labels.max()) + 1
        images = labels.bincount(minlength=people)
        total = int((n * n - int((images**2).sum())) // (2 if symmetric else 1))
        keep = min(total, _kept(fmr, total))
        genuine: list[tuple[Tensor, Tensor, Tensor]] = []
        impostor, sides = torch.empty(0, dtype=torch.float64), torch.empty(0, 2, dtype=torch.int64)
        low, high = band or (math.inf, math.inf)
        above = torch.zeros(people * people if band else 0, dtype=torch.int64)
        inside: list[tuple[Tensor, Tensor]] = []
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
            if band:
                i, j = (others & (scores > high)).nonzero(as_tuple=True)
                above += (labels[row][i] * people + labels[j]).bincount(minlength=people * people)
                i, j = (others & (scores >= low) & (scores <= high)).nonzero(as_tuple=True)
                inside.append((scores[i, j], torch.stack([labels[row][i], labels[j]], 1)))
            i, j = (others & (scores >= floor)).nonzero(as_tuple=True)
            impostor = torch.cat([impostor, scores[i, j]])
            sides = torch.cat([sides, torch.stack([labels[row][i], labels[j]], 1)])
            if len(impostor) > 2 * keep or start + _ROWS >= n:
                impostor, order = impostor.topk(min(keep, len(impostor)))
                sides, floor = sides[order], float(impostor[-1]) if len(impostor) == keep else -math.inf
        values, who, probe = (torch.cat(parts) for parts in zip(*genuine, strict=True))
        values, order = values.sort()
        between, who_between = (
            (torch.cat(parts) for parts in zip(*inside, strict=True)) if band else (impostor[:0], sides[:0])
        )
        between, descending = between.sort(descending=True)
        return cls(
            values.numpy(),
            who[order].numpy(),
            probe[order].numpy(),
            impostor.numpy(),
            sides.numpy(),
            images.numpy(),
            total,
            above.reshape(people, people).numpy() if band else np.zeros((people, people), np.int64),
            between.numpy(),
            who_between[descending].numpy(),
        )

    def table(self, people: Ints) -> Ints:
        """Count pairs, int [M, 2], by their two people, [people, people]."""
        n = len(self.images)
        found: Ints = np.bincount(people[:, 0] * n + people[:, 1], minlength=n * n).reshape(n, n)
        return found

    def matches(self, threshold: float) -> Ints:
        """Count the kept impostor pairs at or above a threshold by their two people, [people, people]."""
        return self.table(self.impostor_people[: np.searchsorted(-self.impostor, -threshold, side="right")])

    def variance(self, matches: Ints) -> float:
        """Estimate the variance of an FMR over samples of people from a table of matches.

        Pairs of people are correlated where they share a person.
        """
        images = self.images.astype(float)
        everybody = np.outer(images, images)
        np.fill_diagonal(everybody, 0.0)
        everybody *= self.n_impostor / (everybody.sum() / 2)
        apart = (matches + matches.T) - matches.sum() / self.n_impostor * everybody
        alone = float((apart**2).sum()) / 2
        shared = float((apart.sum(1) ** 2).sum()) - alone
        return max(shared, alone) / float(self.n_impostor) ** 2


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
        self.confidence = confidence

    def threshold(self, scores: PairScores, fmr: float) -> tuple[float, Floats]:
        """Return the lowest threshold whose FMR is at most ``fmr``, and that of each resample.

        It is NaN for resamples of one person alone, here and in all rates.
        """
        kept = _kept(fmr, scores.n_impostor)
        impostor = scores.impostor[:kept]
        ends = np.flatnonzero(np.r_[np.diff(impostor) != 0, True])
        distinct = impostor[ends]
        whole = (ends + 1) / scores.n_impostor

        def chosen(rates: Floats) -> Floats:
            """Return the lowest of the drawn scores at which few enough match, else one above all drawn scores."""
            count = (rates <= fmr * (1 + 1e-12)).sum(1)
            most = np.where(count > 0, rates[np.arange(len(rates)), np.maximum(count, 1) - 1], 0)
            if share < 1:  # every score has been drawn in part
                first = np.maximum(count, 1) - 1
            else:
                first = np.minimum((rates < np.maximum(most, 1e-300)[:, None]).sum(1), len(distinct) - 1)
            found: Floats = np.where(most > 0, distinct[first], np.nextafter(distinct[first], np.inf))
            return found

        share = 1.0
        value = float(chosen(whole[None])[0])
        share, impostors, start = self._share_kept(scores, scores.matches(value)), self._impostors(scores), 0
        first, second = scores.impostor_people[:kept].T
        parts = []
        for times in self._blocks(len(first)):
            rates = (times[:, first] * times[:, second]).cumsum(1, dtype=np.float64)
            rates = rates if len(ends) == len(impostor) else rates[:, ends]
            with np.errstate(invalid="ignore", divide="ignore"):
                rates *= (share / impostors[start : start + len(times)])[:, None]
            if share < 1:
                rates += (1 - share) * whole
            parts.append(chosen(rates))
            start += len(times)
        return value, np.where(impostors > 0, np.concatenate(parts), np.nan)  # NaN where one person was drawn

    def fnmr(self, scores: PairScores, *chosen: tuple[float, Floats]) -> list[tuple[float, Floats]]:
        """Return the FNMR at each threshold, and that of each resample at its own."""
        rejected = [np.searchsorted(scores.genuine, thresholds) for _, thresholds in chosen]
        parts: list[list[Floats]] = [[] for _ in chosen]
        start = 0
        for times in self._blocks(len(scores.genuine)):
            weight = times[:, scores.genuine_people].cumsum(1)
            row = np.arange(len(times))
            for numbers, part in zip(rejected, parts, strict=True):
                number = numbers[start : start + len(times)]
                below = np.where(number > 0, weight[row, np.maximum(number, 1) - 1], 0)
                with np.errstate(invalid="ignore"):
                    part.append(below / weight[:, -1])  # NaN where nobody with two images was drawn
            start += len(times)
        count = len(scores.genuine)
        return [
            (
                float(np.searchsorted(scores.genuine, threshold) / count),
                np.where(np.isnan(thresholds), np.nan, np.concatenate(part)),
            )
            for (threshold, thresholds), part in zip(chosen, parts, strict=True)
        ]

    def fmr(self, scores: PairScores, threshold: float, thresholds: Floats) -> tuple[float, Floats]:
        """Return the FMR at a threshold, and that of each resample at its own; all lie in the band of the scores."""
        times = self.times.astype(float)
        accepted = ((times @ scores.above) * times).sum(1)
        ascending = -scores.band
        counts = np.searchsorted(ascending, -thresholds, side="right")
        first, second = scores.band_people.T
        start = 0
        for part in self._blocks(len(first)) if len(first) else ():
            rows = np.arange(len(part))
            count = counts[start : start + len(part)]
            weight = (part[:, first] * part[:, second]).cumsum(1)
            accepted[start : start + len(part)] += np.where(count > 0, weight[rows, np.maximum(count, 1) - 1], 0)
            start += len(part)
        inside = int(np.searchsorted(ascending, -threshold, side="right"))
        above, n = int(scores.above.sum()), scores.n_impostor
        share = self._share_kept(scores, scores.above + scores.table(scores.band_people[:inside]))
        whole = (above + counts) / n
        with np.errstate(invalid="ignore", divide="ignore"):
            return (above + inside) / n, whole + share * (accepted / self._impostors(scores) - whole)

    def _share_kept(self, scores: PairScores, matches: Ints) -> float:
        """Return the share of a resample's deviation that is kept, so that the FMR varies as it does over samples.

        A pair is drawn as often as the product of how often its people are, which makes the part of the variance that
        is of pairs alone up to three times too large (Owen 2007). The right variance counts the covariance of pairs
        with a person in common, each once (Fafchamps and Gubert 2007; Aronow, Samii and Assenova 2015).

        Args:
            scores: Scores of the pairs.
            matches: Number of impostor pairs that match by their two people, [people, people].
        """
        times = self.times.astype(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn = ((times @ matches) * times).sum(1) / self._impostors(scores)
        variance = float(np.nanvar(drawn))
        return min(1.0, math.sqrt(scores.variance(matches) / variance)) if variance > 0 else 1.0

    def _impostors(self, scores: PairScores) -> Floats:
        """Return the number of impostor pairs in each resample."""

        def ordered(images: Floats) -> Floats:
            counted: Floats = images.sum(-1) ** 2 - (images**2).sum(-1)
            return counted

        images = scores.images.astype(float)
        number: Floats = ordered(self.times * images) * (scores.n_impostor / ordered(images))
        return number

    def rate(self, value: float, drawn: Floats, people: int) -> Rate:
        """Return a rate with its interval; ``people`` is the number of people behind it.

        Percentiles of resamples of a low rate reach too little above it: no resample has other pairs.
        """
        from scipy.special import ndtri, stdtrit

        if value in (0.0, 1.0):
            return Rate(value, binomial_interval(round(value * people), people, self.confidence))
        drawn = drawn[~np.isnan(drawn)]
        variance = float(drawn.var(ddof=1)) if len(drawn) > 1 else 0.0
        if people < 2 or variance == 0:
            return Rate(value, self.interval(drawn))
        # The variance is known as well as people allow.
        tail = (1 + self.confidence) / 2
        known = float(ndtri(tail) / stdtrit(people - 1, tail)) ** 2
        trials = max(1.0, value * (1 - value) / variance * known)
        return Rate(value, binomial_interval(value * trials, trials, self.confidence))

    def share(self, hits: NDArray[np.bool_], who: Ints) -> tuple[float, Floats]:
        """Return the share of hits, bool [N], of these people, [N], and that of each resample."""
        people = self.times.shape[1]
        of_person, number = np.bincount(who, hits, minlength=people), np.bincount(who, minlength=people)
        with np.errstate(invalid="ignore"):
            drawn: Floats = (self.times @ of_person) / (self.times @ number)  # NaN where none of them was drawn
        return float(hits.mean()), drawn

    def interval(self, drawn: Floats) -> Interval:
        """Return the percentile interval of resamples; those that are NaN are left out."""
        alpha = (1 - self.confidence) / 2
        low, high = np.nanquantile(drawn, [alpha, 1 - alpha])
        return Interval(float(low), float(high))

    def _blocks(self, width: int) -> list[Ints]:
        size = max(1, _BLOCK // max(width, 1))
        return [self.times[k : k + size] for k in range(0, len(self.times), size)]


def _kept(fmr: float, n_impostor: int) -> int:
    """Return how many impostor pairs decide a threshold, in whatever resample."""
    return math.ceil(4 * fmr * n_impostor) + 1000


def supported(fmr: float, n_impostor: int) -> bool:
    """Return whether an FMR allows at least one false match among the pairs."""
    return allowed_accepts(fmr, n_impostor) >= 1
