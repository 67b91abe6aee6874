"""Nearest neighbors: by hand, against a plain loop and scikit-learn; closed and open set."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from occfast.evaluate import identification, normalized_scores, pair_scores


def at(degrees: float) -> list[float]:
    return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]


GALLERY = torch.tensor([at(0), at(40), at(50), at(90)])
LABELS = [7, 3, 3, 9]


def test_ranks_by_hand() -> None:
    # 30° lies nearest to 40° (3), then 50° (3), 0° (7), 90° (9).
    r = identification(GALLERY, LABELS, torch.tensor([at(30), at(30), at(30)]), [3, 7, 9], ranks=(1, 2, 3))
    assert r.rank.tolist() == [1, 2, 3]
    assert r.ranks == {1: pytest.approx(1 / 3), 2: pytest.approx(2 / 3), 3: 1.0}
    assert r.nearest.tolist() == [1, 1, 1] and r.score == pytest.approx([math.cos(math.radians(10))] * 3)
    assert r.cmc(4).tolist() == pytest.approx([1 / 3, 2 / 3, 1, 1])
    images = identification(GALLERY, LABELS, torch.tensor([at(30), at(30), at(30)]), [3, 7, 9], count="images")
    assert images.rank.tolist() == [1, 3, 4]  # two images of person 3 are nearer
    assert r.accuracy == pytest.approx(1 / 3) and (r.n_people, r.n_known, r.n_unknown) == (3, 3, 0)


def test_a_tie_counts_against_the_recognizer() -> None:
    same = torch.ones(4, 2)
    for labels in ([0, 1, 2, 3], [3, 2, 1, 0]):
        r = identification(same, labels, torch.ones(1, 2), [0])
        assert r.rank.tolist() == [4] and r.ranks[1] == 0.0


def test_open_set_by_hand() -> None:
    # Known probes at 1° (person 7, right), 42° (3, right), 80° says 9 and is 3: wrong. Strangers at 20°, 65°, 5°.
    probes = torch.tensor([at(a) for a in (1, 42, 80, 20, 65, 5)])
    r = identification(GALLERY, LABELS, probes, [7, 3, 3, 100, 101, 102], fars=(0.01, 1 / 3, 2 / 3, 1.0))
    assert (r.n_known, r.n_unknown) == (3, 3) and r.rank.tolist()[3:] == [0, 0, 0]
    # Best scores of the impostors: cos 5°, cos 15°, cos 20°.
    none, one, two, every = r.dir_at_far.values()
    assert (none.false_alarms, none.rate) == (0, pytest.approx(2 / 3))  # 1° and 2° are above 5°
    assert none.threshold == pytest.approx(math.cos(math.radians(2)))
    assert (one.false_alarms, two.false_alarms, every.false_alarms) == (1, 2, 3)
    assert every.rate == pytest.approx(2 / 3)
    json.dumps(r.as_dict(), allow_nan=False)


@given(st.integers(0, 2**31), st.sampled_from(["people", "images"]), st.booleans())
def test_it_is_the_plain_loop(seed: int, count: str, coarse: bool) -> None:
    random = np.random.default_rng(seed)
    n, g, people = int(random.integers(1, 12)), int(random.integers(2, 15)), int(random.integers(1, 6))
    gallery, probes = (random.integers(-1, 2, (k, 3)) + 0.1 if coarse else random.normal(size=(k, 3)) for k in (g, n))
    gl = random.integers(0, people, g)
    pl = random.choice(gl, n)
    r = identification(torch.from_numpy(gallery), gl, torch.from_numpy(probes), pl, count=count, memory=g * 8 * 3 * 4)
    s = (F.normalize(torch.from_numpy(gallery)) @ F.normalize(torch.from_numpy(probes)).T).numpy()
    for k in range(n):
        best = {p: s[gl == p, k].max() for p in np.unique(gl)}
        mine = best[pl[k]]
        if count == "people":
            ahead = sum(v >= mine - 1e-12 for p, v in best.items() if p != pl[k])
            surely = sum(v >= mine + 1e-12 for p, v in best.items() if p != pl[k])
        else:
            ahead = int((s[gl != pl[k], k] >= mine - 1e-12).sum())
            surely = int((s[gl != pl[k], k] >= mine + 1e-12).sum())
        assert 1 + surely <= r.rank[k] <= 1 + ahead
        assert s[r.nearest[k], k] == pytest.approx(s[:, k].max())


def test_rank_1_is_scikit_learns_nearest_neighbor() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    random = np.random.default_rng(1)
    centers = random.normal(size=(30, 16))
    gl, pl = np.repeat(np.arange(30), 4), np.repeat(np.arange(30), 3)
    gallery, probes = (centers[y] + 1.2 * random.normal(size=(len(y), 16)) for y in (gl, pl))
    r = identification(torch.from_numpy(gallery), gl, torch.from_numpy(probes), pl)
    nearest = KNeighborsClassifier(1, metric="cosine").fit(gallery, gl)
    assert r.ranks[1] == pytest.approx(nearest.score(probes, pl)) and 0.3 < r.ranks[1] < 1
    top5 = KNeighborsClassifier(5, metric="cosine").fit(gallery, gl).kneighbors(probes, return_distance=False)
    images = identification(torch.from_numpy(gallery), gl, torch.from_numpy(probes), pl, count="images")
    assert images.ranks[5] == pytest.approx((gl[top5] == pl[:, None]).any(1).mean())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"probes": torch.zeros(1, 2)}, "probes: expected finite features that are not all 0, got length 0 in row 0"),
        ({"gallery": torch.full((4, 2), math.nan)}, "gallery: expected finite features"),
        ({"gallery": torch.ones(4, 2, dtype=torch.int64)}, "gallery: expected floating-point"),
        ({"probes": torch.ones(1, 3)}, "probes: expected torch.float32"),
        ({"gallery_labels": [1, 2]}, r"gallery_labels: expected shape \[4\], got \[2\]"),
        ({"probe_labels": [0.5]}, "probe_labels: expected integers"),
        ({"probe_labels": [5]}, "probe_labels: expected people of the gallery"),
        (
            {"probes": torch.ones(2, 2), "probe_labels": [3, 5]},
            r"1 probes show people who are not in the gallery, the first is probe 1 \(5\)",
        ),
        ({"fars": (0.1,)}, "fars: expected some probes of people who are not"),
        ({"ranks": (0,)}, "ranks: expected an int of at least 1"),
        ({"count": "faces"}, "count: expected one of 'people', 'images', got 'faces'"),
    ],
)
def test_one_clear_error_for_bad_input(changed: dict, message: str) -> None:
    given_ = {"gallery": GALLERY, "gallery_labels": LABELS, "probes": torch.ones(1, 2), "probe_labels": [3], **changed}
    with pytest.raises((ValueError, TypeError), match=message):
        identification(**given_)


# -- scores of pairs -----------------------------------------------------------------------------------------


def test_pair_scores_are_cosines_whatever_the_chunk() -> None:
    a, b = torch.randn(9, 5), torch.randn(7, 5)
    i, j = torch.randint(0, 9, (50,)), torch.randint(0, 7, (50,))
    expected = F.cosine_similarity(a[i], b[j])
    for chunk in (1, 7, 1000):
        assert torch.allclose(pair_scores(a, b, i, j, chunk=chunk), expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"first: expected rows in \[0, 9\)"):
        pair_scores(a, b, i + 9, j)
    with pytest.raises(ValueError, match="second: expected shape"):
        pair_scores(a, b, i, j[:3])


def test_normalized_scores_by_hand() -> None:
    x, y, cohort = torch.tensor([at(0)]), torch.tensor([at(60)]), torch.tensor([at(90), at(60), at(120)])
    score = pair_scores(x, y, torch.tensor([0]), torch.tensor([0])).double()
    to_x = np.cos(np.radians([90, 60, 120]))
    to_y = np.cos(np.radians([30, 0, 60]))
    z, t = (0.5 - to_x.mean()) / to_x.std(), (0.5 - to_y.mean()) / to_y.std()
    for method, expected in (("z", z), ("t", t), ("s", (z + t) / 2)):
        assert float(normalized_scores(score, x, y, cohort, method)) == pytest.approx(expected, abs=1e-5)
    top = np.sort(to_x)[-2:]
    assert float(normalized_scores(score, x, y, cohort, "z", top=2)) == pytest.approx(
        (0.5 - top.mean()) / top.std(), abs=1e-5
    )
    with pytest.raises(ValueError, match="method: expected"):
        normalized_scores(score, x, y, cohort, "q")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"top: expected an int in \[2, 3\]"):
        normalized_scores(score, x, y, cohort, "s", top=9)


def test_normalizing_helps_where_people_differ_in_level() -> None:
    from occfast.evaluate import roc

    random = torch.Generator().manual_seed(2)
    # People of a crowded part of the space are alike to everybody.
    centers = torch.randn(120, 16, generator=random) + 2.5 * torch.rand(120, 1, generator=random)

    def draw(who: torch.Tensor) -> torch.Tensor:
        return centers[who] + 0.9 * torch.randn(len(who), 16, generator=random)

    first = torch.arange(60).repeat(20)
    second = torch.where(torch.arange(1200) % 2 == 0, first, (first + 1 + torch.arange(1200) % 59) % 60)
    a, b = draw(first), draw(second)
    scores = F.cosine_similarity(a, b)
    better = normalized_scores(scores, a, b, draw(torch.arange(60, 120)))
    assert roc(better, first == second).auc > roc(scores, first == second).auc + 0.01
