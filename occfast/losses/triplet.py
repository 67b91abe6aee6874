"""Triplet losses over every triplet of a batch, computed without listing the triplets.

Sáez Trigueros, Meng, Hartnett 2018 (S1): triplet loss (Eqs. 5-7), decidability (Eq. 8), batch triplet loss (Eq. 9).
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from .. import checks
from ..native import ops
from ..native.enums import Slot
from .distributed import gather_batch
from .inputs import Distance, Memory, Mining, check_batch, check_indices, check_options, listed_distances, prepare
from .stats import TripletStats

if TYPE_CHECKING:
    import torch.distributed as dist

_BINS = 64
#: Bytes of distances and counts from which ``memory="auto"`` does not keep them all.
_QUADRATIC_BYTES = 2**32


class _Triplets(nn.Module):
    """Common part of the two losses; see :class:`BatchTripletLoss`."""

    hinge: bool

    def __init__(
        self,
        margin: float,
        beta: float,
        *,
        mining: Mining,
        distributed: bool,
        distance: Distance,
        statistics: bool,
        bins: int,
        histogram_range: float | None,
        seed: int,
        check_finite: bool,
        memory: Memory,
        process_group: dist.ProcessGroup | None,
    ) -> None:
        super().__init__()
        self.margin = check_options(margin, mining, distance, seed)
        self.beta = checks.number(beta, "beta", 0.0, 1.0)
        self.mining, self.distance, self.seed = mining, distance, seed
        self.bins = checks.integer(bins, "bins", 1, ops.MAX_BINS)
        if histogram_range is not None:
            histogram_range = checks.number(histogram_range, "histogram_range", 0.0, checks.MAX_FLOAT32, above=0.0)
        self.histogram_range = histogram_range
        self.distributed = checks.flag(distributed, "distributed")
        self.statistics = checks.flag(statistics, "statistics")
        self.check_finite = checks.flag(check_finite, "check_finite")
        self.memory = checks.choice(memory, "memory", get_args(Memory))
        self.process_group = process_group
        self.step = 0
        self._stats: TripletStats | None = None

    @property
    def stats(self) -> TripletStats | None:
        """Statistics of the latest call; None before the first, and after one with ``indices_tuple``."""
        return self._stats

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss.

        Args:
            embeddings: float16, bfloat16, float32 or float64 [B, D], B at least 1; used as given (normalize before).
            labels: Integers [B], of at least two classes.
            indices_tuple: Triplets to use in place of mining, int64: (anchors, positives, negatives), or pairs
                (anchors, positives, anchors, negatives), as pytorch-metric-learning's miners return them. Indices are
                checked on the CPU, and on a GPU with ``check_finite``.
            ref_emb, ref_labels: Source of positives and negatives, [M, D] and [M]; by default the batch itself, in
                which no item is its own positive. ``ref_emb`` receives a gradient too.

        Returns:
            A scalar: float64 for float64 embeddings, else float32.

        Raises:
            TypeError, ValueError: If an argument has a wrong dtype, shape or device; if all labels are equal, which
                leaves no triplet; with ``check_finite``, if embeddings are NaN or infinite. Equal labels are
                detected on the CPU, and on a GPU with ``check_finite``.
            NotImplementedError: In forward-mode differentiation and in transforms of ``torch.func``.
            RuntimeError: If ``mining="semihard_random"`` is recomputed by activation checkpointing.
        """
        if labels is None and indices_tuple is not None:  # listed triplets need no labels
            labels = torch.zeros(len(embeddings), dtype=torch.int64, device=embeddings.device)
            if ref_emb is not None and ref_labels is None:
                ref_labels = torch.zeros(len(ref_emb), dtype=torch.int64, device=ref_emb.device)
        labels = check_batch(embeddings, labels, ("embeddings", "labels"), empty=self.distributed)
        if (ref_emb is None) != (ref_labels is None):
            missing = "ref_labels" if ref_labels is None else "ref_emb"
            raise ValueError(f"{missing}: expected a tensor beside the other of ref_emb and ref_labels, got None")
        if ref_emb is embeddings:
            ref_emb = ref_labels = None
        if ref_emb is not None:
            ref_labels = check_batch(ref_emb, ref_labels, ("ref_emb", "ref_labels"), empty=self.distributed)
            if ref_emb.shape[1] != embeddings.shape[1]:
                raise ValueError(f"ref_emb: expected {embeddings.shape[1]} columns, got {ref_emb.shape[1]}")
            if ref_emb.device != embeddings.device:
                raise ValueError(f"ref_emb: expected a tensor on {embeddings.device}, got {ref_emb.device}")
            if (ref_emb.dtype == torch.float64) != (embeddings.dtype == torch.float64):
                raise TypeError(f"ref_emb: expected the dtype {embeddings.dtype}, got {ref_emb.dtype}")
        self._check_values(embeddings, "embeddings")
        if ref_emb is not None:
            self._check_values(ref_emb, "ref_emb")
        if indices_tuple is not None:
            if self.distributed:
                raise ValueError("indices_tuple: expected None with distributed=True, got a tuple")
            self._stats = None
            return self._listed(embeddings, indices_tuple, ref_emb)
        if not torch.compiler.is_compiling():
            self._check_autograd(embeddings, ref_emb)
        embeddings = prepare(embeddings, self.distance)
        references = None if ref_emb is None else prepare(ref_emb, self.distance)
        if self.distributed:
            embeddings, labels = gather_batch(embeddings, labels, self.process_group)
            if references is not None and ref_labels is not None:
                references, ref_labels = gather_batch(references, ref_labels, self.process_group)
            for name, rows in (("embeddings", embeddings), ("ref_emb", references)):
                if rows is not None and rows.shape[0] == 0:
                    raise ValueError(f"{name}: expected at least one row over all ranks, got none")
        return self._mined(embeddings, labels, references, ref_labels)

    def _mined(
        self,
        embeddings: Tensor,
        labels: Tensor,
        references: Tensor | None,
        ref_labels: Tensor | None,
        *,
        leading: bool = False,
    ) -> Tensor:
        """Compute the loss of prepared embeddings; ``leading``: the references begin with them."""
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
            self._linear(embeddings, references),
            leading,
        )
        if not torch.compiler.is_compiling() and (totals.device.type == "cpu" or self.check_finite):
            self._check_mined(totals, labels, ref_labels)
        if self.mining == "semihard_random":
            self.step = (self.step + 1) % 2**32
        self._stats = TripletStats(totals, nearest, histogram, edge, lengths, squares, self.margin, self.statistics)
        result: Tensor = loss
        self._check_loss(result)
        return result

    def _check_loss(self, loss: Tensor) -> None:
        if self.check_finite and not bool(loss.isfinite()):
            raise ValueError(
                f"embeddings: expected distances for which the loss is finite, got a loss of {float(loss)}"
            )

    def _check_values(self, tensor: Tensor, name: str) -> None:
        if self.check_finite and not bool(tensor.isfinite().all()):
            bad = (~tensor.isfinite()).any(1).nonzero()[:, 0].tolist()
            raise ValueError(f"{name}: expected finite numbers, got NaN or infinity in rows {bad[:8]}")

    def _linear(self, embeddings: Tensor, references: Tensor | None) -> bool:
        if self.memory != "auto":
            return self.memory == "linear"
        rows, candidates = len(embeddings), len(embeddings if references is None else references)
        return rows * candidates * (embeddings.element_size() + 4) > _QUADRATIC_BYTES

    def _check_autograd(self, embeddings: Tensor, ref_emb: Tensor | None) -> None:
        for tensor in (embeddings, ref_emb):
            if tensor is None:
                continue
            if forward_ad.unpack_dual(tensor).tangent is not None:
                raise NotImplementedError("the triplet losses have no forward-mode derivative; use backward")
            if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
                raise NotImplementedError("the triplet losses work in no transform of torch.func; use backward")
        if self.mining == "semihard_random" and in_backward():
            raise RuntimeError(
                "mining: 'semihard_random' draws anew at each call, so activation checkpointing can't recompute it; "
                "call the loss outside of torch.utils.checkpoint"
            )

    @staticmethod
    def _check_mined(totals: Tensor, labels: Tensor, ref_labels: Tensor | None) -> None:
        """Refuse one class, and warn of labels without a positive pair: both make every such loss 0 in silence."""
        if float(totals[Slot.MINED_POSITIVE]) > 0:
            return
        every = labels if ref_labels is None else torch.cat((labels, ref_labels))
        if bool((every == every[0]).all()):
            raise ValueError(
                f"labels: expected at least two classes in a batch, got {len(every)} labels of one ({int(every[0])})"
            )
        positives = torch.isin(labels, ref_labels) if ref_labels is not None else None
        if not bool(positives.any()) if positives is not None else len(labels.unique()) == len(labels):
            warnings.warn(
                "labels: no two embeddings of the batch have the same label, so there is no triplet and the loss is 0; "
                "occfast.data.PKSampler makes batches with several images of each person",
                stacklevel=4,
            )

    def _listed(self, embeddings: Tensor, indices_tuple: tuple[Tensor, ...], ref_emb: Tensor | None) -> Tensor:
        anchors = prepare(embeddings, self.distance)
        others = anchors if ref_emb is None else prepare(ref_emb, self.distance)
        values = not torch.compiler.is_compiling() and (embeddings.device.type == "cpu" or self.check_finite)
        check_indices(indices_tuple, "indices_tuple", len(anchors), len(others), values=values)
        if len(indices_tuple) == 4:
            first, positives, second, negatives = indices_tuple
            i, j = (first[:, None] == second).nonzero(as_tuple=True)
            a, p, n = first[i], positives[i], negatives[j]
        else:
            a, p, n = indices_tuple
        if a.numel() == 0:
            return (anchors.sum() + others.sum()) * 0
        d_ap = listed_distances(anchors, others, a, p, self.distance)
        d_an = listed_distances(anchors, others, a, n, self.distance)
        if self.hinge:
            loss = (d_ap - d_an + self.margin).clamp(min=0).mean()
        else:
            spread = d_ap.var(correction=0) + d_an.var(correction=0)
            loss = (1 - self.beta) * (d_ap.mean() - d_an.mean() + self.margin) + self.beta * spread
        self._check_loss(loss)
        return loss

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


def in_backward() -> bool:
    """Return whether a backward pass is running: a forward pass inside it is a recomputation."""
    return bool(torch._C._current_graph_task_id() != -1)


class BatchTripletLoss(_Triplets):
    r"""Batch triplet loss (S1 Eq. 9) over all mined triplets of the batch.

    ::

        L = (1 - β)(μ_ap - μ_an + α) + β(σ²_ap + σ²_an)

    μ and σ² are the means and population variances of d(a, p) and d(a, n) over the mined triplets. The mined set
    counts as constant: the gradient is that of the formula for this set. Triplets are never listed; memory is O(B²), or
    O(B·D), see ``memory``.

    If nothing is mined, the loss and its gradient are 0. A batch of one class is an error. Second derivatives and
    forward-mode derivatives raise an error.

    Args:
        margin: α in [0, 1.7e38]. The paper's 0.5 applies to squared distances of unit vectors.
        beta: β in [0, 1]; 0 gives Eq. 7, 1 the variances alone.
        mining: Rule that selects triplets by the distances d_ap and d_an of a positive and a negative from the anchor:

            - ``"violating"``: d_ap + α > d_an (the paper's rule);
            - ``"semihard"``: d_ap < d_an < d_ap + α;
            - ``"semihard_random"``: one semi-hard negative for each pair (a, p), drawn from ``seed`` and the number of
              the call;
            - ``"hardest"``: the farthest positive and the nearest negative of each anchor (the first among equals);
            - ``"all"``: every triplet.
        distributed: Mine over the batches of all ranks. Every rank returns the loss of the global batch (in rank
            order; sizes may differ) and gives its own embeddings *world size* times that loss's gradient.
            DistributedDataParallel averages gradients over the ranks, so parameters receive exactly the gradient of
            the global loss. Divide by the number of ranks where gradients are summed instead. Scale the loss
            equally on every rank. Each call waits once for the batch sizes.
        distance: ``"squared_euclidean"`` (the paper's), ``"euclidean"`` (derivative 0 at distance 0) or ``"cosine"``
            (1 - cosine; an embedding of length 0 has distance 1 from everything and receives no gradient).
        statistics: Also compute the statistics in :attr:`stats` that the loss itself does not need.
        bins: Number of histogram bins.
        histogram_range: Upper edge of the histograms, > 0; by default a bound from the lengths (4 for unit vectors).
        seed: Seed of ``"semihard_random"``, in [0, 2**63).
        check_finite: Raise ValueError for NaN or infinite embeddings, which otherwise make the loss NaN, and for a loss
            that overflows. On a GPU this waits for the device.
        memory: ``"quadratic"`` keeps the distance and the count of every pair, 8 bytes a pair in float32. ``"linear"``
            holds some rows of them at a time, at most 128 MiB or 64 rows, and computes them once for the loss and once
            for the gradient, which takes about twice as long. Both give the same up to rounding. ``"auto"`` is linear
            where the pairs would take more than 4 GiB (23,170 embeddings in float32).
        process_group: Process group for ``distributed``; by default all processes.

    Raises:
        TypeError, ValueError: If an argument has a wrong type or value; the message names it.
    """

    hinge = False

    def __init__(
        self,
        margin: float = 0.5,
        beta: float = 0.7,
        *,
        mining: Mining = "violating",
        distributed: bool = False,
        distance: Distance = "squared_euclidean",
        statistics: bool = True,
        bins: int = _BINS,
        histogram_range: float | None = None,
        seed: int = 0,
        check_finite: bool = False,
        memory: Memory = "auto",
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            margin,
            beta,
            mining=mining,
            distributed=distributed,
            distance=distance,
            statistics=statistics,
            bins=bins,
            histogram_range=histogram_range,
            seed=seed,
            check_finite=check_finite,
            memory=memory,
            process_group=process_group,
        )


class TripletLoss(_Triplets):
    r"""Triplet loss (S1 Eqs. 5-7): the mean of max(0, d_ap - d_an + α) over the mined triplets.

    ``mining="violating"`` gives Eq. 7, ``"all"`` the mean over all triplets that the labels allow. Arguments,
    behavior across processes and statistics are those of :class:`BatchTripletLoss`.
    """

    hinge = True

    def __init__(
        self,
        margin: float = 0.5,
        *,
        mining: Mining = "violating",
        distributed: bool = False,
        distance: Distance = "squared_euclidean",
        statistics: bool = True,
        bins: int = _BINS,
        histogram_range: float | None = None,
        seed: int = 0,
        check_finite: bool = False,
        memory: Memory = "auto",
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            margin,
            0.0,
            mining=mining,
            distributed=distributed,
            distance=distance,
            statistics=statistics,
            bins=bins,
            histogram_range=histogram_range,
            seed=seed,
            check_finite=check_finite,
            memory=memory,
            process_group=process_group,
        )
