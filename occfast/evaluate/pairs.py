"""One-to-one comparison: the accuracy over folds, the ROC curve and what is read off it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import checks
from .curves import Interval, Roc, TarAtFar, roc
from .scores import Bools, Floats, as_array, check_same, check_scores

#: False acceptance rates that a result lists: the axis of Figure 6 of trigueros2018.
FARS = (1e-4, 1e-3, 1e-2, 1e-1)


class Cut(NamedTuple):
    """A threshold and how often it is right on the pairs that it was chosen on (accepted where score >= threshold)."""

    threshold: float
    accuracy: float


@dataclass(frozen=True, eq=False)
class Verification:
    """The result of :func:`verification`.

    Attributes:
        accuracy: mean over the folds of the share of pairs judged right, each with the threshold chosen on the other
            folds; None without folds.
        accuracy_std: population standard deviation (``ddof=0``) of the folds' accuracies, as NumPy and the field's
            evaluation scripts give it.
        accuracy_sem: standard error of the mean as LFW's protocol defines it: the sample standard deviation
            (``ddof=1``) over the root of the number of folds.
        fold_accuracies, thresholds: float64 [F], of each fold, in rising order of the fold ids.
        folds: int64 [F], the ids.
        roc: over all pairs.
        auc, auc_interval, eer: of that curve.
        tar_at_far: for each FAR asked for, in that order.
        n_same, n_different: pairs.
        confidence: of the intervals.
        people: intervals from a bootstrap over people (see :func:`bootstrap_people`), where it was asked for.
    """

    accuracy: float | None
    accuracy_std: float | None
    accuracy_sem: float | None
    fold_accuracies: NDArray[np.float64]
    thresholds: NDArray[np.float64]
    folds: NDArray[np.int64]
    roc: Roc
    auc: float
    auc_interval: Interval
    eer: float
    tar_at_far: dict[float, TarAtFar]
    n_same: int
    n_different: int
    confidence: float
    people: dict[str, Interval] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the curve, for JSON."""
        return {
            "accuracy": self.accuracy,
            "accuracy_std": self.accuracy_std,
            "accuracy_sem": self.accuracy_sem,
            "folds": [
                {"fold": int(f), "accuracy": float(a), "threshold": float(t)}
                for f, a, t in zip(self.folds, self.fold_accuracies, self.thresholds, strict=True)
            ],
            "auc": self.auc,
            "auc_interval": list(self.auc_interval),
            "eer": self.eer,
            "tar_at_far": [entry.as_dict() for entry in self.tar_at_far.values()],
            "n_same": self.n_same,
            "n_different": self.n_different,
            "confidence": self.confidence,
            "people": {name: list(interval) for name, interval in self.people.items()},
        }

    def __repr__(self) -> str:
        spread = "" if self.accuracy_std is None else f" ± {self.accuracy_std:.2%}"
        mean = "" if self.accuracy is None else f"accuracy {self.accuracy:.2%}{spread}, "
        return f"Verification({mean}AUC {self.auc:.4f}, EER {self.eer:.2%}, {self.n_same} + {self.n_different} pairs)"


def verification(
    scores: Any,
    same: Any,
    folds: Any = 10,
    *,
    fars: Sequence[float] = FARS,
    confidence: float = 0.95,
    people: Any = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Verification:
    """Judge similarity scores of pairs.

    For each fold the threshold with the highest accuracy on all other folds is taken.  All thresholds that judge those
    pairs differently are tried, none is missed and there is no grid.  Of thresholds that are equally good the
    strictest is taken; it lies half way between the two neighboring scores that it separates (for distances in rising
    order, that is the first best one).

    Args:
        scores: real [P], finite, larger for more alike; for distances pass their negatives.
        same: bool (or 0 and 1) [P].
        folds: a number that divides P: so many runs of P / folds successive pairs, the order of LFW's ``pairs.txt``;
            or the fold of each pair, integers [P]; or None for no accuracy.
        fars: false acceptance rates in (0, 1] at which to give the TAR.
        confidence: of all intervals.
        people: who is on each side of each pair, integers [P, 2]: adds intervals from a bootstrap over people.
        resamples, seed: of that bootstrap.

    Raises:
        TypeError, ValueError: naming the argument: a wrong length, NaN, pairs of one kind only, folds that can't be
            made or that leave nothing to choose a threshold on.
    """
    values = check_scores(scores)
    flags = check_same(same, len(values))
    curve = roc(values, flags)
    ids, accuracies, thresholds = _cross_validate(values, flags, folds)
    n = len(accuracies)
    boot = (
        {}
        if people is None
        else bootstrap_people(values, flags, people, fars=fars, confidence=confidence, resamples=resamples, seed=seed)
    )
    return Verification(
        accuracy=float(accuracies.mean()) if n else None,
        accuracy_std=float(accuracies.std()) if n else None,
        accuracy_sem=float(accuracies.std(ddof=1) / np.sqrt(n)) if n > 1 else None,
        fold_accuracies=accuracies,
        thresholds=thresholds,
        folds=ids,
        roc=curve,
        auc=curve.auc,
        auc_interval=curve.auc_interval(confidence),
        eer=curve.eer,
        tar_at_far={float(far): curve.tar_at_far(far, confidence) for far in fars},
        n_same=curve.n_same,
        n_different=curve.n_different,
        confidence=confidence,
        people=boot,
    )


def best_threshold(scores: Any, same: Any) -> Cut:
    """The threshold with the highest accuracy on these pairs; of equally good ones as in :func:`verification`."""
    values = check_scores(scores)
    flags = check_same(same, len(values))
    order = np.argsort(values, kind="stable")
    return _best(values[order].astype(np.float64), flags[order])


def held_out(scores: Any, same: Any, train_scores: Any, train_same: Any, **options: Any) -> Verification:
    """LFW's View 1: the threshold from the development training pairs, the accuracy on the development test pairs.

    ``options`` are those of :func:`verification`; there is one fold, so no standard deviation.
    """
    cut = best_threshold(train_scores, train_same)
    values = check_scores(scores)
    flags = check_same(same, len(values))
    result = verification(values, flags, None, **options)
    accuracy = float(((values >= cut.threshold) == flags).mean())
    about = {"accuracy": accuracy, "fold_accuracies": np.array([accuracy]), "thresholds": np.array([cut.threshold])}
    return Verification(**{**vars(result), **about, "folds": np.zeros(1, np.int64)})


def fold_ids(folds: Any, same: Bools) -> NDArray[np.int64]:
    """The fold of each pair from a number of equal runs or from the ids themselves, int64 [P]; checked."""
    count = len(same)
    if isinstance(folds, int) and not isinstance(folds, bool):
        if not 2 <= folds <= count or count % folds:
            raise ValueError(
                f"folds: expected a number of at least 2 that divides the {count} pairs, got {folds}; "
                "for unequal folds give the fold of each pair"
            )
        ids = np.repeat(np.arange(folds), count // folds)
        for fold, part in enumerate(same.reshape(folds, -1)):
            if part.all() or not part.any():
                kind = "the same person" if part.all() else "different people"
                raise ValueError(
                    f"folds: expected pairs of both kinds in each run of {count // folds}, run {fold + 1} has pairs of "
                    f"{kind} only; give the fold of each pair"
                )
        return ids
    ids = as_array(folds, "folds")
    if ids.dtype.kind not in "iu":
        raise TypeError(f"folds: expected a number, integers [{count}] or None, got {folds!r:.60}")
    if ids.shape != (count,):
        raise ValueError(f"folds: expected shape [{count}], one entry for each score, got {list(ids.shape)}")
    if len(np.unique(ids)) < 2:
        raise ValueError(f"folds: expected at least two folds, got only fold {ids[0]}")
    return ids.astype(np.int64)


def _cross_validate(values: Floats, same: Bools, folds: Any) -> tuple[NDArray[np.int64], Any, Any]:
    if folds is None:
        return np.zeros(0, np.int64), np.zeros(0), np.zeros(0)
    ids = fold_ids(folds, same)
    order = np.argsort(values, kind="stable")
    values, same, ids = values[order].astype(np.float64), same[order], ids[order]
    distinct = np.unique(ids)
    accuracies, thresholds = np.empty(len(distinct)), np.empty(len(distinct))
    for k, fold in enumerate(distinct):
        test = ids == fold
        rest = same[~test]
        if rest.all() or not rest.any():
            raise ValueError(f"folds: expected pairs of both kinds outside fold {fold} to choose its threshold on")
        thresholds[k] = _best(values[~test], rest).threshold
        accuracies[k] = ((values[test] >= thresholds[k]) == same[test]).mean()
    return distinct, accuracies, thresholds


def _best(values: NDArray[np.float64], same: Bools) -> Cut:
    # Of rising scores: cut c rejects the first c pairs.  A cut between equal scores can't be made.
    right = np.empty(len(values) + 1, np.int64)
    right[0] = np.count_nonzero(same)
    right[1:] = right[0] + np.cumsum(np.where(same, -1, 1))
    right[1:-1][values[1:] == values[:-1]] = -1
    cut = len(right) - 1 - int(right[::-1].argmax())  # the strictest of the best
    accuracy = right[cut] / len(values)
    if cut == 0:
        return Cut(float(values[0]), float(accuracy))
    if cut == len(values):
        return Cut(float(np.nextafter(values[-1], np.inf)), float(accuracy))
    low, high = values[cut - 1], values[cut]
    middle = low + (high - low) / 2
    return Cut(float(middle if low < middle else high), float(accuracy))  # no float between two neighbors


def bootstrap_people(
    scores: Any,
    same: Any,
    people: Any,
    *,
    fars: Sequence[float] = FARS,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    memory: int | str = "64MiB",
) -> dict[str, Interval]:
    """Percentile intervals of AUC, EER and TAR@FAR from resampling people, not pairs.

    Pairs that share a person rise and fall together, so intervals that take pairs as independent are too short where a
    person is in many pairs.  Here people are drawn with replacement; a pair of two people counts as often as the
    product of both, a pair of one person as often as that person.  (A percentile bootstrap can't see beyond the
    scores: at a FAR with few pairs above it, :meth:`occfast.evaluate.Roc.tar_interval` is the wider and safer one.)

    Args:
        people: integers [P, 2].
        resamples: at least 20; those without pairs of both kinds are drawn again.
        memory: of one block of resamples.

    Returns:
        ``{"auc": ..., "eer": ..., "tar@0.001": ...}``.
    """
    values = check_scores(scores)
    flags = check_same(same, len(values))
    who = as_array(people, "people")
    if who.dtype.kind not in "iu" or who.shape != (len(values), 2):
        raise ValueError(f"people: expected integers [{len(values)}, 2], got {who.dtype} {list(who.shape)}")
    if (bad := np.flatnonzero((who[:, 0] == who[:, 1]) != flags)).size:
        raise ValueError(f"people: expected one person on both sides where same says so, not in pair {bad[0]}")
    if resamples < 20:
        raise ValueError(f"resamples: expected at least 20, got {resamples}")
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
    alpha = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(rows), [alpha, 1 - alpha], axis=0)
    keys = ["auc", "eer", *(f"tar@{far:g}" for far in fars)]
    return {name: Interval(float(a), float(b)) for name, a, b in zip(keys, low, high, strict=True)}


def _statistics(x: NDArray[np.int64], y: NDArray[np.int64], fars: Sequence[float]) -> NDArray[np.float64]:
    # AUC, EER and TAR@FAR of each row: accepted pairs of different people (x) and of one person (y) at each score.
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
