"""The exact incremental sweep: only what an occluder changes is computed again.

The unoccluded activations are kept.  For each position, each layer's dirty rectangle is computed
from a window of the layer before: its rectangle with a halo, laid over the kept activations.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ....native import ops
from ...geometry import SweepGrid
from ...memory import available_bytes
from ...precision import float32_as
from ..behavior import TOLERANCE, compared_outputs, example
from .analysis import Analysis, MapRef, Step
from .batch import BatchRun, MapRecorder, Strips
from .cuda_graphs import Graphs, OnCuda
from .intervals import Extent, Intervals, classes, extent, occluded, through
from .layout import AxisLayout, EdgeLayout, Layer, _ends_of
from .trace import NotIncremental, trace

_HALF = (torch.float16, torch.bfloat16)
_CACHE = 16 << 20  # bytes of one layer's rectangles in a batch: the fastest in bench/results/sweep-batch-cpu.md
_FAR = 1 << 40  # beyond every map
#: What a call on a group of positions costs beside its work, in multiply-adds that would take as long: about 50
#: microseconds on two cores.  The figure for a GPU is a guess; none has been measured.
_CALL = {"cpu": 4e6, "cuda": 1e8}
_CLASSES = (16, 8, 6, 4, 3, 2, 1)
_SIZES = 8  # of the batches of a group, where each is a graph


class IncrementalEvaluator:
    """Evaluates a network under an occluder by recomputing dirty rectangles (see ``evaluator.Evaluator``).

    Args:
        model: nn.Module in evaluation mode; it is traced and copied, never changed.
        grid: the positions.
        images: [N, C, H, W] with N >= 1: an example of what will be swept (shape, dtype, device).
        most_classes: how many groups of grid rows (and of columns) may have rectangles of their own size; None weighs
            the work that more groups save against the calls that they cost.
        batch: positions computed together; None: as many as stay in the processor's cache.
        fold_tail: compute a convolution whose map is only averaged from window sums.
        share_early: where receptive fields are smaller than the occluder, compute only its four corners for each
            position; the edges between are shared by a grid row or column, the middle by all.
        fuse: gather and convolve in one native pass where there is one (CPU, ungrouped convolutions).
        expected: positions that will be asked of each image; None: all of the grid.  Sharing starts with work for
            each image, which few positions do not repay.

    memory_limit : bytes; layers are shared while what is shared takes at most a quarter of it.
    cuda_graphs : on a GPU, replay batches whose shapes repeat as CUDA graphs; their intermediate results take as much
        memory again as a batch.  Off until it has been run on hardware: no GPU has seen this path yet.  On a CPU it
        does nothing.

    Raises NotIncremental, with the reason, for a model that can't be swept this way.
    """

    method = "incremental"

    def __init__(
        self,
        model: nn.Module,
        grid: SweepGrid,
        images: Tensor,
        *,
        most_classes: int | None = None,
        batch: int | None = None,
        fold_tail: bool = True,
        share_early: bool = True,
        fuse: bool = True,
        expected: int | None = None,
        memory_limit: int | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        self.grid = grid
        self.batch = batch
        self.memory_limit = memory_limit
        self.expected = grid.positions if expected is None else expected
        with torch.no_grad():
            wide, pair = _wide(model, example(images))
            traced = trace(wide)
            self.traced = traced if pair.dtype == images.dtype else copy.deepcopy(traced).to(images.dtype)
            self.analysis = Analysis(self.traced, pair.to(images.dtype), fold_tail)
            self.example = images[:1]
            self.outputs_per_image = _compared(wide, traced, pair)
        self.memory = 1 << 62
        self.steps = self.analysis.steps
        self._program()
        self._choose_classes(most_classes, share_early)
        self.keep = {
            source
            for s in self.steps
            for source in s.inputs
            if s.kind not in ("point", "scale") or source < self.shared <= s.index
        }
        self.fused: dict[int, tuple[Any, ...]] = {}
        self.rest: dict[int, list[Any]] = {s.index: s.after for s in self.steps}  # what follows a step's result
        block = ops.convolution_block(images) if fuse else 0
        for step in self.steps:
            if block and step.conv is not None and step.conv.groups == 1:
                conv = step.conv
                relu = bool(step.after) and step.after[0] is F.relu
                geometry = [*conv.weight.shape[2:], *conv.stride, *conv.dilation, int(relu)]
                packed = ops.pack_convolution(conv.weight, conv.bias, block)
                self.fused[step.index] = (*packed, conv.weight.shape[0], geometry)
                self.rest[step.index] = step.after[1:] if relu else step.after
        self._kept: dict[int, Tensor] = {}
        self._full: dict[int, Tensor] = {}
        self._strips, self._strips_of = Strips({}, {}), -1  # and the image that they are of
        self._held: dict[Any, Tensor] = {}
        device = images.device
        self.graphs = Graphs(self._run, lambda: OnCuda(device)) if cuda_graphs and device.type == "cuda" else None

    # Preparation ------------------------------------------------------------------------------------

    def _program(self) -> None:
        """The order of the work, which maps are kept and when a value is read for the last time."""
        steps = self.steps
        position = {node: k for k, node in enumerate(self.traced.graph.nodes)}
        at: dict[fx.Node, Step] = {step.node: step for step in steps if step.kind == "dense"}
        self.program: list[Step | fx.Node] = sorted(
            [*(s for s in steps if s.is_map), *at.values(), *self.analysis.sized],
            key=lambda entry: (
                position[self.analysis.first[entry.index]] if isinstance(entry, Step) else position[entry]
            ),
        )
        output = self.analysis.values[self.analysis.output] if self.analysis.output else None
        if isinstance(output, MapRef):
            raise NotIncremental("its output is a map")
        self.last_use: dict[int, list[int]] = {}
        final = {}
        for k, entry in enumerate(self.program):
            if isinstance(entry, Step):
                for source in entry.inputs:
                    final[source] = k
                if entry.kind == "dense":
                    for a in entry.node.all_input_nodes:
                        if isinstance(value := self.analysis.values[a], int) and a in self.analysis.dense_nodes:
                            final[value] = k
        for source, k in final.items():
            self.last_use.setdefault(k, []).append(source)

    def _choose_classes(self, most: int | None, share: bool) -> None:
        if most is not None:
            self._geometry(most, share)
            return
        work = {}
        for most in _CLASSES:
            self._geometry(most, share)
            work[most] = self._work()
        best = min(work, key=lambda most: work[most])
        if best != _CLASSES[-1]:
            self._geometry(best, share)

    def _work(self) -> float:
        """Multiply-adds for one position, the calls that groups of positions cost counted in them."""
        return sum(layer.cost for layer in self.layers()) + self.calls

    @property
    def calls(self) -> float:
        """What the calls on groups of positions cost one position, in multiply-adds."""
        groups = min(len(self.sides[0]) * len(self.sides[1]), self.grid.positions)
        return groups * len(self.program) * _CALL[self.example.device.type] / self.expected

    def _geometry(self, most: int, share: bool) -> None:
        steps, grid = self.steps, self.grid
        self.intervals: list[list[Intervals]] = []
        for axis in (0, 1):
            rows: dict[int, Intervals] = {}
            for step in steps:
                if step.kind == "input":
                    rows[step.index] = occluded(grid, axis)
                elif step.is_map:
                    rows[step.index] = through(
                        step, axis, [rows[k] for k in step.inputs], [steps[k].size[axis] for k in step.inputs]
                    )
            self.intervals.append([rows.get(s.index, rows[0]) for s in steps])
        self.shared = self._choose_shared() if share else 0
        self.sides: list[list[AxisLayout]] = []
        self.classes: list[Tensor] = []
        for axis in (0, 1):
            count = grid.rows if axis == 0 else grid.columns
            lengths, weights = [], []
            for step in steps:
                if step.is_map and step.macs:
                    mine, other = (self._lengths(step, a) for a in (axis, 1 - axis))
                    lengths += mine
                    weights += [step.macs * float(sum(other).mean())] * len(mine)
            groups = classes(lengths, weights, most) if lengths else [np.arange(count)]
            label = np.zeros(count, np.int64)
            for k, members in enumerate(groups):
                label[members] = k
            self.classes.append(torch.from_numpy(label))
            self.sides.append([self._side(axis, members) for members in groups])
        self.strips = [self._ends(axis, np.arange(len(self.classes[axis]))) for axis in (0, 1)] if self.shared else []

    def _lengths(self, step: Step, axis: int) -> list[Any]:
        """What is computed of a step for each grid row: its rectangle, or where it is shared its two ends."""
        cut = self.intervals[axis][step.index]
        return _ends_of(cut) if step.index < self.shared else [cut.high - cut.low]

    def _choose_shared(self) -> int:
        """How many of the first steps to share: what costs least, in multiply-adds a position."""
        rows, columns = self.intervals
        best, saved, chosen = 0.0, 0.0, 0
        room = (self.memory_limit or 1 << 62) / (4 * self.example.element_size())
        for step in self.steps:
            v, h = rows[step.index], columns[step.index]
            whole = step.kind in ("input", "window", "pad", "point", "join")
            if not whole or (v.full_low > v.full_high).any() or (h.full_low > h.full_high).any():
                break
            rectangle = float((v.high - v.low).mean() * (h.high - h.low).mean())
            ends = [sum(_ends_of(c)) for c in (v, h)]
            corners = float(ends[0].mean() * ends[1].mean())
            strips = 2 * (
                int(np.maximum(*_ends_of(v)).max()) * len(ends[0]) * step.size[1]
                + int(np.maximum(*_ends_of(h)).max()) * len(ends[1]) * step.size[0]
            )
            room -= strips * step.channels
            if room < 0:
                break
            if step.index:
                saved += step.cost * (rectangle - corners - strips / self.expected)
            if saved > best:
                best, chosen = saved, step.index + 1
        return chosen

    def _ends(self, axis: int, members: Any) -> EdgeLayout:
        length: dict[int, int] = {}
        edges: dict[int, tuple[int, int]] = {}
        window: dict[tuple[int, int], int] = {}
        slot: dict[Any, int] = {}
        table: list[Any] = []
        cuts: dict[int, Tensor] = {}
        for step in self.steps[: self.shared]:
            cut, size, a = self.intervals[axis][step.index], step.size[axis], step.axes[axis]
            ends = [int(end[members].max()) for end in _ends_of(cut)]
            length[step.index] = most = max(ends)
            edges[step.index] = (0 if ends[0] else 1, sum(end > 0 for end in ends))
            starts = np.stack((np.clip(cut.full_low - most, 0, size - most), np.clip(cut.full_high, 0, size - most)))
            slot[step.index] = len(table)
            table.append(starts)
            for k in range(len(step.inputs) if step.kind != "point" else 0):
                window[step.index, k] = (most - 1) * a.stride + a.span
                slot[step.index, k] = len(table)
                table.append(starts * a.stride - a.padding)
            cuts[step.index] = torch.from_numpy(
                np.stack((cut.low, cut.full_low, cut.full_high, cut.high, *starts, *starts), 1)
            )
        return EdgeLayout(length, edges, window, slot, torch.from_numpy(np.stack(table)), cuts)

    def _side(self, axis: int, members: Any) -> AxisLayout:
        extents: dict[int, Extent] = {}
        windows: dict[tuple[int, int], Extent] = {}
        crops: dict[int, Extent] = {}
        same: set[tuple[int, int]] = set()
        for step in self.steps:
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
            mine = extents[step.index] = extent(self.intervals[axis][step.index], members, size)
            if step.kind in ("window", "pad"):
                windows[step.index, 0] = Extent(
                    (mine.length - 1) * a.stride + a.span, mine.start * a.stride - a.padding
                )
            elif step.kind == "join":
                for k, source in enumerate(step.inputs):
                    before = extents[source]
                    windows[step.index, k] = mine
                    if before.length == mine.length and (before.start == mine.start)[members].all():
                        same.add((step.index, k))
            elif step.kind == "transpose":
                # Input rows that reach the rectangle; one more, so that what is computed covers it all.
                first = (mine.start + a.padding - a.span + 1) // a.stride
                last = (mine.start + mine.length - 1 + a.padding) // a.stride
                windows[step.index, 0] = Extent(int((last - first)[members].max()) + 2, first)
                crops[step.index] = Extent(mine.length, mine.start - (first * a.stride - a.padding))
        everything = [*extents.values(), *windows.values(), *crops.values()]
        grid = self.grid
        unclipped = (
            grid.first[axis] + grid.stride[axis] * np.arange(len(everything[0].start)) - grid.occluder[axis] // 2
        )
        table = torch.from_numpy(np.stack([*(e.start for e in everything), unclipped, np.zeros_like(unclipped)]))
        names: list[Any] = [*extents, *windows, *(("crop", k) for k in crops), "occluder", "zero"]
        slot = {name: k for k, name in enumerate(names)}
        return AxisLayout(
            extents, windows, crops, same, slot, table, self._ends(axis, members) if self.shared else None
        )

    # What it costs ----------------------------------------------------------------------------------

    def layers(self) -> list[Layer]:
        """What each layer costs, densely and here, averaged over the grid's positions."""
        found = []
        for step in self.steps:
            if step.kind == "input":
                continue
            if not step.is_map:
                dense = step.unfolded or step.macs
                found.append(Layer(step.label, None, None, dense, step.macs))
                continue
            lengths = []
            for sides, label in zip(self.sides, self.classes, strict=True):
                shared = step.index < self.shared
                each = [
                    side.ends.length[step.index] * side.ends.edges[step.index][1]
                    if shared and side.ends is not None
                    else side.extents[step.index].length
                    for side in sides
                ]
                lengths.append(float(np.asarray(each)[label.numpy()].mean()))
            pixels = lengths[0] * lengths[1]
            if step.index < self.shared:
                rows, columns = (strips.length[step.index] for strips in self.strips)
                strips = 2 * (rows * self.grid.rows * step.size[1] + columns * self.grid.columns * step.size[0])
                pixels += strips / self.expected
            area = step.size[0] * step.size[1]
            found.append(
                Layer(
                    step.label,
                    step.size,
                    (lengths[0], lengths[1]),
                    step.cost * area,
                    step.cost * pixels,
                    step.index < self.shared,
                )
            )
        return found

    @property
    def predicted_speedup(self) -> float:
        """How many times less work than the dense sweep, from multiply-adds, numbers moved and calls."""
        mine = self._work()
        return sum(layer.dense for layer in self.layers()) / mine if mine else 1.0

    @property
    def whole_from(self) -> str:
        """The first node that is computed densely because it needs a whole map, "" if none does."""
        step = next((s for s in self.steps if not s.is_map and s.inputs), None)
        if step is None:
            return ""
        module = self.traced.get_submodule(str(step.node.target)) if step.node.op == "call_module" else None
        mode = getattr(module, "mode", step.node.kwargs.get("mode"))
        name = step.node.name if module is None else f"{type(module).__name__} {step.node.target!r}"
        return f"{name} ({mode})" if isinstance(mode, str) else name

    @property
    def bytes_per_image(self) -> int:
        """Memory that :meth:`start` keeps for each image of a block."""
        steps = [(k, self.steps[k].channels * self.steps[k].size[0] * self.steps[k].size[1]) for k in self.keep | {0}]
        return self.example.element_size() * sum(n * (2 if k <= self.shared else 1) for k, n in steps)

    @property
    def bytes_of_strips(self) -> int:
        """Memory for what the positions of one image share."""
        total = 0
        for axis, ends in enumerate(self.strips):
            count = len(self.classes[axis])
            total += sum(
                2 * count * length * self.steps[k].size[1 - axis] * self.steps[k].channels
                for k, length in ends.length.items()
            )
        return total * self.example.element_size()

    # The contract of the engine ---------------------------------------------------------------------

    #: Everything is channels_last inside; there is no choice.
    layout = "channels_last"

    def set_layout(self, layout: str) -> None:
        """Nothing to choose."""

    def images_at_once(self, images: Tensor, memory_limit: int | None) -> int:
        """As many as half of the memory holds the kept activations of; a quarter of what is free by default.

        Raises NotIncremental if that is not one.
        """
        limit = memory_limit if memory_limit is not None else available_bytes(images.device) // 4
        fit = (limit // 2 - self.bytes_of_strips) // max(1, self.bytes_per_image)
        if fit < 1:
            raise NotIncremental(f"{limit >> 20} MiB do not hold the activations of an image")
        return int(min(fit, images.shape[0]))

    def tune(self, total: int, memory_limit: int | None) -> int:
        """Positions for one call of :meth:`outputs`, within ``memory_limit`` bytes.

        Positions whose rectangles are alike are computed together, so a whole map at once is best;
        it is cut into batches inside.  Call after :meth:`start`.
        """
        limit = memory_limit if memory_limit is not None else 1 << 62
        left = limit - self.bytes_per_image * len(self.images) - self.bytes_of_strips
        if left <= 0:
            raise NotIncremental(f"{limit >> 20} MiB do not hold the activations of {len(self.images)} images")
        self.memory = left * 3 // (8 if self.graphs else 4)  # graphs have memory of their own
        return int(
            max(
                1,
                min(
                    total,
                    self.grid.positions,
                    left // 8 // max(1, self.outputs_per_image * self.example.element_size()),
                ),
            )
        )

    # The sweep --------------------------------------------------------------------------------------

    @torch.no_grad()
    def start(self, images: Tensor, fill: Tensor) -> Tensor:
        """Keep the clean activations of a block of images [n, C, H, W]; return its outputs [n, K]."""
        self.device = images.device
        self._kept, self._full = {}, {}
        self.images = self._hold("images", images.shape, images).copy_(images)
        self.fill = self._hold("fill", images.shape, images).copy_(fill.expand_as(images))
        keep = {self.steps[k].node: self.steps[k] for k in self.keep if k != 0}
        self._kept = {0: self.images}
        outputs = []
        for first in range(0, len(images), 8):
            part = self.images[first : first + 8]
            seen: dict[int, Tensor] = {}
            outputs.append(MapRecorder(self.traced, keep, seen).run(part))
            for k, value in seen.items():
                if first == 0:
                    self._kept[k] = self._hold(("kept", k), (len(images), *value.shape[1:]), value)
                self._kept[k][first : first + len(part)] = value
        self._strips_of = -1
        if self.shared:
            self._keep_full(keep)
        for axis, sides in enumerate(self.sides):
            if self.shared:
                strips = self.strips[axis]
                strips.table = strips.table.to(self.device)
                strips.cuts = {k: cuts.to(self.device) for k, cuts in strips.cuts.items()}
            for side in sides:
                side.table = side.table.to(self.device)
                if side.ends is not None:
                    side.ends.table = side.ends.table.to(self.device)
                    for k, cuts in side.ends.cuts.items():
                        cuts = cuts.to(self.device)
                        cuts[:, 4:6] = self.strips[axis].cuts[k][:, 6:8]
                        side.ends.cuts[k] = cuts
        return torch.cat(outputs)

    def _keep_full(self, keep: dict[fx.Node, Step]) -> None:
        """The maps of images that are all fill."""
        self._full = {0: self.fill}
        keep = {node: step for node, step in keep.items() if step.index < self.shared}
        for first in range(0, len(self.fill), 8):
            seen: dict[int, Tensor] = {}
            MapRecorder(self.traced, keep, seen).run(self.fill[first : first + 8])
            for k, value in seen.items():
                if first == 0:
                    self._full[k] = self._hold(("full", k), self._kept[k].shape, value)
                self._full[k][first : first + len(value)] = value

    def _hold(self, name: Any, shape: Sequence[int], like: Tensor) -> Tensor:
        """Memory [n, C, H, W] that stays where it is from one block of images to the next, as graphs need it."""
        held = self._held.get(name)
        if held is None or len(held) < shape[0] or held.dtype != like.dtype or held.device != like.device:
            if self.graphs:
                self.graphs.forget()
            self._held.pop(name, None)
            held = torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
            self._held[name] = held
        return held[: shape[0]]

    @torch.no_grad()
    def outputs(self, positions: Tensor) -> Tensor:
        """The outputs [M, K] at flat positions int64 [M]; large M is fastest."""
        chosen = positions.cpu()
        n, p = chosen // self.grid.positions, chosen % self.grid.positions
        i, j = p // self.grid.columns, p % self.grid.columns
        groups = len(self.sides[0]) * len(self.sides[1])
        group = self._groups(chosen)
        order = torch.argsort(group, stable=True)
        indices, order = torch.stack((n, i, j))[:, order].to(self.device), order.to(self.device)
        result: Tensor | None = None
        start = 0
        for g, count in zip(*(t.tolist() for t in torch.unique(group, return_counts=True)), strict=True):
            if self.shared and g // groups != self._strips_of:
                self._compute_strips(g // groups)
            g %= groups
            size = self._size(count, self.batch or self._batch(self._sides(g)))
            for first in range(start, start + count, size):
                # The last batch is filled up with what was done already: one shape, so one compiled kernel.
                end = min(first + size, start + count)
                done = slice(max(start, end - size), end)
                batch = indices[:, done]
                if batch.shape[1] < size:  # of a graph
                    batch = torch.cat((batch, batch[:, :1].expand(-1, size - batch.shape[1])), 1)
                out = self.graphs(g, batch) if self.graphs else self._run(g, batch)
                if result is None:
                    result = out.new_empty((len(positions), out.shape[1]))
                result[order[done]] = out[: done.stop - done.start]
            start += count
        if result is None:
            raise ValueError("positions: expected at least one, got none")
        return result

    def order(self, positions: Tensor) -> Tensor:
        """A permutation [M] of flat positions that brings together those whose rectangles are alike."""
        return torch.argsort(self._groups(positions.cpu()), stable=True).to(positions.device)

    def _groups(self, positions: Tensor) -> Tensor:
        """The group of each flat position: image by image where an image's positions share strips."""
        n, p = positions // self.grid.positions, positions % self.grid.positions
        i, j = p // self.grid.columns, p % self.grid.columns
        group = self.classes[0][i] * len(self.sides[1]) + self.classes[1][j]
        return group + n * (len(self.sides[0]) * len(self.sides[1])) if self.shared else group

    def _batch(self, sides: tuple[AxisLayout, AxisLayout]) -> int:
        """Positions to compute together: windows and results that stay in the cache and within memory."""
        rows, columns = sides
        largest = 1
        for step in self.steps[1:]:
            if not step.is_map:
                continue
            v, h = rows.extents[step.index].length, columns.extents[step.index].length
            if step.index < self.shared and rows.ends is not None and columns.ends is not None:
                v, h = (2 * ends.length[step.index] for ends in (rows.ends, columns.ends))
            numbers = step.channels * v * h
            if step.index not in self.fused:
                numbers += sum(
                    self.steps[k].channels * v * h * step.axes[0].stride * step.axes[1].stride for k in step.inputs
                )
            largest = max(largest, numbers)
        size = largest * self.example.element_size()
        return int(max(1, min(256, _CACHE // size, self.memory // (4 * size))))

    def _size(self, count: int, most: int) -> int:
        """Positions in each of the batches that ``count`` are cut into: evenly; for graphs, in few sizes."""
        even = -(-count // -(-count // most))
        step = max(1, most // _SIZES) if self.graphs else 1
        return min(most, -(-even // step) * step)

    def _sides(self, group: int) -> tuple[AxisLayout, AxisLayout]:
        return self.sides[0][group // len(self.sides[1])], self.sides[1][group % len(self.sides[1])]

    def _run(self, group: int, indices: Tensor) -> Tensor:
        """The outputs [M, K] at indices (image, grid row, grid column) [3, M] of positions of a group.

        It may be captured as a graph: nothing in it waits for the device or looks at a value on the host.
        """
        state = BatchRun(self, *self._sides(group), *indices.unbind(0))
        values: dict[int, Tensor] = {}
        if self.shared:
            state.compute_corners()
        for k, entry in enumerate(self.program):
            if isinstance(entry, Step) and entry.index < self.shared:
                continue
            if isinstance(entry, fx.Node):
                state.sizes[entry] = state.interpret(entry, values)
            elif entry.kind == "dense":
                values[entry.index] = state.interpret(entry.node, values, entry)
            else:
                values[entry.index] = state.rectangle(entry, values)
            for done in self.last_use.get(k, ()):
                values.pop(done, None)
        assert self.analysis.output is not None
        return values[self.analysis.values[self.analysis.output]]

    def compute(self, step: Step, inputs: list[Tensor], origins: Tensor) -> Tensor:
        """A step's rectangles, the first pixel of each at origins [E, 2], from windows of its inputs."""
        # A fused convolution was done while its windows were gathered.
        out = inputs[0] if step.run is None or step.index in self.fused else step.run(*inputs)
        if step.counts is not None:
            i, j = (torch.arange(size, device=out.device) for size in out.shape[-2:])
            of_rows, of_columns = (c.to(out.device) for c in step.counts)
            count = of_rows[origins[:, :1] + i].unsqueeze(2) * of_columns[origins[:, 1:] + j].unsqueeze(1)
            out = out / count.unsqueeze(1)
        return out

    def _compute_strips(self, image: int) -> None:
        """What all positions of a grid row, or column, of an image share, for every row and column."""
        self._strips_of, strips = -1, self._strips  # of none, should this be interrupted
        for axis, mine in ((0, strips.rows), (1, strips.columns)):
            ends = self.strips[axis]
            count = ends.table.shape[2]
            everything = torch.tensor([[-_FAR, -_FAR, _FAR, _FAR, 0, 0, 0, 0]], device=self.device)
            for step in self.steps[1 : self.shared]:
                length = ends.length[step.index]
                if length == 0:
                    continue
                if step.kind == "point":
                    out = self._after(step, self.compute(step, [mine[step.inputs[0]]], ends.table[0, 0, :, None]))
                    mine[step.index] = self._hold(("strips", axis, step.index), out.shape, out).copy_(out)
                    continue
                a, across = step.axes[1 - axis], step.size[1 - axis]
                size = [0, 0]
                size[axis], size[1 - axis] = length, across
                shape = (2 * count, step.channels, *size)
                strip = self._hold(("strips", axis, step.index), shape, self.images)
                chunk = max(1, min(count, self._fitting(step.channels * length * across * 2)))
                for first in range(0, count, chunk):
                    index = torch.arange(first, min(first + chunk, count), device=self.device)
                    zero = torch.zeros_like(index)

                    inputs = []
                    for k, source in enumerate(step.inputs):
                        window = [0, 0]
                        window[axis], window[1 - axis] = ends.window[step.index, k], (across - 1) * a.stride + a.span
                        cuts, strip_of = ends.cuts[source], mine.get(source)
                        inputs.append(
                            ops.gather_pieces(
                                self._kept[source],
                                self._full[source],
                                torch.full_like(index, image),
                                *((index, zero, cuts, everything) if axis == 0 else (zero, index, everything, cuts)),
                                ends.origins((step.index, k), index, -a.padding, axis),
                                *window,
                                strip_of if axis == 0 else None,
                                strip_of if axis == 1 else None,
                                None,
                                [0, 0, 0, 0],
                                step.padding_value,
                                *self.fused.get(step.index, ()),
                            )
                        )
                    out = self._after(step, self.compute(step, inputs, ends.origins(step.index, index, 0, axis)))
                    strip[first : first + len(index)] = out[: len(index)]
                    strip[count + first : count + first + len(index)] = out[len(index) :]
                mine[step.index] = strip
        self._strips_of = image

    def _after(self, step: Step, out: Tensor) -> Tensor:
        for change in self.rest[step.index]:
            out = change(out)
        return out

    def _fitting(self, numbers: int) -> int:
        """How many of so many numbers each stay in the processor's cache."""
        return max(1, _CACHE // (numbers * self.example.element_size()))


def _wide(model: nn.Module, pair: Tensor) -> tuple[nn.Module, Tensor]:
    """A model and two images to compare its trace with: in half precision rounding would hide what there is to find, so
    a float32 copy, whose trace is lowered afterwards."""
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    if pair.dtype not in _HALF or any(t.dtype != pair.dtype for t in tensors if t.is_floating_point()):
        return model, pair
    try:
        wide, pair = copy.deepcopy(model).float(), pair.float()
        wide(pair)
    except Exception as error:  # it is the model's own code
        raise NotIncremental(f"a float32 copy of it, to compare its trace with, does not run: {error}") from error
    return wide, pair


def _compared(model: nn.Module, traced: fx.GraphModule, pair: Tensor) -> int:
    """Raises NotIncremental unless a trace computes what its model does; returns the number of outputs."""
    tolerance = TOLERANCE[pair.dtype]
    with float32_as("ieee"):
        outputs, found = compared_outputs(model, pair, tolerance), traced(pair)
    if float((outputs - found).abs().max()) > tolerance * (float(outputs.abs().max()) or 1.0):
        raise NotIncremental("its trace computes something else than the model")
    return int(outputs.shape[1])
