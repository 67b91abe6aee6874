"""The exact receiver operating characteristic and what is read off it, with confidence intervals.

A pair is accepted where its score is at least the threshold.  FAR: share of the pairs of different people that are
accepted; TAR: share of the pairs of one person that are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import checks
from .scores import Floats, check_same, check_scores


class Interval(NamedTuple):
    """A confidence interval, both ends included."""

    low: float
    high: float


class TarAtFar(NamedTuple):
    """The true acceptance rate where at most ``far`` of the pairs of different people are accepted.

    Attributes:
        far: what was asked for; with fewer than 1 / far pairs of different people no false acceptance is allowed.
        tar: the largest share of pairs of one person that a threshold accepts within that.
        threshold: a score that does so; inf where only accepting nothing will do.
        false_accepts: pairs of different people that it accepts.
        interval: for the population's TAR at the population's FAR, see :func:`tar_interval`.
    """

    far: float
    tar: float
    threshold: float
    false_accepts: int
    interval: Interval

    def as_dict(self) -> dict[str, Any]:
        """For JSON: an infinite threshold is null."""
        threshold = self.threshold if math.isfinite(self.threshold) else None
        return {**self._asdict(), "threshold": threshold, "interval": list(self.interval)}


@dataclass(frozen=True, eq=False)
class Roc:
    """The corners of an exact ROC curve; between two corners it is straight.

    A run of thresholds that only raises one of the rates is kept as its two ends; where scores of both kinds are equal
    the curve rises along a diagonal.

    Attributes:
        false_accepts, true_accepts: int64 [V], pairs accepted at each corner, from (0, 0) to all.
        thresholds: float64 [V], falling; the first is inf, the others are scores.
        uncertainty: bound of what binning may have changed in the AUC; 0 for a curve from the scores themselves.
    """

    false_accepts: NDArray[np.int64]
    true_accepts: NDArray[np.int64]
    thresholds: NDArray[np.float64]
    uncertainty: float = 0.0
    _cache: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def n_same(self) -> int:
        """Pairs of one person."""
        return int(self.true_accepts[-1])

    @property
    def n_different(self) -> int:
        """Pairs of different people."""
        return int(self.false_accepts[-1])

    @property
    def far(self) -> NDArray[np.float64]:
        """False acceptance rate at each corner."""
        return self.false_accepts / self.n_different

    @property
    def tar(self) -> NDArray[np.float64]:
        """True acceptance rate at each corner."""
        return self.true_accepts / self.n_same

    @property
    def auc(self) -> float:
        """Area under the curve: the chance that a pair of one person scores higher than one of different people, ties
        counted half."""
        return float(self._placements()[0])

    def _placements(self) -> tuple[float, float, float]:
        # AUC and the variances of DeLong's placement values, from the curve: the pairs of different people on a
        # segment have its mean TAR as placement, the pairs of one person one minus its mean FAR.
        if "placements" not in self._cache:
            x, y = self.false_accepts, self.true_accepts
            dx, dy = np.diff(x), np.diff(y)
            across, up = (y[1:] + y[:-1]) / (2.0 * self.n_same), 1 - (x[1:] + x[:-1]) / (2.0 * self.n_different)
            auc = float(dx @ across / self.n_different)
            v_different = float(dx @ (across - auc) ** 2) / max(self.n_different - 1, 1)
            v_same = float(dy @ (up - auc) ** 2) / max(self.n_same - 1, 1)
            self._cache["placements"] = auc, v_same, v_different
        found: tuple[float, float, float] = self._cache["placements"]
        return found

    def auc_interval(self, confidence: float = 0.95) -> Interval:
        """DeLong, DeLong and Clarke-Pearson's (1988) interval on the logit scale; pairs are taken as independent.

        Where the curve is perfect that variance is 0; the lower end is then (α/2)^(1/m), m the smaller number of
        pairs: with an AUC of θ, m disjoint comparisons all come out right with probability θ^m at most.
        """
        alpha = 1 - _confidence(confidence)
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
        """Equal error rate: where the curve meets FAR = 1 − TAR, straight between corners."""
        far, frr = self.far, 1 - self.tar
        k = int(np.argmax(far >= frr))  # the first corner at or past the line; the last corner always is
        if k == 0:
            return float(far[0])
        f0, f1, r0, r1 = far[k - 1], far[k], frr[k - 1], frr[k]
        t = (r0 - f0) / ((f1 - f0) + (r0 - r1))
        return float(f0 + t * (f1 - f0))

    def tar_at_far(self, far: float, confidence: float = 0.95) -> TarAtFar:
        """TAR where the FAR is at most ``far``, in (0, 1]; a threshold is a score, nothing is interpolated."""
        far = checks.number(far, "far", 1e-300, 1.0)
        k = int(np.searchsorted(self.false_accepts, _allowed(far, self.n_different), side="right")) - 1
        return TarAtFar(
            far,
            float(self.tar[k]),
            float(self.thresholds[k]),
            int(self.false_accepts[k]),
            self.tar_interval(far, confidence),
        )

    def tar_interval(self, far: float, confidence: float = 0.95) -> Interval:
        """An interval for the population's TAR at the population's FAR of ``far``; pairs are taken as independent.

        It makes no assumption on how scores are distributed.  The threshold is known only from the pairs of different
        people: how many of them reach the population's threshold is binomial (n_different, ``far``), whatever the
        scores.  For each such number the threshold lies between two of their scores, and Clopper and Pearson's (1934)
        confidence distributions bound the TAR there.  Their mixture with the binomial weights is the confidence
        distribution of the TAR whose quantiles are the interval's ends.  With too few pairs of different people for
        this FAR the lower end is 0.
        """
        from scipy.optimize import brentq
        from scipy.special import betainc

        far = checks.number(far, "far", 1e-300, 1.0)
        tail = (1 - _confidence(confidence)) / 2
        n, p = self.n_different, self.n_same
        reach, weight = _binomial_grid(n, far)
        # With j pairs at the population's threshold or above, it lies above score j + 1 and not above score j.
        fewest = np.where(reach > 0, self._true_accepts(np.maximum(reach - 1, 0)), 0)
        most = np.where(reach < n, self._true_accepts(np.minimum(reach, n)), p)

        def below(tar: float, accepted: NDArray[np.int64], extra: int) -> float:
            # Weight of TARs up to `tar`; Beta(k, p - k + 1) for the lower end, Beta(k + 1, p - k) for the upper.
            a, b = accepted + extra, p - accepted + 1 - extra
            inner = betainc(np.maximum(a, 1), np.maximum(b, 1), tar)
            return float(weight @ np.where(a == 0, 1.0, np.where(b == 0, 0.0, inner)))

        low, high = 0.0, 1.0
        if below(1e-15, fewest, 0) < tail:
            low = float(brentq(lambda tar: below(tar, fewest, 0) - tail, 1e-15, 1.0))
        if below(1 - 1e-15, most, 1) > 1 - tail:
            high = float(brentq(lambda tar: below(tar, most, 1) - (1 - tail), 0.0, 1 - 1e-15))
        return Interval(low, high)

    def _true_accepts(self, false_accepts: Any) -> Any:
        # The most that a threshold accepts with so many false acceptances at most.
        return self.true_accepts[np.searchsorted(self.false_accepts, false_accepts, side="right") - 1]

    def at(self, far: NDArray[Any]) -> NDArray[np.float64]:
        """TAR at each FAR, the largest of those within it: for plots and for tables on a common axis."""
        allowed = np.array([_allowed(float(f), self.n_different) for f in np.atleast_1d(far)])
        return np.asarray(self.tar[np.searchsorted(self.false_accepts, allowed, side="right") - 1])

    def points(self, most: int | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """FAR, TAR and threshold of the corners, or of about ``most`` of them spread over log FAR and TAR."""
        keep: Any = slice(None)
        if most is not None and len(self.thresholds) > most:
            x = np.log1p(self.false_accepts.astype(np.float64))
            along = x / x[-1] + self.tar
            keep = np.unique(np.r_[0, np.searchsorted(along, np.linspace(0, along[-1], most)), len(along) - 1])
        return self.far[keep], self.tar[keep], self.thresholds[keep]

    def to_csv(self) -> str:
        """``far,tar,threshold`` of each corner; the first threshold is ``inf``."""
        rows = zip(*(column.tolist() for column in self.points()), strict=True)
        return "far,tar,threshold\n" + "".join(f"{f!r},{t!r},{s!r}\n" for f, t, s in rows)


def _binomial_grid(n: int, probability: float, most: int = 256) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Numbers and their weights: a binomial distribution, or that many of its quantiles where it has more numbers."""
    from scipy.stats import binom

    low, high = int(binom.ppf(1e-9, n, probability)), int(binom.isf(1e-9, n, probability))
    if high - low < most:
        numbers = np.arange(low, high + 1)
        weight = binom.pmf(numbers, n, probability)
    else:
        numbers = binom.ppf((np.arange(most) + 0.5) / most, n, probability).astype(np.int64)
        weight = np.ones(most)
    return numbers, weight / weight.sum()


def _allowed(far: float, n: int) -> int:
    # 0.001 × 3000 is 3, whatever binary fractions say.
    return math.floor(far * n * (1 + 1e-12) + 1e-9)


def _confidence(value: float) -> float:
    value = checks.number(value, "confidence", 0.0, 1.0)
    if value in (0.0, 1.0):
        raise ValueError(f"confidence: expected a number between 0 and 1, such as 0.95, got {value:g}")
    return value


def binomial_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Clopper and Pearson's exact interval for a probability: covers it at least as often as said, for any n."""
    from scipy.special import betaincinv

    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"successes: expected 0 to n, n at least 1, got {successes} of {n}")
    alpha = 1 - _confidence(confidence)
    low = float(betaincinv(successes, n - successes + 1, alpha / 2)) if successes else 0.0
    high = float(betaincinv(successes + 1, n - successes, 1 - alpha / 2)) if successes < n else 1.0
    return Interval(low, high)


def roc(scores: Any, same: Any) -> Roc:
    """The exact ROC curve of scores, larger for more alike.

    O(P log P) time and a few copies of the scores of memory.

    Args:
        scores: real [P], finite; for distances pass their negatives.
        same: bool (or 0 and 1) [P], pairs of one person; both kinds must occur.
    """
    values = check_scores(scores)
    flags = check_same(same, len(values))
    return roc_of(values[flags], values[~flags])


def roc_of(same: Floats, different: Floats) -> Roc:
    """The exact ROC curve of the scores of pairs of one person and of pairs of different people (sorted in place)."""
    same.sort()
    different.sort()
    # One group for each distinct score of a pair of one person, the highest first: how many of each kind lie above it
    # and at it.  Between two groups lie only pairs of different people: a level run of the curve.
    first = np.flatnonzero(np.r_[True, same[1:] != same[:-1]])
    u = same[first]
    y_at = len(same) - first  # accepted at threshold u
    x_at = len(different) - np.searchsorted(different, u, side="left")
    x_above = len(different) - np.searchsorted(different, u, side="right")
    u, y_at, x_at, x_above = u[::-1], y_at[::-1], x_at[::-1], x_above[::-1]
    # Groups inside a steep run, which nobody of the other kind divides, are no corners: less to build the curve from.
    steep = (x_above == x_at) & (x_at == np.r_[0, x_at[:-1]])
    corner = ~(steep & np.r_[steep[1:], False])
    u, y_at, x_at, x_above = u[corner], y_at[corner], x_at[corner], x_above[corner]
    y_above = np.r_[0, y_at[:-1]]
    # Corners: before each group (at the end of the level run), after each group, and the end.
    x = np.empty(2 * len(u) + 2, np.int64)
    y = np.empty_like(x)
    t = np.empty(len(x), np.float64)
    x[0] = y[0] = 0
    t[0] = np.inf
    x[1:-1:2], x[2:-1:2], x[-1] = x_above, x_at, len(different)
    y[1:-1:2], y[2:-1:2], y[-1] = y_above, y_at, len(same)
    # The threshold of a level run's end is the lowest score of the run.
    t[1:-1:2] = different[np.minimum(len(different) - x_above, len(different) - 1)]
    t[2:-1:2], t[-1] = u, min(float(different[0]), float(same[0]))
    moved = np.r_[True, (np.diff(x) > 0) | (np.diff(y) > 0)]
    x, y, t = x[moved], y[moved], t[moved]
    dx, dy = np.diff(x), np.diff(y)
    inside = np.r_[False, ((dx[1:] == 0) & (dx[:-1] == 0)) | ((dy[1:] == 0) & (dy[:-1] == 0)), False]
    return Roc(x[~inside], y[~inside], t[~inside])


class StreamingRoc:
    """The ROC curve of any number of scores in fixed memory: counts in bins of equal width.

    The curve's points are exact at the edges of the bins; what lies between is bounded: ``curve().uncertainty`` is the
    most that the AUC of the scores themselves can differ.

    Args:
        step: width of a bin, a power of two, so that no score is rounded into another bin.
        limit: scores lie in [-limit, limit], a multiple of ``step``; another one is an error.
    """

    def __init__(self, step: float = 2.0**-19, limit: float = 1.0) -> None:
        if not step > 0 or math.frexp(step)[0] != 0.5:
            raise ValueError(f"step: expected a power of two, got {step!r}")
        if not limit >= step or limit / step != int(limit / step) or limit / step > 2**30:
            raise ValueError(f"limit: expected a multiple of the step {step:g}, at most 2^30 of them, got {limit!r}")
        self.step, self.limit = float(step), float(limit)
        self.offset = int(limit / step)
        self.counts = np.zeros((2, 2 * self.offset + 1), np.int64)

    def update(self, scores: Any, same: Any) -> None:
        """Add pairs; cosines rounded past the limit, by 1e-5 of it at most, are put back to it."""
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
        """The curve of what was added so far."""
        different, same = self.counts
        if not different.any() or not same.any():
            raise ValueError("same: expected pairs of both kinds, got one kind only")
        used = np.flatnonzero(different + same)[::-1]
        x, y = np.cumsum(different[used]), np.cumsum(same[used])
        edges = (used - self.offset) * self.step
        mixed = float(different.astype(np.float64) @ same) / 2 / (float(x[-1]) * float(y[-1]))
        return Roc(np.r_[0, x], np.r_[0, y], np.r_[np.inf, edges], uncertainty=mixed)


def all_pairs_roc(features: Any, labels: Any, *, step: float = 2.0**-19, chunk: int = 1024) -> Roc:
    """The ROC curve over all N (N − 1) / 2 pairs of N features, in memory that does not grow with the pairs.

    Args:
        features: float [N, D], any device.
        labels: int [N].
        step: as in :class:`StreamingRoc`.
        chunk: rows and columns of one block of scores.
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
            if i == j:  # each pair once, and none of an image with itself
                once = torch.ones_like(same).triu_(1)
                scores, same = scores[once], same[once]
            counts.update(scores, same)
    return counts.curve()
