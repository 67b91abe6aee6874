"""Face verification (one-to-one comparison): accuracy over folds, ROC curve, and intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .curves import FARS, Interval, Roc, TarAtFar, roc
from .resampling import RESAMPLES, bootstrap_people, check_people
from .scores import Bools, Floats, Values, as_array, check_same, check_scores

#: A number of folds, the fold of each pair, or None for no accuracy.
Folds = int | Values | None


class Cut(NamedTuple):
    """A threshold and its accuracy on the pairs it was chosen on; a pair is accepted if score >= threshold."""

    threshold: float
    accuracy: float


@dataclass(frozen=True, eq=False)
class Verification:
    """Result of :func:`verification`.

    Attributes:
        accuracy: Mean accuracy over the folds, each with the threshold chosen on the other folds; None without folds.
        accuracy_std: Population standard deviation (``ddof=0``) of the accuracies of the folds, as NumPy and common
            evaluation scripts compute it.
        accuracy_sem: Standard error of the mean as LFW's protocol defines it: sample standard deviation (``ddof=1``)
            divided by the square root of the number of folds.
        fold_accuracies: Accuracy of each fold, float64 [F], in increasing order of the fold ids.
        thresholds: Threshold of each fold, float64 [F].
        folds: Fold ids, int64 [F].
        roc: ROC curve of all pairs.
        auc: Area under that curve.
        auc_interval: Confidence interval of the AUC, with pairs treated as independent.
        eer: Equal error rate.
        tar_at_far: TAR at each requested FAR, in the order of the request.
        n_same: Number of pairs of the same person.
        n_different: Number of pairs of different people.
        confidence: Confidence level of the intervals.
        people: Intervals from a bootstrap over people (see :func:`bootstrap_people`); empty unless requested.
        scores: Score of each pair, [P].
        same: Whether each pair shows one person, bool [P].
        fold_of: Fold of each pair, int64 [P]; None without folds.
        correct: Whether each pair is classified correctly with the threshold of its fold, bool [P]; None without an
            accuracy.
        persons: Person on each side of each pair, int64 [P, 2]; None if not given.
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
    scores: Floats = field(default_factory=lambda: np.zeros(0))
    same: Bools = field(default_factory=lambda: np.zeros(0, np.bool_))
    fold_of: NDArray[np.int64] | None = None
    correct: Bools | None = None
    persons: NDArray[np.int64] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for JSON, without the curve and the values of single pairs."""
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
    scores: Values,
    same: Values,
    folds: Folds = 10,
    *,
    fars: Sequence[float] = FARS,
    confidence: float = 0.95,
    people: Values | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Verification:
    """Evaluate similarity scores of pairs.

    For each fold, the threshold with the highest accuracy on all other folds is used. Every threshold that classifies
    these pairs differently is considered; there is no grid. Among equally accurate thresholds, the strictest is used.
    It lies half way between the two neighboring scores that it separates.

    Args:
        scores: Similarity of each pair, real and finite, [P]. Negate distances.
        same: Whether each pair shows one person, bool (or 0 and 1), [P].
        folds: Number of folds, the fold of each pair as integers [P], or None for no accuracy. A number makes runs of
            successive pairs, the order of LFW's ``pairs.txt``. If it does not divide P, the first P mod ``folds`` runs
            are one pair longer, as in scikit-learn's ``KFold``.
        fars: False acceptance rates in (0, 1] for TAR@FAR.
        confidence: Confidence level of all intervals, in (0, 1).
        people: Person on each side of each pair, int [P, 2]. If given, intervals from a bootstrap over people are
            added.
        resamples: Number of resamples of that bootstrap, at least 20.
        seed: Random seed of that bootstrap.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: Shapes differ, a score is not finite, all pairs are of one kind, or the pairs outside a fold are.
    """
    values = check_scores(scores)
    flags = check_same(same, len(values))
    curve = roc(values, flags)
    ids = None if folds is None else fold_ids(folds, len(flags))
    distinct, accuracies, thresholds = _cross_validate(values, flags, ids)
    n = len(accuracies)
    persons = None if people is None else check_people(people, flags)
    intervals = {}
    if persons is not None:
        intervals = bootstrap_people(
            values, flags, persons, fars=fars, confidence=confidence, resamples=resamples, seed=seed
        )
    return Verification(
        accuracy=float(accuracies.mean()) if n else None,
        accuracy_std=float(accuracies.std()) if n else None,
        accuracy_sem=float(accuracies.std(ddof=1) / np.sqrt(n)) if n > 1 else None,
        fold_accuracies=accuracies,
        thresholds=thresholds,
        folds=distinct,
        roc=curve,
        auc=curve.auc,
        auc_interval=curve.auc_interval(confidence),
        eer=curve.eer,
        tar_at_far={float(far): curve.tar_at_far(far, confidence) for far in fars},
        n_same=curve.n_same,
        n_different=curve.n_different,
        confidence=confidence,
        people=intervals,
        scores=values,
        same=flags,
        fold_of=ids,
        correct=None if ids is None else (values >= thresholds[np.searchsorted(distinct, ids)]) == flags,
        persons=persons,
    )


def best_threshold(scores: Values, same: Values) -> Cut:
    """Find the threshold with the highest accuracy; among equally accurate ones as in :func:`verification`.

    Args:
        scores: Similarity of each pair, real and finite, [P].
        same: Whether each pair shows one person, bool (or 0 and 1), [P].
    """
    values = check_scores(scores)
    flags = check_same(same, len(values))
    order = np.argsort(values, kind="stable")
    return _best(values[order].astype(np.float64), flags[order])


def held_out(
    scores: Values,
    same: Values,
    train_scores: Values,
    train_same: Values,
    *,
    fars: Sequence[float] = FARS,
    confidence: float = 0.95,
    people: Values | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Verification:
    """Evaluate pairs with the threshold chosen on other pairs, as in LFW's View 1.

    The result has one fold, so no standard deviation.

    Args:
        scores: Similarity of each test pair, [P].
        same: Whether each test pair shows one person, [P].
        train_scores: Similarity of each training pair, [Q].
        train_same: Whether each training pair shows one person, [Q].
        fars, confidence, people, resamples, seed: See :func:`verification`.
    """
    cut = best_threshold(train_scores, train_same)
    result = verification(
        scores, same, None, fars=fars, confidence=confidence, people=people, resamples=resamples, seed=seed
    )
    correct = (result.scores >= cut.threshold) == result.same
    accuracy = float(correct.mean())
    return replace(
        result,
        accuracy=accuracy,
        fold_accuracies=np.array([accuracy]),
        thresholds=np.array([cut.threshold]),
        folds=np.zeros(1, np.int64),
        correct=correct,
    )


def fold_ids(folds: int | Values, count: int) -> NDArray[np.int64]:
    """Return the fold of each of ``count`` pairs, int64 [count], from a number of folds or from the ids themselves."""
    if isinstance(folds, (int, np.integer)) and not isinstance(folds, bool):
        if not 2 <= folds <= count:
            raise ValueError(f"folds: expected a number from 2 to {count}, the number of pairs, got {folds}")
        sizes = np.full(folds, count // folds)
        sizes[: count % folds] += 1
        return np.repeat(np.arange(folds), sizes)
    ids = as_array(folds, "folds")
    if ids.dtype.kind not in "iu" or ids.ndim == 0:
        raise TypeError(f"folds: expected a number, integers [{count}] or None, got {folds!r:.60}")
    if ids.shape != (count,):
        raise ValueError(f"folds: expected shape [{count}], one entry for each score, got {list(ids.shape)}")
    if len(np.unique(ids)) < 2:
        raise ValueError(f"folds: expected at least two folds, got only fold {ids[0]}")
    return ids.astype(np.int64)


def _cross_validate(
    values: Floats, same: Bools, ids: NDArray[np.int64] | None
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    if ids is None:
        return np.zeros(0, np.int64), np.zeros(0), np.zeros(0)
    order = np.argsort(values, kind="stable")
    values, same, ids = values[order].astype(np.float64), same[order], ids[order]
    distinct = np.unique(ids)
    accuracies, thresholds = np.empty(len(distinct)), np.empty(len(distinct))
    for k, fold in enumerate(distinct):
        test = ids == fold
        rest = same[~test]
        if rest.all() or not rest.any():
            kind = "the same person" if rest.all() else "different people"
            raise ValueError(
                f"folds: expected pairs of both kinds outside fold {fold} to choose its threshold on, "
                f"got pairs of {kind} only"
            )
        thresholds[k] = _best(values[~test], rest).threshold
        accuracies[k] = ((values[test] >= thresholds[k]) == same[test]).mean()
    return distinct, accuracies, thresholds


def _best(values: NDArray[np.float64], same: Bools) -> Cut:
    # Scores are in increasing order. Cut c rejects the first c pairs; there is no cut between equal scores.
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
