"""The model of rejection: fit, limits, and its record."""

from __future__ import annotations

import json

import pytest
import torch

from occfast.covered import REGIONS, RejectionModel, region_masks

TRUE = torch.tensor([0.5, 2.0, 3.0, 0.0, 1.0, 0.0, 1.5, 4.0], dtype=torch.float64)


def drawn(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    shares = torch.rand(count, len(REGIONS), generator=random, dtype=torch.float64)
    rejected = torch.rand(count, generator=random, dtype=torch.float64) < (shares @ TRUE - 6).sigmoid()
    return shares, rejected


def test_the_fit_finds_the_weights_that_drew_the_pairs() -> None:
    shares, rejected = drawn(40_000)
    found = RejectionModel.fit(shares, rejected)
    error = torch.tensor(list(found.weights.values()), dtype=torch.float64) - TRUE
    assert float(error.abs().max()) < 0.25
    assert abs(found.bias + 6) < 0.25
    gap = found.probability(shares) - (shares @ TRUE - 6).sigmoid()
    assert float(gap.abs().max()) < 0.05


def test_covering_more_never_lowers_the_probability() -> None:
    shares, rejected = drawn(500, 1)
    found = RejectionModel.fit(shares, ~rejected)  # a world in which covering helps
    assert min(found.weights.values()) >= 0
    more = found.probability((shares + 0.1).clamp(max=1)) - found.probability(shares)
    assert bool((more >= 0).all())


def test_a_region_that_is_never_covered_gets_no_weight() -> None:
    shares, rejected = drawn(2_000, 2)
    shares[:, 2] = 0
    assert RejectionModel.fit(shares, rejected).weights["right eye"] == pytest.approx(0, abs=1e-6)


def test_the_record_restores_the_model() -> None:
    found = RejectionModel.fit(*drawn(500, 3), {"recognizer": "a", "fmr": 0.001})
    again = RejectionModel.from_dict(json.loads(json.dumps(found.as_dict())))
    assert again == found


@pytest.mark.parametrize(
    ("shares", "rejected", "error", "message"),
    [
        (torch.zeros(4, 8), torch.zeros(4), TypeError, "rejected: expected dtype bool"),
        (torch.zeros(4, 7), torch.zeros(4, dtype=torch.bool), ValueError, r"\[4, 7\]"),
        (torch.zeros(4, 8), torch.zeros(3, dtype=torch.bool), ValueError, r"\[3\]"),
        (torch.full((4, 8), float("nan")), torch.tensor([True, False] * 2), ValueError, r"shares: .* \[0, 1\]"),
        (torch.full((4, 8), 3.0), torch.tensor([True, False] * 2), ValueError, r"shares: .* \[0, 1\]"),
        (torch.zeros(4, 8), torch.ones(4, dtype=torch.bool), ValueError, "got 4 of 4"),
    ],
)
def test_bad_pairs_are_refused(
    shares: torch.Tensor, rejected: torch.Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        RejectionModel.fit(shares, rejected)


def test_a_model_of_other_regions_is_refused() -> None:
    with pytest.raises(ValueError, match="weights: expected the regions"):
        RejectionModel(0.0, {"eyes": 1.0}, {})
    with pytest.raises(ValueError, match="bias: expected a finite number"):
        RejectionModel(float("nan"), dict.fromkeys(REGIONS, 0.0), {})


def test_the_regions_are_the_face_without_overlap_and_mirror_each_other() -> None:
    masks = region_masks()
    assert masks.shape == (len(REGIONS), 64, 64)
    assert int(masks.sum(0).max()) == 1
    face = masks.any(0)
    rows, columns = torch.arange(64.0).double()[:, None], torch.arange(64.0).double()[None] - 32
    assert torch.equal(face, ((rows - 35) / 26).square() + (columns / 19.5).square() <= 1)
    for left, right in (("left eye", "right eye"), ("left cheek", "right cheek")):
        mirrored = masks[REGIONS.index(left)].flip(1).roll(1, 1)  # column 32 is the middle
        assert int((mirrored ^ masks[REGIONS.index(right)]).sum()) <= 20  # the middle column belongs to one side


@pytest.mark.parametrize("value", ["1.5", True, 10**400, float("nan"), -5.0])
def test_hostile_records_are_refused(value: object) -> None:
    weights: dict[str, object] = {**dict.fromkeys(REGIONS, 0.0), "chin": value}
    with pytest.raises((TypeError, ValueError), match="weights: chin: expected a"):
        RejectionModel.from_dict({"bias": 0.0, "weights": weights, "about": {}})
    with pytest.raises(ValueError, match="'ear'"):
        RejectionModel.from_dict({"bias": 0.0, "weights": {**dict.fromkeys(REGIONS, 0.0), "ear": 1.0}, "about": {}})
