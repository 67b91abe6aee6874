"""Cross-batch memory: triplets of a batch with the embeddings of earlier ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import checks
from .distributed import gather_batch
from .inputs import check_batch, prepare
from .triplet import BatchTripletLoss, TripletLoss, in_backward


class CrossBatchMemory(nn.Module):
    """A triplet loss of each batch against itself and the latest embeddings of earlier batches.

    Source: Wang et al. 2020, "Cross-Batch Memory for Embedding Learning". Embeddings drift slowly in training, so those
    of some hundred earlier steps serve as further positives and negatives without another forward pass. Anchors are the
    batch's; positives and negatives are those of the batch and of the memory, which counts as constant. An embedding
    is never its own positive. Triplets are not listed: memory is O(B (B + M)), or less, as the loss's ``memory`` says.

    In training mode each call then remembers its batch, over all processes with a distributed loss, and forgets the
    oldest embeddings. Keep ``memory_size`` below the number of images of an epoch, lest an image meet an earlier
    embedding of itself. The paper begins with the memory after some thousand steps, when embeddings drift less. A batch
    with NaN or infinity, whose loss is NaN, is not remembered.

    Args:
        loss: :class:`BatchTripletLoss` or :class:`TripletLoss`. Its ``stats`` are those of the latest call.
        embedding_size: D, at least 1.
        memory_size: M, number of embeddings to remember, at least 1.

    Attributes:
        loss: As given.
        remembered: Number of embeddings in the memory.

    Raises:
        TypeError, ValueError: An argument has a wrong type or value; the message names it.
    """

    embeddings: Tensor
    labels: Tensor
    written: Tensor

    def __init__(self, loss: BatchTripletLoss | TripletLoss, embedding_size: int, *, memory_size: int = 1024) -> None:
        super().__init__()
        if not isinstance(loss, (BatchTripletLoss, TripletLoss)):
            raise TypeError(f"loss: expected BatchTripletLoss or TripletLoss, got {type(loss).__name__}")
        self.loss = loss
        self.embedding_size = checks.integer(embedding_size, "embedding_size", 1)
        self.memory_size = checks.integer(memory_size, "memory_size", 1)
        self.register_buffer("embeddings", torch.zeros(self.memory_size, self.embedding_size))
        self.register_buffer("labels", torch.zeros(self.memory_size, dtype=torch.int64))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))  # in all; the place of the next is modulo M

    @property
    def remembered(self) -> int:
        """Number of embeddings in the memory, at most ``memory_size``."""
        return min(int(self.written), self.memory_size)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of a batch, and remember the batch in training mode.

        Args:
            embeddings: float16, bfloat16, float32 or float64 [B, D], on the memory's device.
            labels: Integers [B].

        Returns:
            A scalar: float64 for float64 embeddings, else float32.

        Raises:
            TypeError, ValueError: As for the loss; D is not ``embedding_size``; the memory is on another device.
            NotImplementedError: In forward-mode differentiation and in transforms of ``torch.func``.
            RuntimeError: If it is recomputed by activation checkpointing in training mode, where it would remember the
                batch twice.
        """
        loss = self.loss
        labels = check_batch(embeddings, labels, ("embeddings", "labels"), empty=loss.distributed)
        if embeddings.shape[1] != self.embedding_size:
            raise ValueError(f"embeddings: expected {self.embedding_size} columns, got {embeddings.shape[1]}")
        if embeddings.device != self.embeddings.device:
            raise ValueError(f"embeddings: expected a tensor on {self.embeddings.device}, got {embeddings.device}")
        if (embeddings.dtype == torch.float64) != (self.embeddings.dtype == torch.float64):
            raise TypeError(
                f"embeddings: expected the precision of the memory, {self.embeddings.dtype}, got {embeddings.dtype}; "
                "CrossBatchMemory.double() and .float() change the memory"
            )
        loss._check_values(embeddings, "embeddings")
        if not torch.compiler.is_compiling():
            loss._check_autograd(embeddings, None)
            if self.training and in_backward():
                raise RuntimeError(
                    "CrossBatchMemory: each call remembers its batch, so activation checkpointing can't recompute it; "
                    "call it outside of torch.utils.checkpoint"
                )
        batch = prepare(embeddings, loss.distance)
        if loss.distributed:
            batch, labels = gather_batch(batch, labels, loss.process_group)
            if batch.shape[0] == 0:
                raise ValueError("embeddings: expected at least one row over all ranks, got none")
        known = self.remembered
        candidates = torch.cat((batch, self.embeddings[:known].to(batch.dtype)))
        found = loss._mined(batch, labels, candidates, torch.cat((labels, self.labels[:known])), leading=True)
        if self.training:
            self._remember(batch.detach(), labels)
        return found

    def reset(self) -> None:
        """Forget all embeddings."""
        self.written.zero_()

    @torch.no_grad()
    def _remember(self, batch: Tensor, labels: Tensor) -> None:
        batch, labels = batch[-self.memory_size :], labels[-self.memory_size :]
        batch = batch.to(self.embeddings.dtype)
        at = (self.written + torch.arange(len(batch), device=batch.device)) % self.memory_size
        usable = batch.isfinite().all()  # not read: a GPU need not be waited for
        self.embeddings[at] = torch.where(usable, batch, self.embeddings[at])
        self.labels[at] = torch.where(usable, labels, self.labels[at])
        self.written += usable * len(batch)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"embedding_size={self.embedding_size}, memory_size={self.memory_size}"
