"""Triplet losses over every triplet of a batch, without a list of them, and the large margin cosine head.

Sáez Trigueros, Meng, Hartnett 2018 (S1): triplet loss (Eqs. 5-7), decidability (Eq. 8), batch triplet loss (Eq. 9).
Wang et al. 2018, "CosFace": large margin cosine loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .native import ops, reference

if TYPE_CHECKING:
    import torch.distributed as dist
    from matplotlib.axes import Axes

__all__ = [
    "BatchTripletLoss",
    "LargeMarginCosine",
    "TripletLoss",
    "TripletMiner",
    "TripletStats",
    "plot_score_distributions",
]

_BINS = 64


# -- statistics ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TripletStats:
    """What a batch looked like to a triplet loss.

    Every figure is a detached tensor on the device of the embeddings; nothing waits for the device until it is read.
    Distances are in the unit of the loss's ``distance``.  ``ap`` is anchor-positive, ``an`` anchor-negative.
    """

    totals: Tensor  #: float64 [22], slots of ``csrc/core/mining.h``
    nearest: Tensor  #: [2, B], see :attr:`nearest_positive`
    histogram: Tensor  #: int64 [2, bins]: positive and negative pairs
    histogram_top: Tensor  #: float64 [1], the upper edge of the last bin; larger distances are counted in it
    lengths: Tensor  #: float64 [B], squared lengths of the embeddings (cosine: of the unit vectors)
    squares: Tensor  #: [B], squared distances of the embeddings from their mean
    margin: float
    complete: bool  #: whether the loss was made with ``statistics=True``

    def _total(self, slot: int, needs_all: bool = False) -> Tensor:
        if needs_all and not self.complete:
            raise ValueError("statistics: expected True at the making of the loss to read this figure, got False")
        return self.totals[slot]

    def _variance(self, slot: int, needs_all: bool = False) -> Tensor:
        return self._total(slot + 2, needs_all) / self.totals[slot].clamp(min=1)

    @property
    def n_triplets(self) -> Tensor:
        """Mined triplets, int64."""
        return self._total(reference.MINED_POSITIVE).round().long()

    @property
    def n_candidates(self) -> Tensor:
        """Triplets (anchor, positive, negative) that the labels allow, int64."""
        return self._total(reference.CANDIDATES, True).round().long()

    @property
    def n_violating(self) -> Tensor:
        """Candidates with d_ap + margin > d_an, int64: the semi-hard and the hard ones."""
        return self._total(reference.VIOLATING_TRIPLETS, True).round().long()

    @property
    def n_hard(self) -> Tensor:
        """Violating candidates with d_an <= d_ap, int64."""
        return self._total(reference.HARD_TRIPLETS, True).round().long()

    @property
    def n_semihard(self) -> Tensor:
        """Candidates with d_ap < d_an < d_ap + margin, int64."""
        return self.n_violating - self.n_hard

    @property
    def n_easy(self) -> Tensor:
        """Candidates that don't violate, int64."""
        return self.n_candidates - self.n_violating

    @property
    def active_fraction(self) -> Tensor:
        """Violating candidates / candidates, whatever the mining; 0 where there is no candidate."""
        violating, candidates = (self._total(k, True) for k in (reference.VIOLATING_TRIPLETS, reference.CANDIDATES))
        return violating / candidates.clamp(min=1)

    @property
    def mean_ap(self) -> Tensor:
        """Mean anchor-positive distance over the mined triplets (0 where none is)."""
        return self._total(reference.MINED_POSITIVE + 1)

    @property
    def mean_an(self) -> Tensor:
        """Mean anchor-negative distance over the mined triplets."""
        return self._total(reference.MINED_NEGATIVE + 1)

    @property
    def var_ap(self) -> Tensor:
        """Population variance of the anchor-positive distances over the mined triplets."""
        return self._variance(reference.MINED_POSITIVE)

    @property
    def var_an(self) -> Tensor:
        """Population variance of the anchor-negative distances over the mined triplets."""
        return self._variance(reference.MINED_NEGATIVE)

    @property
    def decidability(self) -> Tensor:
        """d' over the mined triplets (S1 Eq. 8); 0 where the means are equal."""
        return _decidability(self.mean_ap, self.mean_an, self.var_ap, self.var_an)

    @property
    def pair_mean_ap(self) -> Tensor:
        """Mean distance of all positive pairs."""
        return self._total(reference.POSITIVE_PAIRS + 1)

    @property
    def pair_mean_an(self) -> Tensor:
        """Mean distance of all negative pairs."""
        return self._total(reference.NEGATIVE_PAIRS + 1, True)

    @property
    def pair_var_ap(self) -> Tensor:
        """Population variance of the distances of all positive pairs."""
        return self._variance(reference.POSITIVE_PAIRS)

    @property
    def pair_var_an(self) -> Tensor:
        """Population variance of the distances of all negative pairs."""
        return self._variance(reference.NEGATIVE_PAIRS, True)

    @property
    def pair_decidability(self) -> Tensor:
        """d' (S1 Eq. 8) over all pairs."""
        return _decidability(self.pair_mean_ap, self.pair_mean_an, self.pair_var_ap, self.pair_var_an)

    @property
    def nearest_positive(self) -> Tensor:
        """Distance of each anchor's nearest positive [B]; infinite where it has none."""
        self._total(0, True)
        return self.nearest[0]

    @property
    def nearest_negative(self) -> Tensor:
        """Distance of each anchor's nearest negative [B]; infinite where it has none."""
        self._total(0, True)
        return self.nearest[1]

    @property
    def histogram_positive(self) -> Tensor:
        """Positive pairs in each bin, int64 [bins] (each pair of a batch with itself once)."""
        self._total(0, True)
        return self.histogram[0]

    @property
    def histogram_negative(self) -> Tensor:
        """Negative pairs in each bin, int64 [bins]."""
        self._total(0, True)
        return self.histogram[1]

    @property
    def histogram_edges(self) -> Tensor:
        """Edges of the bins, float64 [bins + 1]."""
        bins = self.histogram.shape[1]
        return torch.arange(bins + 1, dtype=torch.float64, device=self.totals.device) * (self.histogram_top / bins)

    @property
    def norm(self) -> Tensor:
        """Mean length of the embeddings."""
        return self.lengths.sqrt().mean()

    @property
    def spread(self) -> Tensor:
        """Root mean squared distance of the embeddings from their mean."""
        return self.squares.clamp(min=0).double().mean().sqrt()

    @property
    def collapsed(self) -> Tensor:
        """Alarm, bool: the embeddings shrink to a point.

        True where the spread is below 1 % of the root mean squared length, or where the mean negative pair is
        nearer than 5 % of the margin (the loss then stays at the margin whatever the labels).
        """
        point = self.spread < 0.01 * self.lengths.mean().sqrt()
        negatives = self._total(reference.NEGATIVE_PAIRS, True) > 0
        return point | (negatives & (self.pair_mean_an < 0.05 * self.margin))

    def as_dict(self) -> dict[str, float]:
        """Every single figure as a Python number.  Waits for the device."""
        names = [
            "n_triplets",
            "mean_ap",
            "mean_an",
            "var_ap",
            "var_an",
            "decidability",
            "pair_mean_ap",
            "pair_var_ap",
            "norm",
            "spread",
        ]
        if self.complete:
            names += [
                "n_candidates",
                "n_violating",
                "n_semihard",
                "n_hard",
                "n_easy",
                "active_fraction",
                "pair_mean_an",
                "pair_var_an",
                "pair_decidability",
                "collapsed",
            ]
        values = torch.stack([getattr(self, name).double() for name in names]).tolist()
        return dict(zip(names, values, strict=True))

    def plot(self, ax: Axes | None = None, title: str | None = None) -> Axes:
        """Draw the distributions of both kinds of pairs (S1 Figure 4); returns the axes.  Waits for the device."""
        import matplotlib.pyplot as plt

        ax = plt.subplots(figsize=(5, 3))[1] if ax is None else ax
        edges = self.histogram_edges.cpu().numpy()
        for name, colour, counts in (
            ("matching", "tab:green", self.histogram_positive),
            ("non-matching", "tab:red", self.histogram_negative),
        ):
            share = (counts / counts.sum().clamp(min=1)).cpu().numpy()
            ax.stairs(share, edges, fill=True, alpha=0.35, color=colour, label=f"{name} pairs")
            ax.stairs(share, edges, color=colour, linewidth=1.2)
        ax.set(xlabel="distance", ylabel="share of pairs", xlim=(0, float(edges[-1]) or 1.0), ylim=(0, None))
        ax.set_title(f"{title + ': ' if title else ''}d′ = {float(self.pair_decidability):.2f}")
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False)
        return ax


def _decidability(mean_ap: Tensor, mean_an: Tensor, var_ap: Tensor, var_an: Tensor) -> Tensor:
    apart = (mean_ap - mean_an).abs()
    return torch.where(apart == 0, 0.0, apart / ((var_ap + var_an) / 2).sqrt())


def plot_score_distributions(stats: Mapping[str, TripletStats]) -> Any:
    """Draw the score distributions of several moments (say, before and after training) one above the other.

    ``stats``: title -> statistics.  Returns the matplotlib figure; the axes share their scale, as in S1 Figure 4.
    """
    import matplotlib.pyplot as plt

    if not stats:
        raise ValueError("stats: expected at least one TripletStats, got none")
    figure, axes = plt.subplots(len(stats), 1, sharex=True, figsize=(6, 0.6 + 2.2 * len(stats)), squeeze=False)
    for ax, (title, one) in zip(axes[:, 0], stats.items(), strict=True):
        one.plot(ax, title)
        ax.label_outer()
    figure.tight_layout()
    return figure


# -- the global batch ----------------------------------------------------------------------------------


class _GatherRows(torch.autograd.Function):
    """Rows of every rank, in the order of the ranks; the gradient is this rank's part times the number of ranks."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: Sequence[int], group: dist.ProcessGroup | None) -> Tensor:
        import torch.distributed as dist

        rank = dist.get_rank(group)
        ctx.first, ctx.size, ctx.ranks = sum(sizes[:rank]), sizes[rank], len(sizes)
        # As bytes, padded to the largest: any type and any backend can send that.
        longest = max(sizes)
        padded = rows.new_zeros((longest, *rows.shape[1:]))
        padded[: sizes[rank]] = rows
        sent = padded.view(torch.uint8) if padded.numel() else padded.to(torch.uint8)
        received = [torch.empty_like(sent) for _ in sizes]
        if sent.numel():
            dist.all_gather(received, sent, group=group)
        return torch.cat([part.view(rows.dtype)[:size] for part, size in zip(received, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        return grads[0][ctx.first : ctx.first + ctx.size] * ctx.ranks, None, None


def _gather(embeddings: Tensor, labels: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor]:
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError("distributed: expected an initialised torch.distributed process group, got none")
    ranks = dist.get_world_size(group)
    if ranks == 1:
        return embeddings, labels
    mine = torch.tensor([embeddings.shape[0]], device=embeddings.device)
    everyone = [torch.empty_like(mine) for _ in range(ranks)]
    dist.all_gather(everyone, mine, group=group)
    sizes = torch.cat(everyone).tolist()
    gather: Any = _GatherRows.apply
    return gather(embeddings, sizes, group), gather(labels[:, None], sizes, group)[:, 0]


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
            embeddings: float16, bfloat16, float32 or float64 [B, D]; used as given (normalise before).
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


# -- large margin cosine -------------------------------------------------------------------------------


class LargeMarginCosine(nn.Module):
    r"""Head for the large margin cosine loss (Wang et al. 2018, Eq. 4): logits for ``F.cross_entropy``.

    .. math:: z_j = s\,(\cos\theta_j - m\,[j = y])

    Args:
        in_features: D, > 0
        n_classes: K, > 0
        scale: s > 0
        margin: m >= 0

    ``head(features [N,D], labels int [N])`` -> logits [N,K]; without labels no margin is taken off, as in evaluation.
    Cosines are computed in float32 (float64 for float64 features), whatever autocast says: in half precision the scale
    turns their rounding into whole units.  A zero row has a cosine of 0 with everything.  Labels outside [0, K) are an
    error on a CPU.
    """

    def __init__(self, in_features: int, n_classes: int, scale: float = 64.0, margin: float = 0.35) -> None:
        super().__init__()
        for name, size in (("in_features", in_features), ("n_classes", n_classes)):
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ValueError(f"{name}: expected a positive integer, got {size!r}")
        if not _is_number(scale) or scale <= 0:
            raise ValueError(f"scale: expected a positive number, got {scale!r}")
        if not _is_number(margin) or margin < 0:
            raise ValueError(f"margin: expected a finite number, not negative, got {margin!r}")
        self.in_features, self.n_classes = in_features, n_classes
        self.scale, self.margin = float(scale), float(margin)
        self.weight = nn.Parameter(torch.empty(n_classes, in_features))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        if features.dim() != 2 or features.shape[1] != self.in_features:
            raise ValueError(f"features: expected shape [N, {self.in_features}], got {list(features.shape)}")
        if not features.is_floating_point():
            raise TypeError(f"features: expected a floating-point tensor, got {features.dtype}")
        if features.device != self.weight.device:
            raise ValueError(f"features: expected a tensor on {self.weight.device}, got {features.device}")
        dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
        with torch.autocast(features.device.type, enabled=False):
            cosine = _working(features.to(dtype), "cosine") @ _working(self.weight.to(dtype), "cosine").T
            if labels is not None:
                labels = _check_batch(features, labels, ("features", "labels"))
                if labels.device.type == "cpu" and labels.numel():
                    low, high = (int(edge) for edge in torch.aminmax(labels))
                    if low < 0 or high >= self.n_classes:
                        raise ValueError(f"labels: expected values in [0, {self.n_classes}), got [{low}, {high}]")
                cosine = cosine - self.margin * F.one_hot(labels, self.n_classes).to(dtype)
            return self.scale * cosine

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.n_classes}, scale={self.scale}, margin={self.margin}"
