"""The exact incremental sweep: only what an occluder changes is computed again.

The unoccluded activations are kept.  For each position, each layer's dirty rectangle is computed
from a window of the layer before: its rectangle with a halo, laid over the kept activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..native import ops
from .geometry import SweepGrid
from .plan import Analysis, Extent, Intervals, MapRef, NotIncremental, Part, Step, classes, extent, occluded, through, trace

_TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4}


@dataclass
class _Side:
    """The geometry of one class of grid rows (or columns): lengths, and where they start on every grid row."""

    extents: dict[int, Extent]  # of each step's rectangle
    windows: dict[tuple[int, int], Extent]  # of the window of a step's input
    crops: dict[int, Extent]  # of a transposed convolution's rectangle in what it computes
    same: set[tuple[int, int]]  # inputs whose rectangle is the window already
    table: Tensor  # [slots, grid rows] int64: all starts


class IncrementalEvaluator:
    """Evaluates a network under an occluder by recomputing dirty rectangles (see ``evaluator.Evaluator``).

    Parameters
    ----------
    model : nn.Module in evaluation mode; it is traced and copied, never changed.
    grid : the positions.
    images : [N, C, H, W] with N >= 1: an example of what will be swept (shape, dtype, device).
    most_classes : how many groups of grid rows (and of columns) may have rectangles of their own size.
    batch : positions computed together; None: as many as stay in the processor's cache.

    Raises NotIncremental, with the reason, for a model that can't be swept this way.
    """

    method = "incremental"

    def __init__(
        self,
        model: nn.Module,
        grid: SweepGrid,
        images: Tensor,
        *,
        most_classes: int = 8,
        batch: int | None = None,
    ) -> None:
        self.grid = grid
        self.batch = batch
        with torch.no_grad():
            self.traced = trace(model)
            self.analysis = Analysis(self.traced, _example(images))
            _check(model, self.traced, images)
        self.steps = self.analysis.steps
        self._program()
        self._geometry(most_classes)
        self._kept: dict[int, Tensor] = {}

    # Preparation ------------------------------------------------------------------------------------

    def _program(self) -> None:
        """The order of the work, which maps are kept and when a value is read for the last time."""
        steps = self.steps
        position = {node: k for k, node in enumerate(self.traced.graph.nodes)}
        at: dict[fx.Node, Step] = {step.node: step for step in steps if step.kind == "dense"}
        self.program: list[Step | fx.Node] = sorted(
            [*(s for s in steps if s.is_map), *at.values(), *self.analysis.sized],
            key=lambda entry: position[self.analysis.first[entry.index]] if isinstance(entry, Step) else position[entry],
        )
        self.keep = {s.inputs[k] for s in steps for k in range(len(s.inputs)) if s.kind not in ("point", "scale")}
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
        self.fast = {s.index: _fast_conv(s) for s in steps if s.conv is not None}

    def _geometry(self, most: int) -> None:
        steps, grid = self.steps, self.grid
        self.intervals: list[list[Intervals]] = []
        for axis in (0, 1):
            rows: dict[int, Intervals] = {}
            for step in steps:
                if step.kind == "input":
                    rows[step.index] = occluded(grid, axis)
                elif step.is_map:
                    rows[step.index] = through(step, axis, [rows[k] for k in step.inputs],
                                               [steps[k].size[axis] for k in step.inputs])  # fmt: skip
            self.intervals.append([rows.get(s.index, rows[0]) for s in steps])
        self.sides: list[list[_Side]] = []
        self.classes: list[Tensor] = []
        for axis in (0, 1):
            mine, other = self.intervals[axis], self.intervals[1 - axis]
            counted = [s.index for s in steps if s.is_map and s.macs]
            weights = [steps[k].macs * float((other[k].high - other[k].low).mean()) for k in counted]
            groups = classes([mine[k] for k in counted], weights, most)
            if not counted:
                groups = [np.arange(grid.rows if axis == 0 else grid.columns)]
            label = np.zeros(grid.rows if axis == 0 else grid.columns, np.int64)
            for k, members in enumerate(groups):
                label[members] = k
            self.classes.append(torch.from_numpy(label))
            self.sides.append([self._side(axis, members) for members in groups])

    def _side(self, axis: int, members: Any) -> _Side:
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
                windows[step.index, 0] = Extent((mine.length - 1) * a.stride + a.span, mine.start * a.stride - a.padding)
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
        unclipped = grid.first[axis] + grid.stride[axis] * np.arange(len(everything[0].start)) - grid.occluder[axis] // 2
        table = torch.from_numpy(np.stack([*(e.start for e in everything), unclipped, np.zeros_like(unclipped)]))
        return _Side(extents, windows, crops, same, table)

    # The sweep --------------------------------------------------------------------------------------

    @torch.no_grad()
    def start(self, images: Tensor, fill: Tensor) -> Tensor:
        """Keep the clean activations of a block of images [n, C, H, W]; return its outputs [n, K]."""
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.fill = fill.expand_as(images).contiguous(memory_format=torch.channels_last)
        keep = {self.steps[k].node: k for k in self.keep if k != 0}
        self._kept = {0: self.images}
        outputs = []
        for first in range(0, len(images), 8):
            part = self.images[first : first + 8]
            seen: dict[int, Tensor] = {}
            outputs.append(_Keeper(self.traced, keep, seen).run(part))
            for k, value in seen.items():
                if first == 0:
                    self._kept[k] = torch.empty((len(images), *value.shape[1:]), dtype=value.dtype, device=value.device,
                                                memory_format=torch.channels_last)  # fmt: skip
                self._kept[k][first : first + len(part)] = value
        self.device = images.device
        for sides in self.sides:
            for side in sides:
                side.table = side.table.to(self.device)
        return torch.cat(outputs)

    @torch.no_grad()
    def outputs(self, positions: Tensor) -> Tensor:
        """The outputs [M, K] at flat positions int64 [M]; large M is fastest."""
        chosen = positions.cpu()
        n, p = chosen // self.grid.positions, chosen % self.grid.positions
        i, j = p // self.grid.columns, p % self.grid.columns
        group = self.classes[0][i] * len(self.sides[1]) + self.classes[1][j]
        order = torch.argsort(group, stable=True)
        counts = torch.bincount(group, minlength=len(self.sides[0]) * len(self.sides[1])).tolist()
        result: Tensor | None = None
        start = 0
        for g, count in enumerate(counts):
            if not count:
                continue
            sides = self.sides[0][g // len(self.sides[1])], self.sides[1][g % len(self.sides[1])]
            pieces = -(-count // (self.batch or self._batch(sides)))
            size = -(-count // pieces)
            for first in range(start, start + count, size):
                # The last batch is filled up with what was done already: one shape, so one compiled kernel.
                end = min(first + size, start + count)
                index = order[end - size : end] if end - size >= start else order[start:end]
                out = self._run(sides, n[index], i[index], j[index])
                if result is None:
                    result = out.new_empty((len(positions), out.shape[1]))
                result[index.to(result.device)] = out
            start += count
        if result is None:
            raise ValueError("positions: expected at least one, got none")
        return result

    def _batch(self, sides: tuple[_Side, _Side]) -> int:
        rows, columns = sides
        most = max(
            (self.steps[s.inputs[0]].channels * rows.windows[s.index, 0].length * columns.windows[s.index, 0].length
             + s.channels * rows.extents[s.index].length * columns.extents[s.index].length
             for s in self.steps if (s.index, 0) in rows.windows and (s.index, 0) in columns.windows),
            default=1,
        )  # fmt: skip
        return max(1, min(256, (8 << 20) // (most * self.images.element_size())))

    def _run(self, sides: tuple[_Side, _Side], n: Tensor, i: Tensor, j: Tensor) -> Tensor:
        rows, columns = sides
        n, i, j = n.to(self.device), i.to(self.device), j.to(self.device)
        starts = torch.stack((rows.table[:, i], columns.table[:, j]), -1).unbind(0)
        slot = self._slots(rows)
        state = _State(self, rows, columns, n, starts, slot)
        values: dict[int, Tensor] = {}
        for k, entry in enumerate(self.program):
            if isinstance(entry, fx.Node):
                state.sizes[entry] = state.interpret(entry, values)
            elif entry.kind == "dense":
                values[entry.index] = state.interpret(entry.node, values)
            else:
                values[entry.index] = state.rectangle(entry, values)
            for done in self.last_use.get(k, ()):
                values.pop(done, None)
        assert self.analysis.output is not None
        return values[self.analysis.values[self.analysis.output]]

    def _slots(self, side: _Side) -> dict[Any, int]:
        names: list[Any] = [*side.extents, *side.windows, *(("crop", k) for k in side.crops), "occluder", "zero"]
        return {name: k for k, name in enumerate(names)}


class _State:
    """One batch of positions on its way through the network."""

    def __init__(self, evaluator: IncrementalEvaluator, rows: _Side, columns: _Side, n: Tensor,
                 starts: tuple[Tensor, ...], slot: dict[Any, int]) -> None:  # fmt: skip
        self.e, self.rows, self.columns, self.n, self.starts, self.slot = evaluator, rows, columns, n, starts, slot
        self.sizes: dict[fx.Node, Any] = {}

    def whole(self, source: int, values: dict[int, Tensor]) -> Tensor:
        """The full map with the rectangle pasted."""
        rectangle, step = values[source], self.e.steps[source]
        if tuple(rectangle.shape[-2:]) == step.size:
            return rectangle
        return ops.gather_windows(self.e._kept[source], self.n, self.starts[self.slot["zero"]], *step.size, rectangle,
                                  self.starts[self.slot[source]], 0.0)  # fmt: skip

    def rectangle(self, step: Step, values: dict[int, Tensor]) -> Tensor:
        e = self.e
        if step.kind == "input":
            # The occluder's window, cut at the edge: the image with the fill laid over it.
            origin = self.starts[self.slot["occluder"]]
            fill = ops.gather_windows(e.fill, self.n, origin, *e.grid.occluder, None, None, 0.0)
            return ops.gather_windows(e.images, self.n, self.starts[self.slot[0]], self.rows.extents[0].length,
                                      self.columns.extents[0].length, fill, origin, 0.0)  # fmt: skip
        if step.kind in ("point", "scale"):
            inputs = [values[step.inputs[0]]]
        else:
            inputs = []
            for k, source in enumerate(step.inputs):
                name = (step.index, k)
                if name in self.rows.same and name in self.columns.same:
                    inputs.append(values[source])
                else:
                    inputs.append(self._read(step, k, values))
        if step.index in e.fast:
            out = e.fast[step.index](inputs[0])
        elif step.run is None:
            out = inputs[0]
        else:
            out = step.run(*inputs)
        if step.counts is not None:
            i, j = (torch.arange(side.extents[step.index].length, device=self.n.device) for side in (self.rows, self.columns))
            origin = self.starts[self.slot[step.index]]
            of_rows, of_columns = (c.to(self.n.device) for c in step.counts)
            count = of_rows[origin[:, :1] + i].unsqueeze(2) * of_columns[origin[:, 1:] + j].unsqueeze(1)
            out = out / count.unsqueeze(1)
        if step.kind == "transpose":
            sizes = self.rows.extents[step.index].length, self.columns.extents[step.index].length
            everyone = torch.arange(len(self.n), device=self.n.device)
            out = ops.gather_windows(out, everyone, self.starts[self.slot["crop", step.index]], *sizes, None, None, 0.0)
        for change in step.after:
            out = change(out)
        return out

    def _read(self, step: Step, k: int, values: dict[int, Tensor]) -> Tensor:
        source, name = step.inputs[k], (step.index, k)
        height, width = self.rows.windows[name].length, self.columns.windows[name].length
        return ops.gather_windows(self.e._kept[source], self.n, self.starts[self.slot[name]], height, width, values[source],
                                  self.starts[self.slot[source]], step.padding_value)  # fmt: skip

    def interpret(self, node: fx.Node, values: dict[int, Tensor]) -> Any:
        """A node of the traced graph, over the whole maps of this batch."""
        analysis = self.e.analysis
        asks = node in analysis.sized

        def value(a: fx.Node) -> Any:
            if a in analysis.sized:
                return self.sizes[a]
            known = analysis.values[a]
            if isinstance(known, (MapRef, Part)):
                ref = known.ref if isinstance(known, Part) else known
                step = self.e.steps[ref.step]
                if asks:
                    whole = torch.empty((len(self.n), step.channels, *step.size), device="meta", dtype=self.e.images.dtype)
                else:
                    whole = self.whole(ref.step, values)
                if isinstance(known, Part):
                    return known.split(whole)
                return whole.permute(0, 2, 3, 1) if ref.last else whole
            if a in analysis.dense_nodes:
                return values[known]
            return known

        args, kwargs = fx.node.map_arg(node.args, value), fx.node.map_arg(node.kwargs, value)
        if asks and node.op == "call_function" and node.target is getattr and args[1] in ("device", "dtype"):
            return getattr(self.e.images, args[1])
        if node.op == "call_module":
            return self.e.traced.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]


class _Keeper(fx.Interpreter):
    """Runs the network on whole images and hands out the maps that are kept."""

    def __init__(self, traced: fx.GraphModule, keep: dict[fx.Node, int], seen: dict[int, Tensor]) -> None:
        super().__init__(traced)
        self.wanted, self.seen = keep, seen

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.wanted:
            self.seen[self.wanted[n]] = value
        return value


def _fast_conv(step: Step) -> Any:
    return step.run


def _example(images: Tensor) -> Tensor:
    """Two images to learn shapes from."""
    return torch.cat((images[:1], images[-1:].flip(-1)))


def _check(model: nn.Module, traced: fx.GraphModule, images: Tensor) -> None:
    """Compare the trace with the model, a batch with its parts and a second run with the first."""
    pair = _example(images)
    first, again, alone = model(pair), model(pair), model(pair[1:])
    if not torch.equal(first, again):
        raise NotIncremental("two runs on the same images differ: it is not deterministic")
    scale = float(first.abs().max()) or 1.0
    tolerance = _TOLERANCE.get(images.dtype, 2e-2) * scale
    if float((first[1:] - alone).abs().max()) > tolerance:
        raise NotIncremental("the output for an image depends on the other images of its batch")
    if float((first - traced(pair)).abs().max()) > tolerance:
        raise NotIncremental("its trace computes something else than the model")
