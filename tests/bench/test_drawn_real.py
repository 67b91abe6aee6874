"""``bench.drawn_real``: its pairs and its figures against brute force; AR itself where it is."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bench import drawn_real
from bench.drawn_real import Scores, accepted_above, compare, figures, numbers, probes
from occfast.data import AR100
from occfast.evaluate import roc
from occfast.occlude import Block, Sunglasses

PEOPLE = 9


def photographs(people: int = 3) -> Tensor:
    random = np.random.default_rng(0)
    return torch.from_numpy(random.integers(0, 256, (people, 26, 1, 42, 30), dtype=np.uint8))


def test_probes_are_of_the_same_light() -> None:
    assert [numbers(o, s) for o in (None, "sunglasses", "scarf") for s in (1, 2)] == [
        [1, 5, 6],
        [14, 18, 19],
        [8, 9, 10],
        [21, 22, 23],
        [11, 12, 13],
        [24, 25, 26],
    ]
    images = photographs()
    real = probes(images, "scarf")
    assert torch.equal(real[2, 1, 0], images[2, 23])
    covered = probes(images, None, Block((4, 6), (10.0, 12.0)))
    assert covered.shape == real.shape == (3, 2, 3, 1, 42, 30)
    assert (covered[..., 8:12, 9:15] == 0).all()
    outside = torch.ones(42, 30, dtype=torch.bool)
    outside[8:12, 9:15] = False
    assert torch.equal(covered[..., outside], probes(images, None)[..., outside])


def features(seed: int, shape: tuple[int, ...], own: Tensor, noise: float) -> Tensor:
    return own + noise * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def scores() -> dict[str, Scores]:
    center = torch.randn(PEOPLE, 1, 8, generator=torch.Generator().manual_seed(7))
    references = features(1, (PEOPLE, 2, 8), center, 0.3)
    return {
        name: Scores.of(references, features(k + 2, (PEOPLE, 2, 3, 8), center[:, None], noise))
        for k, (name, noise) in enumerate({"uncovered": 0.3, "real": 1.0, "drawn": 0.7}.items())
    }


def test_pairs_are_of_the_other_session() -> None:
    references = torch.nn.functional.one_hot(torch.arange(2 * PEOPLE)).reshape(PEOPLE, 2, -1)
    other = references[:, [1, 0], None].expand(-1, -1, 3, -1)
    found = Scores.of(references, other)
    assert (found.genuine == 1).all() and (found.impostor.sum((0, 2)) == 6).all()


def test_figures_are_those_of_all_pairs_of_people_drawn_again(scores: dict[str, Scores]) -> None:
    """Each resample against the pairs written out, a pair as often as both people together were drawn."""
    random = np.random.default_rng(1)
    times = np.concatenate([np.ones((1, PEOPLE), int), random.multinomial(PEOPLE, np.full(PEOPLE, 1 / PEOPLE), size=6)])
    found = figures(scores["real"], scores["uncovered"], times)
    for r, time in enumerate(times):
        drawn = np.arange(PEOPLE).repeat(time)
        pairs = {name: [each.impostor[i, j] for i in drawn for j in drawn if i != j] for name, each in scores.items()}
        genuine = scores["real"].genuine[drawn]
        assert found["genuine"][r] == pytest.approx(genuine.mean())
        assert found["impostor"][r] == pytest.approx(np.concatenate(pairs["real"]).mean())
        impostor, clean = (np.concatenate(pairs[name]) for name in ("real", "uncovered"))
        same = np.r_[np.ones(genuine.size, bool), np.zeros(impostor.size, bool)]
        for far in drawn_real.FARS:
            curve = roc(np.r_[genuine.ravel(), impostor], same)
            assert found[f"TAR at FAR {far:g}"][r] == pytest.approx(curve.tar_at_far(far).tar)
            first_refused = np.sort(clean)[::-1][int(far * clean.size * (1 + 1e-12))]
            kept = (genuine > first_refused).mean()
            assert found[f"TAR at the uncovered FAR {far:g}"][r] == pytest.approx(kept)
            assert accepted_above(scores["uncovered"], times, far)[r] == first_refused
        best = [
            genuine_score > max(scores["real"].impostor[j, i, k] for j in range(PEOPLE) if j != i)
            for i in drawn
            for k, genuine_score in enumerate(scores["real"].genuine[i])
        ]
        assert found["rank-1"][r] == pytest.approx(np.mean(best))


def test_differences_are_paired_over_people(scores: dict[str, Scores]) -> None:
    same = {"uncovered": scores["uncovered"], "real": scores["real"], "drawn": scores["real"]}
    everybody = np.arange(PEOPLE)
    rows = {row["condition"]: row for row in compare({"scarf": same}, everybody, 50)}
    assert all(each == {"value": 0.0, "interval": [0.0, 0.0]} for each in rows["drawn"]["minus real"].values())
    rows = {row["condition"]: row for row in compare({"scarf": scores}, everybody, 200)}
    change, own = rows["uncovered"]["minus real"]["genuine"], rows["uncovered"]["figures"]["genuine"]
    low, high = change["interval"]
    assert low <= change["value"] <= high and low > 0
    assert change["value"] == pytest.approx(own["value"] - rows["real"]["figures"]["genuine"]["value"], abs=2e-5)
    part = {row["condition"]: row for row in compare({"scarf": scores}, everybody[:5], 50)}
    assert part["real"]["figures"]["genuine"]["value"] == pytest.approx(scores["real"].genuine[:5].mean(), abs=1e-5)


def test_on_ar_itself() -> None:
    root = os.environ.get("OCCFAST_DATA")
    path = Path(root or "") / "ar100" / "AR_42_30.mat"
    if not root or not path.is_file():
        pytest.skip("no ar100/AR_42_30.mat in $OCCFAST_DATA")
    images = AR100(path).pixels.unflatten(0, (100, 26))
    # Half of the people whom the drawing was chosen on: real and drawn sunglasses darken the same rows of the face.
    people = images[:25]
    clean, real = (probes(people, name).double() for name in (None, "sunglasses"))
    drawn = probes(people, None, Sunglasses("wayfarer")).double()
    loss = [(clean - other).mean((0, 1, 2, 3, 5)) for other in (real, drawn)]
    assert [int(each.argmax()) in range(11, 22) for each in loss] == [True, True]
    inside = slice(11, 21)
    assert float(loss[1][inside].mean()) == pytest.approx(float(loss[0][inside].mean()), rel=0.25)
    assert float(loss[1][28:].abs().max()) == 0
