"""TAR@FAR of resamples of people, against a brute force over every threshold."""

from __future__ import annotations

import numpy as np
import pytest

from occfast.evaluate.resampling import resampled_rates

PEOPLE = 12


def pairs(each: int = 3, *, ties: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Everybody's reference with everybody's queries: scores, whether they show one person, and the people."""
    random = np.random.default_rng(1)
    people = np.array([(p, q) for p in range(PEOPLE) for q in np.repeat(np.arange(PEOPLE), each)])
    same = people[:, 0] == people[:, 1]
    scores = random.normal(0.3 * same, 0.2)
    return np.round(scores, 2) if ties else scores, same, people


def brute_force(scores: np.ndarray, same: np.ndarray, people: np.ndarray, far: float, times: np.ndarray) -> float:
    """The largest share of genuine pairs that a threshold accepts whose false acceptance rate is at most ``far``."""
    weight = np.where(same, times[people[:, 0]], times[people[:, 0]] * times[people[:, 1]])
    best = 0.0
    for threshold in np.unique(scores):
        accepted = scores >= threshold
        if weight[accepted & ~same].sum() <= far * weight[~same].sum() * (1 + 1e-12):
            best = max(best, weight[accepted & same].sum() / weight[same].sum())
    return best


@pytest.mark.parametrize("far", [1e-3, 0.01, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("ties", [True, False])
def test_rates_are_those_of_the_best_threshold(far: float, ties: bool) -> None:
    scores, same, people = pairs(ties=ties)
    found = resampled_rates(scores, same, people, far, resamples=30)
    drawn = np.random.default_rng(0).multinomial(PEOPLE, np.full(PEOPLE, 1 / PEOPLE), size=30)
    for k, times in enumerate([np.ones(PEOPLE, int), *drawn]):
        assert found[k] == pytest.approx(brute_force(scores, same, people, far, times), abs=1e-12)


def test_resamples_are_the_same_for_all_networks() -> None:
    scores, same, people = pairs()
    shuffled = np.random.default_rng(2).permutation(len(scores))
    one = resampled_rates(scores, same, people, 0.05)
    assert np.array_equal(one, resampled_rates(scores[shuffled], same[shuffled], people[shuffled], 0.05))
    assert one.shape == (1001,) and 0.02 < one.std() < 0.2
    # Far above all impostors in every resample, whatever their weights.
    assert (resampled_rates(scores + 9 * same, same, people, 1e-3) == 1).all()


def test_only_highest_scores_are_not_always_enough() -> None:
    """Impostors that many resamples leave out come first, so that their rate is reached late."""
    random = np.random.default_rng(3)
    people = np.array([(p, q) for p in range(60) for q in range(60)])
    same = people[:, 0] == people[:, 1]
    scores = random.normal(0, 0.1, len(people)) + np.where(same, 0.3, 0) + 5.0 * ((people == 0).any(1) & ~same)
    found = resampled_rates(scores, same, people, 1e-4, resamples=40)
    drawn = np.random.default_rng(0).multinomial(60, np.full(60, 1 / 60), size=40)
    left_out = drawn[:, 0] == 0
    assert 5 < left_out.sum() < 35 and (found[1:][~left_out] == 0).all()
    expected = [brute_force(scores, same, people, 1e-4, times) for times in drawn[left_out]]
    assert found[1:][left_out] == pytest.approx(expected, abs=1e-12) and min(expected) > 0.1
