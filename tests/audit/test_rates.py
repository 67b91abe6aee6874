"""Rates of all pairs, against loops over pairs and people that are repeated one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
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
    low, high = 0.1, 0.5 - 1e-9
    found = PairScores.of(first, second, labels, fmr=1.0, symmetric=symmetric, band=(low, high))
    wanted = pairs(first, second, labels, symmetric)
    genuine = sorted(s for s, a, b in wanted if a == b)
    impostor = sorted((s for s, a, b in wanted if a != b), reverse=True)
    np.testing.assert_allclose(found.genuine, genuine, atol=1e-12)
    np.testing.assert_allclose(found.impostor, impostor, atol=1e-12)
    assert found.n_impostor == len(impostor)
    for table, threshold in ((found.above, high), (found.above + found.table(found.band_people), low)):
        counted = np.zeros((9, 9), int)
        for s, a, b in wanted:
            counted[a, b] += a != b and s >= threshold
        # A symmetric pair may be counted at (a, b) or (b, a).
        np.testing.assert_array_equal(table + table.T, counted + counted.T)
        np.testing.assert_array_equal(found.matches(threshold) + found.matches(threshold).T, counted + counted.T)
    inside = sorted((s for s in impostor if low <= s <= high), reverse=True)
    np.testing.assert_allclose(found.band, inside, atol=1e-12)


def test_many_images_are_compared_in_parts() -> None:
    first, second, labels = made(70, 10)  # more than two parts of 256 rows
    found = PairScores.of(first, second, labels, fmr=0.0025, symmetric=False)
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


def share_kept(every: list[tuple[float, int, int]], threshold: float, people: People) -> tuple[float, list[float]]:
    """Return the share of a resample's deviation that is kept and the plain FMR of each resample, by loops.

    The right variance adds the products of deviations of all pairs of person pairs that share a person, each once.
    """
    impostor = [(s, a, b) for s, a, b in every if a != b]
    rate = sum(s >= threshold for s, _, _ in impostor) / len(impostor)
    apart: dict[tuple[int, int], float] = {}
    for s, a, b in impostor:
        apart[min(a, b), max(a, b)] = apart.get((min(a, b), max(a, b)), 0.0) + (s >= threshold) - rate
    shared = sum(x * y for p, x in apart.items() for q, y in apart.items() if set(p) & set(q))
    variance = max(shared, sum(x * x for x in apart.values())) / len(impostor) ** 2
    drawn = []
    for times in people.times:
        count = sum(times[a] * times[b] for _, a, b in impostor)
        drawn.append(sum(times[a] * times[b] * (s >= threshold) for s, a, b in impostor) / count if count else np.nan)
    spread = float(np.nanvar(drawn))
    return min(1.0, np.sqrt(variance / spread)) if spread > 0 else 1.0, drawn


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("digits", [None, 1])
@pytest.mark.parametrize("fmr", [0.001, 0.05, 0.3])
def test_resamples_equal_repeated_people(symmetric: bool, digits: int | None, fmr: float) -> None:
    first, second, labels = made(8, 3, seed=3, digits=digits)
    if symmetric:
        second = first
    people = People(8, 30, 0.95, seed=1)
    scores = PairScores.of(first, second, labels, fmr=1.0, symmetric=symmetric, band=(-1.1, 1.1))
    value, drawn = people.threshold(scores, fmr)
    near = 1e-12 if digits is None else 0.0  # signs have exact cosines
    # Scores of loops differ in the last bit: those of impostor pairs are replaced by the nearest ones.
    every = [
        (float(scores.impostor[np.abs(scores.impostor - s).argmin()]) if a != b else s, a, b)
        for s, a, b in pairs(first, second, labels, symmetric)
    ]
    single = [s for s, a, b in every if a != b]
    assert value == pytest.approx(lowest(single, fmr), abs=1e-12)
    kept, _ = share_kept(every, value, people)
    fixed = np.full(30, 0.4)
    ((rejected, drawn_rejected),) = people.fnmr(scores, (value, drawn))
    matched, drawn_matched = people.fmr(scores, 0.4, fixed)
    _, drawn_moving = people.fmr(scores, value, drawn)
    kept_fixed, plain_fixed = share_kept(every, 0.4, people)
    genuine = [s for s, a, b in every if a == b]
    assert rejected == np.mean([s < value - near for s in genuine])
    assert matched == np.mean([s >= 0.4 for s in single])
    for k, times in enumerate(people.times):
        repeated = [(s, a, b) for s, a, b in every for _ in range(times[a] if a == b else times[a] * times[b])]
        impostor = [s for s, a, b in repeated if a != b]
        if not impostor:
            continue

        def rate(threshold: float, share: float, drawn_scores: list[float] = impostor) -> float:
            """Return the FMR of the resample, shrunk towards that of all pairs."""
            whole = np.mean([s >= threshold for s in single])
            return float(whole + share * (np.mean([s >= threshold for s in drawn_scores]) - whole))

        candidates = sorted(set(single if kept < 1 else impostor))
        allowed = [t for t in candidates if rate(t, kept) <= fmr * (1 + 1e-9)]
        wanted = allowed[0] if allowed else np.nextafter(candidates[-1], np.inf)
        assert drawn[k] == pytest.approx(wanted, abs=1e-12)
        own = [s for s, a, b in repeated if a == b]
        assert drawn_rejected[k] == pytest.approx(np.mean([s < drawn[k] - near for s in own]))
        assert drawn_matched[k] == pytest.approx(matched + kept_fixed * (plain_fixed[k] - matched))
        assert drawn_moving[k] == pytest.approx(rate(float(drawn[k]), kept))


def test_pairs_of_two_people_vary_as_they_do_over_samples() -> None:
    # Matches that depend on the pair alone: plain products of weights would triple the variance (Owen 2007).
    people, p = 60, 0.02
    random = np.random.default_rng(0)
    found, wanted = [], p * (1 - p) / (people * (people - 1) / 2)
    resampled = People(people, 400, 0.95, seed=0)
    for _ in range(40):
        matches = np.triu(random.random((people, people)) < p, 1).astype(np.int64)
        scores = PairScores.of(*made_flat(people), fmr=0.1, symmetric=True)
        times = resampled.times.astype(float)
        plain = ((times @ matches) * times).sum(1) / resampled._impostors(scores)
        found.append((scores.variance(matches), float(plain.var())))
    shrunk, plain_variance = np.mean(found, 0)
    assert 2.5 < plain_variance / wanted < 3.3
    assert 0.95 < shrunk / wanted < 1.25


def made_flat(people: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return features of one image for each person but the first, who has two, and labels."""
    labels = torch.arange(people)
    labels = torch.cat([labels, labels[:1]])
    features = torch.randn(len(labels), 8, generator=torch.Generator().manual_seed(0))
    return features, features, labels


def test_intervals() -> None:
    people = People(50, 1000, 0.95, seed=0)
    drawn = np.linspace(0, 1, 1001)
    for values in (drawn, np.append(drawn, np.nan)):  # NaN: nobody with two images was drawn
        assert people.interval(values) == pytest.approx((0.025, 0.975))
    # Resamples that scatter as 400 independent trials do, of which 49 degrees of freedom know the variance.
    scatter = 0.1 + np.sqrt(0.1 * 0.9 / 400) * stats.zscore(np.arange(1001.0), ddof=1)
    n = 400 * (1.959964 / 2.009575) ** 2
    wanted = stats.beta.ppf(0.025, 0.1 * n, 0.9 * n + 1), stats.beta.ppf(0.975, 0.1 * n + 1, 0.9 * n)
    for values in (scatter, np.append(scatter, np.nan)):
        assert people.rate(0.1, values, 50).interval == pytest.approx(wanted, rel=1e-5)
    # All pairs accepted: Clopper and Pearson with one trial for each person, 1 - 0.025^(1/50).
    low, high = people.rate(0.0, np.zeros(1000), 50).interval
    assert low == 0 and high == pytest.approx(1 - 0.025 ** (1 / 50))
    assert str(Rate(0.1234, Interval(0.1, 0.15))) == "12.3 % (10.0-15.0 %)"


def test_supported() -> None:
    assert supported(1e-3, 1000) and not supported(1e-3, 999)
