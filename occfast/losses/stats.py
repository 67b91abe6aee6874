"""Statistics of the triplets of a batch, and the plot of score distributions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..native.enums import Slot

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
        return self._total(Slot.MINED_POSITIVE).round().long()

    @property
    def n_candidates(self) -> Tensor:
        """Triplets (anchor, positive, negative) that the labels allow, int64."""
        return self._total(Slot.CANDIDATES, True).round().long()

    @property
    def n_violating(self) -> Tensor:
        """Candidates with d_ap + margin > d_an, int64: the semi-hard and the hard ones."""
        return self._total(Slot.VIOLATING_TRIPLETS, True).round().long()

    @property
    def n_hard(self) -> Tensor:
        """Violating candidates with d_an <= d_ap, int64."""
        return self._total(Slot.HARD_TRIPLETS, True).round().long()

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
        violating, candidates = (self._total(k, True) for k in (Slot.VIOLATING_TRIPLETS, Slot.CANDIDATES))
        return violating / candidates.clamp(min=1)

    @property
    def mean_ap(self) -> Tensor:
        """Mean anchor-positive distance over the mined triplets (0 where none is)."""
        return self._total(Slot.MINED_POSITIVE + 1)

    @property
    def mean_an(self) -> Tensor:
        """Mean anchor-negative distance over the mined triplets."""
        return self._total(Slot.MINED_NEGATIVE + 1)

    @property
    def var_ap(self) -> Tensor:
        """Population variance of the anchor-positive distances over the mined triplets."""
        return self._variance(Slot.MINED_POSITIVE)

    @property
    def var_an(self) -> Tensor:
        """Population variance of the anchor-negative distances over the mined triplets."""
        return self._variance(Slot.MINED_NEGATIVE)

    @property
    def decidability(self) -> Tensor:
        """d' over the mined triplets (S1 Eq. 8); 0 where the means are equal."""
        return _decidability(self.mean_ap, self.mean_an, self.var_ap, self.var_an)

    @property
    def pair_mean_ap(self) -> Tensor:
        """Mean distance of all positive pairs."""
        return self._total(Slot.POSITIVE_PAIRS + 1)

    @property
    def pair_mean_an(self) -> Tensor:
        """Mean distance of all negative pairs."""
        return self._total(Slot.NEGATIVE_PAIRS + 1, True)

    @property
    def pair_var_ap(self) -> Tensor:
        """Population variance of the distances of all positive pairs."""
        return self._variance(Slot.POSITIVE_PAIRS)

    @property
    def pair_var_an(self) -> Tensor:
        """Population variance of the distances of all negative pairs."""
        return self._variance(Slot.NEGATIVE_PAIRS, True)

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
        negatives = self._total(Slot.NEGATIVE_PAIRS, True) > 0
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
        for name, color, counts in (
            ("matching", "tab:green", self.histogram_positive),
            ("non-matching", "tab:red", self.histogram_negative),
        ):
            share = (counts / counts.sum().clamp(min=1)).cpu().numpy()
            ax.stairs(share, edges, fill=True, alpha=0.35, color=color, label=f"{name} pairs")
            ax.stairs(share, edges, color=color, linewidth=1.2)
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
