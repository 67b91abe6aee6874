"""Statistics of the triplets of a batch, and the plot of score distributions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import MissingPackage
from ..native.enums import Slot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class TripletStats:
    """Statistics of one batch as a triplet loss saw it.

    All values are detached tensors on the device of the embeddings; reading one waits for the device. Distances are
    those of the loss's ``distance``; ``ap`` stands for anchor-positive, ``an`` for anchor-negative.  "Candidates" are
    all triplets that the labels allow. Properties marked * need a loss with ``statistics=True`` and raise ValueError
    otherwise.
    """

    totals: Tensor  #: float64 [22], slots of ``csrc/core/mining.h``
    nearest: Tensor  #: [2, B], see :attr:`nearest_positive`
    histogram: Tensor  #: int64 [2, bins]: positive and negative pairs
    histogram_top: Tensor  #: float64 [1], upper edge of the last bin, which also counts all larger distances
    lengths: Tensor  #: float64 [B], squared lengths of the embeddings (cosine: of the unit vectors)
    squares: Tensor  #: [B], squared distances of the embeddings from their mean
    margin: float
    complete: bool  #: True for a loss with ``statistics=True``

    def _total(self, slot: int, needs_all: bool = False) -> Tensor:
        if needs_all and not self.complete:
            raise ValueError("statistics: expected True when the loss was created to read this value, got False")
        return self.totals[slot]

    def _variance(self, slot: int, needs_all: bool = False) -> Tensor:
        return self._total(slot + 2, needs_all) / self.totals[slot].clamp(min=1)

    @property
    def n_triplets(self) -> Tensor:
        """Number of mined triplets, int64."""
        return self._total(Slot.MINED_POSITIVE).round().long()

    @property
    def n_candidates(self) -> Tensor:
        """Number of candidates, int64 (*)."""
        return self._total(Slot.CANDIDATES, True).round().long()

    @property
    def n_violating(self) -> Tensor:
        """Number of candidates with d_ap + margin > d_an, int64: the semi-hard and hard ones (*)."""
        return self._total(Slot.VIOLATING_TRIPLETS, True).round().long()

    @property
    def n_hard(self) -> Tensor:
        """Number of violating candidates with d_an <= d_ap, int64 (*)."""
        return self._total(Slot.HARD_TRIPLETS, True).round().long()

    @property
    def n_semihard(self) -> Tensor:
        """Number of candidates with d_ap < d_an < d_ap + margin, int64 (*)."""
        return self.n_violating - self.n_hard

    @property
    def n_easy(self) -> Tensor:
        """Number of candidates that do not violate, int64 (*)."""
        return self.n_candidates - self.n_violating

    @property
    def active_fraction(self) -> Tensor:
        """Fraction of violating candidates, for any mining rule; 0 without candidates (*)."""
        violating, candidates = (self._total(k, True) for k in (Slot.VIOLATING_TRIPLETS, Slot.CANDIDATES))
        return violating / candidates.clamp(min=1)

    @property
    def mean_ap(self) -> Tensor:
        """Mean anchor-positive distance over the mined triplets; 0 without any."""
        return self._total(Slot.MINED_POSITIVE + 1)

    @property
    def mean_an(self) -> Tensor:
        """Mean anchor-negative distance over the mined triplets; 0 without any."""
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
        """Decidability d' over the mined triplets (S1 Eq. 8); 0 if the means are equal."""
        return _decidability(self.mean_ap, self.mean_an, self.var_ap, self.var_an)

    @property
    def pair_mean_ap(self) -> Tensor:
        """Mean distance of all positive pairs."""
        return self._total(Slot.POSITIVE_PAIRS + 1)

    @property
    def pair_mean_an(self) -> Tensor:
        """Mean distance of all negative pairs (*)."""
        return self._total(Slot.NEGATIVE_PAIRS + 1, True)

    @property
    def pair_var_ap(self) -> Tensor:
        """Population variance of the distances of all positive pairs."""
        return self._variance(Slot.POSITIVE_PAIRS)

    @property
    def pair_var_an(self) -> Tensor:
        """Population variance of the distances of all negative pairs (*)."""
        return self._variance(Slot.NEGATIVE_PAIRS, True)

    @property
    def pair_decidability(self) -> Tensor:
        """Decidability d' over all pairs (S1 Eq. 8) (*)."""
        return _decidability(self.pair_mean_ap, self.pair_mean_an, self.pair_var_ap, self.pair_var_an)

    @property
    def nearest_positive(self) -> Tensor:
        """Distance of each anchor's nearest positive, [B]; infinite for anchors without one (*)."""
        self._total(0, True)
        return self.nearest[0]

    @property
    def nearest_negative(self) -> Tensor:
        """Distance of each anchor's nearest negative, [B]; infinite for anchors without one (*)."""
        self._total(0, True)
        return self.nearest[1]

    @property
    def histogram_positive(self) -> Tensor:
        """Number of positive pairs in each bin, int64 [bins]; each pair within a batch counts once (*)."""
        self._total(0, True)
        return self.histogram[0]

    @property
    def histogram_negative(self) -> Tensor:
        """Number of negative pairs in each bin, int64 [bins] (*)."""
        self._total(0, True)
        return self.histogram[1]

    @property
    def histogram_edges(self) -> Tensor:
        """Edges of the histogram bins, float64 [bins + 1]."""
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
        """True if the embeddings collapse to a point, bool (*).

        That is, if the spread is below 1 % of the root mean squared length, or if the mean distance of negative pairs
        is below 5 % of the margin (the loss then stays at the margin for any labels).
        """
        point = self.spread < 0.01 * self.lengths.mean().sqrt()
        negatives = self._total(Slot.NEGATIVE_PAIRS, True) > 0
        return point | (negatives & (self.pair_mean_an < 0.05 * self.margin))

    def as_dict(self) -> dict[str, float]:
        """Return all scalar statistics as Python numbers; waits for the device."""
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
        """Draw the distance distributions of matching and non-matching pairs (S1 Figure 4) (*).

        Args:
            ax: Matplotlib axes; None creates a figure.
            title: Text before d' in the title.

        Returns:
            The axes.
        """
        plt = _pyplot()
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


def _pyplot() -> ModuleType:
    try:
        import matplotlib.pyplot
    except ImportError as error:
        raise MissingPackage("plots need the package matplotlib: pip install matplotlib") from error
    return matplotlib.pyplot


def _decidability(mean_ap: Tensor, mean_an: Tensor, var_ap: Tensor, var_an: Tensor) -> Tensor:
    apart = (mean_ap - mean_an).abs()
    return torch.where(apart == 0, 0.0, apart / ((var_ap + var_an) / 2).sqrt())


def plot_score_distributions(stats: Mapping[str, TripletStats]) -> Figure:
    """Draw several score distributions, such as before and after training, one above the other (S1 Figure 4).

    Args:
        stats: Statistics by title, at least one.

    Returns:
        A Matplotlib figure whose axes share their scale.
    """
    plt = _pyplot()
    if not stats:
        raise ValueError("stats: expected at least one TripletStats, got none")
    figure, axes = plt.subplots(len(stats), 1, sharex=True, figsize=(6, 0.6 + 2.2 * len(stats)), squeeze=False)
    for ax, (title, one) in zip(axes[:, 0], stats.items(), strict=True):
        one.plot(ax, title)
        ax.label_outer()
    figure.tight_layout()
    result: Figure = figure
    return result
