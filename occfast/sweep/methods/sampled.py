"""Mean map of a data set from a few positions of each image: the method "sampled"."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...checks import pair
from ..checkpoint import SweepState
from ..estimate import CONFIDENCE, Sampling
from ..maps import OcclusionMap
from ..options import BINARY
from .base import Sweep
from .smoothing import Design, MeanMap

_log = logging.getLogger("occfast")

_SPACING = 0.106  # of the image's sides: about a hundred positions in each image
_BANDWIDTH = 1.0  # of the occluder's sides
_IMAGES = 16  # scored together; the unit of work that processes share
_MORE = 1.1  # growth of the number of images between two estimates


class SampledSweep(Sweep):
    """Sweep that scores a shifted lattice of positions of each image until the mean map is precise enough."""

    _looked = 0  # images at the last estimate
    _reached = False
    _latest: tuple[int, float, MeanMap] | None = None  # images, their share of the set, the map
    _error = float("nan")

    @property
    def design(self) -> Design:
        """Shifted lattices of the images."""
        grid, options = self.grid, self.options
        given = options.sampled.spacing
        spacing = tuple(_SPACING * side for side in grid.image) if given is None else pair(given, "spacing")
        steps = [max(1.0, pixels / step) for pixels, step in zip(spacing, grid.stride, strict=True)]
        return Design((grid.rows, grid.columns), (steps[0], steps[1]), options.seed)

    @property
    def bandwidth(self) -> tuple[float, float]:
        """Standard deviation of the kernel in pixels, (rows, columns)."""
        height, width = self.grid.occluder
        given: Any = self.options.sampled.bandwidth
        return given or (_BANDWIDTH * height, _BANDWIDTH * width)

    def visit(self, n: int) -> None:
        """Score each image at its own lattice."""
        design, positions = self.design, self.grid.positions
        self._at = [design.positions(self.state.used + k) for k in range(n)]
        with self.processes.guard():
            at_once = self.scorer.images_at_once()
        at_once = min(_IMAGES, self.processes.broadcast(at_once))
        groups = [range(first, min(first + at_once, n)) for first in range(0, n, at_once)]
        flat = [torch.cat([torch.unique(self._at[k]) + k * positions for k in group]) for group in groups]
        mine = self.processes.mine(len(groups))
        with self.processes.guard():
            for done, k in enumerate(mine, 1):
                self.scorer.start(groups[k].start, groups[k].stop)
                self.scorer.score(flat[k].to(self.scorer.scores.device))
                share = done / len(mine)
                self._show(int(share * sum(map(len, flat))))
        # The choices made with the first images are the same everywhere, but a process without work has made none yet.
        if not self.scorer.method:
            self.scorer.start(0, len(groups[0]))
        self.add(torch.cat(flat).to(self.scorer.scores.device))
        self._evaluated = sum(map(len, flat))

    def earned(self, scores: Tensor) -> dict[str, Any]:
        """Return the samples with a block's scores added, and the number of evaluations."""
        if not len(scores):
            return {}
        kept = np.uint8 if self.options.score in BINARY else np.float64
        block = np.concatenate([each[at].numpy() for each, at in zip(scores.cpu(), self._at, strict=True)])
        return {
            "samples": [*self.state.samples, block.astype(kept)],
            "tally": {"evaluated": self.evaluations() + self._evaluated},
        }

    def check_state(self, state: SweepState) -> None:
        """Raise ValueError for a state that this method can't have saved."""
        kept = np.uint8 if self.options.score in BINARY else np.float64
        visited = sum(len(self.design.positions(k)) for k in range(state.used))
        if sum(map(len, state.samples)) != visited or any(part.dtype != kept for part in state.samples):
            raise ValueError(f"expected {visited} scores")

    # -- precision -------------------------------------------------------------------------------------

    def _part(self, ended: bool) -> float:
        """Return the share of the set that was used."""
        if ended:
            return 1.0
        return 0.0 if self.source.total is None else min(1.0, self.state.seen / self.source.total)

    def _look(self, part: float) -> MeanMap:
        if self._latest is not None and self._latest[:2] == (self.state.used, part):
            return self._latest[2]
        design, grid = self.design, self.grid
        scores = torch.from_numpy(np.concatenate(self.state.samples))
        ends = np.cumsum([len(design.positions(k)) for k in range(self.state.used)])[:-1]
        width = tuple(pixels / step for pixels, step in zip(self.bandwidth, grid.stride, strict=True))
        each = list(torch.tensor_split(scores, torch.from_numpy(ends)))
        found = MeanMap(design, each, (width[0], width[1]), part, self.options.score in BINARY)
        self._latest = self.state.used, part, found
        return found

    def finished(self) -> bool:
        """Return whether the largest standard error has reached the tolerance."""
        used, tolerance = self.state.used, self.options.sampled.tolerance
        if tolerance is None or used < 2 or used < self._looked * _MORE:
            return self._reached
        self._looked = used
        self._error = float(self._look(self._part(False)).standard_error.max())
        self._reached = self.processes.broadcast(self._error <= tolerance)
        self._show(0)
        return self._reached

    def _show(self, more: int) -> None:
        done, total = self.evaluations() + more, None
        each = self.evaluations() / self.state.used if self.state.used else len(self._at[0])
        if self.source.total is not None:
            total = int(each * (self.source.total - self.state.skipped))
        tolerance = self.options.sampled.tolerance
        if tolerance is not None and self._looked:
            self.note = f"standard error {self._error:.3g} (asked for {tolerance:g})"
            ratio = self._error / tolerance
            needed = each * self._looked * ratio * ratio
            if total is not None or math.isfinite(needed):
                total = max(done, int(needed if total is None else min(total, needed)))
        self.report(done, total)

    def evaluations(self) -> int:
        """Return the number of positions evaluated so far."""
        return int(self.state.tally.get("evaluated", 0))

    def mean_and_error(self) -> tuple[Any, Any]:
        """Return the smoothed mean over images and its standard error, each [positions]."""
        return self._final.values.numpy().ravel(), self._final.standard_error.numpy().ravel()

    def result(self, target: int = 0, **more: Any) -> OcclusionMap:
        """Return the map with intervals, bias and the statement of its precision."""
        if not self.state.used:
            return super().result()
        from scipy.special import stdtrit

        tolerance, binary = self.options.sampled.tolerance, self.options.score in BINARY
        part = self._part(not self._reached)
        m = self._final = self._look(part)
        if binary:
            m.values.clamp_(0, 1)
        error = float(m.standard_error.max())
        reached = tolerance is None or error <= tolerance
        if not reached:
            _log.warning("the largest standard error is %.3g, above the tolerance of %g", error, tolerance)
        quantile = float(stdtrit(max(1, self.state.used - 1), (1 + CONFIDENCE) / 2))
        estimate = Sampling(
            images=self.state.used,
            part=part,
            bandwidth=self.bandwidth,
            spacing=(self.design.spacing[0] * self.grid.stride[0], self.design.spacing[1] * self.grid.stride[1]),
            checks=self.design.checks,
            largest_error=error,
            tolerance=tolerance,
            reached=reached,
            population_error=float(m.population_error.max()),
            bias=float(m.bias.square().mean().sqrt()),
            bias_below=m.bias_below,
            largest_bias=float(m.bias.max()),
        )
        interval = torch.stack(m.interval(quantile)).numpy()
        return super().result(
            target, method="sampled", estimate=estimate, interval=interval, bias=m.bias.numpy(), per_image=None, **more
        )
