"""Forecast of the time that a dense and an incremental sweep take on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from .analysis import Analysis
from .layout import Layout, Share
from .rates import Rates
from .steps import Step
from .work import Work, added, convolution, interpolated, scaled

#: Predicted speed-up from which ``method="auto"`` sweeps incrementally.
WORTH_IT = 1.1
_CLEAN_BATCH = 8  # images in a forward pass without an occluder, among which the cost of calls is divided
#: Forward passes of single images before a sweep: tracing, comparisons and the recording of shapes; the first ones of a
#: dense sweep, which tries batch sizes.
_SETUP_PASSES, _DENSE_PASSES = 24.0, 80.0
_NODE_CALLS, _STEP_CALLS = 600.0, 1300.0  # calls that take as long as the analysis of a node, and the plan of a step
_STEP_READS = 2.0  # reads of a window that take as long as the calls of a step, for each of its inputs and itself
_CHECKED = 6.0  # positions that both sweeps evaluate, to be compared


@dataclass(frozen=True)
class Layer:
    """A row of the printed plan.

    Attributes:
        label: Name of the layer.
        size: Size of the map; None if it is computed as a whole.
        rectangle: Mean size over positions of the rectangle that is computed.
        dense, cost: Seconds for a position of the dense and of the incremental sweep.
        shared: Whether positions share most of it.
    """

    label: str
    size: tuple[int, int] | None
    rectangle: tuple[float, float] | None
    dense: float
    cost: float
    shared: bool = False


@dataclass(frozen=True)
class Forecast:
    """Seconds that sweeps take, from counted work and measured speeds.

    Args:
        analysis, layout: The network and the plan.
        rates: Seconds for each kind of work.
        block: Output channels of a block of the fused convolution; 0 without one.
        fused: Steps that gather and convolve in one pass.
        batch: Returns the size of a batch of a group of positions.
        images: Images that are swept.
    """

    analysis: Analysis
    layout: Layout
    rates: Rates
    block: int
    fused: frozenset[int]
    batch: Callable[[int], int]
    images: int = 1

    @property
    def speedup(self) -> float:
        """Seconds of the dense sweep over those of the incremental one."""
        return self.dense / self.incremental

    @property
    def worth_it(self) -> bool:
        """Whether ``method="auto"`` sweeps incrementally."""
        return self.speedup >= WORTH_IT

    @cached_property
    def dense(self) -> float:
        """Seconds of the dense sweep of all images."""
        each = self._seconds(self.analysis.dense, self.layout.profile.dense_batch)
        return each * self.layout.expected * self.images + self._dense_setup

    @cached_property
    def incremental(self) -> float:
        """Seconds of the incremental sweep of all images, with its set-up."""
        each = sum(layer.cost for layer in self.layers)
        return (each + self._overhead) * self.layout.expected * self.images + self._setup

    @cached_property
    def layers(self) -> list[Layer]:
        """Return the work of each layer, averaged over the positions."""
        return [self._layer(step, self._shares.get(step.index)) for step in self.layout.steps if step.kind != "input"]

    @cached_property
    def _shares(self) -> dict[int, Share]:
        return {share.step.index: share for share in self.layout.shares()}

    def rows(self) -> list[Layer]:
        """Return :attr:`layers`, and the cost of calls and of the set-up as if they were layers."""
        positions = self.layout.expected * self.images
        return [
            *self.layers,
            Layer("calls", None, None, 0.0, self._overhead),
            Layer("set-up", None, None, self._dense_setup / positions, self._setup / positions),
        ]

    # Inside -------------------------------------------------------------------------------------------

    def _seconds(self, work: Work, batch: float = float("inf")) -> float:
        """Return the seconds of a work for one of the positions of a batch."""
        total = 0.0
        for kind, amount in work.items():
            total += self.rates[kind] * (amount / batch if kind in _OF_A_BATCH else amount)
        return total

    def _layer(self, step: Step, share: Share | None) -> Layer:
        work = self.analysis.work[step.index]
        area = step.size[0] * step.size[1]
        by_torch: Work = {}
        if step.conv is not None:
            by_torch = convolution(step.conv.weight, area, step.conv.groups)
        dense = self._seconds(added(work, by_torch), self.layout.profile.dense_batch)
        if share is None:
            return Layer(step.label, None, None, dense, self._seconds(self._whole(step, work)))
        conv = by_torch
        if step.index in self.fused and step.conv is not None:
            weight = step.conv.weight
            padded = -(-weight.shape[0] // self.block) * self.block
            macs = weight.numel() * area * padded / weight.shape[0]
            kind = "fused 1" if weight[0, 0].numel() == 1 else "fused 9"
            conv = interpolated(kind, macs, weight.shape[1], padded)
        mine = added(scaled(added(work, conv), share.pixels / area), {"gather": self._gathered(step, share)})
        return Layer(
            step.label, step.size, (share.rows, share.columns), dense, self._seconds(mine), shared=share.shared
        )

    def _gathered(self, step: Step, share: Share) -> float:
        """Return how many numbers a position copies into windows of a step."""
        steps, numbers = self.layout.steps, 0.0
        rows, columns = step.axes
        for k, source in enumerate(step.inputs):
            if step.kind in ("point", "scale") or (step.kind == "join" and self._same(step.index, k)):
                continue
            if step.kind == "transpose":
                window = share.pixels / (rows.stride * columns.stride)
            else:
                ratio = share.pixels / max(1e-9, share.rows * share.columns)
                window = (
                    ratio
                    * ((share.rows - 1) * rows.stride + rows.span)
                    * ((share.columns - 1) * columns.stride + columns.span)
                )
            numbers += window * steps[source].channels
        return numbers

    def _same(self, step: int, k: int) -> bool:
        return all((step, k) in axis.same for layouts in self.layout.axes for axis in layouts)

    def _whole(self, step: Step, work: Work) -> Work:
        """Return the work of a step on whole maps."""
        if step.folded is not None:
            return added({"linear": float(step.macs)}, self._pasted(step))
        if step.pooled is not None:
            before = self.layout.steps[step.inputs[0]]
            share = self._shares.get(before.index)
            if share is not None and not share.shared and 2 * share.pixels < before.size[0] * before.size[1]:
                numbers = share.pixels * before.channels
                return {"gather": numbers, "mean": 4 * numbers}
        return added(work, self._pasted(step))

    def _pasted(self, step: Step) -> Work:
        """Return the work of laying rectangles over the whole maps that a step reads."""
        numbers = 0.0
        for source in step.inputs:
            before = self.layout.steps[source]
            whole = source >= self.layout.shared and all(
                layout.extents[source].length == before.size[axis]
                for axis in (0, 1)
                for layout in self.layout.axes[axis]
            )
            if not whole:
                numbers += before.channels * before.size[0] * before.size[1]
        return {"gather": numbers}

    @cached_property
    def _batches(self) -> float:
        """Number of batches that the positions of one image are computed in."""
        layout = self.layout
        counts = torch.bincount(layout.group_of(torch.arange(layout.grid.positions)), minlength=layout.groups).tolist()
        share = layout.expected / layout.grid.positions
        least = 1.0 / self.images if layout.profile.spans_images else 1.0
        batches = sum(max(least, share * count / self.batch(group)) for group, count in enumerate(counts) if count)
        # Each piece of an image ends with a batch that is not full.
        return float(min(batches + self.layout.profile.pieces / self.images, layout.expected))

    @cached_property
    def _overhead(self) -> float:
        """Seconds of calls for a position."""
        calls = sum(work.get("call", 0.0) for work in self.analysis.work.values())
        steps = _STEP_READS * sum(1 + len(step.inputs) for step in self.layout.steps)
        weights = sum(work.get("weights", 0.0) for work in self.analysis.work.values())
        each = calls * self.rates["call"] + steps * self.rates["step"] + weights * self.rates["weights"]
        return self._batches * each / self.layout.expected

    @cached_property
    def _dense_setup(self) -> float:
        """Seconds of comparisons and of the search for the fastest batch size."""
        return _DENSE_PASSES * self._seconds(self.analysis.dense, self.layout.profile.dense_batch)

    @cached_property
    def _setup(self) -> float:
        """Seconds before the first position, the clean activations of all images and the comparison of positions."""
        once = self._seconds(self.analysis.dense, 1)
        clean = self._seconds(self.analysis.dense, _CLEAN_BATCH) * (2 if self.layout.shared else 1)
        nodes = len(self.analysis.traced.graph.nodes)
        checked = min(_CHECKED, self.layout.expected * self.images // 500) or 1.0
        return (
            _SETUP_PASSES * once + nodes * _NODE_CALLS * self.rates["call"] + clean * self.images + checked * 2 * clean
        )


#: Work that a batch does once, whatever its size.
_OF_A_BATCH = frozenset({"call", "step", "weights"})
