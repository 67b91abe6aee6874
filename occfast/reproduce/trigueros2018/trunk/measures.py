"""Accuracy and score distributions of one head on pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....evaluate import PairProtocol, verification
from ..steps import distributions
from .heads import Network


def measure(
    network: Network, features: Tensor, pairs: PairProtocol
) -> tuple[dict[str, Any], NDArray[np.bool_], NDArray[np.float32]]:
    """Evaluate a head.

    Args:
        network: the head.
        features: the trunk's, by image number, float32 [N, D]; rows of images that no pair has are ignored.
        pairs: with folds.

    Returns:
        Accuracy, its standard deviation over the folds, AUC and what
        :func:`~occfast.reproduce.trigueros2018.steps.distributions` returns; whether each pair is classified
        correctly with the threshold of the other folds, bool [P]; and the scores, float32 [P].
    """
    used, index = pairs.index.unique(return_inverse=True)
    embedded = network.embed(features[used])
    scores = torch.cat([(embedded[a] * embedded[b]).sum(1) for a, b in zip(*_halves(index), strict=True)])
    found = verification(scores, pairs.same, pairs.folds)
    assert found.accuracy is not None and found.accuracy_std is not None and found.correct is not None
    return (
        {
            "accuracy": found.accuracy,
            "accuracy_std": found.accuracy_std,
            "auc": found.auc,
            **distributions(scores, pairs.same),
        },
        np.asarray(found.correct),
        scores.numpy(),
    )


def _halves(index: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    first, second = index.unbind(1)
    return first.split(4096), second.split(4096)
