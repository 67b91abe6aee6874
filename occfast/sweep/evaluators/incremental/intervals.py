"""Dirty intervals along one axis, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...geometry import SweepGrid
from .steps import Step

Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass
class Intervals:
    """Rows of a map that an occluder may change, [low, high), for each grid row (or columns for each grid column).

    If full_low <= full_high, rows [full_low, full_high) are as if everything were occluded, rows before them depend on
    the occluder's first edge alone, and rows after them on its last edge alone.
    """

    low: Ints
    high: Ints
    full_low: Ints
    full_high: Ints

    def clip(self, size: int) -> Intervals:
        """Return the intervals within the map and not empty; recomputing a clean row is harmless."""
        low = np.clip(self.low, 0, size - 1)
        high = np.clip(self.high, low + 1, size)
        return Intervals(low, high, np.clip(self.full_low, 0, size), np.clip(self.full_high, 0, size))


def through(step: Step, axis: int, inputs: list[Intervals], sizes: list[int]) -> Intervals:
    """Return the intervals of a step's output from those of its inputs, along axis 0 (rows) or 1 (columns)."""
    a, size = step.axes[axis], step.size[axis]
    if step.kind in ("point", "join"):
        return Intervals(
            np.minimum.reduce([i.low for i in inputs]),
            np.maximum.reduce([i.high for i in inputs]),
            np.maximum.reduce([i.full_low for i in inputs]),
            np.minimum.reduce([i.full_high for i in inputs]),
        ).clip(size)
    (given,), (before,) = inputs, sizes
    if step.kind in ("scale", "transpose"):
        # Input row y reaches output rows y * stride - padding ... + span - 1.
        low = given.low * a.stride - a.padding
        high = (given.high - 1) * a.stride - a.padding + a.span
        # The fully occluded rows are not tracked: nothing is shared from here on.
        empty_low, empty_high = np.full_like(low, size), np.zeros_like(low)
        return Intervals(low, high, empty_low, empty_high).clip(size)
    # Output row y reads input rows y * stride - padding ... + span - 1.
    low = -((-(given.low + a.padding - a.span + 1)) // a.stride)
    high = (given.high - 1 + a.padding) // a.stride + 1
    full_low = np.where(given.full_low <= 0, 0, -((-(given.full_low + a.padding)) // a.stride))
    full_high = np.where(given.full_high >= before, size, (given.full_high - a.span + a.padding) // a.stride + 1)
    return Intervals(low, high, full_low, full_high).clip(size)


def occluded(grid: SweepGrid, axis: int) -> Intervals:
    """Return the intervals of the occluder itself, cut at the image's edge."""
    count = grid.rows if axis == 0 else grid.columns
    start = grid.first[axis] + grid.stride[axis] * np.arange(count, dtype=np.int64) - grid.occluder[axis] // 2
    low = np.maximum(start, 0)
    high = np.minimum(start + grid.occluder[axis], grid.image[axis])
    return Intervals(low, high, low.copy(), high.copy())


@dataclass
class Extent:
    """Rectangle of a step along one axis, for a class of grid rows: one length, and a start for each grid row."""

    length: int
    start: Ints


def extent(intervals: Intervals, members: Ints, size: int) -> Extent:
    """Return the common length for the members of a class, with starts inside the map."""
    length = int((intervals.high - intervals.low)[members].max())
    return Extent(length, np.clip(intervals.low, 0, size - length))


def classes(lengths: list[Ints], weights: list[float], most: int, slack: float = 0.002) -> list[Ints]:
    """Return groups of grid rows whose rectangles are alike, so that one size per group wastes little.

    The two groups whose merge costs least are merged until ``most`` are left, and further while a merge costs less than
    ``slack`` of the total. The cost of a group is its number of members times the weighted sum of its common lengths.

    Args:
        lengths: Length of each rectangle for each grid row.
        weights: Weight of each rectangle.
        most: Largest number of groups.
        slack: Share of the total cost.
    """
    weight = np.asarray(weights, float)
    tops, inverse = np.unique(np.stack(lengths, 1).astype(float), axis=0, return_inverse=True)
    members = [np.flatnonzero(inverse.reshape(-1) == k) for k in range(len(tops))]
    counts = np.array([len(m) for m in members])
    costs = (tops * weight).sum(1) * counts
    total = float(costs.sum())

    def merging(k: int) -> Any:
        """Return the additional cost of merging group k with each other one."""
        return (np.maximum(tops, tops[k]) * weight).sum(1) * (counts + counts[k]) - costs - costs[k]

    extra = np.stack([merging(k) for k in range(len(tops))])
    while len(tops) > 1:
        upper = np.where(np.triu(np.ones(extra.shape, bool), 1), extra, np.inf)
        i, j = divmod(int(upper.argmin()), len(tops))
        if len(tops) <= most and upper[i, j] > slack * total:
            break
        rest = np.delete(np.arange(len(tops)), (i, j))
        tops = np.concatenate((tops[rest], np.maximum(tops[i], tops[j])[None]))
        counts = np.append(counts[rest], counts[i] + counts[j])
        members = [*(members[k] for k in rest), np.sort(np.concatenate((members[i], members[j])))]
        costs = np.append(costs[rest], (tops[-1] * weight).sum() * counts[-1])
        last = merging(len(tops) - 1)
        extra = np.block([[extra[np.ix_(rest, rest)], last[:-1, None]], [last[None]]])
    return members
