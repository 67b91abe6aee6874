"""Accuracy over folds, ROC, AUC, EER, TAR@FAR: by hand, against scikit-learn, and intervals by simulation."""

from __future__ import annotations

import json
import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from occfast.evaluate import (
    StreamingRoc,
    all_pairs_roc,
    best_threshold,
    binomial_interval,
    bootstrap_people,
    held_out,
    roc,
    verification,
)

LFW_LIKE = np.tile(np.repeat([True, False], 300), 10)


def drawn(seed: int = 0, apart: float = 3.0, same: np.ndarray = LFW_LIKE) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=len(same)) + apart * same


#: Scores with many ties or none, and both kinds of pairs.
pairs = st.lists(st.tuples(st.integers(-6, 6), st.booleans()), min_size=2, max_size=60).filter(
    lambda rows: len({s for _, s in rows}) == 2
)


@given(pairs, st.sampled_from([np.float32, np.float64, np.int64]))
def test_curve_is_scikit_learns(rows: list, dtype: type) -> None:
    scores, same = np.array([r[0] for r in rows], dtype), np.array([r[1] for r in rows])
    mine = roc(scores, same)
    far, tar, thresholds = roc_curve(same, scores, drop_intermediate=False)
    assert mine.auc == pytest.approx(roc_auc_score(same, scores), abs=1e-12)
    # The same polyline: every point of theirs lies on ours and every corner of ours is a point of theirs.
    theirs = {(round(f, 12), round(t, 12)): s for f, t, s in zip(far, tar, thresholds, strict=True)}
    for f, t, s in zip(*mine.points(), strict=True):
        assert (round(f, 12), round(t, 12)) in theirs
        assert ((scores >= s) & same).sum() == round(t * same.sum())
        assert ((scores >= s) & ~same).sum() == round(f * (~same).sum())
        assert s == np.inf or s in scores
    for f, t in theirs:
        on = [
            min(a[0], b[0]) - 1e-9 <= f <= max(a[0], b[0]) + 1e-9
            and abs((b[0] - a[0]) * (t - a[1]) - (b[1] - a[1]) * (f - a[0])) < 1e-9
            and min(a[1], b[1]) - 1e-9 <= t <= max(a[1], b[1]) + 1e-9
            for a, b in zip(
                list(zip(*mine.points()[:2], strict=True)), list(zip(*mine.points()[:2], strict=True))[1:], strict=False
            )
        ]
        assert any(on)
    # TAR@FAR by looking at every threshold.
    for wanted in (0.01, 0.1, 0.3, 1.0):
        entry = mine.tar_at_far(wanted)
        assert entry.tar == pytest.approx(max(t for f, t in zip(far, tar, strict=True) if f <= wanted + 1e-12))
        assert ((scores >= entry.threshold) & ~same).sum() == entry.false_accepts <= wanted * (~same).sum() + 1e-9
        assert ((scores >= entry.threshold) & same).sum() == round(entry.tar * same.sum())
        assert mine.at(np.array([wanted]))[0] == entry.tar
        assert 0 <= entry.interval.low <= entry.tar <= entry.interval.high <= 1
    # The EER lies on the polyline and on FAR = 1 - TAR.
    assert np.interp(mine.eer, far, tar) >= 1 - mine.eer - 1e-9
    assert 0 <= mine.eer <= 1


def test_equal_error_rate_by_hand() -> None:
    # Two corners either side of the line: (0.25, 0.5) and (0.5, 1.0); they meet FAR = 1 - TAR at 1/3.
    scores = [9, 8, 7, 3, 3, 3, 1, 0]
    same = [1, 1, 0, 1, 1, 0, 0, 0]
    curve = roc(scores, same)
    assert [*zip(curve.false_accepts, curve.true_accepts, strict=True)] == [(0, 0), (0, 2), (1, 2), (2, 4), (4, 4)]
    assert curve.thresholds.tolist() == [math.inf, 8, 7, 3, 0]
    assert curve.eer == pytest.approx(1 / 3)
    assert curve.auc == pytest.approx((2 * 4 + 2 * 2.5) / 16)
    assert curve.to_csv().splitlines()[:3] == ["far,tar,threshold", "0.0,0.0,inf", "0.0,0.5,8.0"]


def test_equal_error_rate_agrees_with_a_root_of_scikit_learns_curve() -> None:
    from scipy.optimize import brentq

    scores = drawn(1, 1.5)
    far, tar, _ = roc_curve(LFW_LIKE, scores)
    root = brentq(lambda x: 1 - x - np.interp(x, far, tar), 0, 1)
    assert roc(scores, LFW_LIKE).eer == pytest.approx(root, abs=1e-9)


def test_folds_by_hand() -> None:
    # Three folds of two pairs. Fold 0 is evaluated at the threshold of the other four pairs, and so on.
    scores = np.array([0.9, 0.1, 0.8, 0.3, 0.35, 0.6])
    same = np.array([True, False, True, False, True, False])
    v = verification(scores, same, 3)
    # Without fold 0: 0.8 + | 0.6 - | 0.35 + | 0.3 -: cuts at 0.7 and at 0.325 both decide 3 of 4 correctly; the strictest wins.
    # Without fold 1: 0.9 + | 0.6 - | 0.35 + | 0.1 -: likewise 0.75 and 0.225. Without fold 2 everything: 0.55.
    assert v.thresholds == pytest.approx([0.7, 0.75, 0.55])
    assert v.fold_accuracies.tolist() == [1.0, 1.0, 0.0]
    assert v.accuracy == pytest.approx(2 / 3)
    assert v.accuracy_std == pytest.approx(np.std([1, 1, 0]))
    assert v.accuracy_sem == pytest.approx(np.std([1, 1, 0], ddof=1) / math.sqrt(3))
    assert v.folds.tolist() == [0, 1, 2]


@given(pairs, st.integers(0, 2**31))
def test_thresholds_are_the_best_there_are(rows: list, seed: int) -> None:
    scores, same = np.array([r[0] for r in rows], np.float64), np.array([r[1] for r in rows])
    cut = best_threshold(scores, same)
    every = [((scores >= t) == same).mean() for t in [*np.unique(scores), scores.max() + 1]]
    assert cut.accuracy == max(every) == ((scores >= cut.threshold) == same).mean()
    # The strictest of the equally good: any larger score as the threshold does worse.
    assert all(
        ((scores >= t) == same).mean() < cut.accuracy
        for t in [*np.unique(scores), scores.max() + 1]
        if t > cut.threshold and not ((scores >= t) == (scores >= cut.threshold)).all()
    )
    # Folds in any order and any names give the loop's result.
    ids = np.random.default_rng(seed).integers(0, 3, len(scores)) * 7 - 5
    rest = [same[ids != f] for f in np.unique(ids)]
    if len(rest) < 2 or any(r.all() or not r.any() for r in rest):
        with pytest.raises(ValueError, match=r"^folds: expected"):
            verification(scores, same, ids)
        return
    v = verification(scores, same, ids)
    for f, accuracy, threshold in zip(v.folds, v.fold_accuracies, v.thresholds, strict=True):
        assert threshold == best_threshold(scores[ids != f], same[ids != f]).threshold
        assert accuracy == ((scores[ids == f] >= threshold) == same[ids == f]).mean()


def test_neighboring_floats_are_cut_between() -> None:
    low = 0.3
    high = np.nextafter(low, 1)
    assert best_threshold([low, high], [False, True]).threshold == high
    assert best_threshold(np.float32([0.3, np.nextafter(np.float32(0.3), np.float32(1))]), [0, 1]).accuracy == 1.0


def test_a_grid_misses_what_exact_thresholds_find() -> None:
    # All scores within 0.005: a grid of 0.01 sees one threshold.
    scores = 0.5 + drawn(2, 3.0) / 2000
    exact = verification(scores, LFW_LIKE).accuracy
    grid = max(((scores >= t) == LFW_LIKE).mean() for t in np.arange(0, 1, 0.01))
    assert exact > 0.9 > grid


def test_order_and_scale_of_scores_change_nothing() -> None:
    scores, ids = drawn(3, 2.0), np.arange(6000) // 600
    order = np.random.default_rng(4).permutation(6000)
    a = verification(scores, LFW_LIKE, 10)
    b = verification((scores * 8 - 3)[order], LFW_LIKE[order], ids[order])
    assert a.fold_accuracies.tolist() == b.fold_accuracies.tolist()
    assert a.auc == b.auc and a.eer == pytest.approx(b.eer) and a.accuracy == b.accuracy
    c = verification(torch.tensor(scores), torch.tensor(LFW_LIKE))
    assert c.accuracy == a.accuracy


def test_six_thousand_pairs_take_under_a_tenth_of_a_second() -> None:
    scores = drawn()
    verification(scores, LFW_LIKE)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        verification(scores, LFW_LIKE)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.1


def test_view_1_takes_its_threshold_from_the_training_pairs() -> None:
    v = held_out([0.9, 0.5, 0.4, 0.1], [1, 1, 0, 0], [0.2, 0.3, 0.8], [0, 1, 1])
    assert v.thresholds == pytest.approx([0.25])
    assert v.accuracy == 0.75 and v.accuracy_sem is None and v.auc == 1.0


def test_result_is_json() -> None:
    v = verification(
        [0.1, 0.9, 0.2, 0.8], [1, 0, 1, 0], 2, fars=(1e-3, 0.5), people=[[0, 0], [0, 1], [1, 1], [1, 0]], resamples=20
    )
    about = json.loads(json.dumps(v.as_dict(), allow_nan=False))
    assert about["tar_at_far"][0]["threshold"] is None  # the best score is of different people: accept nothing
    assert about["tar_at_far"][0]["tar"] == 0.0 and about["n_same"] == 2 and len(about["folds"]) == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scores": [0.1, math.nan, 0.3, 0.4]}, "scores: expected finite numbers, got nan at index 1"),
        ({"scores": [0.1, math.inf, 0.3, 0.4]}, "scores: expected finite numbers, got inf at index 1"),
        ({"scores": []}, "scores: expected one dimension"),
        ({"scores": [[0.1, 0.2], [0.3, 0.4]]}, "scores: expected one dimension"),
        ({"scores": ["a", "b", "c", "d"]}, "scores: expected real numbers"),
        ({"scores": [1j, 1, 1, 1]}, "scores: expected real numbers"),
        ({"same": [1, 0, 1]}, r"same: expected shape \[4\], one entry for each score, got \[3\]"),
        ({"same": [1, 1, 1, 1]}, "same: expected pairs of both kinds, got 4 pairs of the same person only"),
        ({"same": [0, 0, 0, 0]}, "got 4 pairs of different people only"),
        ({"same": [0.5, 0, 1, 0]}, "same: expected booleans"),
        ({"same": [2, 0, 1, 0]}, "same: expected 0 and 1, got numbers from 0 to 2"),
        ({"folds": 5}, "folds: expected a number from 2 to 4, the number of pairs, got 5"),
        ({"folds": 1}, "folds: expected a number from 2 to 4"),
        ({"folds": True}, "folds: expected a number, integers"),
        ({"folds": [0, 0, 0, 0]}, "folds: expected at least two folds, got only fold 0"),
        ({"folds": [0, 1, 1]}, r"folds: expected shape \[4\]"),
        ({"folds": 0.5}, "folds: expected a number, integers"),
        ({"folds": [0, 1, 0, 1]}, "folds: expected pairs of both kinds outside fold 0"),
        (
            {"same": [1, 1, 0, 0]},
            "folds: expected pairs of both kinds outside fold 0 .*, got pairs of different people only",
        ),
        ({"fars": (0.0,)}, "far: expected a number in"),
        ({"confidence": 1.0}, "confidence: expected a number between 0 and 1"),
        (
            {"people": [[0, 0], [0, 0], [1, 1], [1, 0]]},
            "people: expected the same person twice exactly where same is True, not in pair 1",
        ),
        ({"people": [0, 1, 2, 3]}, r"people: expected integers \[4, 2\]"),
        ({"people": [[0, 0], [0, 1], [1, 1], [1, 0]], "resamples": 3}, "resamples: expected an int of at least 20"),
    ],
)
def test_one_clear_error_for_bad_input(changed: dict, message: str) -> None:
    given_ = {"scores": [0.9, 0.2, 0.8, 0.1], "same": [1, 0, 1, 0], "folds": 2, **changed}
    with pytest.raises((ValueError, TypeError), match=message):
        verification(given_.pop("scores"), given_.pop("same"), given_.pop("folds"), **given_)


# -- many scores -----------------------------------------------------------------------------------------------


def test_streaming_curve_is_exact_at_its_edges_and_says_how_far_off_it_can_be() -> None:
    same = np.random.default_rng(0).random(20_000) < 0.3
    scores = np.clip(drawn(5, 1.0, same) / 6, -1, 1)
    stream = StreamingRoc(2**-7)
    for k in range(0, len(scores), 777):
        stream.update(torch.from_numpy(scores[k : k + 777]), torch.from_numpy(same[k : k + 777]))
    binned, exact = stream.curve(), roc(scores, same)
    assert (binned.n_same, binned.n_different) == (exact.n_same, exact.n_different)
    assert 0 < abs(binned.auc - exact.auc) <= binned.uncertainty < 0.02
    for f, t, s in list(zip(*binned.points(), strict=True))[1:]:
        assert f == pytest.approx(((scores >= s) & ~same).sum() / exact.n_different)
        assert t == pytest.approx(((scores >= s) & same).sum() / exact.n_same)
    fine = StreamingRoc()
    fine.update(torch.from_numpy(scores), torch.from_numpy(same))
    assert fine.curve().auc == pytest.approx(exact.auc, abs=1e-4) and fine.curve().uncertainty < 1e-4
    assert fine.curve().tar_at_far(0.01).tar == pytest.approx(exact.tar_at_far(0.01).tar, abs=2e-3)


def test_all_pairs_of_features() -> None:
    random = np.random.default_rng(6)
    labels = random.integers(0, 9, 70)
    features = random.normal(size=(70, 8)) + 2 * random.normal(size=(9, 8))[labels]
    curve = all_pairs_roc(torch.from_numpy(features), labels, chunk=16)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    i, j = np.triu_indices(70, 1)
    exact = roc((unit[i] * unit[j]).sum(1), labels[i] == labels[j])
    assert (curve.n_same, curve.n_different) == (exact.n_same, exact.n_different)
    assert curve.auc == pytest.approx(exact.auc, abs=1e-4)
    with pytest.raises(ValueError, match="scores: expected numbers in"):
        StreamingRoc().update(torch.tensor([1.5]), torch.tensor([True]))
    with pytest.raises(ValueError, match="same: expected pairs of both kinds"):
        StreamingRoc().curve()
    with pytest.raises(ValueError, match="step: expected a power of two"):
        StreamingRoc(0.1)
    with pytest.raises(ValueError, match="limit: expected a multiple of the step"):
        StreamingRoc(0.5, 0.75)


def test_few_points_of_a_long_curve() -> None:
    curve = roc(drawn(7, 1.0), LFW_LIKE)
    far, tar, _ = curve.points(200)
    assert 100 < len(far) <= 202 < len(curve.far)
    assert (far[0], tar[0], far[-1], tar[-1]) == (0, 0, 1, 1)
    assert set(zip(far, tar, strict=True)) <= set(zip(curve.far, curve.tar, strict=True))


# -- intervals: what they promise, by simulation ----------------------------------------------------------------


def test_binomial_interval_is_exact() -> None:
    from scipy.stats import binomtest

    for k, n in ((0, 10), (3, 10), (10, 10), (297, 300)):
        expected = binomtest(k, n).proportion_ci(0.95, "exact")
        assert binomial_interval(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)
    with pytest.raises(ValueError, match="successes: expected 0 to n"):
        binomial_interval(4, 3)


def test_delong_variance_is_the_definitions() -> None:
    random = np.random.default_rng(8)
    positive, negative = random.integers(0, 12, 40) + 3.0, random.integers(0, 12, 25) + 0.0
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    auc = wins.mean()
    error = math.sqrt(wins.mean(1).var(ddof=1) / 40 + wins.mean(0).var(ddof=1) / 25)
    low, high = roc(np.r_[positive, negative], np.r_[np.ones(40, bool), np.zeros(25, bool)]).auc_interval()
    logit = math.log(auc / (1 - auc))
    half = 1.959963984540054 * error / (auc * (1 - auc))
    assert (math.log(low / (1 - low)), math.log(high / (1 - high))) == pytest.approx(
        (logit - half, logit + half), abs=1e-9
    )
    perfect = roc(np.arange(30), np.arange(30) >= 10)
    assert perfect.auc == 1.0
    assert perfect.auc_interval() == pytest.approx((0.025**0.1, 1.0))


@pytest.mark.parametrize(("apart", "n"), [(1.0, 100), (2.5, 300), (4.0, 300)])
def test_auc_interval_covers_the_truth(apart: float, n: int) -> None:
    from scipy.stats import norm

    truth = norm.cdf(apart / math.sqrt(2))
    random = np.random.default_rng(9)
    same = np.arange(2 * n) < n
    hits = 0
    for _ in range(400):
        low, high = roc(random.normal(size=2 * n) + apart * same, same).auc_interval(0.95)
        hits += low <= truth <= high
    # The binomial spread of 400 trials at 0.95 is 1.1 %.
    assert 0.91 <= hits / 400 <= 0.99


@pytest.mark.parametrize(("far", "n"), [(0.1, 200), (0.01, 1000), (0.001, 1000)])
def test_tar_interval_covers_the_truth_where_a_fixed_threshold_does_not(far: float, n: int) -> None:
    from scipy.stats import norm

    apart = 2.0
    truth = norm.sf(norm.isf(far) - apart)
    random = np.random.default_rng(10)
    same = np.arange(2 * n) < n
    hits = naive = 0
    widths = []
    for _ in range(300):
        entry = roc(random.normal(size=2 * n) + apart * same, same).tar_at_far(far)
        hits += entry.interval.low <= truth <= entry.interval.high
        widths.append(entry.interval.high - entry.interval.low)
        low, high = binomial_interval(round(entry.tar * n), n)
        naive += low <= truth <= high
    assert hits / 300 >= 0.93  # 0.95 less twice the spread of 300 trials, and a little
    assert naive / 300 < 0.85  # why the threshold's own uncertainty must be in the interval
    assert np.mean(widths) < {0.1: 0.25, 0.01: 0.25, 0.001: 0.35}[far]


def test_tar_interval_by_hand() -> None:
    """Every threshold is as good: with far = 1 nothing is refused; with one pair of different people nothing is known."""
    assert roc([3, 2, 1, 0], [1, 1, 0, 0]).tar_interval(1.0) == pytest.approx((0.025**0.5, 1.0))
    assert roc([3, 2, 1], [1, 1, 0]).tar_interval(0.01) == pytest.approx((0.0, 1.0))
    # 2 of 4 accepted at any threshold between: the scores of different people lie apart from the others, so whatever
    # the number that reaches the threshold (but none, whose weight is below the tail), 2 or all 4 are accepted.
    scores = np.r_[10.0, 11, -10, -11, np.linspace(0, 1, 400)]
    low, high = roc(scores, np.arange(404) < 4).tar_interval(0.5)
    exact = binomial_interval(2, 4)
    assert (low, high) == pytest.approx((exact.low, exact.high), abs=1e-6)


def test_bootstrap_over_people_is_wider_where_people_repeat() -> None:
    """All pairs of a person share that person's level."""
    random = np.random.default_rng(11)
    level = random.normal(size=60)
    first = np.repeat(np.arange(60), 40)
    second = np.where(np.arange(2400) % 2, first, (first + random.integers(1, 60, 2400)) % 60)
    same = first == second
    scores = random.normal(size=2400) + 2 * same + level[first] + level[second]
    who = np.stack([first, second], 1)
    v = verification(scores, same, None, people=who, resamples=300)
    people, pairs_ = v.people["auc"], v.auc_interval
    assert people.low < v.auc < people.high
    assert people.high - people.low > 1.5 * (pairs_.high - pairs_.low)
    assert list(v.people) == ["auc", "eer", "tar@0.0001", "tar@0.001", "tar@0.01", "tar@0.1"]
    again = bootstrap_people(scores, same, who, resamples=300, memory="1MiB")
    assert again["auc"] == pytest.approx(v.people["auc"], abs=0.02)  # other blocks, other draws


@pytest.mark.slow
def test_bootstrap_over_people_covers_the_truth_where_pairs_alone_do_not() -> None:
    random = np.random.default_rng(12)

    def sample(people: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        level = random.normal(size=people)
        first = np.repeat(np.arange(people), 80)
        second = np.where(np.arange(len(first)) % 2, first, (first + random.integers(1, people, len(first))) % people)
        noise = random.normal(size=len(first))
        return (
            noise + 2 * (first == second) + level[first] + level[second],
            first == second,
            np.stack([first, second], 1),
        )

    truth = roc(*sample(20_000)[:2]).auc
    by_people = by_pairs = 0
    for _ in range(200):
        v = verification(*(part := sample(60))[:2], None, people=part[2], resamples=300)
        by_people += v.people["auc"].low <= truth <= v.people["auc"].high
        by_pairs += v.auc_interval.low <= truth <= v.auc_interval.high
    assert by_people / 200 >= 0.88
    assert by_pairs / 200 < 0.85
