"""Validation: accuracy over random pairs, against counting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from occfast.evaluate import best_threshold
from occfast.train.validate import draw_pairs, verification_accuracy


def test_accuracy_is_that_of_the_best_thresholds_on_the_other_folds() -> None:
    random = torch.Generator().manual_seed(3)
    labels = torch.arange(12).repeat_interleave(6)
    features = F.one_hot(labels).double() + 0.4 * torch.randn(72, 12, generator=random, dtype=torch.float64)
    first, second = draw_pairs(labels, 106, 5)
    assert first.shape == (106,) and bool((labels[first[:53]] == labels[second[:53]]).all())
    assert not bool((labels[first[53:]] == labels[second[53:]]).any()) and not bool((first == second).any())
    scores = F.cosine_similarity(features[first], features[second]).numpy()
    same, fold = np.arange(106) < 53, np.arange(106) % 53 % 10
    right = 0
    for k in range(10):  # no fold is left out, and folds of five and of six pairs count by their pairs
        cut = best_threshold(scores[fold != k], same[fold != k]).threshold
        right += int(((scores[fold == k] >= cut) == same[fold == k]).sum())
    assert verification_accuracy(features, labels, 106, 5) == right / 106 < 1


def test_verification_of_separated_mixed_and_noisy_people() -> None:
    labels = torch.arange(20).repeat_interleave(8)
    apart = F.one_hot(labels).float()
    assert verification_accuracy(apart, labels) == 1
    random = torch.Generator().manual_seed(0)
    chance = verification_accuracy(torch.randn(160, 16, generator=random), labels)
    assert abs(chance - 0.5) < 0.05
    noisy = verification_accuracy(apart + 0.35 * torch.randn(160, 20, generator=random), labels)
    assert 0.7 < noisy < 0.99
    assert verification_accuracy(apart + 0.2, labels, pairs=40) == 1
    assert 0.4 < verification_accuracy(torch.zeros(160, 4), labels) < 0.6  # a dead network is no error


def test_verification_needs_pairs() -> None:
    with pytest.raises(ValueError, match="expected at least 10 pairs of images of one person and of two, got 0"):
        verification_accuracy(torch.randn(6, 4), torch.arange(6))
