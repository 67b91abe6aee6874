"""Adapters for other libraries of losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..packages import require
from .miner import TripletMiner
from .triplet import BatchTripletLoss, TripletLoss

if TYPE_CHECKING:
    from torch import nn


def for_metric_learning(loss: BatchTripletLoss | TripletLoss) -> nn.Module:
    """Wrap a loss for pytorch-metric-learning's ``CrossBatchMemory`` and ``DistributedLossWrapper``.

    The wrapper is called as the loss itself. Pairs in ``indices_tuple`` (four tensors) are candidates, among whose
    triplets the loss's ``mining`` selects; triplets (three tensors) are used as they are. ``CrossBatchMemory`` passes
    all pairs of the batch with its memory, without those of an image with itself.

    Args:
        loss: Loss with ``distributed=False``: ``DistributedLossWrapper`` gathers the batches of all processes.

    Returns:
        A ``BaseMetricLossFunction`` whose attribute ``loss`` is ``loss``.

    Raises:
        TypeError: If ``loss`` is not one of the two triplet losses.
        ValueError: If ``loss`` has ``distributed=True``.
        MissingPackage: If pytorch-metric-learning is not installed.
    """
    if not isinstance(loss, (BatchTripletLoss, TripletLoss)):
        raise TypeError(f"loss: expected BatchTripletLoss or TripletLoss, got {type(loss).__name__}")
    if loss.distributed:
        raise ValueError("loss: expected distributed=False, since DistributedLossWrapper gathers the batches, got True")
    require("for_metric_learning", "pytorch_metric_learning", extra="peers")
    from pytorch_metric_learning.losses import BaseMetricLossFunction

    # CrossBatchMemory accepts a loss by the name of its class.
    class TripletMarginLoss(BaseMetricLossFunction):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.loss = loss
            self.miner = TripletMiner(loss.margin, mining=loss.mining, distance=loss.distance, seed=loss.seed)

        def forward(
            self,
            embeddings: Tensor,
            labels: Tensor | None = None,
            indices_tuple: tuple[Tensor, ...] | None = None,
            ref_emb: Tensor | None = None,
            ref_labels: Tensor | None = None,
        ) -> Tensor:
            if indices_tuple is not None and len(indices_tuple) == 4:
                indices_tuple = self.miner.among_pairs(embeddings, indices_tuple, ref_emb)
            result: Tensor = self.loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)
            return result

    return TripletMarginLoss()
