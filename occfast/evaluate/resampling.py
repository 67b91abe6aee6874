"""Confidence intervals and paired tests that resample people.

Pairs or probes that share a person are correlated. Intervals that treat them as independent are too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import checks
from .curves import FARS, Interval, binomial_interval, check_confidence
from .scores import Bools, Floats, Values, as_array, check_same, check_scores

#: Default number of bootstrap resamples.
RESAMPLES = 1000


class Difference(NamedTuple):
    """Difference of a figure between two networks on the same pairs or probes.

    Attributes:
        figure: Name of the figure, e.g. "accuracy".
        value: Second network minus first network.
        interval: Confidence interval of the difference.
        p_value: Two-sided p-value for no difference.
        method: Test: "bootstrap over people", "McNemar" (exact; interval of Agresti and Min 2005) or "DeLong".
    """

    figure: str
    value: float
    interval: Interval
    p_value: float
    method: str


def bootstrap_people(
    scores: Values,
    same: Values,
    people: Values,
    *,
    fars: Sequence[float] = FARS,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    memory: int | str = "64MiB",
) -> dict[str, Interval]:
    """Compute percentile intervals of AUC, EER and TAR@FAR by resampling people.

    People are drawn with replacement. The weight of a pair of different people is the product of their counts, that of
    a pair of the same person is the person's count. A percentile bootstrap can't go beyond the observed scores: at a
    FAR with few pairs above it, :meth:`occfast.evaluate.Roc.tar_interval` is wider and safer.

    Args:
        scores: Similarity of each pair, real and finite, [P].
        same: Whether each pair shows one person, bool (or 0 and 1), [P].
        people: Person on each side of each pair, int [P, 2].
        fars: False acceptance rates, each in (0, 1].
        confidence: Confidence level, in (0, 1).
        resamples: Number of resamples, at least 20. Resamples without pairs of both kinds are drawn again.
        seed: Random seed.
        memory: Memory limit for one block of resamples, in bytes or as a string such as "64MiB".

    Returns:
        Intervals by name: ``{"auc": ..., "eer": ..., "tar@0.001": ...}``.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: Shapes differ, or ``people`` contradicts ``same``.
    """
    values = check_scores(scores)
    flags = check_same(same, len(values))
    who = check_people(people, flags)
    drawn = _resampled(values, flags, who, fars, resamples, seed, memory)
    keys = ["auc", "eer", *(f"tar@{far:g}" for far in fars)]
    return {key: _percentile(column, confidence) for key, column in zip(keys, drawn.T, strict=True)}


def resampled_rates(
    scores: Floats, same: Bools, people: NDArray[np.int64], far: float, *, resamples: int = RESAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """Compute TAR@FAR of the pairs and of each resample of people, float64 [1 + resamples].

    Resamples depend on the people and the seed alone, so differences between networks on the same pairs are paired.
    Only the highest scores are looked at, unless a resample needs others.

    Args:
        scores: Similarity of each pair, [P].
        same: Whether each pair shows one person, [P].
        people: Person on each side of each pair, [P, 2].
        far: False acceptance rate.
        resamples: Number of resamples, at least 20. Resamples without pairs of both kinds are drawn again.
        seed: Random seed.
    """
    checks.integer(resamples, "resamples", 20)
    names, who = np.unique(people, return_inverse=True)
    who = who.reshape(-1, 2)
    count = len(names)
    # Pairs of two people by these people, and pairs of one person: totals of a resample need no list of pairs.
    two = np.zeros((count, count))
    np.add.at(two, tuple(who[~same].T), 1)
    one = np.bincount(who[same, 0], minlength=count)
    random, parts = np.random.default_rng(checks.seed(seed)), [np.ones((1, count), dtype=np.int64)]
    while (missing := 1 + resamples - sum(map(len, parts))) > 0:
        times = random.multinomial(count, np.full(count, 1 / count), size=missing)
        parts.append(times[(np.einsum("rp,pq,rq->r", times, two, times) > 0) & (times @ one > 0)])
    times = np.concatenate(parts)
    totals = np.einsum("rp,pq,rq->r", times, two, times), times @ one
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True])
    impostors = np.cumsum(~same[order])
    most = int(np.searchsorted(impostors, min(int(impostors[-1]), 100 + int(50 * far * impostors[-1]))))
    used = int(np.searchsorted(ends, most)) + 1
    found = []
    for start in range(0, len(times), 50):
        rows = slice(start, start + 50)
        own = totals[0][rows, None], totals[1][rows, None]
        found.append(_accepted(times[rows], who[order], same[order], ends, used, far, own))
    return np.concatenate(found)


def _accepted(
    times: NDArray[np.int64],
    who: NDArray[np.int64],
    same: Bools,
    ends: NDArray[np.int64],
    used: int,
    far: float,
    totals: tuple[NDArray[Any], NDArray[Any]],
) -> Floats:
    """Return TAR@FAR of some resamples; pairs are in falling order, and ``ends`` are the last ones of each score.

    The first ``used`` scores are looked at, and all where they don't reach the rate.
    """
    for stop in (used, len(ends)):
        kept = ends[:stop]
        last = kept[-1] + 1
        first = times[:, who[:last, 0]]
        weight = np.where(same[:last], first, first * times[:, who[:last, 1]])
        x = np.cumsum(np.where(same[:last], 0, weight), 1)[:, kept] / totals[0]
        y = np.cumsum(np.where(same[:last], weight, 0), 1)[:, kept] / totals[1]
        if bool((x[:, -1] > far).all()):
            break
    return np.asarray(np.where(x <= far * (1 + 1e-12), y, 0).max(1))


def check_people(people: Values, same: Bools) -> NDArray[np.int64]:
    """Return the people of pairs as int64 [P, 2]; they have to agree with ``same``."""
    who = as_array(people, "people")
    if who.dtype.kind not in "iu":
        raise TypeError(f"people: expected integers [{len(same)}, 2], got {who.dtype} {list(who.shape)}")
    if who.shape != (len(same), 2):
        raise ValueError(f"people: expected integers [{len(same)}, 2], got {who.dtype} {list(who.shape)}")
    if (bad := np.flatnonzero((who[:, 0] == who[:, 1]) != same)).size:
        raise ValueError(f"people: expected the same person twice exactly where same is True, not in pair {bad[0]}")
    return who.astype(np.int64)


def rate_interval(
    hits: Bools, people: NDArray[np.int64], confidence: float, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Compute an interval for the share of hits among probes.

    It is Clopper and Pearson's if ``resamples`` is 0 or no person has two probes. Otherwise it is a percentile
    bootstrap over people; if all probes are hits or none is, Clopper and Pearson's with one trial for each person.

    Args:
        hits: bool [N].
        people: Person on each probe, int64 [N].
        confidence: Confidence level, in (0, 1).
        resamples: Number of resamples.
        seed: Random seed.
    """
    person, number = np.unique(people, return_inverse=True)
    if resamples == 0 or len(person) == len(hits):
        return binomial_interval(int(hits.sum()), len(hits), confidence)
    if hits.all() or not hits.any():
        return binomial_interval(len(person) if hits[0] else 0, len(person), confidence)
    return _percentile(_resampled_means(hits.astype(np.float64), number, resamples, seed), confidence)


def probe_difference(
    first: Bools, second: Bools, people: NDArray[np.int64], *, confidence: float, resamples: int, seed: int = 0
) -> Difference:
    """Compare two networks by their hits on the same probes, bool [N]."""
    change = second.astype(np.float64) - first
    if resamples == 0:
        return _mcnemar("rank-1", first, second, confidence)
    drawn = _resampled_means(change, np.unique(people, return_inverse=True)[1], resamples, seed)
    return _by_bootstrap("rank-1", float(change.mean()), drawn, confidence)


def accuracy_difference(
    first: Bools,
    second: Bools,
    folds: NDArray[np.int64] | None,
    people: NDArray[np.int64] | None,
    *,
    confidence: float,
    resamples: int,
    seed: int = 0,
) -> Difference:
    """Compare two networks by which pairs each classifies correctly, bool [P]; accuracy is the mean over folds."""
    change = second.astype(np.float64) - first
    share = np.ones(len(change))
    if folds is not None:
        number = np.unique(folds, return_inverse=True)[1]
        share = 1 / np.bincount(number)[number]
    value = float(share @ change / share.sum())
    if people is None or resamples == 0:
        return _mcnemar("accuracy", first, second, confidence)._replace(value=value)
    parts = []
    for weight in pair_weights(people, resamples, seed, "64MiB"):
        weight = weight * share
        total = weight.sum(1)
        parts.append((weight @ change)[total > 0] / total[total > 0])
    return _by_bootstrap("accuracy", value, np.concatenate(parts), confidence)


def auc_difference(
    first: Floats,
    second: Floats,
    same: Bools,
    people: NDArray[np.int64] | None,
    *,
    confidence: float,
    resamples: int,
    seed: int = 0,
) -> Difference:
    """Compare the AUC of two networks on the same pairs, from their scores [P]."""
    if people is not None and resamples:
        # The draws depend on the people and the seed alone: row k of both is the same resample.
        rows = [_resampled(scores, same, people, (), resamples, seed, "64MiB")[:, 0] for scores in (first, second)]
        values = [_placements(scores, same)[0].mean() for scores in (first, second)]
        return _by_bootstrap("AUC", float(values[1] - values[0]), rows[1] - rows[0], confidence)
    from scipy.special import ndtr, ndtri

    (up, across), (up_second, across_second) = _placements(first, same), _placements(second, same)
    value = float(up_second.mean() - up.mean())
    variance = sum(
        float(change.var(ddof=1)) / len(change) if len(change) > 1 else 0.0
        for change in (up_second - up, across_second - across)
    )
    error = math.sqrt(variance)
    half = float(ndtri(1 - (1 - check_confidence(confidence)) / 2)) * error
    p = 2 * float(ndtr(-abs(value) / error)) if error > 0 else 1.0 if value == 0 else 0.0
    return Difference("AUC", value, Interval(value - half, value + half), p, "DeLong")


def _placements(scores: Floats, same: Bools) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    # DeLong's structural components: for each pair, the share of pairs of the other kind that it is ordered with
    # correctly. A tie counts one half.
    positive, negative = np.sort(scores[same]), np.sort(scores[~same])

    def below(values: Floats, others: Floats) -> NDArray[np.float64]:
        return np.asarray(
            (np.searchsorted(others, values, "left") + np.searchsorted(others, values, "right")) / (2.0 * len(others))
        )

    return below(scores[same], negative), 1 - below(scores[~same], positive)


def _mcnemar(figure: str, first: Bools, second: Bools, confidence: float) -> Difference:
    from scipy.special import ndtri
    from scipy.stats import binomtest

    n, gained, lost = len(first), int((second & ~first).sum()), int((first & ~second).sum())
    p = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    z = float(ndtri(1 - (1 - check_confidence(confidence)) / 2))
    middle = (gained - lost) / (n + 2)
    half = z * math.sqrt((gained + lost + 1) - (gained - lost) ** 2 / (n + 2)) / (n + 2)
    return Difference(figure, (gained - lost) / n, Interval(middle - half, middle + half), p, "McNemar")


def _by_bootstrap(figure: str, value: float, drawn: NDArray[np.float64], confidence: float) -> Difference:
    tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    p = min(1.0, 2 * (1 + tail) / (1 + len(drawn)))
    return Difference(figure, value, _percentile(drawn, confidence), p, "bootstrap over people")


def _percentile(drawn: NDArray[np.float64], confidence: float) -> Interval:
    alpha = (1 - check_confidence(confidence)) / 2
    low, high = np.quantile(drawn, [alpha, 1 - alpha])
    return Interval(float(low), float(high))


def _resampled_means(
    values: NDArray[np.float64], number: NDArray[np.int64], resamples: int, seed: int
) -> NDArray[np.float64]:
    """Compute the mean of values [N] in each resample of people, float64 [resamples]."""
    totals, counts = np.bincount(number, values), np.bincount(number)
    people = len(counts)
    random = np.random.default_rng(checks.seed(seed))
    block = max(1, 2**22 // people)
    parts = []
    for start in range(0, checks.integer(resamples, "resamples", 20), block):
        times = random.multinomial(people, np.full(people, 1 / people), size=min(block, resamples - start))
        parts.append((times @ totals) / (times @ counts))
    return np.concatenate(parts)


def pair_weights(who: NDArray[np.int64], resamples: int, seed: int, memory: int | str) -> Iterator[NDArray[np.float64]]:
    """Yield blocks of weights of the pairs, [B, P], until there are ``resamples`` rows."""
    names, side = np.unique(who, return_inverse=True)
    side = side.reshape(-1, 2)
    same = side[:, 0] == side[:, 1]
    random = np.random.default_rng(checks.seed(seed))
    block = max(1, checks.memory(memory, "memory") // (48 * len(who)))
    checks.integer(resamples, "resamples", 20)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        times = random.multinomial(len(names), np.full(len(names), 1 / len(names)), size=size)
        first = times[:, side[:, 0]]
        yield np.where(same, first, first * times[:, side[:, 1]]).astype(np.float64)


def _resampled(
    values: Floats,
    flags: Bools,
    who: NDArray[np.int64],
    fars: Sequence[float],
    resamples: int,
    seed: int,
    memory: int | str,
) -> NDArray[np.float64]:
    """Compute AUC, EER and TAR@FAR of each resample, float64 [resamples, 2 + len(fars)]."""
    checks.integer(resamples, "resamples", 20)
    order = np.argsort(-values, kind="stable")
    names, who = np.unique(who[order], return_inverse=True)
    who = who.reshape(-1, 2)
    s = flags[order]
    ends = np.flatnonzero(np.r_[np.diff(values[order]) != 0, True])  # the last pair of each distinct score
    random = np.random.default_rng(checks.seed(seed))
    block = max(1, checks.memory(memory, "memory") // (48 * len(values)))
    rows: list[NDArray[np.float64]] = []
    drawn = 0
    while drawn < resamples:
        b = min(block, resamples - drawn)
        times = random.multinomial(len(names), np.full(len(names), 1 / len(names)), size=b)
        first = times[:, who[:, 0]]
        weight = np.where(s, first, first * times[:, who[:, 1]])
        x = np.cumsum(np.where(s, 0, weight), 1)[:, ends]
        y = np.cumsum(np.where(s, weight, 0), 1)[:, ends]
        whole = (x[:, -1] > 0) & (y[:, -1] > 0)
        rows.append(_statistics(x[whole], y[whole], fars))
        drawn += int(whole.sum())
    return np.concatenate(rows)


def _statistics(x: NDArray[np.int64], y: NDArray[np.int64], fars: Sequence[float]) -> NDArray[np.float64]:
    # AUC, EER and TAR@FAR of each row, from the accepted pairs of different people (x) and of the same person (y) at
    # each score.
    x, y = (np.pad(v, ((0, 0), (1, 0))) for v in (x, y))
    far, tar = x / x[:, -1:], y / y[:, -1:]
    auc = (np.diff(far, axis=1) * (tar[:, 1:] + tar[:, :-1]) / 2).sum(1)
    k = np.argmax(far >= 1 - tar, axis=1)[:, None]
    f0, f1, r0, r1 = (
        np.take_along_axis(v, i, 1)[:, 0] for v, i in ((far, k - 1), (far, k), (1 - tar, k - 1), (1 - tar, k))
    )
    eer = f0 + (r0 - f0) / ((f1 - f0) + (r0 - r1)) * (f1 - f0)
    at = [np.where(far <= f * (1 + 1e-12), tar, 0).max(1) for f in fars]
    return np.stack([auc, eer, *at], 1)
