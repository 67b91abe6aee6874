"""Sizes, positions and cost of every rectangle of a sweep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ...geometry import SweepGrid
from .device import DeviceProfile
from .intervals import Extent, Intervals, Ints, classes, extent, occluded, through
from .steps import Step

_FAR = 1 << 40  # beyond every map

#: Name of a row of a table of starts: a step, a window (step, input), ("crop", step), "occluder" or "zero".
Slot = int | tuple[int | str, int] | str


@dataclass(frozen=True)
class EdgeLayout:
    """Pieces of the shared steps at the occluder's first and last edge, for a class of grid rows (or columns).

    Attributes:
        length: Length of each step's piece; 0 if it has none.
        edges: For each step, the first edge (0 or 1) at which a member has a piece, and the number of edges: 2, or 1
            at a border.
        window: Length of the window of each input.
        slot: Row of each name in ``table``.
        table: int64 [slots, 2, grid rows], starts of pieces and windows at the first and the last edge.
        cuts: For each step, int64 [grid rows, 8]: ``Cuts`` in csrc/api.h. Several images may have a copy each, one
            after the other.
        origins: Of strips, int64 [2, grid rows, 2]: first pixels of pieces and windows, by the names in ``slot``; empty
            for a class of grid rows.
        everywhere: ``Cuts`` of a map along the strips, int64 [1, 8].
    """

    length: dict[int, int]
    edges: dict[int, tuple[int, int]]
    window: dict[tuple[int, int], int]
    slot: dict[Slot, int]
    table: Tensor
    cuts: dict[int, Tensor]
    origins: dict[Slot, Tensor]
    everywhere: Tensor

    def to(self, device: torch.device) -> EdgeLayout:
        """Return the same layout with its tables on a device."""
        return replace(
            self,
            table=self.table.to(device),
            cuts={k: cuts.to(device) for k, cuts in self.cuts.items()},
            origins={name: origins.to(device) for name, origins in self.origins.items()},
            everywhere=self.everywhere.to(device),
        )

    def of_images(self, count: int) -> EdgeLayout:
        """Return the layout with a copy of the cuts for each of several images."""
        return replace(self, cuts={k: cuts.repeat(count, 1) for k, cuts in self.cuts.items()})


@dataclass(frozen=True)
class AxisLayout:
    """Lengths and starts of all rectangles for a class of grid rows (or columns).

    Attributes:
        extents: Rectangle of each step.
        windows: Window of each input of a step.
        crops: Rectangle of a transposed convolution within the result of its window.
        same: Inputs whose rectangle is the window already.
        slot: Row of each name in ``table``.
        table: int64 [slots, grid rows], all starts.
        ends: Pieces of the shared steps; None if nothing is shared.
    """

    extents: dict[int, Extent]
    windows: dict[tuple[int, int], Extent]
    crops: dict[int, Extent]
    same: frozenset[tuple[int, int]]
    slot: dict[Slot, int]
    table: Tensor
    ends: EdgeLayout | None

    def to(self, device: torch.device) -> AxisLayout:
        """Return the same layout with its tables on a device."""
        return replace(self, table=self.table.to(device), ends=None if self.ends is None else self.ends.to(device))

    def of_images(self, count: int) -> AxisLayout:
        """Return the layout for strips of several images."""
        return replace(self, ends=None if self.ends is None else self.ends.of_images(count))


@dataclass(frozen=True)
class Share:
    """What a sweep computes of a step.

    Attributes:
        step: The step, which is computed on a map.
        rows, columns: Mean size over positions of the rectangle that is computed.
        pixels: Mean number of pixels for each position, the strips that positions share included.
        shared: Whether positions share most of it.
    """

    step: Step
    rows: float
    columns: float
    pixels: float
    shared: bool


@dataclass(frozen=True)
class Layout:
    """Geometry and cost of a sweep over a grid. Built once by :func:`plan`; immutable.

    Attributes:
        grid: The positions.
        steps: The network.
        entries: Number of steps and sizes that a batch of positions evaluates.
        expected: Positions per image that the plan is made for.
        device: Device of the tables.
        intervals: For rows and for columns, the interval of each step that an occluder may change.
        shared: Number of first steps whose edges and interior positions share.
        classes: Class of each grid row and of each grid column, int64 on the CPU.
        axes: Layout of each class of grid rows and of grid columns.
        strips: Layout of the strips that grid rows and columns share; empty if nothing is shared.
        profile: Batches and costs of the device.
        fused: Steps that gather and convolve in one pass, which write no windows.
        images: Images that are swept together, where batches span images.
    """

    grid: SweepGrid
    steps: tuple[Step, ...]
    entries: int
    expected: int
    device: torch.device
    intervals: tuple[tuple[Intervals, ...], tuple[Intervals, ...]]
    shared: int
    classes: tuple[Tensor, Tensor]
    axes: tuple[tuple[AxisLayout, ...], tuple[AxisLayout, ...]]
    strips: tuple[EdgeLayout, ...]
    profile: DeviceProfile
    fused: frozenset[int] = frozenset()
    images: int = 1

    # Groups: a class of grid rows with a class of grid columns ----------------------------------------

    @property
    def groups(self) -> int:
        """Number of groups of positions whose rectangles have the same sizes."""
        return len(self.axes[0]) * len(self.axes[1])

    def group_of(self, positions: Tensor) -> Tensor:
        """Return the group of each flat position on the CPU.

        Each image has its own groups if anything is shared and strips are of one image.
        """
        n, p = positions // self.grid.positions, positions % self.grid.positions
        i, j = p // self.grid.columns, p % self.grid.columns
        group = self.classes[0][i] * len(self.axes[1]) + self.classes[1][j]
        return group + n * self.groups if self.shared and not self.profile.spans_images else group

    def axes_of(self, group: int) -> tuple[AxisLayout, AxisLayout]:
        """Return the layouts of rows and columns of a group."""
        return self.axes[0][group // len(self.axes[1])], self.axes[1][group % len(self.axes[1])]

    # Batches ------------------------------------------------------------------------------------------

    def largest_batch(self, group: int, memory: int = 1 << 62) -> int:
        """Return how many positions of a group are computed together.

        Args:
            group: The group.
            memory: Bytes for the windows and rectangles of a batch.
        """
        rows, columns = self.axes_of(group)
        largest = self.steps[0].dtype.itemsize
        for step in self.steps[1:]:
            itemsize = (step if step.is_map else self.steps[0]).dtype.itemsize
            largest = max(largest, self._numbers_of_batch(step, rows, columns) * itemsize)
        return int(max(1, min(self.profile.positions, self.profile.layer_bytes // largest, memory // (4 * largest))))

    def _numbers_of_batch(self, step: Step, rows: AxisLayout, columns: AxisLayout) -> int:
        """Return how many numbers a step's windows and result have for a position."""
        if step.pooled is not None:
            source = step.inputs[0]
            if source >= self.shared and not pastes(self.steps[source], rows, columns):
                return 0
        if not step.is_map:
            return step.numbers + sum(_numbers(self.steps[k]) for k in step.inputs)
        v, h = rows.extents[step.index].length, columns.extents[step.index].length
        if step.index < self.shared and rows.ends is not None and columns.ends is not None:
            v, h = (2 * ends.length[step.index] for ends in (rows.ends, columns.ends))
        numbers = step.channels * v * h
        if step.index not in self.fused:
            stride = step.axes[0].stride * step.axes[1].stride
            numbers += sum(self.steps[k].channels * v * h * stride for k in step.inputs)
        return numbers

    def batch_size(self, count: int, most: int) -> int:
        """Return the size of the batches that ``count`` positions of a group are cut into.

        Args:
            count: Positions.
            most: Largest size, from :meth:`largest_batch`.
        """
        even = -(-count // -(-count // most))
        sizes = self.profile.sizes
        step = max(1, (1 << even.bit_length() - 1) // sizes) if sizes else 1
        return min(most, -(-even // step) * step)

    @cached_property
    def batches(self) -> float:
        """Number of batches for ``expected`` positions of an image, a part of a batch where one spans images."""
        counts = torch.bincount(self.group_of(torch.arange(self.grid.positions)), minlength=self.groups)
        share = self.expected / self.grid.positions
        total, images = 0.0, self.images if self.profile.spans_images else 1
        for group in counts.nonzero()[:, 0].tolist():
            total += math.ceil(images * share * int(counts[group]) / self.largest_batch(group)) / images
        return min(total, float(self.expected))

    # Memory -------------------------------------------------------------------------------------------

    @cached_property
    def keep(self) -> frozenset[int]:
        """Steps whose maps without an occluder are kept."""
        return frozenset(
            source
            for step in self.steps
            for source in step.inputs
            if step.kind not in ("point", "scale") or source < self.shared <= step.index
        )

    @property
    def bytes_per_image(self) -> int:
        """Memory for the kept maps of an image."""
        return sum(
            _numbers(self.steps[k]) * self.steps[k].dtype.itemsize * (2 if k <= self.shared else 1)
            for k in self.keep | {0}
        )

    @property
    def bytes_of_strips(self) -> int:
        """Memory for what the positions of one image share, which is kept for one image or for each."""
        total = 0
        for axis, ends in enumerate(self.strips):
            for k, length in ends.length.items():
                step = self.steps[k]
                strip = length * step.size[1 - axis] * step.channels
                total += 2 * len(self.classes[axis]) * strip * step.dtype.itemsize
        return total

    def bytes_of_images(self, count: int) -> int:
        """Return the memory for what is kept of some images."""
        return count * self.bytes_per_image + (count if self.profile.spans_images else 1) * self.bytes_of_strips

    # Cost ---------------------------------------------------------------------------------------------

    def lengths(self, step: Step, axis: int) -> list[Ints]:
        """Return what is computed of a step for each grid row: its rectangle or, if it is shared, its two ends."""
        return _lengths(self.intervals[axis][step.index], step.index < self.shared)

    def shares(self) -> list[Share]:
        """Return what is computed of each step that has a map, averaged over the positions of the grid."""
        found = []
        for step in self.steps:
            if step.kind == "input" or not step.is_map:
                continue
            shared = step.index < self.shared
            rows, columns = (self._mean_length(step, axis, shared) for axis in (0, 1))
            pixels = rows * columns
            if shared:
                lengths = [ends.length[step.index] for ends in self.strips]
                strips = lengths[0] * self.grid.rows * step.size[1] + lengths[1] * self.grid.columns * step.size[0]
                pixels += 2 * strips / self.expected
            found.append(Share(step, rows, columns, pixels, shared))
        return found

    def _mean_length(self, step: Step, axis: int, shared: bool) -> float:
        each = [
            layout.ends.length[step.index] * layout.ends.edges[step.index][1]
            if shared and layout.ends is not None
            else layout.extents[step.index].length
            for layout in self.axes[axis]
        ]
        return float(np.asarray(each)[self.classes[axis].numpy()].mean())

    @property
    def calls(self) -> float:
        """Cost per position of the calls on batches or groups of positions, in multiply-adds."""
        times = self.batches if self.profile.counts_batches else min(self.groups, self.grid.positions)
        return times * self.entries * self.profile.call / self.expected

    @cached_property
    def work(self) -> float:
        """Multiply-adds per position of what depends on the layout, including :attr:`calls`.

        The layout is chosen by this count, so that the same call gives the same bits: it is the same for every CPU, and
        for every GPU of a kind.
        """
        return sum(share.step.cost * share.pixels for share in self.shares()) + self.calls

    @property
    def whole_from(self) -> str:
        """Name of the first layer that needs a whole map and is computed densely; "" if none does."""
        return next((step.description for step in self.steps if not step.is_map and step.inputs), "")


def plan(
    steps: Sequence[Step],
    grid: SweepGrid,
    *,
    entries: int,
    device: torch.device,
    profile: DeviceProfile,
    fused: frozenset[int] = frozenset(),
    images: int = 1,
    expected: int | None = None,
    most_classes: int | None = None,
    share_early: bool = True,
    memory_limit: int | None = None,
) -> Layout:
    """Plan a sweep.

    Args:
        steps: The network, from :class:`~.analysis.Analysis`.
        grid: The positions.
        entries: Number of entries of the network's program, for the cost of calls.
        device: Device of the tables.
        profile: Batches and costs of the device.
        fused: Steps that gather and convolve in one pass.
        images: Images that are swept together.
        expected: Positions per image; None: all of the grid. Sharing starts with work for each image, which few
            positions do not repay.
        most_classes: Largest number of classes of grid rows, and of grid columns; None weighs the work that more
            classes save against the calls that they cost.
        share_early: Whether positions may share the first steps.
        memory_limit: Bytes; what is shared takes at most a quarter of them.
    """
    intervals = _intervals(steps, grid)
    expected = grid.positions if expected is None else expected
    shared = _choose_shared(steps, intervals, expected, memory_limit) if share_early else 0
    strips: tuple[EdgeLayout, ...] = ()
    if shared:
        counts = (grid.rows, grid.columns)
        strips = tuple(_edge_layout(steps[:shared], axis, intervals[axis], np.arange(counts[axis])) for axis in (0, 1))

    made: dict[tuple[int, bytes], AxisLayout] = {}

    def of(most: int) -> Layout:
        labels, axes = _with_classes(steps, grid, intervals, shared, most, strips, made)
        return Layout(
            grid,
            tuple(steps),
            entries,
            expected,
            device,
            intervals,
            shared,
            labels,
            axes,
            strips,
            profile,
            fused,
            images,
        )

    tried = map(of, profile.classes if most_classes is None else (most_classes,))
    best = min(tried, key=lambda layout: layout.work)
    rows, columns = (tuple(layout.to(device) for layout in axis) for axis in best.axes)
    return replace(best, axes=(rows, columns), strips=tuple(ends.to(device) for ends in best.strips))


def _intervals(steps: Sequence[Step], grid: SweepGrid) -> tuple[tuple[Intervals, ...], tuple[Intervals, ...]]:
    found = []
    for axis in (0, 1):
        of: dict[int, Intervals] = {}
        for step in steps:
            if step.kind == "input":
                of[step.index] = occluded(grid, axis)
            elif step.is_map:
                inputs = [of[k] for k in step.inputs]
                of[step.index] = through(step, axis, inputs, [steps[k].size[axis] for k in step.inputs])
        found.append(tuple(of.get(step.index, of[0]) for step in steps))
    return found[0], found[1]


def _choose_shared(
    steps: Sequence[Step],
    intervals: tuple[tuple[Intervals, ...], tuple[Intervals, ...]],
    expected: int,
    memory_limit: int | None,
) -> int:
    """Return the number of first steps to share for which the work per position is least."""
    rows, columns = intervals
    best, saved, chosen = 0.0, 0.0, 0
    room = (memory_limit or 1 << 62) / 4
    for step in steps:
        v, h = rows[step.index], columns[step.index]
        whole = step.kind in ("input", "window", "pad", "point", "join")
        if not whole or (v.full_low > v.full_high).any() or (h.full_low > h.full_high).any():
            break
        rectangle = float((v.high - v.low).mean() * (h.high - h.low).mean())
        ends = [np.add(*_ends_of(cut)) for cut in (v, h)]
        corners = float(ends[0].mean() * ends[1].mean())
        strips = 2 * (
            int(np.maximum(*_ends_of(v)).max()) * len(ends[0]) * step.size[1]
            + int(np.maximum(*_ends_of(h)).max()) * len(ends[1]) * step.size[0]
        )
        room -= strips * step.channels * step.dtype.itemsize
        if room < 0:
            break
        if step.index:
            saved += step.cost * (rectangle - corners - strips / expected)
        if saved > best:
            best, chosen = saved, step.index + 1
    return chosen


def _with_classes(
    steps: Sequence[Step],
    grid: SweepGrid,
    intervals: tuple[tuple[Intervals, ...], tuple[Intervals, ...]],
    shared: int,
    most: int,
    strips: tuple[EdgeLayout, ...],
    made: dict[tuple[int, bytes], AxisLayout],
) -> tuple[tuple[Tensor, Tensor], tuple[tuple[AxisLayout, ...], tuple[AxisLayout, ...]]]:
    """Return the class of each grid row and column, and the layouts of the classes, of which there are ``most``."""
    labels, groups = [], []
    for axis in (0, 1):
        count = grid.rows if axis == 0 else grid.columns
        lengths: list[Ints] = []
        weights: list[float] = []
        for step in steps:
            if step.is_map and step.macs:
                mine, other = (_lengths(intervals[a][step.index], step.index < shared) for a in (axis, 1 - axis))
                lengths += mine
                weights += [step.macs * float(np.sum(other, 0).mean())] * len(mine)
        groups.append(classes(lengths, weights, most) if lengths else [np.arange(count)])
        label = np.zeros(count, np.int64)
        for k, members in enumerate(groups[axis]):
            label[members] = k
        labels.append(torch.from_numpy(label))

    def laid_out(axis: int, members: Ints) -> AxisLayout:
        key = axis, members.tobytes()
        if key not in made:
            made[key] = _axis_layout(
                steps, grid, axis, intervals[axis], members, shared, strips[axis] if strips else None
            )
        return made[key]

    rows, columns = (tuple(laid_out(axis, members) for members in groups[axis]) for axis in (0, 1))
    return (labels[0], labels[1]), (rows, columns)


def _axis_layout(
    steps: Sequence[Step],
    grid: SweepGrid,
    axis: int,
    intervals: Sequence[Intervals],
    members: Ints,
    shared: int,
    strips: EdgeLayout | None,
) -> AxisLayout:
    extents: dict[int, Extent] = {}
    windows: dict[tuple[int, int], Extent] = {}
    crops: dict[int, Extent] = {}
    same: set[tuple[int, int]] = set()
    for step in steps:
        if not step.is_map:
            continue
        a, size = step.axes[axis], step.size[axis]
        if step.kind == "point":
            extents[step.index] = extents[step.inputs[0]]
            continue
        if step.kind == "scale":
            given = extents[step.inputs[0]]
            extents[step.index] = Extent(given.length * a.stride, given.start * a.stride)
            continue
        mine = extents[step.index] = extent(intervals[step.index], members, size)
        if step.kind in ("window", "pad"):
            windows[step.index, 0] = Extent((mine.length - 1) * a.stride + a.span, mine.start * a.stride - a.padding)
        elif step.kind == "join":
            for k, source in enumerate(step.inputs):
                before = extents[source]
                windows[step.index, k] = mine
                if before.length == mine.length and (before.start == mine.start)[members].all():
                    same.add((step.index, k))
        elif step.kind == "transpose":
            # Input rows that reach the rectangle, and one more so that the result covers it.
            first = (mine.start + a.padding - a.span + 1) // a.stride
            last = (mine.start + mine.length - 1 + a.padding) // a.stride
            windows[step.index, 0] = Extent(int((last - first)[members].max()) + 2, first)
            crops[step.index] = Extent(mine.length, mine.start - (first * a.stride - a.padding))
    everything = [*extents.values(), *windows.values(), *crops.values()]
    unclipped = grid.first[axis] + grid.stride[axis] * np.arange(len(everything[0].start)) - grid.occluder[axis] // 2
    table = torch.from_numpy(np.stack([*(e.start for e in everything), unclipped, np.zeros_like(unclipped)]))
    crop_names: list[Slot] = [("crop", k) for k in crops]
    names: list[Slot] = [*extents, *windows, *crop_names, "occluder", "zero"]
    slot = {name: k for k, name in enumerate(names)}
    ends = None if strips is None else _edge_layout(steps[:shared], axis, intervals, members, strips)
    return AxisLayout(extents, windows, crops, frozenset(same), slot, table, ends)


def _edge_layout(
    steps: Sequence[Step], axis: int, intervals: Sequence[Intervals], members: Ints, strips: EdgeLayout | None = None
) -> EdgeLayout:
    """Lay out the pieces of shared steps for some grid rows; ``strips``: the layout for all, unless it is this one."""
    length: dict[int, int] = {}
    edges: dict[int, tuple[int, int]] = {}
    window: dict[tuple[int, int], int] = {}
    slot: dict[Slot, int] = {}
    table: list[Ints] = []
    cuts: dict[int, Tensor] = {}
    origins: dict[Slot, Tensor] = {}

    def add(name: Slot, starts: Ints, across: int) -> None:
        slot[name] = len(table)
        table.append(starts)
        if strips is None:
            pair = (starts, np.full_like(starts, across))
            origins[name] = torch.from_numpy(np.stack(pair if axis == 0 else pair[::-1], -1))

    for step in steps:
        cut, size, a = intervals[step.index], step.size[axis], step.axes[axis]
        ends = [int(end[members].max()) for end in _ends_of(cut)]
        length[step.index] = most = max(ends)
        edges[step.index] = (0 if ends[0] else 1, sum(end > 0 for end in ends))
        starts = np.stack((np.clip(cut.full_low - most, 0, size - most), np.clip(cut.full_high, 0, size - most)))
        add(step.index, starts, 0)
        for k in range(len(step.inputs) if step.kind != "point" else 0):
            window[step.index, k] = (most - 1) * a.stride + a.span
            add((step.index, k), starts * a.stride - a.padding, -step.axes[1 - axis].padding)
        strip_starts = starts if strips is None else strips.cuts[step.index][:, 6:8].numpy().T
        cuts[step.index] = torch.from_numpy(
            np.stack((cut.low, cut.full_low, cut.full_high, cut.high, *strip_starts, *starts), 1)
        )
    everywhere = torch.tensor([[-_FAR, -_FAR, _FAR, _FAR, 0, 0, 0, 0]])
    return EdgeLayout(length, edges, window, slot, torch.from_numpy(np.stack(table)), cuts, origins, everywhere)


def _lengths(cut: Intervals, shared: bool) -> list[Ints]:
    return _ends_of(cut) if shared else [cut.high - cut.low]


def _ends_of(cut: Intervals) -> list[Ints]:
    """Return, for each grid row, how many rows depend on the occluder's first edge and how many on its last."""
    return [np.clip(cut.full_low - cut.low, 0, None), np.clip(cut.high - cut.full_high, 0, None)]


def pastes(step: Step, rows: AxisLayout, columns: AxisLayout) -> bool:
    """Return whether a sum is taken of the whole map, as the rectangles are more than half of it."""
    return 2 * rows.extents[step.index].length * columns.extents[step.index].length > step.size[0] * step.size[1]


def _numbers(step: Step) -> int:
    return step.channels * step.size[0] * step.size[1]
