"""Maps of single images from a fraction of their positions: the method "adaptive"."""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...checks import pair
from ..checkpoint import SweepState
from ..estimate import Disagreement
from ..maps import OcclusionMap
from ..options import BINARY
from .base import Sweep
from .search import BorderSearch, ValueSearch

_SPACING = 8  # pixels between coarse positions, by default
_IMAGES = 16  # refined together, so that a round is a large batch
_PIECES = 12  # at least, of a round of refinement, so that processes can share it,
_PIECE = 48  # unless they get smaller than this
_CHECK = (0.0025, 0.05)  # lowest and highest share of the skipped positions that is checked,
_ENOUGH = 300  # in between the share that makes this number over all images
_SHARE = 0.1  # tolerance of real-valued scores, relative to the range of the first positions
_CHANCE = 0.1  # tolerance of binary scores: probability that a skipped label is wrong


class AdaptiveSweep(Sweep):
    """Sweep that refines the maps of a group of images in rounds, all positions of a round in one batch.

    Afterwards each skipped position is evaluated with the same small probability, to count wrong ones.
    """

    def visit(self, n: int) -> None:
        """Refine the maps of the ``n`` images, a group at a time."""
        options, grid = self.options, self.grid
        self._binary = self.scorer.margins = options.score in BINARY
        default = min(_SPACING, grid.occluder[0]), min(_SPACING, grid.occluder[1])
        height, width = pair(default if options.adaptive.spacing is None else options.adaptive.spacing, "spacing")
        self._spacing = max(1, height // grid.stride[0]), max(1, width // grid.stride[1])
        with self.processes.guard():
            at_once = self.scorer.images_at_once()
        at_once = min(_IMAGES, self.processes.broadcast(at_once))
        for first in range(self.state.next // grid.positions, n, at_once):
            last = min(first + at_once, n)
            with self.processes.guard():
                self.scorer.start(first, last)
            tally = self._refine(first, last, n)
            before = self.state.tally
            total = {name: before.get(name, 0.0) + value for name, value in tally.items()}
            total["worst"] = max(before.get("worst", 0.0), tally["worst"])
            self.state = replace(self.state, tally=total, next=last * grid.positions)
            self.save_if_due()
            self._show(n)

    def _refine(self, first: int, last: int, n: int) -> dict[str, float]:
        """Evaluate and interpolate the maps of images ``first`` to ``last - 1``; return the counts."""
        shape = last - first, self.grid.rows, self.grid.columns
        scores = self.scorer.scores[first:last].view(shape)
        self._done = self.evaluations()
        known, filled, limit = (self._follow_border if self._binary else self._follow_values)(scores, first, n)
        chosen = ~known & self._drawn(shape, first)
        values = self._evaluate(chosen, first, scores)
        if self._binary:
            values = (values > 0).astype(np.float64)
        off = np.abs(values - filled)[chosen]
        filled[chosen] = values[chosen]
        scores.copy_(torch.from_numpy(filled))
        return {
            "evaluated": float(known.sum() + chosen.sum()),
            "skipped": float((~known).sum()),
            "checked": float(chosen.sum()),
            "different": float((off > np.broadcast_to(limit.reshape(-1, 1, 1), shape)[chosen]).sum()),
            "off": float(off.sum()),
            "worst": float(off.max(initial=0.0)),
            "tolerances": float(limit.sum()),
        }

    def _follow_border(
        self, scores: torch.Tensor, first: int, n: int
    ) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
        """Return the evaluated positions, the interpolated maps and the tolerances, for a binary score."""
        chance = self.options.adaptive.tolerance or _CHANCE
        # 1 - chance loses small numbers, and rounds to 1 below 1e-16.
        quantile = NormalDist().inv_cdf(1 - chance) if chance > 1e-6 else -NormalDist().inv_cdf(chance)
        search = BorderSearch(self.grid.rows, self.grid.columns, self._spacing, self.grid.stride, quantile, len(scores))
        while (wanted := search.wanted()).any():
            search.take(self._evaluate(wanted, first, scores))
            self._show(n)
        return search.known, search.labels(), np.full(len(scores), 0.5)

    def _follow_values(
        self, scores: torch.Tensor, first: int, n: int
    ) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
        """Return the same for a real-valued score."""
        tolerance, grid = self.options.adaptive.tolerance, self.grid
        search = ValueSearch(grid.rows, grid.columns, self._spacing, grid.stride, tolerance, _SHARE, len(scores))
        while (wanted := search.wanted()).any():
            search.take(self._evaluate(wanted, first, scores))
            self._show(n)
        return search.known, search.values(), search.tolerance

    def _evaluate(self, wanted: NDArray[np.bool_], first: int, scores: torch.Tensor) -> NDArray[np.float64]:
        """Score some positions; return all scores of the images, [n, rows, columns]."""
        positions = torch.from_numpy(np.flatnonzero(wanted)).to(scores.device) + first * self.grid.positions
        if len(positions):
            ordered = self.scorer.alike(positions)
            size = min(self.scorer.batch_size, max(_PIECE, -(-len(ordered) // _PIECES)))
            pieces = ordered.split(size)
            with self.processes.guard():
                for k in self.processes.mine(len(pieces)):
                    self.scorer.score(pieces[k])
            self.add(ordered)
        self._done += len(positions)
        return scores.cpu().numpy().copy()

    def _drawn(self, shape: tuple[int, ...], first: int) -> NDArray[np.bool_]:
        """Return the positions to check if skipped, each with the same probability, for each image by itself."""
        share = self.options.adaptive.check
        if share is None:
            total = self.source.total
            share = _CHECK[0] if total is None else _ENOUGH / (total * self.grid.positions)
            share = min(max(share, _CHECK[0]), _CHECK[1])
        drawn = np.empty(shape, bool)
        for k in range(shape[0]):
            generator = np.random.default_rng([self.options.seed, self.state.used + first + k, 0xC4EC])
            drawn[k] = generator.random(shape[1:]) < share
        return drawn

    def _show(self, n: int) -> None:
        """Report the positions done, and those of all images if they are like the finished ones."""
        to_come, total = self.images_to_come(), None
        finished = self.state.used + self.state.next // self.grid.positions
        if to_come is not None and finished:
            total = max(self._done, self.evaluations() // finished * (self.state.used + n + to_come))
        self.report(self._done, total)

    def check_state(self, state: SweepState) -> None:
        """Raise ValueError for a state that this method can't have saved."""
        super().check_state(state)
        names = ("evaluated", "skipped", "checked", "different")
        evaluated, skipped, checked, different = (state.tally.get(name, 0.0) for name in names)
        positions = (state.used + (0 if state.partial is None else len(state.partial))) * self.grid.positions
        if not (0 <= different <= checked <= skipped <= positions and 0 <= evaluated <= positions):
            raise ValueError("the counts contradict each other")

    def evaluations(self) -> int:
        """Return the number of positions evaluated so far, checks included."""
        return int(self.state.tally.get("evaluated", 0))

    def result(self, target: int = 0, **more: Any) -> OcclusionMap:
        """Return the map, with the disagreement that the checks found."""
        state = self.state
        tolerance = None if self.options.score in BINARY else state.tally.get("tolerances", 0.0) / max(1, state.used)
        estimate = Disagreement.of(max(1, state.used) * self.grid.positions, state.tally, tolerance)
        return super().result(target, method="adaptive", estimate=estimate, **more)
