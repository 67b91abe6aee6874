"""Triplet mining for losses of other libraries."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .. import checks
from ..native import reference
from .inputs import Distance, Mining, check_batch, check_indices, check_options, listed_distances, prepare


class TripletMiner:
    """List the triplets that a loss would mine: for small batches and for pytorch-metric-learning's losses.

    Distances are computed in float64, so a triplet exactly at the margin may be classified differently by a float32
    loss.

    Args:
        margin, mining, distance, seed: As for :class:`~occfast.losses.BatchTripletLoss`.
        max_candidates: Largest number of candidate triplets of a batch, at least 1.
    """

    def __init__(
        self,
        margin: float = 0.5,
        *,
        mining: Mining = "violating",
        distance: Distance = "squared_euclidean",
        seed: int = 0,
        max_candidates: int = 100_000_000,
    ) -> None:
        self.margin = check_options(margin, mining, distance, seed)
        self.mining, self.distance, self.seed = mining, distance, seed
        self.max_candidates = checks.integer(max_candidates, "max_candidates", 1)
        self.step = 0

    @torch.no_grad()
    def __call__(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None = None, ref_labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """List the mined triplets of a batch.

        Args:
            embeddings: Floating point [B, D].
            labels: Integers [B].
            ref_emb, ref_labels: Source of positives and negatives, [M, D] and [M]; by default the batch itself.

        Returns:
            Indices of anchors, positives and negatives, int64 [T] each, sorted by anchor, positive and negative.

        Raises:
            TypeError, ValueError: If an argument is invalid, or if the labels allow more than ``max_candidates``
                triplets.
        """
        labels = check_batch(embeddings, labels, ("embeddings", "labels"))
        own = ref_emb is None or ref_emb is embeddings
        a = prepare(embeddings.double(), self.distance)
        if own or ref_emb is None:
            b, b_labels = a, labels
        else:
            if ref_labels is None:
                raise ValueError("ref_labels: expected a tensor with ref_emb, got None")
            b_labels = check_batch(ref_emb, ref_labels, ("ref_emb", "ref_labels"))
            b = prepare(ref_emb.double(), self.distance)
        same = labels[:, None] == b_labels
        positive = same.clone().fill_diagonal_(False) if own else same
        self._check_count(int((positive.sum(1) * (~same).sum(1)).sum()))
        return self._mine(a, b, ((i, positive[i].nonzero()[:, 0], (~same[i]).nonzero()[:, 0]) for i in range(len(a))))

    @torch.no_grad()
    def among_pairs(
        self, embeddings: Tensor, pairs: tuple[Tensor, ...], ref_emb: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """List the mined triplets among those that listed pairs allow.

        Args:
            embeddings: Floating point [B, D].
            pairs: (anchors, positives, anchors, negatives), int64, as pytorch-metric-learning's pair miners return.
            ref_emb: Source of positives and negatives, [M, D]; by default ``embeddings``.

        Returns:
            As the call of the miner.

        Raises:
            TypeError, ValueError: If ``pairs`` has another form or an index that is out of range, or allows more than
                ``max_candidates`` triplets.
        """
        a = prepare(embeddings.double(), self.distance)
        b = a if ref_emb is None else prepare(ref_emb.double(), self.distance)
        check_indices(pairs, "pairs", len(a), len(b), values=True)
        if len(pairs) != 4:
            raise ValueError(f"pairs: expected 4 tensors, got {len(pairs)}")
        first, positives, second, negatives = pairs
        counts = [at.bincount(minlength=len(a)) for at in (first, second)]
        self._check_count(int((counts[0] * counts[1]).sum()))
        anchors = ((counts[0] > 0) & (counts[1] > 0)).nonzero()[:, 0].tolist()
        return self._mine(a, b, ((i, positives[first == i], negatives[second == i]) for i in anchors))

    def _check_count(self, candidates: int) -> None:
        if candidates > self.max_candidates:
            raise ValueError(
                f"embeddings: expected at most {self.max_candidates} candidate triplets "
                f"(max_candidates), got {candidates}"
            )

    def _mine(
        self, a: Tensor, b: Tensor, anchors: Iterable[tuple[int, Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Select triplets of each (anchor, indices of its positives, indices of its negatives)."""
        found: list[Tensor] = []
        for i, p, n in anchors:
            if p.numel() and n.numel():
                at = torch.full((len(b),), i, device=b.device)
                d = listed_distances(a, b, at, torch.arange(len(b), device=b.device), self.distance)
                j, k = self._choose(d[p], d[n], i, p)
                found.append(torch.stack((torch.full_like(j, i), p[j], n[k])))
        if self.mining == "semihard_random":
            self.step = (self.step + 1) % 2**32
        triplets = torch.cat(found, 1) if found else torch.empty((3, 0), dtype=torch.int64, device=a.device)
        return triplets[0], triplets[1], triplets[2]

    def _choose(self, ap: Tensor, an: Tensor, anchor: int, p: Tensor) -> tuple[Tensor, Tensor]:
        """Return indices into the anchor's positives and negatives, one pair for each selected triplet."""
        if self.mining == "hardest":
            return (ap == ap.max()).nonzero()[:1, 0], (an == an.min()).nonzero()[:1, 0]
        chosen = torch.ones((len(ap), len(an)), dtype=torch.bool, device=ap.device)
        if self.mining != "all":
            chosen = an < ap[:, None] + self.margin
        if self.mining.startswith("semihard"):
            chosen &= an > ap[:, None]
        if self.mining == "semihard_random":
            pick = reference.draw_negatives(torch.full_like(p, anchor), p, chosen.sum(1), self.seed, self.step)
            chosen &= chosen.cumsum(1) == pick[:, None] + 1
        j, k = chosen.nonzero(as_tuple=True)
        return j, k
