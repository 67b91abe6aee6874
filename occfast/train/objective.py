"""Training objectives: modules from images and labels to the loss and the number of right answers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..losses import BatchTripletLoss, CrossBatchMemory, LargeMarginCosine, PartialFC, TripletLoss, TripletStats
from ..models import features


class Classify(nn.Module):
    """Softmax cross-entropy over the people of the training set (Eqs. 1 and 2 of trigueros2018).

    Args:
        network: Returns logits [B, K], or features [B, D] if there is a ``head``.
        head: Maps features to logits; :class:`~occfast.LargeMarginCosine` also receives the labels.
            :class:`~occfast.losses.PartialFC` computes the loss of all processes itself.
        label_smoothing: Label smoothing, in [0, 1]; that of a ``PartialFC`` is its own.
        distillation: Weight of :func:`distance_to`; above 0 only with a ``head``.
    """

    def __init__(
        self, network: nn.Module, head: nn.Module | None = None, label_smoothing: float = 0.0, distillation: float = 0.0
    ) -> None:
        super().__init__()
        self.network, self.head, self.label_smoothing = network, head, label_smoothing
        self.distillation = distillation
        if isinstance(head, PartialFC):  # DistributedDataParallel leaves alone what this attribute names
            self._ddp_params_and_buffers_to_ignore = [f"head.{name}" for name, _ in head.named_parameters()]

    def forward(self, images: Tensor, labels: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the mean loss, and the number of images assigned to the right person, int64.

        Args:
            images: Input of the network.
            labels: int64 [B].
            targets: Features that those of the images are kept near, [B, D]; None: none.
        """
        if self.head is None:
            answers = self.network(images)
            loss = F.cross_entropy(answers, labels, label_smoothing=self.label_smoothing)
            return loss, (answers.detach().argmax(1) == labels).sum()
        found = features(self.network)(images)
        extra = 0.0 if targets is None else self.distillation * distance_to(found, targets)
        loss, right = self._judged(found, labels)
        return loss + extra, right

    def _judged(self, found: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of features with the head, and the number of right answers."""
        assert self.head is not None
        if isinstance(self.head, PartialFC):
            loss = self.head(found, labels)
            assert self.head.predicted is not None
            return loss, (self.head.predicted == labels).sum()
        if isinstance(self.head, LargeMarginCosine):
            logits = self.head(found, labels)
            loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
            with torch.no_grad():  # predictions are made without the margin
                back = logits.new_full((len(labels), 1), self.head.scale * self.head.margin)
                answers = logits.scatter_add(1, labels[:, None], back)
        else:
            answers = logits = self.head(found)
            loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return loss, (answers.detach().argmax(1) == labels).sum()

    def answers(self, images: Tensor) -> Tensor:
        """Return the number of the largest logit of each image, int64 [B]; -1 if its logits are not finite."""
        if isinstance(self.head, PartialFC):
            return self.head.predict(features(self.network)(images))
        logits = self.logits(images)
        return logits.argmax(1).where(logits.isfinite().all(1), -1)

    def logits(self, images: Tensor) -> Tensor:
        """Compute logits [B, K], without a margin; not with a ``PartialFC``, of which no process has all."""
        if self.head is None:
            own: Tensor = self.network(images)
            return own
        logits: Tensor = self.head(features(self.network)(images))
        return logits


class Embed(nn.Module):
    """Loss over triplets of L2-normalized features (trigueros2018, section 3.2), or also of earlier ones."""

    head = None

    def __init__(
        self, network: nn.Module, loss: BatchTripletLoss | TripletLoss | CrossBatchMemory, distillation: float = 0.0
    ) -> None:
        super().__init__()
        self.network, self.loss, self.distillation = network, loss, distillation

    def forward(self, images: Tensor, labels: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the loss, and the number of images whose nearest neighbor is of the same person, float64.

        With several processes the loss is that of the global batch, and the number is this process's share. ``targets``
        are as for :class:`Classify`.
        """
        found = features(self.network)(images)
        loss: Tensor = self.loss(F.normalize(found.float()), labels)
        if targets is not None:
            loss = loss + self.distillation * distance_to(found, targets)
        stats = self.stats
        right = (stats.nearest_positive < stats.nearest_negative).double().mean()
        return loss, right * len(labels)

    @property
    def stats(self) -> TripletStats:
        """Statistics of the latest batch."""
        mined = self.loss.loss if isinstance(self.loss, CrossBatchMemory) else self.loss
        stats = mined.stats
        assert stats is not None
        return stats


def distance_to(found: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of 1 − cosine between features and their targets, both [B, D], computed in float32."""
    return 1 - F.cosine_similarity(found.float(), targets.float()).mean()


Objective = Classify | Embed
