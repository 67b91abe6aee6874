"""Accuracy and score distributions of one head on pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ....evaluate import PairProtocol, pair_scores, verification
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
    scores = pair_scores(embedded, embedded, *index.unbind(1))
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
