"""Triplet mining for losses of other libraries."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..native import reference
from .triplet import _check_batch, _check_rule, _listed_distances, _working

if TYPE_CHECKING:
    pass


class TripletMiner:
    """Lists the triplets that a loss would mine, for small batches and for pytorch-metric-learning's losses.

    Called with (embeddings [B,D], labels [B], ref_emb [M,D], ref_labels [M]); returns int64 (anchors, positives,
    negatives), by anchor, positive, negative.  Parameters as of :class:`BatchTripletLoss`.  Distances are computed in
    float64, so a triplet at the very margin may differ from a float32 loss's.

    Raises:
        ValueError: If the labels allow more than ``max_candidates`` triplets; as of the losses for bad input.
    """

    def __init__(
        self,
        margin: float = 0.5,
        mining: str = "violating",
        distance: str = "squared_euclidean",
        seed: int = 0,
        max_candidates: int = 100_000_000,
    ) -> None:
        _check_rule(margin, mining, distance, seed)
        self.margin, self.mining, self.distance, self.seed = margin, mining, distance, seed
        self.max_candidates = max_candidates
        self.step = 0

    @torch.no_grad()
    def __call__(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None = None, ref_labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        labels = _check_batch(embeddings, labels, ("embeddings", "labels"))
        own = ref_emb is None or ref_emb is embeddings
        a = _working(embeddings.double(), self.distance)
        if own or ref_emb is None:
            b, b_labels = a, labels
        else:
            if ref_labels is None:
                raise ValueError("ref_labels: expected a tensor with ref_emb, got None")
            b_labels = _check_batch(ref_emb, ref_labels, ("ref_emb", "ref_labels"))
            b = _working(ref_emb.double(), self.distance)
        same = labels[:, None] == b_labels
        positive = same.clone().fill_diagonal_(False) if own else same
        candidates = int((positive.sum(1) * (~same).sum(1)).sum())
        if candidates > self.max_candidates:
            raise ValueError(
                f"embeddings: expected at most {self.max_candidates} candidate triplets "
                f"(max_candidates), got {candidates}"
            )
        found: list[Tensor] = []
        for i in range(a.shape[0]):
            p, n = positive[i].nonzero()[:, 0], (~same[i]).nonzero()[:, 0]
            if p.numel() and n.numel():
                at = torch.full_like(b_labels, i)
                d = _listed_distances(a, b, at, torch.arange(len(b), device=b.device), self.distance)
                for j, k in self._choose(d[p], d[n], i, p):
                    found.append(torch.stack((torch.full_like(j, i), p[j], n[k])))
        if self.mining == "semihard_random":
            self.step = (self.step + 1) % 2**32
        triplets = torch.cat(found, 1) if found else labels.new_empty((3, 0))
        return triplets[0], triplets[1], triplets[2]

    def _choose(self, ap: Tensor, an: Tensor, anchor: int, p: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Indices into the anchor's positives and negatives."""
        if self.mining == "hardest":
            return [((ap == ap.max()).nonzero()[:1, 0], (an == an.min()).nonzero()[:1, 0])]
        chosen = torch.ones((len(ap), len(an)), dtype=torch.bool, device=ap.device)
        if self.mining != "all":
            chosen = an < ap[:, None] + self.margin
        if self.mining.startswith("semihard"):
            chosen &= an > ap[:, None]
        if self.mining == "semihard_random":
            pick = reference.draw_negatives(torch.full_like(p, anchor), p, chosen.sum(1), self.seed, self.step)
            chosen &= chosen.cumsum(1) == pick[:, None] + 1
        j, k = chosen.nonzero(as_tuple=True)
        return [(j, k)]
