"""Accuracy over pairs, against counting."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from occfast.train.validate import best_threshold, verification


@pytest.mark.parametrize("seed", range(8))
def test_best_threshold_is_the_best_of_all(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    scores = torch.randint(12 if seed % 2 else 10**6, (40,), generator=random).double() / 10
    truth = torch.rand(40, generator=random) < (scores / scores.max())
    candidates = torch.cat([scores - 0.01, scores + 0.01])
    best = max(int(((scores >= t) == truth).sum()) for t in candidates)
    assert int(((scores >= best_threshold(scores, truth)) == truth).sum()) == best


@pytest.mark.parametrize("truth", [torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)])
def test_one_kind_alone(truth: torch.Tensor) -> None:
    scores = torch.tensor([0.1, 0.5, 0.5], dtype=torch.float64)
    assert bool(((scores >= best_threshold(scores, truth)) == truth).all())


def test_verification_of_separated_mixed_and_noisy_people() -> None:
    labels = torch.arange(20).repeat_interleave(8)
    apart = F.one_hot(labels).float()
    assert verification(apart, labels) == 1
    random = torch.Generator().manual_seed(0)
    chance = verification(torch.randn(160, 16, generator=random), labels)
    assert abs(chance - 0.5) < 0.05
    noisy = verification(apart + 0.35 * torch.randn(160, 20, generator=random), labels)
    assert 0.7 < noisy < 0.99
    assert verification(apart + 0.2, labels, pairs=40) == 1


def test_verification_needs_pairs() -> None:
    with pytest.raises(ValueError, match="expected at least 10 pairs of images of one person and of two, got 0"):
        verification(torch.randn(6, 4), torch.arange(6))
