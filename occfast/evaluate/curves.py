"""Exact ROC curves, and AUC, EER and TAR@FAR with confidence intervals.

A pair is accepted if its score is at least the threshold. The false acceptance rate (FAR) is the share of pairs of
different people that are accepted. The true acceptance rate (TAR) is the share of pairs of the same person that are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import checks
from .scores import Features, Floats, Values, check_same, check_scores

#: False acceptance rates that a result lists by default: the axis of Figure 6 of trigueros2018.
FARS = (1e-4, 1e-3, 1e-2, 1e-1)


class Interval(NamedTuple):
    """A closed confidence interval."""

    low: float
    high: float


class TarAtFar(NamedTuple):
    """True acceptance rate at a false acceptance rate of at most ``far``.

    Attributes:
        far: Requested FAR.
        tar: Largest TAR of a threshold whose FAR is at most ``far``.
        threshold: Threshold that gives ``tar``; inf if every pair has to be rejected.
        false_accepts: Number of pairs of different people that the threshold accepts.
        interval: Confidence interval of the population's TAR at the population's FAR; see :meth:`Roc.tar_interval`.
        n_different: Number of pairs of different people.
    """

    far: float
    tar: float
    threshold: float
    false_accepts: int
    interval: Interval
    n_different: int

    @property
    def supported(self) -> bool:
        """Whether there are enough pairs to allow one false acceptance, i.e. ``n_different`` >= 1 / ``far``.

        Otherwise ``tar`` is the TAR at a FAR of 0, whatever ``far`` is.
        """
        return allowed_accepts(self.far, self.n_different) >= 1

    def as_dict(self) -> dict[str, Any]:
        """Return the values for JSON; an infinite threshold becomes None."""
        threshold = self.threshold if math.isfinite(self.threshold) else None
        return {**self._asdict(), "threshold": threshold, "interval": list(self.interval), "supported": self.supported}


@dataclass(frozen=True, eq=False)
class Roc:
    """Vertices of an ROC curve. The curve is linear between two vertices.

    A run of thresholds that raises only one of the rates is stored as its two ends. Equal scores of both kinds give a
    diagonal segment.

    Attributes:
        false_accepts: Accepted pairs of different people at each vertex, int64 [V], from 0 to all.
        true_accepts: Accepted pairs of the same person at each vertex, int64 [V], from 0 to all.
        thresholds: Threshold of each vertex, float64 [V], decreasing. The first is inf, the others are scores.
        uncertainty: Upper bound on the error of the AUC from binning; 0 for a curve made from the scores themselves.
    """

    false_accepts: NDArray[np.int64]
    true_accepts: NDArray[np.int64]
    thresholds: NDArray[np.float64]
    uncertainty: float = 0.0
    _cache: dict[str, tuple[float, float, float]] = field(default_factory=dict, repr=False)

    @property
    def n_same(self) -> int:
        """Number of pairs of the same person."""
        return int(self.true_accepts[-1])

    @property
    def n_different(self) -> int:
        """Number of pairs of different people."""
        return int(self.false_accepts[-1])

    @property
    def far(self) -> NDArray[np.float64]:
        """False acceptance rate at each vertex, float64 [V]."""
        return self.false_accepts / self.n_different

    @property
    def tar(self) -> NDArray[np.float64]:
        """True acceptance rate at each vertex, float64 [V]."""
        return self.true_accepts / self.n_same

    @property
    def auc(self) -> float:
        """Area under the curve.

        This is the probability that a pair of the same person scores higher than a pair of different people, where a
        tie counts one half.
        """
        return float(self._placements()[0])

    def _placements(self) -> tuple[float, float, float]:
        # AUC and the variances of DeLong's placement values. On a segment, the placement of pairs of different people
        # is its mean TAR, and that of pairs of the same person is one minus its mean FAR.
        if "placements" not in self._cache:
            x, y = self.false_accepts, self.true_accepts
            dx, dy = np.diff(x), np.diff(y)
            across, up = (y[1:] + y[:-1]) / (2.0 * self.n_same), 1 - (x[1:] + x[:-1]) / (2.0 * self.n_different)
            auc = float(dx @ across / self.n_different)
            v_different = float(dx @ (across - auc) ** 2) / max(self.n_different - 1, 1)
            v_same = float(dy @ (up - auc) ** 2) / max(self.n_same - 1, 1)
            self._cache["placements"] = auc, v_same, v_different
        return self._cache["placements"]

    def auc_interval(self, confidence: float = 0.95) -> Interval:
        """Compute the interval of DeLong, DeLong and Clarke-Pearson (1988) on the logit scale.

        Pairs are treated as independent. For a perfect curve the variance is 0. The lower end is then (α/2)^(1/m) with
        m the smaller number of pairs, since m disjoint comparisons are all correct with probability at most AUC^m.

        Args:
            confidence: Confidence level, in (0, 1).
        """
        alpha = 1 - check_confidence(confidence)
        auc, v_same, v_different = self._placements()
        m = min(self.n_same, self.n_different)
        if auc in (0.0, 1.0):
            edge = (alpha / 2) ** (1 / m)
            return Interval(edge, 1.0) if auc == 1 else Interval(0.0, 1 - edge)
        error = math.sqrt(v_same / self.n_same + v_different / self.n_different)
        from scipy.special import expit, ndtri

        middle, half = math.log(auc / (1 - auc)), float(ndtri(1 - alpha / 2)) * error / (auc * (1 - auc))
        return Interval(float(expit(middle - half)), float(expit(middle + half)))

    @property
    def eer(self) -> float:
        """Equal error rate: the FAR at which FAR = 1 − TAR, linear between vertices."""
        far, frr = self.far, 1 - self.tar
        k = int(np.argmax(far >= frr))  # the first vertex on or beyond the line; the last one always is
        if k == 0:
            return float(far[0])
        f0, f1, r0, r1 = far[k - 1], far[k], frr[k - 1], frr[k]
        t = (r0 - f0) / ((f1 - f0) + (r0 - r1))
        return float(f0 + t * (f1 - f0))

    def tar_at_far(self, far: float, confidence: float = 0.95) -> TarAtFar:
        """Compute the largest TAR at a FAR of at most ``far``, without interpolation.

        Args:
            far: False acceptance rate, in (0, 1].
            confidence: Confidence level of the interval, in (0, 1).
        """
        far = checks.number(far, "far", 1e-300, 1.0)
        k = int(np.searchsorted(self.false_accepts, allowed_accepts(far, self.n_different), side="right")) - 1
        return TarAtFar(
            far,
            float(self.tar[k]),
            float(self.thresholds[k]),
            int(self.false_accepts[k]),
            self.tar_interval(far, confidence),
            self.n_different,
        )

    def tar_interval(self, far: float, confidence: float = 0.95) -> Interval:
        """Compute a confidence interval of the population's TAR at a population FAR of ``far``.

        Pairs are treated as independent; the distribution of the scores is arbitrary. The number of pairs of different
        people that reach the population's threshold is binomial (n_different, ``far``). Each such number places the
        threshold between two scores, where the confidence distributions of Clopper and Pearson (1934) bound the TAR.
        The ends of the interval are quantiles of their mixture under the binomial weights. If there are too few pairs
        of different people for this FAR, the lower end is 0.

        Args:
            far: False acceptance rate, in (0, 1].
            confidence: Confidence level, in (0, 1).
        """
        from scipy.optimize import brentq
        from scipy.special import betainc

        far = checks.number(far, "far", 1e-300, 1.0)
        tail = (1 - check_confidence(confidence)) / 2
        n, p = self.n_different, self.n_same
        reach, weight = _binomial_grid(n, far)
        # If j pairs reach the population's threshold, it lies above score j + 1 and not above score j.
        fewest = np.where(reach > 0, self._true_accepts(np.maximum(reach - 1, 0)), 0)
        most = np.where(reach < n, self._true_accepts(np.minimum(reach, n)), p)

        def below(tar: float, accepted: NDArray[np.int64], extra: int) -> float:
            # Weight of TARs up to `tar`: Beta(k, p - k + 1) for the lower end, Beta(k + 1, p - k) for the upper end.
            a, b = accepted + extra, p - accepted + 1 - extra
            inner = betainc(np.maximum(a, 1), np.maximum(b, 1), tar)
            return float(weight @ np.where(a == 0, 1.0, np.where(b == 0, 0.0, inner)))

        low, high = 0.0, 1.0
        if below(1e-15, fewest, 0) < tail:
            low = float(brentq(lambda tar: below(tar, fewest, 0) - tail, 1e-15, 1.0))
        if below(1 - 1e-15, most, 1) > 1 - tail:
            high = float(brentq(lambda tar: below(tar, most, 1) - (1 - tail), 0.0, 1 - 1e-15))
        return Interval(low, high)

    def _true_accepts(self, false_accepts: NDArray[np.int64]) -> NDArray[np.int64]:
        # The most true acceptances of a threshold with at most this many false acceptances.
        return self.true_accepts[np.searchsorted(self.false_accepts, false_accepts, side="right") - 1]

    def at(self, far: ArrayLike) -> NDArray[np.float64]:
        """Return the largest TAR at each FAR, for plots and tables on a common axis.

        Args:
            far: False acceptance rates, float [F].

        Returns:
            float64 [F].
        """
        allowed = np.array([allowed_accepts(float(f), self.n_different) for f in np.atleast_1d(far)])
        return np.asarray(self.tar[np.searchsorted(self.false_accepts, allowed, side="right") - 1])

    def points(self, most: int | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return FAR, TAR and threshold of the vertices, or of about ``most`` vertices spread over log FAR and TAR."""
        keep: Any = slice(None)
        if most is not None and len(self.thresholds) > most:
            x = np.log1p(self.false_accepts.astype(np.float64))
            along = x / x[-1] + self.tar
            keep = np.unique(np.r_[0, np.searchsorted(along, np.linspace(0, along[-1], most)), len(along) - 1])
        return self.far[keep], self.tar[keep], self.thresholds[keep]

    def to_csv(self) -> str:
        """Return the vertices as CSV with the columns ``far,tar,threshold``; the first threshold is ``inf``."""
        rows = zip(*(column.tolist() for column in self.points()), strict=True)
        return "far,tar,threshold\n" + "".join(f"{f!r},{t!r},{s!r}\n" for f, t, s in rows)


def _binomial_grid(n: int, probability: float, most: int = 256) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the values of a binomial distribution, or ``most`` quantiles if it has more values, and their weights."""
    from scipy.stats import binom

    low, high = int(binom.ppf(1e-9, n, probability)), int(binom.isf(1e-9, n, probability))
    if high - low < most:
        numbers = np.arange(low, high + 1)
        weight = binom.pmf(numbers, n, probability)
    else:
        numbers = binom.ppf((np.arange(most) + 0.5) / most, n, probability).astype(np.int64)
        weight = np.ones(most)
    return numbers, weight / weight.sum()


def allowed_accepts(far: float, n: int) -> int:
    """Return the number of false acceptances that a FAR allows among ``n`` pairs or probes."""
    # 0.001 × 3000 has to be 3 despite binary rounding.
    return math.floor(far * n * (1 + 1e-12) + 1e-9)


def check_confidence(value: float) -> float:
    """Return a confidence level in (0, 1)."""
    value = checks.number(value, "confidence", 0.0, 1.0)
    if value in (0.0, 1.0):
        raise ValueError(f"confidence: expected a number between 0 and 1, such as 0.95, got {value:g}")
    return value


def binomial_interval(successes: float, n: float, confidence: float = 0.95) -> Interval:
    """Compute the exact interval of Clopper and Pearson (1934) for a probability.

    Args:
        successes: Number of successes, 0 to ``n``; need not be whole (Korn and Graubard 1998).
        n: Number of trials, at least 1.
        confidence: Confidence level, in (0, 1).
    """
    from scipy.special import betaincinv

    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"successes: expected 0 to n, n at least 1, got {successes} of {n}")
    alpha = 1 - check_confidence(confidence)
    low = float(betaincinv(successes, n - successes + 1, alpha / 2)) if successes else 0.0
    high = float(betaincinv(successes + 1, n - successes, 1 - alpha / 2)) if successes < n else 1.0
    return Interval(low, high)


def roc(scores: Values, same: Values) -> Roc:
    """Compute the exact ROC curve of similarity scores, in O(P log P) time.

    Args:
        scores: Similarity of each pair, real and finite, [P]. Negate distances.
        same: Whether each pair shows one person, bool (or 0 and 1), [P]. Both kinds must occur.

    Raises:
        TypeError: ``scores`` are not real numbers, or ``same`` are neither booleans nor integers.
        ValueError: Shapes differ, a score is not finite, or all pairs are of one kind.
    """
    values = check_scores(scores)
    flags = check_same(same, len(values))
    return roc_of(values[flags], values[~flags])


def roc_of(same: Floats, different: Floats) -> Roc:
    """Compute the exact ROC curve from the scores of each kind of pair. Both arrays are sorted in place."""
    same.sort()
    different.sort()
    # One group for each distinct score of a pair of the same person, with the number of pairs of each kind above it
    # and at it. Only pairs of different people lie between two groups: a horizontal segment of the curve.
    first = np.flatnonzero(np.r_[True, same[1:] != same[:-1]])
    u = same[first]
    y_at = len(same) - first  # accepted at threshold u
    x_at = len(different) - np.searchsorted(different, u, side="left")
    x_above = len(different) - np.searchsorted(different, u, side="right")
    u, y_at, x_at, x_above = u[::-1], y_at[::-1], x_at[::-1], x_above[::-1]
    # Groups inside a vertical segment are not vertices; dropping them early saves time.
    steep = (x_above == x_at) & (x_at == np.r_[0, x_at[:-1]])
    corner = ~(steep & np.r_[steep[1:], False])
    u, y_at, x_at, x_above = u[corner], y_at[corner], x_at[corner], x_above[corner]
    y_above = np.r_[0, y_at[:-1]]
    # Vertices: before each group (the end of a horizontal segment), after each group, and the last one.
    x = np.empty(2 * len(u) + 2, np.int64)
    y = np.empty_like(x)
    t = np.empty(len(x), np.float64)
    x[0] = y[0] = 0
    t[0] = np.inf
    x[1:-1:2], x[2:-1:2], x[-1] = x_above, x_at, len(different)
    y[1:-1:2], y[2:-1:2], y[-1] = y_above, y_at, len(same)
    # The threshold at the end of a horizontal segment is the lowest score on it.
    t[1:-1:2] = different[np.minimum(len(different) - x_above, len(different) - 1)]
    t[2:-1:2], t[-1] = u, min(float(different[0]), float(same[0]))
    moved = np.r_[True, (np.diff(x) > 0) | (np.diff(y) > 0)]
    x, y, t = x[moved], y[moved], t[moved]
    dx, dy = np.diff(x), np.diff(y)
    inside = np.r_[False, ((dx[1:] == 0) & (dx[:-1] == 0)) | ((dy[1:] == 0) & (dy[:-1] == 0)), False]
    return Roc(x[~inside], y[~inside], t[~inside])


class StreamingRoc:
    """ROC curve of any number of scores in fixed memory, from counts in bins of equal width.

    The points of the curve are exact at the edges of the bins. ``curve().uncertainty`` bounds the error of the AUC.

    Args:
        step: Width of a bin. It must be a power of two, so that no score is rounded into another bin.
        limit: Scores lie in [-limit, limit]. It must be a multiple of ``step``, at most 2^30 of them.

    Raises:
        TypeError: An argument is not a number.
        ValueError: ``step`` or ``limit`` is not as described.
    """

    def __init__(self, step: float = 2.0**-19, limit: float = 1.0) -> None:
        step, limit = checks.number(step, "step"), checks.number(limit, "limit")
        if not step > 0 or math.frexp(step)[0] != 0.5:
            raise ValueError(f"step: expected a power of two, got {step!r}")
        if not limit >= step or limit / step != int(limit / step) or limit / step > 2**30:
            raise ValueError(f"limit: expected a multiple of the step {step:g}, at most 2^30 of them, got {limit!r}")
        self.step, self.limit = step, limit
        self.offset = int(limit / step)
        self.counts = np.zeros((2, 2 * self.offset + 1), np.int64)

    def update(self, scores: Values, same: Values) -> None:
        """Add pairs.

        Scores beyond the limit by at most a factor of 1e-5, as rounded cosines can be, count as at the limit.

        Args:
            scores: Similarity of each pair, real, [P].
            same: Whether each pair shows one person, bool [P].

        Raises:
            ValueError: Shapes differ, ``same`` is not bool, or a score is out of range or NaN.
        """
        import torch

        values, flags = torch.as_tensor(scores), torch.as_tensor(same)
        if values.shape != flags.shape or flags.dtype != torch.bool:
            raise ValueError(f"same: expected bool {list(values.shape)}, got {flags.dtype} {list(flags.shape)}")
        if values.numel() == 0:
            return
        low, high = (float(v) for v in values.aminmax())
        if not (low >= -1.00001 * self.limit and high <= 1.00001 * self.limit):
            raise ValueError(f"scores: expected numbers in [{-self.limit:g}, {self.limit:g}], got {low:g} to {high:g}")
        cells = (values.clamp(-self.limit, self.limit) / self.step).floor_().int().add_(self.offset)
        bins = 2 * self.offset + 1
        of_same = torch.bincount(cells[flags], minlength=bins).cpu().numpy()
        self.counts[1] += of_same
        self.counts[0] += torch.bincount(cells.flatten(), minlength=bins).cpu().numpy() - of_same

    def curve(self) -> Roc:
        """Return the curve of all pairs added so far.

        Raises:
            ValueError: All pairs are of one kind.
        """
        different, same = self.counts
        if not different.any() or not same.any():
            raise ValueError("same: expected pairs of both kinds, got one kind only")
        used = np.flatnonzero(different + same)[::-1]
        x, y = np.cumsum(different[used]), np.cumsum(same[used])
        edges = (used - self.offset) * self.step
        mixed = float(different.astype(np.float64) @ same) / 2 / (float(x[-1]) * float(y[-1]))
        return Roc(np.r_[0, x], np.r_[0, y], np.r_[np.inf, edges], uncertainty=mixed)


def all_pairs_roc(features: Features, labels: Values, *, step: float = 2.0**-19, chunk: int = 1024) -> Roc:
    """Compute the ROC curve of the cosine similarities of all N (N − 1) / 2 pairs, in memory independent of N².

    Args:
        features: Features, float [N, D], on any device.
        labels: Person of each feature, int [N].
        step: Width of a bin; see :class:`StreamingRoc`.
        chunk: Number of rows and columns in one block of scores.

    Raises:
        TypeError: The features are not floating point.
        ValueError: Shapes differ, a feature has NaN or length 0, or all pairs are of one kind.
    """
    import torch

    from .scores import check_features

    x = check_features(features, "features")
    y = torch.as_tensor(labels)
    if y.shape != (len(x),) or y.is_floating_point():
        raise ValueError(f"labels: expected integers [{len(x)}], got {y.dtype} {list(y.shape)}")
    y = y.to(x.device)
    counts = StreamingRoc(step)
    for i in range(0, len(x), chunk):
        for j in range(i, len(x), chunk):
            scores, same = x[i : i + chunk] @ x[j : j + chunk].T, y[i : i + chunk, None] == y[j : j + chunk]
            if i == j:  # each pair once, and no image with itself
                once = torch.ones_like(same).triu_(1)
                scores, same = scores[once], same[once]
            counts.update(scores, same)
    return counts.curve()
