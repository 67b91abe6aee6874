"""Construction of the list of steps, node by node."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx, nn

from ..behavior import NotIncremental
from .steps import Axis, Derived, Kind, MapRef, Step
from .trace import module_of


class NotFollowed(Exception):
    """A node that needs the whole maps of its arguments."""


@dataclass(frozen=True)
class DenseRef:
    """A graph value that a dense step computes for each image."""

    step: int


class StepBuilder:
    """Steps and values of the part of a graph that was visited so far.

    Args:
        traced: The network.
        images: Example images, [N, C, H, W] with N >= 2.

    Attributes:
        steps: The steps; ``steps[0]`` is the input.
        values: For each node a MapRef, a Derived, a DenseRef or a constant.
        sized: Nodes whose value is made of batch sizes, which is computed anew for each batch.
        first: For each step, the node at whose place in the graph it runs.
        shown, of_one: Values of all nodes for the example and for its first image.
    """

    def __init__(self, traced: fx.GraphModule, images: Tensor) -> None:
        self.traced, self.count = traced, len(images)
        self.steps: list[Step] = []
        self.values: dict[fx.Node, Any] = {}
        self.sized: set[fx.Node] = set()
        self.first: dict[int, fx.Node] = {}
        self.shown = _Recorder(traced).record(images)
        self.of_one = _Recorder(traced).record(images[:1])

    def varies(self, node: fx.Node) -> bool:
        """Return whether a node's value is a tensor that depends on the image."""
        return isinstance(self.values[node], (MapRef, Derived, DenseRef))

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a node calls, if it calls one."""
        return module_of(self.traced, node)

    def operand(self, node: fx.Node) -> Any:
        """Return the value of a node's first argument; None if that is not a graph value."""
        return self.values[node.args[0]] if node.args and isinstance(node.args[0], fx.Node) else None

    def is_map(self, node: fx.Node) -> bool:
        """Return whether a node's value for the example is floating-point [N, C, H, W]."""
        shown = self.shown[node]
        return isinstance(shown, Tensor) and shown.dim() == 4 and self.has_batch(node) and shown.is_floating_point()

    def has_batch(self, node: fx.Node) -> bool:
        """Return whether the first dimension of a node's value, and no other one, is the batch."""
        shown, one = self.shown[node], self.of_one[node]
        return bool(
            shown.dim() > 0
            and shown.dim() == one.dim()
            and (shown.shape[0], one.shape[0]) == (self.count, 1)
            and shown.shape[1:] == one.shape[1:]
        )

    # Arguments ----------------------------------------------------------------------------------------

    def constant(self, argument: Any) -> Any:
        """Return an argument with its graph values filled in.

        Raises:
            NotFollowed: One of them depends on the image or on the batch size.
        """

        def value(node: fx.Node) -> Any:
            if self.varies(node) or node in self.sized:
                raise NotFollowed
            return self.values[node]

        return fx.node.map_arg(argument, value)

    def bind(self, node: fx.Node, *names: str, **defaults: Any) -> list[Any]:
        """Return the arguments of a call after the first, by name and with their graph values filled in."""
        given = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
        return [self.constant(given.get(name, defaults.get(name))) for name in names]

    def applied(self, node: fx.Node) -> Callable[[Any], Any]:
        """Return a call as a function of its first argument; all others are constants."""
        args, kwargs = self.constant(node.args[1:]), self.constant(dict(node.kwargs))
        module, target = self.module(node), node.target
        if module is not None:
            return lambda x: module(x, *args, **kwargs)
        if node.op == "call_method":
            return lambda x: getattr(x, str(target))(*args, **kwargs)
        return lambda x: target(x, *args, **kwargs)  # type: ignore[operator]

    def call(self, node: fx.Node) -> Callable[..., Tensor]:
        """Return a call as a function of its map arguments, in the order of ``all_input_nodes``."""
        maps = [a for a in node.all_input_nodes if isinstance(self.values[a], MapRef)]
        constants = {a: self.values[a] for a in node.all_input_nodes if a not in maps}
        target = node.target

        def call(*tensors: Tensor) -> Tensor:
            env = {**constants, **dict(zip(maps, tensors, strict=True))}
            args = fx.node.map_arg(node.args, lambda a: env[a])
            kwargs = fx.node.map_arg(node.kwargs, lambda a: env[a])
            if node.op == "call_method":
                return getattr(args[0], str(target))(*args[1:], **kwargs)  # type: ignore[no-any-return]
            return target(*args, **kwargs)  # type: ignore[operator,no-any-return]

        return call

    # Steps --------------------------------------------------------------------------------------------

    def add(self, node: fx.Node, kind: Kind, inputs: Iterable[int], label: str = "", **rest: Any) -> Step:
        """Append a step whose value is that of a node."""
        if kind != "dense":
            shown = self.shown[node]
            size = (shown.shape[2], shown.shape[3])
            rest = {"channels": shown.shape[1], "size": size, "dtype": shown.dtype, **rest}
        step = Step(len(self.steps), node, kind, tuple(inputs), label=label or node.name.removeprefix("model_"), **rest)
        self.steps.append(step)
        self.first[step.index] = node
        self.values[node] = MapRef(step.index) if kind != "dense" else DenseRef(step.index)
        return step

    def point(
        self, node: fx.Node, ref: MapRef, run: Callable[[Tensor], Tensor], label: str = "", macs: int = 0
    ) -> None:
        """Append a step that changes each pixel on its own, or join it to its input if that has no other reader."""
        before, shown = self.steps[ref.step], self.shown[node]
        source = node.all_input_nodes[0]
        alone = (
            len(source.users) == 1
            and source is before.node
            and before.kind in ("window", "join", "point", "transpose", "scale")
            and not ref.channels_last
        )
        if alone:
            after, channels = (*before.after, run), shown.shape[1]
            self.steps[ref.step] = replace(
                before, after=after, node=node, channels=channels, dtype=shown.dtype, channels_last=False
            )
            self.values[node] = ref
            return
        channels = shown.shape[1]
        if ref.channels_last:
            inner, channels = run, shown.shape[-1]
            run = lambda x: inner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # noqa: E731
        step = self.add(
            node,
            "point",
            [ref.step],
            label,
            run=run,
            macs=macs,
            channels=channels,
            size=before.size,
            channels_last=ref.channels_last,
        )
        self.values[node] = MapRef(step.index, ref.channels_last)

    def pixelwise(self, node: fx.Node, function: Callable[[Any], Any]) -> None:
        """Record a value that a function computes pixel by pixel from a node's first argument.

        The function works on [M, ..., h, w] for any h and w. A result that is a map becomes a step; a tuple, or a
        tensor with another number of dimensions, stays derived from the map of its argument.
        """
        operand = self.operand(node)
        if isinstance(operand, Derived):
            ref, before = operand.ref, operand.function
            whole: Callable[[Any], Any] = lambda x: function(before(x))  # noqa: E731
        elif isinstance(operand, MapRef) and not operand.channels_last:
            ref, whole = operand, function
        else:
            raise NotFollowed
        shown, size = self.shown[node], self.steps[ref.step].size
        if isinstance(shown, Tensor):
            if shown.dim() < 3 or tuple(shown.shape[-2:]) != size or not self.has_batch(node):
                raise NotFollowed
            if self.is_map(node):
                self.point(node, ref, whole)
                return
        self.values[node] = Derived(ref, whole)


def axes(
    kernel: Iterable[int], stride: Iterable[int], padding: Iterable[int], dilation: Iterable[int]
) -> tuple[Axis, Axis]:
    """Return the geometry of rows and columns."""
    rows, columns = (Axis(*given) for given in zip(kernel, stride, padding, dilation, strict=True))
    return rows, columns


def two(value: Any) -> tuple[int, int]:
    """Return (rows, columns) of a number or a pair."""
    if isinstance(value, (tuple, list)):
        return (int(value[0]), int(value[-1]))
    return (int(value), int(value))


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps every value, for shapes and constants."""

    def record(self, images: Tensor) -> dict[fx.Node, Any]:
        self.seen: dict[fx.Node, Any] = {}
        try:
            self.run(images)
        except Exception as error:
            raise NotIncremental(f"its trace does not run: {first_line(error)}") from error
        return self.seen

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.seen[n] = value
        return value


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return str(error).splitlines()[0] if str(error) else repr(error)
