"""Evaluation of one batch of positions."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from ....native import ops
from ...geometry import SweepGrid
from .analysis import Analysis
from .builder import DenseRef
from .layout import AxisLayout, EdgeLayout, Layout, Slot, pastes
from .steps import Derived, MapRef, Step


class Buffers:
    """Memory that stays at its address from one block of images to the next, as CUDA graphs require.

    Args:
        moved: Called before memory moves.
    """

    def __init__(self, moved: Callable[[], object] = lambda: None) -> None:
        self._moved = moved
        self._held: dict[Hashable, Tensor] = {}

    def hold(self, name: Hashable, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return memory [N, C, H, W] in channels_last with the dtype and device of a tensor."""
        held = self._held.get(name)
        if (
            held is None
            or len(held) < shape[0]
            or held.shape[1:] != tuple(shape[1:])
            or held.dtype != like.dtype
            or held.device != like.device
        ):
            self._moved()
            self._held.pop(name, None)
            held = torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
            self._held[name] = held
        return held[: shape[0]]


@dataclass
class Strips:
    """Maps that the positions of an image share, for each shared step, of one or several images.

    The strips of the occluder's first edge come first, and among them those of the first image.

    Attributes:
        rows: [2 * room * grid rows, C, h, W] of each step.
        columns: [2 * room * grid columns, C, H, w] of each step.
        images: Numbers of the images.
        room: Images that there is room for.
    """

    rows: dict[int, Tensor] = field(default_factory=dict)
    columns: dict[int, Tensor] = field(default_factory=dict)
    images: range = range(0)
    room: int = 1


@dataclass
class Activations:
    """Maps of a block of images.

    Attributes:
        images, fill: [n, C, H, W].
        kept: Maps without an occluder, by step.
        full: Maps of images that are all fill, of the shared steps.
        strips: Maps that the positions of an image share, of the images in progress.
        sums: Sums of maps without an occluder over their pixels, float64 [n, C, 1, 1], of the steps that are pooled.
    """

    images: Tensor
    fill: Tensor
    kept: dict[int, Tensor]
    full: dict[int, Tensor]
    strips: Strips
    sums: dict[int, Tensor] = field(default_factory=dict)


class StepRunner:
    """Computes rectangles of steps from windows of their inputs.

    Args:
        analysis: The network.
        fuse: Whether to gather windows and convolve them in one native pass where there is one.
        images: Example with the device and dtype of the images.
    """

    def __init__(self, analysis: Analysis, fuse: bool, images: Tensor) -> None:
        self.analysis, self.steps = analysis, analysis.steps
        self.fused: dict[int, tuple[Any, ...]] = {}
        self.rest = {step.index: step.after for step in self.steps}  # what follows the result
        block = fused_block(images) if fuse else 0
        for step in self.steps:
            conv = step.conv
            if not block or conv is None or conv.groups != 1:
                continue
            if {conv.weight.dtype, self.steps[step.inputs[0]].dtype} != {images.dtype}:
                continue
            relu = bool(step.after) and step.after[0] is F.relu
            geometry = [*conv.weight.shape[2:], *conv.stride, *conv.dilation, int(relu)]
            packed = ops.pack_convolution(conv.weight, conv.bias, block)
            self.fused[step.index] = (*packed, conv.weight.shape[0], geometry)
            self.rest[step.index] = step.after[1:] if relu else step.after

    def compute(self, step: Step, inputs: list[Tensor], origins: Tensor) -> Tensor:
        """Return rectangles of a step, up to what follows it.

        Args:
            step: The step.
            inputs: Windows of its inputs; of a fused convolution, its result.
            origins: First pixel of each rectangle, [E, 2].
        """
        out = inputs[0] if step.run is None or step.index in self.fused else step.run(*inputs)
        if step.counts is not None:
            i, j = (torch.arange(size, device=out.device) for size in out.shape[-2:])
            of_rows, of_columns = (c.to(out.device) for c in step.counts)
            count = of_rows[origins[:, :1] + i].unsqueeze(2) * of_columns[origins[:, 1:] + j].unsqueeze(1)
            out = out / count.unsqueeze(1)
        return out

    def finish(self, step: Step, out: Tensor) -> Tensor:
        """Apply what follows a step to its result."""
        for change in self.rest[step.index]:
            out = change(out)
        return out


def fused_block(images: Tensor) -> int:
    """Return the channels of a block of the native convolution for such images; 0 if there is none."""
    return ops.convolution_block(images)


def compute_strips(
    runner: StepRunner,
    layout: Layout,
    block: Activations,
    images: range,
    buffers: Buffers,
    fitting: Callable[[int], int],
) -> None:
    """Compute the strips of some images, for every grid row and column.

    Args:
        runner, layout, block: The network, the plan and the images; ``block.strips``, which has room for the images,
            receives the result.
        images: Numbers of the images in the block.
        buffers: Memory of the result.
        fitting: Returns how many strips to compute at once if each needs this many numbers.
    """
    block.strips.images = range(0)  # should this be interrupted
    for axis, mine in ((0, block.strips.rows), (1, block.strips.columns)):
        pass_ = _StripRun(runner, layout, block, images, buffers, axis, mine)
        for step in runner.steps[1 : layout.shared]:
            if layout.strips[axis].length[step.index]:
                pass_.compute(step, fitting)
    block.strips.images = images


class _StripRun:
    """Computation of the strips along one axis; ``mine`` receives them."""

    def __init__(
        self,
        runner: StepRunner,
        layout: Layout,
        block: Activations,
        images: range,
        buffers: Buffers,
        axis: int,
        mine: dict[int, Tensor],
    ) -> None:
        self._runner, self._block, self._images, self._buffers = runner, block, images, buffers
        self._axis, self._mine = axis, mine
        ends = layout.strips[axis]
        self._lines = ends.table.shape[2]  # grid rows or columns
        self._room = block.strips.room * self._lines  # strips of an edge that there is room for
        self._count = len(images) * self._lines
        self._ends = ends.of_images(block.strips.room) if block.strips.room > 1 else ends
        self._index = torch.arange(self._count, device=block.images.device)
        self._zero = torch.zeros_like(self._index)
        self._image = torch.full_like(self._index, images.start)
        if len(images) > 1:
            self._image += self._index // self._lines

    def compute(self, step: Step, fitting: Callable[[int], int]) -> None:
        """Compute the strips of one step, with all grid rows of an image or some of them at a time."""
        runner, axis, mine, length = self._runner, self._axis, self._mine, self._ends.length[step.index]
        name = ("strips", axis, step.index)
        if step.kind == "point":
            out = runner.compute(step, [mine[step.inputs[0]]], self._ends.table[0, 0, :, None])
            out = runner.finish(step, out)
            mine[step.index] = self._buffers.hold(name, out.shape, out).copy_(out)
            return
        across = step.size[1 - axis]
        size = [0, 0]
        size[axis], size[1 - axis] = length, across
        like = torch.empty(0, dtype=step.dtype, device=self._index.device)
        strip = self._buffers.hold(name, (2 * self._room, step.channels, *size), like)
        by_edge = strip.unflatten(0, (2, self._room))
        chunk = max(1, min(self._count, fitting(step.channels * length * across * 2)))
        for first in range(0, self._count, chunk):
            part = slice(first, min(first + chunk, self._count))
            inputs = [self._window(step, k, part) for k in range(len(step.inputs))]
            out = runner.finish(step, runner.compute(step, inputs, self._origins(step.index, part)))
            by_edge[:, part] = out.unflatten(0, (2, -1))
        mine[step.index] = strip

    def _window(self, step: Step, k: int, part: slice) -> Tensor:
        """Return the windows of an input of some strips, or their convolution."""
        axis, ends, source, a = self._axis, self._ends, step.inputs[k], step.axes[1 - self._axis]
        window = [0, 0]
        window[axis], window[1 - axis] = ends.window[step.index, k], (step.size[1 - axis] - 1) * a.stride + a.span
        cuts, strips = ends.cuts[source], self._mine.get(source)
        index, zero = self._index[part], self._zero[part]
        return ops.gather_pieces(  # type: ignore[no-any-return]
            self._block.kept[source],
            self._block.full[source],
            self._image[part],
            *((index, zero, cuts, ends.everywhere) if axis == 0 else (zero, index, ends.everywhere, cuts)),
            self._origins((step.index, k), part),
            *window,
            strips if axis == 0 else None,
            strips if axis == 1 else None,
            None,
            [0, 0, 0, 0],
            step.padding_value,
            *self._runner.fused.get(step.index, ()),
        )

    def _origins(self, name: Slot, part: slice) -> Tensor:
        """Return the first pixels of some strips or windows, [2 strips, 2]."""
        origins = self._ends.origins[name]
        if len(self._images) > 1:
            origins = origins.repeat(1, len(self._images), 1)
        return origins[:, part].reshape(-1, 2)


class BatchRun:
    """One pass of a batch of positions of one group through the network.

    Args:
        runner: The network.
        grid: The positions.
        block: The images.
        rows, columns: Layouts of the group.
        shared: Number of shared steps.
        indices: Image, grid row and grid column of each position, int64 [3, M].
    """

    def __init__(
        self,
        runner: StepRunner,
        grid: SweepGrid,
        block: Activations,
        rows: AxisLayout,
        columns: AxisLayout,
        shared: int,
        indices: Tensor,
    ) -> None:
        self._runner, self._grid, self._block = runner, grid, block
        self._rows, self._columns, self._shared = rows, columns, shared
        self._n, self._i, self._j = indices.unbind(0)
        self._strip_row, self._strip_column = self._i, self._j
        if block.strips.room > 1:  # the strips of all images, from the first one on
            self._strip_row = self._n * grid.rows + self._i
            self._strip_column = self._n * grid.columns + self._j
        self._starts = torch.stack((rows.table[:, self._i], columns.table[:, self._j]), -1).unbind(0)
        self._values: dict[int, Tensor] = {}
        self._sizes: dict[fx.Node, Any] = {}
        self._corners: dict[int, Tensor] = {}

    def run(self) -> Tensor:
        """Return the outputs [M, K].

        The pass can be captured as a CUDA graph: it neither waits for the device nor reads a value on the host.
        """
        analysis, values = self._runner.analysis, self._values
        if self._shared:
            self._compute_corners()
        for k, entry in enumerate(analysis.program):
            if isinstance(entry, fx.Node):
                self._sizes[entry] = self._interpret(entry)
            elif entry.index < self._shared:
                continue
            elif entry.folded is not None:
                values[entry.index] = entry.folded(self._whole(entry.inputs[0]))
            elif entry.pooled is not None:
                values[entry.index] = entry.pooled(self._sum(entry.inputs[0]))
            elif entry.is_map:
                values[entry.index] = self._rectangle(entry)
            else:
                values[entry.index] = self._interpret(entry.node)
            for done in analysis.last_use.get(k, ()):
                values.pop(done, None)
        return values[analysis.output]

    def _at(self, name: Slot) -> Tensor:
        """Return the starts [M, 2] of rectangles or windows."""
        return self._starts[self._rows.slot[name]]

    def _read(
        self, source: int, origins: Tensor, height: int, width: int, padding: float, conv: tuple[Any, ...] = ()
    ) -> Tensor:
        """Return windows [E, C, height, width] of a step's occluded map, or their convolution.

        There are one or several windows for each position.
        """
        block = self._block
        if source >= self._shared:
            return ops.gather_windows(  # type: ignore[no-any-return]
                block.kept[source],
                self._n,
                origins,
                height,
                width,
                self._values[source],
                self._at(source),
                padding,
                *conv,
            )
        rows, columns = self._ends
        (r, nr), (c, nc) = rows.edges[source], columns.edges[source]
        return ops.gather_pieces(  # type: ignore[no-any-return]
            block.kept[source],
            block.full[source],
            self._n,
            self._strip_row,
            self._strip_column,
            rows.cuts[source],
            columns.cuts[source],
            origins,
            height,
            width,
            block.strips.rows.get(source),
            block.strips.columns.get(source),
            self._corners.get(source),
            [r, c, nr, nc],
            padding,
            *conv,
        )

    @property
    def _ends(self) -> tuple[EdgeLayout, EdgeLayout]:
        assert self._rows.ends is not None and self._columns.ends is not None
        return self._rows.ends, self._columns.ends

    def _compute_corners(self) -> None:
        """Compute the corners of each position, [4 M, C, h, w] or fewer at a border, through the shared steps."""
        rows, columns = self._ends
        runner = self._runner
        shape = (len(rows.table), 2, 2, len(self._n))
        both = torch.stack(
            (
                rows.table[:, :, self._i].unsqueeze(2).expand(shape),
                columns.table[:, :, self._j].unsqueeze(1).expand(shape),
            ),
            -1,
        )
        for step in runner.steps[1 : self._shared]:
            if rows.length[step.index] == 0 or columns.length[step.index] == 0:
                continue
            (r, nr), (c, nc) = rows.edges[step.index], columns.edges[step.index]

            def starts(name: Slot, r: int = r, nr: int = nr, c: int = c, nc: int = nc) -> Tensor:
                return both[rows.slot[name], r : r + nr, c : c + nc].reshape(-1, 2)

            if step.kind == "point":
                inputs = [self._corners[step.inputs[0]]]
            else:
                inputs = [
                    self._read(
                        source,
                        starts((step.index, k)),
                        rows.window[step.index, k],
                        columns.window[step.index, k],
                        step.padding_value,
                        runner.fused.get(step.index, ()),
                    )
                    for k, source in enumerate(step.inputs)
                ]
            self._corners[step.index] = runner.finish(step, runner.compute(step, inputs, starts(step.index)))

    def _whole(self, source: int) -> Tensor:
        """Return the full map of a step with the rectangle pasted."""
        step = self._runner.steps[source]
        if source in self._values and tuple(self._values[source].shape[-2:]) == step.size:
            return self._values[source]
        return self._read(source, self._at("zero"), *step.size, 0.0)

    def _sum(self, source: int) -> Tensor:
        """Return the sum of the full map of a step over its pixels, float64 [M, C]."""
        known = source in self._values and source in self._block.sums
        if not known or pastes(self._runner.steps[source], self._rows, self._columns):
            return pixel_sum(self._whole(source))
        kept, origins = self._block.kept[source], self._at(source)
        size = tuple(self._values[source].shape[-2:])
        before = ops.gather_windows(kept, self._n, origins, *size, None, None, 0.0)
        change = pixel_sum(self._values[source]) - pixel_sum(before)
        return self._block.sums[source][self._n].flatten(1) + change

    def _rectangle(self, step: Step) -> Tensor:
        runner, rows, columns = self._runner, self._rows, self._columns
        if step.kind == "input":
            # The occluder's window, cut at the edge: the image with the fill laid over it.
            origins, block = self._at("occluder"), self._block
            fill = ops.gather_windows(block.fill, self._n, origins, *self._grid.occluder, None, None, 0.0)
            if self._grid.mask is not None:
                under = ops.gather_windows(block.images, self._n, origins, *self._grid.occluder, None, None, 0.0)
                fill = torch.where(self._grid.mask.tensor(under.device), fill, under)
                fill = fill.contiguous(memory_format=torch.channels_last)
            size = rows.extents[0].length, columns.extents[0].length
            return ops.gather_windows(block.images, self._n, self._at(0), *size, fill, origins, 0.0)  # type: ignore[no-any-return]
        inputs = []
        for k, source in enumerate(step.inputs):
            name = (step.index, k)
            if step.kind in ("point", "scale"):
                if source not in self._values:
                    size = rows.extents[source].length, columns.extents[source].length
                    inputs.append(self._read(source, self._at(source), *size, 0.0))
                else:
                    inputs.append(self._values[source])
            elif source in self._values and name in rows.same and name in columns.same:
                inputs.append(self._values[source])
            else:
                size = rows.windows[name].length, columns.windows[name].length
                conv = runner.fused.get(step.index, ())
                inputs.append(self._read(source, self._at(name), *size, step.padding_value, conv))
        out = runner.compute(step, inputs, self._at(step.index))
        if step.kind == "transpose":
            size = rows.extents[step.index].length, columns.extents[step.index].length
            everyone = torch.arange(len(self._n), device=self._n.device)
            out = ops.gather_windows(out, everyone, self._at(("crop", step.index)), *size, None, None, 0.0)
        return runner.finish(step, out)

    def _interpret(self, node: fx.Node) -> Any:
        """Evaluate a node of the graph on the whole maps of this batch."""
        analysis = self._runner.analysis
        asks = node in analysis.sized

        def value(a: fx.Node) -> Any:
            if a in analysis.sized:
                return self._sizes[a]
            known = analysis.values[a]
            if isinstance(known, (MapRef, Derived)):
                ref = known.ref if isinstance(known, Derived) else known
                step = self._runner.steps[ref.step]
                if asks:
                    shape = (len(self._n), step.channels, *step.size)
                    whole = torch.empty(shape, device="meta", dtype=step.dtype)
                else:
                    whole = self._whole(ref.step)
                if isinstance(known, Derived):
                    return known.function(whole)
                return whole.permute(0, 2, 3, 1) if ref.channels_last else whole
            return self._values[known.step] if isinstance(known, DenseRef) else known

        args, kwargs = fx.node.map_arg(node.args, value), fx.node.map_arg(node.kwargs, value)
        if asks and node.op == "call_function" and node.target is getattr and args[1] in ("device", "dtype"):
            like: Any = args[0]
            return self._block.images.device if args[1] == "device" else like.dtype
        if node.op == "call_module":
            return analysis.traced.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]


def pixel_sum(maps: Tensor) -> Tensor:
    """Return the sums of maps [M, C, h, w] over their pixels, float64 [M, C], so that differences of sums are exact."""
    return maps.sum((2, 3), dtype=torch.float64)


class _AllSeen(BaseException):
    """Ends a run of :class:`MapRecorder`; no error, so the interpreter does not report it as one."""


class MapRecorder(fx.Interpreter):
    """Runs a traced network on whole images and keeps the maps of some steps.

    Args:
        traced: The network.
        keep: The steps, by the node whose value is their map.
    """

    def __init__(self, traced: fx.GraphModule, keep: dict[fx.Node, Step]) -> None:
        super().__init__(traced)
        self._keep = keep
        self._stop = False
        self.seen: dict[int, Tensor] = {}

    def record(self, images: Tensor) -> None:
        """Run the network up to the last wanted step."""
        self._stop = True
        try:
            self.run(images)
        except _AllSeen:
            pass
        finally:
            self._stop = False

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, and keep its map as [N, C, H, W] if it is wanted."""
        value = super().run_node(n)
        if n in self._keep:
            step = self._keep[n]
            self.seen[step.index] = value.permute(0, 3, 1, 2) if step.channels_last else value
            if self._stop and len(self.seen) == len(self._keep):
                raise _AllSeen
        return value
