"""One batch of positions on its way through the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from ....native import ops
from .analysis import MapRef, Part, Step
from .layout import AxisLayout

if TYPE_CHECKING:
    from .evaluator import IncrementalEvaluator


@dataclass
class Strips:
    """Of one image, for each shared step: [2 * grid rows, C, h, W] and [2 * grid columns, C, H, w].

    Those of the occluder's first edge come first.
    """

    rows: dict[int, Tensor]
    columns: dict[int, Tensor]


class BatchRun:
    """One batch of positions on its way through the network."""

    def __init__(
        self, evaluator: IncrementalEvaluator, rows: AxisLayout, columns: AxisLayout, n: Tensor, i: Tensor, j: Tensor
    ) -> None:
        self.e, self.rows, self.columns, self.n, self.i, self.j = evaluator, rows, columns, n, i, j
        self.starts = torch.stack((rows.table[:, i], columns.table[:, j]), -1).unbind(0)
        self.sizes: dict[fx.Node, Any] = {}
        self.corners: dict[int, Tensor] = {}
        self.strips = evaluator._strips if evaluator.shared else None

    def at(self, name: Any) -> Tensor:
        """Where the rectangles or windows of that name begin: [M, 2]."""
        return self.starts[self.rows.slot[name]]

    def read(
        self,
        source: int,
        values: dict[int, Tensor],
        origins: Tensor,
        height: int,
        width: int,
        padding: float,
        conv: tuple[Any, ...] = (),
    ) -> Tensor:
        """Windows [E, C, height, width] of a step's occluded map, one or several a position; or their convolution."""
        if self.strips is None or source >= self.e.shared:
            return ops.gather_windows(  # type: ignore[no-any-return]
                self.e._kept[source], self.n, origins, height, width, values[source], self.at(source), padding, *conv
            )
        assert self.rows.ends is not None and self.columns.ends is not None
        return ops.gather_pieces(  # type: ignore[no-any-return]
            self.e._kept[source],
            self.e._full[source],
            self.n,
            self.i,
            self.j,
            self.rows.ends.cuts[source],
            self.columns.ends.cuts[source],
            origins,
            height,
            width,
            self.strips.rows.get(source),
            self.strips.columns.get(source),
            self.corners.get(source),
            self._edges(source),
            padding,
            *conv,
        )

    def _edges(self, source: int) -> list[int]:
        assert self.rows.ends is not None and self.columns.ends is not None
        rows, columns = self.rows.ends.edges[source], self.columns.ends.edges[source]
        return [rows[0], columns[0], rows[1], columns[1]]

    def compute_corners(self) -> None:
        """The corners of each position, [4 M, C, h, w] (fewer at a border), through the shared steps."""
        rows, columns = self.rows.ends, self.columns.ends
        assert rows is not None and columns is not None
        shape = (len(rows.table), 2, 2, len(self.n))
        both = torch.stack(
            (
                rows.table[:, :, self.i].unsqueeze(2).expand(shape),
                columns.table[:, :, self.j].unsqueeze(1).expand(shape),
            ),
            -1,
        )
        for step in self.e.steps[1 : self.e.shared]:
            if rows.length[step.index] == 0 or columns.length[step.index] == 0:
                continue
            (r, nr), (c, nc) = rows.edges[step.index], columns.edges[step.index]

            def starts(name: Any, r: int = r, nr: int = nr, c: int = c, nc: int = nc) -> Tensor:
                return both[rows.slot[name], r : r + nr, c : c + nc].reshape(-1, 2)

            if step.kind == "point":
                inputs = [self.corners[step.inputs[0]]]
            else:
                inputs = [
                    self.read(
                        source,
                        {},
                        starts((step.index, k)),
                        rows.window[step.index, k],
                        columns.window[step.index, k],
                        step.padding_value,
                        self.e.fused.get(step.index, ()),
                    )
                    for k, source in enumerate(step.inputs)
                ]
            out = self.e.compute(step, inputs, starts(step.index))
            self.corners[step.index] = self.e._after(step, out)

    def whole(self, source: int, values: dict[int, Tensor]) -> Tensor:
        """The full map with the rectangle pasted."""
        step = self.e.steps[source]
        if source in values and tuple(values[source].shape[-2:]) == step.size:
            return values[source]
        return self.read(source, values, self.at("zero"), *step.size, 0.0)

    def rectangle(self, step: Step, values: dict[int, Tensor]) -> Tensor:
        e = self.e
        if step.kind == "input":
            # The occluder's window, cut at the edge: the image with the fill laid over it.
            origins = self.at("occluder")
            fill = ops.gather_windows(e.fill, self.n, origins, *e.grid.occluder, None, None, 0.0)
            size = self.rows.extents[0].length, self.columns.extents[0].length
            return ops.gather_windows(e.images, self.n, self.at(0), *size, fill, origins, 0.0)  # type: ignore[no-any-return]
        inputs = []
        for k, source in enumerate(step.inputs):
            name: Any = (step.index, k)
            if step.kind in ("point", "scale"):
                name = step.index
                size = self.rows.extents[source].length, self.columns.extents[source].length
                inputs.append(
                    values[source] if source in values else self.read(source, values, self.at(source), *size, 0.0)
                )
            elif source in values and name in self.rows.same and name in self.columns.same:
                inputs.append(values[source])
            else:
                size = self.rows.windows[name].length, self.columns.windows[name].length
                inputs.append(
                    self.read(source, values, self.at(name), *size, step.padding_value, e.fused.get(step.index, ()))
                )
        out = e.compute(step, inputs, self.at(step.index))
        if step.kind == "transpose":
            size = self.rows.extents[step.index].length, self.columns.extents[step.index].length
            everyone = torch.arange(len(self.n), device=self.n.device)
            out = ops.gather_windows(out, everyone, self.at(("crop", step.index)), *size, None, None, 0.0)
        return e._after(step, out)

    def interpret(self, node: fx.Node, values: dict[int, Tensor], step: Step | None = None) -> Any:
        """A node of the traced graph, over the whole maps of this batch."""
        if step is not None and step.folded is not None:
            return step.folded(self.whole(step.inputs[0], values))
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
                    whole = torch.empty(
                        (len(self.n), step.channels, *step.size), device="meta", dtype=self.e.images.dtype
                    )
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


class MapRecorder(fx.Interpreter):
    """Runs the network on whole images and hands out the maps that are kept."""

    def __init__(self, traced: fx.GraphModule, keep: dict[fx.Node, Step], seen: dict[int, Tensor]) -> None:
        super().__init__(traced)
        self.wanted, self.seen = keep, seen

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.wanted:
            step = self.wanted[n]
            self.seen[step.index] = value.permute(0, 3, 1, 2) if step.last else value
        return value
