"""Triplet losses over every triplet of a batch, without a list of them, and the large margin cosine head.

Sáez Trigueros, Meng, Hartnett 2018 (S1): triplet loss (Eqs. 5-7), decidability (Eq. 8), batch triplet loss (Eq. 9).
Wang et al. 2018, "CosFace": large margin cosine loss.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..native import ops
from .distributed import _gather
from .stats import TripletStats

if TYPE_CHECKING:
    import torch.distributed as dist

__all__ = ["BatchTripletLoss", "TripletLoss", "TripletStats"]

_BINS = 64


# -- statistics ----------------------------------------------------------------------------------------


# -- the global batch ----------------------------------------------------------------------------------


# -- triplet losses ------------------------------------------------------------------------------------


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_rule(margin: float, mining: str, distance: str, seed: int) -> None:
    if not _is_number(margin) or margin < 0:
        raise ValueError(f"margin: expected a finite number, not negative, got {margin!r}")
    for name, value, known in (("mining", mining, ops.MININGS), ("distance", distance, ops.DISTANCES)):
        if value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(map(repr, known))}, got {value!r}")
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed: expected an integer in [0, 2**63), got {seed!r}")


def _check_batch(embeddings: Tensor, labels: Tensor | None, names: tuple[str, str]) -> Tensor:
    """The labels as int64.  Looks at shapes, types and devices only."""
    if not isinstance(embeddings, Tensor):
        raise TypeError(f"{names[0]}: expected a tensor, got {type(embeddings).__name__}")
    if embeddings.dim() != 2:
        raise ValueError(f"{names[0]}: expected shape [B, D], got {list(embeddings.shape)}")
    if not embeddings.is_floating_point():
        raise TypeError(f"{names[0]}: expected a floating-point tensor, got {embeddings.dtype}")
    if not isinstance(labels, Tensor):
        raise TypeError(f"{names[1]}: expected a tensor, got {type(labels).__name__}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{names[1]}: expected an integer tensor, got {labels.dtype}")
    if tuple(labels.shape) != (embeddings.shape[0],):
        raise ValueError(f"{names[1]}: expected shape [{embeddings.shape[0]}], got {list(labels.shape)}")
    if labels.device != embeddings.device:
        raise ValueError(f"{names[1]}: expected a tensor on {embeddings.device}, got {labels.device}")
    return labels.long()


def _working(embeddings: Tensor, distance: str) -> Tensor:
    """float32 or float64, and of length 1 (or 0) where the distance is the cosine's."""
    working = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
    if distance != "cosine":
        return working
    length = torch.linalg.vector_norm(working, dim=1, keepdim=True, dtype=torch.float64)
    unit: Tensor = working / torch.where(length > 0, length, 1.0).to(working.dtype) * (length > 0)
    return unit


class _Triplets(nn.Module):
    """What the two losses share; see :class:`BatchTripletLoss`."""

    hinge: bool

    def __init__(
        self,
        margin: float,
        beta: float,
        mining: str,
        distributed: bool,
        distance: str,
        statistics: bool,
        bins: int,
        histogram_range: float | None,
        seed: int,
        check_finite: bool,
        process_group: dist.ProcessGroup | None,
    ) -> None:
        super().__init__()
        _check_rule(margin, mining, distance, seed)
        if not _is_number(beta) or not 0 <= beta <= 1:
            raise ValueError(f"beta: expected a number in [0, 1], got {beta!r}")
        if not isinstance(bins, int) or not 1 <= bins <= ops.MAX_BINS:
            raise ValueError(f"bins: expected an integer in [1, {ops.MAX_BINS}], got {bins!r}")
        if histogram_range is not None and (not _is_number(histogram_range) or histogram_range <= 0):
            raise ValueError(f"histogram_range: expected a positive distance or None, got {histogram_range!r}")
        self.margin, self.beta, self.mining, self.distance = float(margin), float(beta), mining, distance
        self.distributed, self.process_group = distributed, process_group
        self.statistics, self.bins, self.histogram_range = statistics, bins, histogram_range
        self.seed, self.check_finite = seed, check_finite
        self.step = 0
        self._stats: TripletStats | None = None

    @property
    def stats(self) -> TripletStats | None:
        """Of the latest call; None before the first, and after one with ``indices_tuple``."""
        return self._stats

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar: float64 for float64 embeddings, else float32.

        Args:
            embeddings: float16, bfloat16, float32 or float64 [B, D]; used as given (normalize before).
            labels: integer [B]
            indices_tuple: (anchors, positives, negatives), or (anchors, positives, anchors, negatives) of pairs,
                int64: the triplets to use in place of mining, as pytorch-metric-learning's miners give them.
            ref_emb, ref_labels: [M, D] and [M]: where positives and negatives come from; by default the batch itself,
                no item being its own positive.  They get a gradient too.

        Raises:
            ValueError, TypeError: For a wrong shape, device, dtype; with ``check_finite`` for NaN or infinite
                embeddings.
        """
        if labels is None and indices_tuple is not None:  # listed triplets need no labels
            labels = torch.zeros(len(embeddings), dtype=torch.int64, device=embeddings.device)
            if ref_emb is not None and ref_labels is None:
                ref_labels = torch.zeros(len(ref_emb), dtype=torch.int64, device=ref_emb.device)
        labels = _check_batch(embeddings, labels, ("embeddings", "labels"))
        if (ref_emb is None) != (ref_labels is None):
            missing = "ref_labels" if ref_labels is None else "ref_emb"
            raise ValueError(f"{missing}: expected a tensor beside the other of ref_emb and ref_labels, got None")
        if ref_emb is embeddings:
            ref_emb = ref_labels = None
        if ref_emb is not None:
            ref_labels = _check_batch(ref_emb, ref_labels, ("ref_emb", "ref_labels"))
            if ref_emb.shape[1] != embeddings.shape[1]:
                raise ValueError(f"ref_emb: expected {embeddings.shape[1]} columns, got {ref_emb.shape[1]}")
            if ref_emb.device != embeddings.device:
                raise ValueError(f"ref_emb: expected a tensor on {embeddings.device}, got {ref_emb.device}")
            if (ref_emb.dtype == torch.float64) != (embeddings.dtype == torch.float64):
                raise TypeError(f"ref_emb: expected the dtype {embeddings.dtype}, got {ref_emb.dtype}")
        if self.check_finite:
            for name, tensor in (("embeddings", embeddings), ("ref_emb", ref_emb)):
                if tensor is not None and not bool(tensor.isfinite().all()):
                    bad = (~tensor.isfinite()).any(1).nonzero()[:, 0].tolist()
                    raise ValueError(f"{name}: expected finite numbers, got NaN or infinity in rows {bad[:8]}")
        if indices_tuple is not None:
            if self.distributed:
                raise ValueError("indices_tuple: expected None with distributed=True, got a tuple")
            self._stats = None
            return self._listed(embeddings, indices_tuple, ref_emb)
        embeddings = _working(embeddings, self.distance)
        references = None if ref_emb is None else _working(ref_emb, self.distance)
        if self.distributed:
            embeddings, labels = _gather(embeddings, labels, self.process_group)
            if references is not None and ref_labels is not None:
                references, ref_labels = _gather(references, ref_labels, self.process_group)
        needs_gradient = torch.is_grad_enabled() and (
            embeddings.requires_grad or (references is not None and references.requires_grad)
        )
        loss, totals, nearest, histogram, edge, lengths, squares, *_ = ops.triplet_loss(
            embeddings,
            labels,
            references,
            ref_labels,
            ops.DISTANCES[self.distance],
            ops.MININGS[self.mining],
            self.hinge,
            self.margin,
            self.beta,
            self.seed,
            self.step,
            self.statistics,
            self.bins,
            self.histogram_range or 0.0,
            needs_gradient,
        )
        if self.mining == "semihard_random":
            self.step = (self.step + 1) % 2**32
        self._stats = TripletStats(totals, nearest, histogram, edge, lengths, squares, self.margin, self.statistics)
        result: Tensor = loss
        return result

    def _listed(self, embeddings: Tensor, indices_tuple: tuple[Tensor, ...], ref_emb: Tensor | None) -> Tensor:
        anchors = _working(embeddings, self.distance)
        others = anchors if ref_emb is None else _working(ref_emb, self.distance)
        if len(indices_tuple) == 4:
            first, positives, second, negatives = indices_tuple
            i, j = (first[:, None] == second).nonzero(as_tuple=True)
            a, p, n = first[i], positives[i], negatives[j]
        elif len(indices_tuple) == 3:
            a, p, n = indices_tuple
        else:
            raise ValueError(f"indices_tuple: expected 3 or 4 tensors, got {len(indices_tuple)}")
        if a.numel() == 0:
            return (anchors.sum() + others.sum()) * 0
        d_ap = _listed_distances(anchors, others, a, p, self.distance)
        d_an = _listed_distances(anchors, others, a, n, self.distance)
        if self.hinge:
            return (d_ap - d_an + self.margin).clamp(min=0).mean()
        spread = d_ap.var(correction=0) + d_an.var(correction=0)
        return (1 - self.beta) * (d_ap.mean() - d_an.mean() + self.margin) + self.beta * spread

    def extra_repr(self) -> str:
        beta = "" if self.hinge else f"beta={self.beta}, "
        return (
            f"margin={self.margin}, {beta}mining={self.mining!r}, distance={self.distance!r}, "
            f"distributed={self.distributed}"
        )

    def get_extra_state(self) -> dict[str, int]:
        return {"step": self.step}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.step = int(state["step"])


def _listed_distances(a: Tensor, b: Tensor, i: Tensor, j: Tensor, distance: str) -> Tensor:
    squares = (a[i] - b[j]).square().sum(1)
    if distance == "euclidean":  # the derivative at 0 is taken as 0
        return torch.where(squares > 0, squares, 1.0).sqrt() * (squares > 0)
    if distance == "cosine":
        zero = (a.detach()[i] == 0).all(1) | (b.detach()[j] == 0).all(1)
        return torch.where(zero, 1.0, squares * 0.5)
    return squares


class BatchTripletLoss(_Triplets):
    r"""Batch triplet loss (S1 Eq. 9) over every mined triplet of the batch.

    .. math:: L = (1 - \beta)(\mu_{ap} - \mu_{an} + \alpha) + \beta(\sigma^2_{ap} + \sigma^2_{an})

    with the means and population variances of d(a, p) and d(a, n) over the mined triplets, which count as constant:
    the gradient is that of the formula for this very set.  No triplet is ever listed; memory is O(B²).

    Args:
        margin: α, >= 0.  The paper's 0.5 is for squared distances of unit vectors.
        beta: β in [0, 1].  0 is Eq. 7, 1 the variances alone.
        mining: which triplets, d_ap and d_an being the distances of a's positive and negative:
            "violating" (d_ap + α > d_an), "semihard" (d_ap < d_an < d_ap + α), "semihard_random" (one such negative
            for each pair a, p, chosen by ``seed`` and the number of the call), "hardest" (each anchor's furthest
            positive with its nearest negative; of equals the first), "all".
        distributed: mine over the batches of all ranks.  Contract: every rank returns the same loss, that of the
            global batch (in the order of the ranks; sizes may differ), and gives its own embeddings *world size*
            times that loss's gradient.  DistributedDataParallel averages over the ranks, so parameters get exactly
            the gradient of the one global loss: nothing is to be multiplied by hand.  (Where gradients are added up
            and not averaged, divide by the number of ranks.)  The loss must be scaled alike on every rank.  One small
            wait for the sizes a call.
        distance: "squared_euclidean" (as the paper), "euclidean" (derivative 0 at distance 0) or "cosine" (1 -
            cosine; an embedding of length 0 is at distance 1 from everything and gets no gradient).
        statistics: also what the loss itself doesn't need, for :attr:`stats`.
        bins, histogram_range: of the histograms; by default over [0, a bound from the lengths] (4 for unit vectors).
        check_finite: raise on NaN or infinite embeddings.  It waits for the device; without it the loss is NaN.
        process_group: for ``distributed``; by default the whole world.

    Where nothing is mined the loss is 0 and so is its gradient.  A second derivative is refused.
    """

    hinge = False

    def __init__(
        self,
        margin: float = 0.5,
        beta: float = 0.7,
        mining: str = "violating",
        distributed: bool = False,
        *,
        distance: str = "squared_euclidean",
        statistics: bool = True,
        bins: int = _BINS,
        histogram_range: float | None = None,
        seed: int = 0,
        check_finite: bool = False,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            margin,
            beta,
            mining,
            distributed,
            distance,
            statistics,
            bins,
            histogram_range,
            seed,
            check_finite,
            process_group,
        )


class TripletLoss(_Triplets):
    r"""Triplet loss (S1 Eqs. 5-7): the mean of max(0, d_ap - d_an + α) over the mined triplets.

    With "violating" this is Eq. 7, with "all" the mean over every triplet that the labels allow.  Parameters, contract
    and statistics are those of :class:`BatchTripletLoss`.
    """

    hinge = True

    def __init__(
        self,
        margin: float = 0.5,
        mining: str = "violating",
        distributed: bool = False,
        *,
        distance: str = "squared_euclidean",
        statistics: bool = True,
        bins: int = _BINS,
        histogram_range: float | None = None,
        seed: int = 0,
        check_finite: bool = False,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            margin,
            0.0,
            mining,
            distributed,
            distance,
            statistics,
            bins,
            histogram_range,
            seed,
            check_finite,
            process_group,
        )


# -- large margin cosine -------------------------------------------------------------------------------
