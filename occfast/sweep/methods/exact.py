"""Evaluation of every position of every image: the methods "auto", "dense" and "incremental"."""

from __future__ import annotations

import time

import torch

from ..evaluators.scorer import Scorer
from .base import Sweep

_ROUND = 10.0  # seconds between two exchanges of scores


class ExactSweep(Sweep):
    """Sweep that scores all positions, in rounds of equal pieces that the processes share.

    The pieces depend on the images alone and never on the number of processes. A network's outputs depend on its batch
    in their last bits, so scores have the same bits for any number of processes.
    """

    _pieces = 1  # for each process in a round

    def visit(self, n: int) -> None:
        """Score all positions of the ``n`` images."""
        for number, scorer in enumerate(self.scorers):
            self._visit(scorer, n, number * n * self.grid.positions)

    def _visit(self, scorer: Scorer, n: int, before: int) -> None:
        """Score all positions of one occluder; those of earlier occluders are the first ``before`` of the block."""
        positions, group = self.grid.positions, self.processes
        if self.state.next >= before + n * positions:
            return
        with group.guard():
            at_once = scorer.images_at_once()
        at_once = group.broadcast(at_once)
        for first in range(0, n, at_once):
            last = min(first + at_once, n)
            start, end = first * positions, last * positions
            if self.state.next >= before + end:
                continue
            with group.guard():
                scorer.start(first, last)
                order = scorer.alike(torch.arange(start, end, device=scorer.scores.device))
            while (done := self.state.next - before) < end:
                piece = scorer.piece(last - first)
                stop = min(end, done + self._pieces * group.size * piece)
                began = time.perf_counter()
                pieces = order[done - start : stop - start].split(piece)
                with group.guard():
                    for k in group.mine(len(pieces)):
                        scorer.score(pieces[k])
                self.add(order[done - start : stop - start], scorer)
                self.state.next = before + stop
                self.save_if_due()
                self.report(*self._progress(n))
                self._pace(time.perf_counter() - began)
            with group.guard():
                scorer.check_finite()

    def _pace(self, seconds: float) -> None:
        """Choose the number of pieces in a round so that processes exchange scores every few seconds."""
        if self.processes:
            wanted = int(self._pieces * _ROUND / max(seconds, 1e-3))
            self._pieces = self.processes.broadcast(max(1, min(wanted, 8 * self._pieces)))

    def _progress(self, n: int) -> tuple[int, int | None]:
        """Return the positions done and, if known, the number of all; images to come count as classified correctly."""
        to_come = self.images_to_come()
        each = len(self.grids) * self.grid.positions
        return self.evaluations(), None if to_come is None else (self.state.used + n + to_come) * each
