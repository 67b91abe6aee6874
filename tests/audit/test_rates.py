"""Rates of all pairs, against loops over pairs and people that are repeated one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from occfast.audit.rates import PairScores, People, Rate, supported
from occfast.evaluate.curves import Interval


def made(people: int, each: int, seed: int = 0, digits: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return features of references and probes, and labels; ``digits`` makes scores that tie."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(people).repeat_interleave(each)[torch.randperm(people * each, generator=generator)]
    center = torch.randn(people, 4, generator=generator)
    features = [center[labels] + 0.8 * torch.randn(len(labels), 4, generator=generator) for _ in range(2)]
    if digits is not None:
        features = [torch.sign(f) for f in features]  # cosines are multiples of 1 / 2
    return features[0], features[1], labels


def pairs(first: Tensor, second: Tensor, labels: Tensor, symmetric: bool) -> list[tuple[float, int, int]]:
    """Return (score, person, person) of every pair, by loops."""
    a, b = (torch.nn.functional.normalize(x.double(), dim=1).numpy() for x in (first, second))
    who = labels.tolist()
    return [
        (float(a[i] @ b[j]), who[i], who[j])
        for i in range(len(a))
        for j in range(len(b))
        if (i < j if symmetric else i != j)
    ]


def lowest(scores: list[float], fmr: float) -> float:
    """Return the lowest threshold among the scores at which at most that share of them matches."""
    allowed = fmr * len(scores) * (1 + 1e-12)
    kept = [t for t in sorted(set(scores)) if sum(s >= t for s in scores) <= allowed]
    return kept[0] if kept else np.nextafter(max(scores), np.inf)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("digits", [None, 1])
def test_pairs_equal_loops(symmetric: bool, digits: int | None) -> None:
    first, second, labels = made(9, 4, digits=digits)
    if symmetric:
        second = first
    found = PairScores.of(first, second, labels, highest=1.0, symmetric=symmetric, thresholds=(0.5 - 1e-9, 0.1))
    wanted = pairs(first, second, labels, symmetric)
    genuine = sorted(s for s, a, b in wanted if a == b)
    impostor = sorted((s for s, a, b in wanted if a != b), reverse=True)
    np.testing.assert_allclose(found.genuine, genuine, atol=1e-12)
    np.testing.assert_allclose(found.impostor, impostor, atol=1e-12)
    assert found.n_impostor == len(impostor)
    for table, threshold in zip(found.matches, (0.5 - 1e-9, 0.1), strict=True):
        counted = np.zeros((9, 9), int)
        for s, a, b in wanted:
            counted[a, b] += a != b and s >= threshold
        # A symmetric pair may be counted at (a, b) or (b, a).
        np.testing.assert_array_equal(table + table.T, counted + counted.T)


def test_many_images_are_compared_in_parts() -> None:
    first, second, labels = made(70, 10)  # more than two parts of 256 rows
    found = PairScores.of(first, second, labels, highest=0.01, symmetric=False)
    a, b = (torch.nn.functional.normalize(x.double(), dim=1) for x in (first, second))
    scores, same = a @ b.T, labels[:, None] == labels
    impostor = scores[~same].sort(descending=True).values.numpy()
    assert len(found.impostor) == int(np.ceil(0.01 * len(impostor))) + 1000
    np.testing.assert_allclose(found.impostor, impostor[: len(found.impostor)], atol=1e-12)
    assert found.n_impostor == len(impostor) and len(found.genuine) == 70 * 10 * 9
    people = labels.numpy()
    for k in (0, 17, 999):
        i, j = np.argwhere(np.abs(scores.numpy() - found.impostor[k]) < 1e-12)[0]
        assert tuple(found.impostor_people[k]) == (people[i], people[j])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("digits", [None, 1])
@pytest.mark.parametrize("fmr", [0.001, 0.05, 0.3])
def test_resamples_equal_repeated_people(symmetric: bool, digits: int | None, fmr: float) -> None:
    first, second, labels = made(8, 3, seed=3, digits=digits)
    if symmetric:
        second = first
    scores = PairScores.of(first, second, labels, highest=1.0, symmetric=symmetric, thresholds=(0.4,))
    people = People(8, 30, 0.95, seed=1)
    value, drawn = people.threshold(scores, fmr)
    every = pairs(first, second, labels, symmetric)
    assert value == pytest.approx(lowest([s for s, a, b in every if a != b], fmr), abs=1e-12)
    rejected, drawn_rejected = people.fnmr(scores, value, drawn)
    matched, drawn_matched = people.fmr(scores, scores.matches[0])
    near = 1e-12 if digits is None else 0.0  # signs have exact cosines
    genuine = [s for s, a, b in every if a == b]
    assert rejected == np.mean([s < value - near for s in genuine])
    assert matched == np.mean([s >= 0.4 for s, a, b in every if a != b])
    for k, times in enumerate(people.times):
        repeated = [(s, a, b) for s, a, b in every for _ in range(times[a] if a == b else times[a] * times[b])]
        impostor = [s for s, a, b in repeated if a != b]
        if not impostor:
            continue
        assert drawn[k] == pytest.approx(lowest(impostor, fmr), abs=1e-12)
        own = [s for s, a, b in repeated if a == b]
        assert drawn_rejected[k] == pytest.approx(np.mean([s < drawn[k] - near for s in own]))
        assert drawn_matched[k] == pytest.approx(np.mean([s >= 0.4 for s in impostor]))


def test_intervals() -> None:
    people = People(50, 1000, 0.95, seed=0)
    drawn = np.linspace(0, 1, 1001)
    for values in (drawn, np.append(drawn, np.nan)):  # NaN: nobody with two images was drawn
        assert people.rate(0.5, values, 50).interval == pytest.approx((0.025, 0.975))
    # All pairs accepted: Clopper and Pearson with one trial for each person, 1 - 0.025^(1/50).
    low, high = people.rate(0.0, np.zeros(1000), 50).interval
    assert low == 0 and high == pytest.approx(1 - 0.025 ** (1 / 50))
    assert str(Rate(0.1234, Interval(0.1, 0.15))) == "12.3 % (10.0-15.0 %)"


def test_supported() -> None:
    assert supported(1e-3, 1000) and not supported(1e-3, 999)
