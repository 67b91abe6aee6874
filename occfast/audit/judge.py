"""Rates of features under coverings, and what a paired comparison needs of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..evaluate.curves import binomial_interval
from ..evaluate.search import identification
from .figures import FMR_AT_THRESHOLD, FNMR_AT_OWN, RANK_1, Figure, Resampled, fnmr_at, increase_at
from .rates import Floats, PairScores, People, Rate
from .report import Condition


class Judge:
    """Rates of features under a covering, at the thresholds of uncovered faces.

    Attributes:
        figures: What was measured, with its resamples: for :func:`~occfast.audit.paired.differences`.
        last: Scores of the last condition.
    """

    def __init__(
        self, people: People, clean: Tensor, labels: Tensor, fmrs: list[float], fmr: float, *, both: bool
    ) -> None:
        """Set the thresholds.

        Args:
            people: Resamples of people.
            clean: Features of uncovered faces, [N, D].
            labels: Person on each, int64 [N].
            fmrs: False match rates that set thresholds; they include ``fmr``.
            fmr: The main one.
            both: Cover both images of a pair, not only the probe.
        """
        self.people, self.fmr, self.clean, self.labels, self.both = people, fmr, clean, labels, both
        self.base = PairScores.of(clean, clean, labels, fmr=max(fmrs), symmetric=True)
        self.thresholds = {f: people.threshold(self.base, f) for f in fmrs}
        self.figures: dict[Figure, Resampled] = {}
        self.last: PairScores
        self._uncovered: dict[float, tuple[float, Floats]]

    def scores(self, features: Tensor, *, once: bool = True, band: tuple[float, float] | None = None) -> PairScores:
        """Compare covered probes with clean references, or both covered; equal pairs count ``once``."""
        symmetric = once and (self.both or features is self.clean)
        references = features if self.both else self.clean
        return PairScores.of(references, features, self.labels, fmr=self.fmr, symmetric=symmetric, band=band)

    def condition(self, name: str, covered: float, features: Tensor, about: dict[str, object]) -> Condition:
        """Return the rates of features under a covering; the uncovered ones come first."""
        threshold, drawn_threshold = self.thresholds[self.fmr]
        every = np.append(drawn_threshold, threshold)
        scores = self.last = self.scores(features, band=(float(np.nanmin(every)), float(np.nanmax(every))))
        count = len(np.unique(scores.genuine_people))
        own, drawn_own = self.people.threshold(scores, self.fmr)
        *kept, at_own = self.people.fnmr(scores, *self.thresholds.values(), (own, drawn_own))
        found = dict(zip(self.thresholds, kept, strict=True))
        if features is self.clean:
            self._uncovered = found
        fmr = self.people.fmr(scores, threshold, drawn_threshold)
        rank1, rank1_rate = self._rank1(features)
        for f, values in found.items():
            self.figures[Figure(name, fnmr_at(f))] = Resampled(*values)
        increase = {
            f: Resampled(value - self._uncovered[f][0], drawn - self._uncovered[f][1])
            for f, (value, drawn) in found.items()
        }
        if features is not self.clean:
            self.figures |= {Figure(name, increase_at(f)): change for f, change in increase.items()}
            self.figures[Figure(name, FMR_AT_THRESHOLD)] = Resampled(*fmr)
            self.figures[Figure(name, FNMR_AT_OWN)] = Resampled(*at_own)
        self.figures[Figure(name, RANK_1)] = Resampled(*rank1)
        return Condition(
            name=name,
            covered=covered,
            fnmr={f: self.people.rate(value, drawn, count) for f, (value, drawn) in found.items()},
            increase={f: Rate(change.value, self.people.interval(change.drawn)) for f, change in increase.items()},
            fmr=self.people.rate(*fmr, len(self.labels.unique())),
            threshold=own,
            fnmr_at_threshold=self.people.rate(*at_own, count),
            rank1=rank1_rate,
            about=about,
        )

    def fnmr(self, name: str, features: Tensor) -> Rate:
        """Return the FNMR at the main threshold, and keep it as a figure under this name."""
        scores = self.scores(features)
        (found,) = self.people.fnmr(scores, self.thresholds[self.fmr])
        self.figures[Figure(name, fnmr_at(self.fmr))] = Resampled(*found)
        return self.people.rate(*found, len(np.unique(scores.genuine_people)))

    def rate(self, scores: PairScores) -> Rate:
        """Return the FNMR of scores at the main threshold, which each resample chooses anew."""
        (found,) = self.people.fnmr(scores, self.thresholds[self.fmr])
        return self.people.rate(*found, len(np.unique(scores.genuine_people)))

    def _rank1(self, features: Tensor) -> tuple[tuple[float, Floats], Rate]:
        """Identify every further image of a person in a gallery of the first images."""
        first = torch.zeros(len(self.labels), dtype=torch.bool)
        order = self.labels.argsort(stable=True)
        sorted_labels = self.labels[order]
        first[order[torch.cat([torch.ones(1, dtype=torch.bool), sorted_labels[1:] != sorted_labels[:-1]])]] = True
        gallery = features if self.both else self.clean
        found = identification(
            gallery[first], self.labels[first], features[~first], self.labels[~first], (1,), resamples=0
        )
        hits, who = found.rank == 1, self.labels[~first].numpy()
        value, drawn = self.people.share(hits, who)
        number = len(np.unique(who))
        if number == len(hits):  # one each: a binomial share
            return (value, drawn), Rate(value, binomial_interval(int(hits.sum()), number, self.people.confidence))
        return (value, drawn), self.people.rate(value, drawn, number)
