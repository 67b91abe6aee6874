"""What an occluder changes in a network: the plan of the incremental sweep.

An occluder changes only the outputs of a layer whose receptive field meets it.  The plan follows
that rectangle through every node of the traced network, for every position of the grid at once:
rows and columns separate, so each node has, for each grid row, an interval of map rows that may
differ from the clean map, and the same for columns.

The idea of keeping clean activations and recomputing rectangles is that of Krypton (Nakandala,
Kumar, Papakonstantinou, "Incremental and approximate inference for faster occlusion-based deep CNN
explanations", SIGMOD 2019).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .trace import NotIncremental, _is_alias, _module

# -- tracing -------------------------------------------------------------------------------------------


# -- steps ---------------------------------------------------------------------------------------------

Kind = Literal["input", "window", "transpose", "scale", "pad", "point", "join", "dense"]


@dataclass
class Axis:
    """How an output interval of a step follows from its input interval, along one axis."""

    kernel: int = 1
    stride: int = 1
    padding: int = 0  # before the map; what comes after it follows from the output's size
    dilation: int = 1

    @property
    def span(self) -> int:
        return (self.kernel - 1) * self.dilation + 1


@dataclass(frozen=True)
class Conv:
    """A convolution's weights [O, C / groups, kh, kw] and geometry; its padding is in the step's axes."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


@dataclass
class Step:
    """One step of the incremental pass: what to compute, on which windows of which earlier steps.

    ``run`` takes the windows of its inputs ([M, C, h, w] each) and gives the rectangle of the
    output; a dense step has none and is interpreted from its graph node.
    """

    index: int
    node: fx.Node  # whose value over the whole map this step's output is
    kind: Kind
    inputs: list[int] = field(default_factory=list)
    channels: int = 0
    size: tuple[int, int] = (0, 0)
    axes: tuple[Axis, Axis] = field(default_factory=lambda: (Axis(), Axis()))
    run: Callable[..., Tensor] | None = None
    after: list[Callable[[Tensor], Tensor]] = field(default_factory=list)
    padding_value: float = 0.0
    macs: int = 0  # multiply-adds a pixel of the output
    label: str = ""
    last: bool = False  # the node's own value is [N, H, W, C]
    conv: Conv | None = None
    folded: Callable[[Tensor], Tensor] | None = None  # a dense step that takes the whole map of its input
    unfolded: int = 0  # what it would cost otherwise
    counts: tuple[Tensor, Tensor] | None = None  # average pooling with border windows: divisors of rows, columns

    @property
    def is_map(self) -> bool:
        return self.kind != "dense"

    @property
    def cost(self) -> int:
        """Work a pixel of the output, in multiply-adds; moving a number counts as four."""
        return self.macs + 4 * self.channels


@dataclass(frozen=True)
class MapRef:
    """A value that is the map of a step; ``last``: seen as [N, H, W, C]."""

    step: int
    last: bool = False


@dataclass(frozen=True)
class Part:
    """Some channels of a map: item ``index`` of what ``split`` gives."""

    ref: MapRef
    split: Callable[[Tensor], Any]


_POINT_MODULES = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.SiLU,
    nn.GELU,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Hardtanh,
    nn.Sigmoid,
    nn.Tanh,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.Mish,
    nn.Softplus,
    nn.Softsign,
    nn.LogSigmoid,
    nn.Threshold,
    nn.Hardshrink,
    nn.Softshrink,
    nn.Tanhshrink,
    nn.BatchNorm2d,
)
_UNARY = [
    "relu",
    "relu6",
    "leaky_relu",
    "prelu",
    "silu",
    "gelu",
    "hardswish",
    "hardsigmoid",
    "hardtanh",
    "sigmoid",
    "tanh",
    "elu",
    "selu",
    "celu",
    "mish",
    "softplus",
    "softsign",
    "logsigmoid",
    "threshold",
    "clamp",
    "clamp_min",
    "clamp_max",
    "exp",
    "log",
    "sqrt",
    "rsqrt",
    "abs",
    "neg",
    "square",
    "reciprocal",
    "erf",
    "sin",
    "cos",
    "float",
    "double",
    "half",
    "bfloat16",
    "softshrink",
    "hardshrink",
    "tanhshrink",
    "sign",
    "round",
    "floor",
    "ceil",
]
_BINARY = [
    "add",
    "sub",
    "mul",
    "div",
    "true_divide",
    "pow",
    "maximum",
    "minimum",
    "rsub",
    "multiply",
    "subtract",
    "divide",
]


def _functions(names: Iterable[str]) -> set[Any]:
    places = (torch, F, operator, torch._C._nn)
    return {getattr(place, name) for name in names for place in places if hasattr(place, name)}


_UNARY_FUNCTIONS = _functions(_UNARY)
_BINARY_FUNCTIONS = _functions(_BINARY) | {operator.truediv}
_UNARY_METHODS = set(_UNARY)
_BINARY_METHODS = set(_BINARY)
_REDUCTIONS = {"mean", "sum", "amax", "amin", "var", "std"}
_SIZES = {"size", "dim", "ndimension", "numel"}


def _two(value: Any) -> tuple[int, int]:
    if isinstance(value, (tuple, list)):
        return (int(value[0]), int(value[-1]))
    return (int(value), int(value))


class Analysis:
    """The steps of a traced network for images of one size.

    ``steps[0]`` is the input.  ``values`` holds, for each graph node, a MapRef, the number of a
    dense step, or a constant.
    """

    def __init__(self, traced: fx.GraphModule, images: Tensor, fold_tail: bool = True) -> None:
        self.traced, self.fold_tail = traced, fold_tail
        self.steps: list[Step] = []
        self.values: dict[fx.Node, Any] = {}
        self.sized: set[fx.Node] = set()  # nodes whose value is made of sizes: computed anew for each batch
        self.dense_nodes: set[fx.Node] = set()
        self.first: dict[int, fx.Node] = {}  # the node at whose place in the graph a step runs
        self.shown = _Recorder(traced).record(images)
        self.of_one = _Recorder(traced).record(images[:1])
        self.output: fx.Node | None = None
        for node in traced.graph.nodes:
            self._visit(node)
        self.of_one = {}
        self.shown = {}

    # One node ---------------------------------------------------------------------------------------

    def _visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            if self.steps:
                if node.args and not any(user for user in node.users):
                    return
                if node.args:  # an optional argument keeps its default
                    self.values[node] = node.args[0]
                    return
                raise NotIncremental("its forward takes more than the images")
            self._add(node, "input", [], label="input")
            return
        if node.op == "output":
            result = node.args[0]
            if not isinstance(result, fx.Node) or not isinstance(self.shown.get(result), Tensor):
                raise NotIncremental("its output is not one tensor")
            if self.shown[result].dim() != 2:
                raise NotIncremental(f"its output has shape {list(self.shown[result].shape)}, expected [N, K]")
            self.output = result
            return
        if node.op == "get_attr":
            self.values[node] = self.shown[node]
            return
        sources = [self.values[a] for a in node.all_input_nodes]
        if any(a in self.sized for a in node.all_input_nodes) or self._asks_size(node):
            tensors = [a for a in node.all_input_nodes if a not in self.sized and self._varies(a)]
            if self._asks_size(node) or not tensors:
                if not isinstance(self.shown[node], Tensor) and self.shown[node] == self.of_one[node]:
                    self.values[node] = self.shown[node]  # the same for any batch
                    return
                self.sized.add(node)
                self.values[node] = None
                return
            self._dense(node)
            return
        if not any(self._varies(a) for a in node.all_input_nodes):
            self.values[node] = self.shown[node]  # the same for every image
            return
        if any(isinstance(value, Part) for value in sources):
            if self._part(node):
                return
            self._dense(node)
            return
        if self.fold_tail and self._tail(node):
            return
        if not any(isinstance(value, MapRef) for value in sources) or not self._map(node):
            self._dense(node)

    def _varies(self, node: fx.Node) -> bool:
        value = self.values[node]
        return (
            isinstance(value, (MapRef, Part, int))
            and not isinstance(value, bool)
            and node.op != "get_attr"
            and (not isinstance(value, int) or node in self.dense_nodes)
        )

    def _asks_size(self, node: fx.Node) -> bool:
        if node.op == "call_method":
            return node.target in _SIZES
        return (
            node.op == "call_function"
            and node.target is getattr
            and node.args[1] in ("shape", "ndim", "device", "dtype")
        )

    def _add(self, node: fx.Node, kind: Kind, inputs: list[int], label: str = "", **rest: Any) -> Step:
        step = Step(len(self.steps), node, kind, inputs, label=label or node.name, **rest)
        shown = self.shown[node]
        if kind != "dense":
            step.channels, step.size = shown.shape[1], (shown.shape[2], shown.shape[3])
        else:
            self.dense_nodes.add(node)
        self.steps.append(step)
        self.first[step.index] = node
        self.values[node] = MapRef(step.index) if kind != "dense" else step.index
        return step

    def _dense(self, node: fx.Node) -> None:
        module, shown = _module(self.traced, node), self.shown[node]
        macs = 0
        if isinstance(module, nn.Linear):
            macs = module.in_features * module.out_features * (shown[0].numel() // module.out_features)
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            macs = _conv_macs(module.weight) * shown[0, 0].numel()
        inputs = []
        for a in node.all_input_nodes:
            value = self.values[a]
            if isinstance(value, Part):
                value = value.ref
            if isinstance(value, MapRef) and a not in self.sized:
                inputs.append(value.step)
        self._add(node, "dense", inputs, label=_label(node, module), macs=macs)

    def _tail(self, node: fx.Node) -> bool:
        """Fold a convolution whose only reader averages its whole map: everything there is linear.

        The mean of a convolution's output is the kernel applied to one window sum for each of its taps,
        so the convolution is computed once instead of at every pixel.
        """
        source = node.args[0] if node.args else None
        value = self.values.get(source) if isinstance(source, fx.Node) else None
        if not isinstance(source, fx.Node) or not isinstance(value, MapRef) or value.last:
            return False
        if not _averages(self.traced, node, self.shown[source]):
            return False
        step = self.steps[value.step]
        if step is not self.steps[-1] or step.conv is None or step.after or step.conv.groups != 1:
            return False
        readers = [step.node]
        while readers[-1] is not source:  # dropout and the like between them
            if len(readers[-1].users) != 1:
                return False
            readers.append(next(iter(readers[-1].users)))
        if len(source.users) != 1:
            return False
        shown, conv = self.shown[node], step.conv
        before = self.steps[step.inputs[0]]
        means = []
        for a, size, out in zip(step.axes, before.size, step.size, strict=True):
            tap = torch.arange(a.kernel).view(-1, 1, 1) * a.dilation - a.padding
            reads = torch.arange(out).view(1, -1, 1) * a.stride + tap  # [kernel, outputs, 1]: the row that is read
            means.append((reads == torch.arange(size)).sum(1).double() / out)  # [kernel, size]
        sums = torch.einsum("ay,bx->abyx", *means).reshape(-1, before.size[0] * before.size[1])
        sums = sums.to(device=shown.device, dtype=shown.dtype)
        weight = conv.weight.permute(2, 3, 1, 0).reshape(-1, conv.weight.shape[0]).contiguous()  # [taps * C, out]
        bias, tail = conv.bias, tuple(shown.shape[1:])

        def folded(x: Tensor) -> Tensor:
            pixels = x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, x.shape[1])
            taps = torch.matmul(sums, pixels).view(x.shape[0], -1)
            out = taps @ weight if bias is None else torch.addmm(bias, taps, weight)
            return out.view(-1, *tail)

        self.steps.pop()
        del self.first[step.index]
        self._add(
            node,
            "dense",
            [step.inputs[0]],
            label=f"{step.label} + mean",
            folded=folded,
            unfolded=step.macs * step.size[0] * step.size[1],
            macs=conv.weight.numel() + sums.numel() * before.channels,
        )
        return True

    # Maps -------------------------------------------------------------------------------------------

    def _map(self, node: fx.Node) -> bool:
        """Add the step of a node that has a map among its arguments; False: it needs the whole map."""
        shown = self.shown[node]
        if not isinstance(shown, Tensor):
            return self._split(node)
        module = _module(self.traced, node)
        first = self.values.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        if _is_alias(self.traced, node):
            self.values[node] = first
            return True
        if shown.dim() != 4:
            return False
        if self._permutes(node, first):
            return True
        if module is not None:
            return isinstance(first, MapRef) and self._module_step(node, module, first)
        target = node.target
        if target in (torch.cat, torch.concat, torch.concatenate):
            return self._cat(node)
        if node.op == "call_function":
            if target in (
                F.conv2d,
                torch.conv2d,
                F.max_pool2d,
                F.avg_pool2d,
                torch.max_pool2d,
                F.interpolate,
                F.pad,
                F.adaptive_avg_pool2d,
            ):
                return isinstance(first, MapRef) and not first.last and self._function_step(node, first)
            if target is F.layer_norm:
                return self._layer_norm(node, first)
            known = target in _UNARY_FUNCTIONS or target in _BINARY_FUNCTIONS
            reduces = any(target is getattr(torch, name) for name in _REDUCTIONS)
        else:
            known = target in _UNARY_METHODS or target in _BINARY_METHODS
            reduces = target in _REDUCTIONS
        if reduces:
            return self._reduce(node, first)
        return known and self._elementwise(node)

    def _point(self, node: fx.Node, ref: MapRef, run: Callable[[Tensor], Tensor], label: str = "") -> bool:
        """A step that changes each pixel on its own; joined to the step before where nothing else reads that."""
        if ref.last:
            inner = run
            run = lambda x: inner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # noqa: E731
        before = self.steps[ref.step]
        source = node.all_input_nodes[0]
        alone = (
            len(source.users) == 1
            and source is before.node
            and before.kind in ("window", "join", "point", "transpose", "scale")
        )
        shown = self.shown[node]
        channels = shown.shape[-1] if ref.last else shown.shape[1]
        if alone and not ref.last:
            before.after.append(run)
            before.node, before.channels, before.last = node, channels, False
            self.values[node] = ref
            return True
        step = self._add(node, "point", [ref.step], run=run, label=label)
        step.channels, step.size, step.last = channels, before.size, ref.last
        self.values[node] = MapRef(step.index, ref.last)
        return True

    def _permutes(self, node: fx.Node, first: Any) -> bool:
        if not isinstance(first, MapRef) or node.target not in ("permute", torch.permute):
            return False
        order: Any = node.args[1:] if node.op == "call_method" else node.args[1]
        if len(order) == 1 and isinstance(order[0], (tuple, list)):
            order = order[0]
        order = tuple(int(d) % 4 for d in order)
        if order == ((0, 3, 1, 2) if first.last else (0, 2, 3, 1)):
            self.values[node] = MapRef(first.step, not first.last)
            return True
        return False

    def _module_step(self, node: fx.Node, module: nn.Module, ref: MapRef) -> bool:
        if isinstance(module, _POINT_MODULES) and not ref.last:
            return self._point(node, ref, _plain(module))
        if ref.last:
            if isinstance(module, nn.Linear) or (
                isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1
            ):
                done = self._point(node, ref, module, type(module).__name__)
                if isinstance(module, nn.Linear):
                    self.steps[self.values[node].step].macs = module.weight.numel()
                return done
            return (
                isinstance(module, _POINT_MODULES)
                and not isinstance(module, (nn.BatchNorm2d, nn.PReLU))
                and (self._point(node, ref, module))
            )
        if type(module) is nn.Conv2d:
            if module.padding_mode != "zeros":
                return False
            return self._conv(
                node, ref, module.weight, module.bias, module.stride, module.padding, module.dilation, module.groups
            )
        if isinstance(module, nn.MaxPool2d) and not module.return_indices:
            return self._max_pool(node, ref, module.kernel_size, module.stride, module.padding, module.dilation)
        if isinstance(module, nn.AvgPool2d):
            return self._avg_pool(
                node,
                ref,
                module.kernel_size,
                module.stride,
                module.padding,
                module.count_include_pad,
                module.divisor_override,
            )
        if isinstance(module, nn.AdaptiveAvgPool2d):
            return self._adaptive(node, ref)
        if isinstance(module, (nn.ZeroPad2d, nn.ConstantPad2d)):
            return self._pad(node, ref, list(module.padding), float(getattr(module, "value", 0.0)))
        if isinstance(module, nn.Upsample):
            return self._nearest(node, ref, module.mode)
        if type(module) is nn.ConvTranspose2d:
            return self._transpose(node, ref, module)
        return False

    def _function_step(self, node: fx.Node, ref: MapRef) -> bool:
        def arguments(*names: str, **defaults: Any) -> list[Any]:
            given = dict(zip(("input", *names), node.args, strict=False)) | dict(node.kwargs)
            values = [given.get(name, defaults.get(name)) for name in names]
            return [self.values[v] if isinstance(v, fx.Node) else v for v in values]

        if any(isinstance(self.values[a], MapRef) and a is not node.args[0] for a in node.all_input_nodes):
            return False
        target = node.target
        if target in (F.conv2d, torch.conv2d):
            weight, bias, stride, padding, dilation, groups = arguments(
                "weight", "bias", "stride", "padding", "dilation", "groups", stride=1, padding=0, dilation=1, groups=1
            )
            return isinstance(weight, Tensor) and self._conv(node, ref, weight, bias, stride, padding, dilation, groups)
        if target in (F.max_pool2d, torch.max_pool2d):
            kernel, stride, padding, dilation = arguments(
                "kernel_size", "stride", "padding", "dilation", padding=0, dilation=1
            )
            return self._max_pool(node, ref, kernel, stride, padding, dilation)
        if target is F.avg_pool2d:
            kernel, stride, padding, _, include, divisor = arguments(
                "kernel_size",
                "stride",
                "padding",
                "ceil_mode",
                "count_include_pad",
                "divisor_override",
                padding=0,
                count_include_pad=True,
            )
            return self._avg_pool(node, ref, kernel, stride, padding, include, divisor)
        if target is F.adaptive_avg_pool2d:
            return self._adaptive(node, ref)
        if target is F.pad:
            amounts, mode, value = arguments("pad", "mode", "value", mode="constant")
            return mode == "constant" and self._pad(node, ref, list(amounts), float(value or 0.0))
        if target is F.interpolate:
            mode = arguments("size", "scale_factor", "mode", mode="nearest")[2]
            return self._nearest(node, ref, mode)
        return False

    def _conv(
        self,
        node: fx.Node,
        ref: MapRef,
        weight: Tensor,
        bias: Tensor | None,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
    ) -> bool:
        kernel, steps, dilations = tuple(weight.shape[-2:]), _two(stride), _two(dilation)
        if padding == "same":
            pads = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilations, strict=True))
        else:
            pads = (0, 0) if padding == "valid" else _two(padding)
        weights = weight.detach().contiguous(memory_format=torch.channels_last)
        biases = None if bias is None else bias.detach()
        conv = Conv(weights, biases, steps, dilations, groups)
        step = self._add(
            node,
            "window",
            [ref.step],
            conv=conv,
            macs=_conv_macs(weight),
            run=lambda x: F.conv2d(x, weights, biases, steps, 0, dilations, groups),
            label=f"conv {kernel[0]}x{kernel[1]}" + (f" /{steps[0]}" if max(steps) > 1 else ""),
        )
        step.axes = _axes(kernel, steps, pads, dilations)
        return True

    def _max_pool(self, node: fx.Node, ref: MapRef, kernel: Any, stride: Any, padding: Any, dilation: Any) -> bool:
        kernels, steps = _two(kernel), _two(stride if stride not in (None, []) else kernel)
        dilations = _two(dilation)
        step = self._add(
            node,
            "window",
            [ref.step],
            padding_value=-math.inf,
            label=f"max pool {kernels[0]}x{kernels[1]}",
            run=lambda x: F.max_pool2d(x, kernels, steps, 0, dilations),
        )
        step.axes = _axes(kernels, steps, _two(padding), dilations)
        return True

    def _avg_pool(
        self, node: fx.Node, ref: MapRef, kernel: Any, stride: Any, padding: Any, include: bool, divisor: int | None
    ) -> bool:
        kernels, steps = _two(kernel), _two(stride if stride not in (None, []) else kernel)
        pads = _two(padding)
        before, shown = self.steps[ref.step], self.shown[node]
        counts = []
        for k, s, p, size, out in zip(kernels, steps, pads, before.size, shown.shape[-2:], strict=True):
            start = torch.arange(out) * s - p
            end = torch.minimum(start + k, torch.tensor(size + p))
            counts.append(end - start if include else end.clamp(max=size) - start.clamp(min=0))
        even = divisor is not None or all(bool((c == k).all()) for c, k in zip(counts, kernels, strict=True))
        step = self._add(
            node,
            "window",
            [ref.step],
            label=f"avg pool {kernels[0]}x{kernels[1]}",
            run=lambda x: F.avg_pool2d(x, kernels, steps, 0, divisor_override=divisor if even else 1),
        )
        step.axes = _axes(kernels, steps, pads, (1, 1))
        if not even:
            step.counts = (counts[0].to(shown), counts[1].to(shown))
        return True

    def _adaptive(self, node: fx.Node, ref: MapRef) -> bool:
        size, out = self.steps[ref.step].size, self.shown[node].shape[-2:]
        if out == (1, 1) or any(s % o for s, o in zip(size, out, strict=True)):
            return False  # the whole map at once, or windows of several sizes
        kernel = (size[0] // out[0], size[1] // out[1])
        return self._avg_pool(node, ref, kernel, kernel, 0, True, None)

    def _pad(self, node: fx.Node, ref: MapRef, amounts: list[int], value: float) -> bool:
        if len(amounts) not in (2, 4):
            return False
        step = self._add(node, "pad", [ref.step], padding_value=value, label="pad")
        step.axes = _axes((1, 1), (1, 1), (amounts[2] if len(amounts) == 4 else 0, amounts[0]), (1, 1))
        return True

    def _nearest(self, node: fx.Node, ref: MapRef, mode: str) -> bool:
        size, out = self.steps[ref.step].size, self.shown[node].shape[-2:]
        if mode not in ("nearest", "nearest-exact") or any(o % s for s, o in zip(size, out, strict=True)):
            return False
        factor = (out[0] // size[0], out[1] // size[1])
        step = self._add(
            node,
            "scale",
            [ref.step],
            label=f"nearest x{factor[0]}",
            run=lambda x: x.repeat_interleave(factor[0], 2).repeat_interleave(factor[1], 3),
        )
        step.axes = _axes(factor, factor, (0, 0), (1, 1))
        return True

    def _transpose(self, node: fx.Node, ref: MapRef, module: nn.ConvTranspose2d) -> bool:
        if module.padding_mode != "zeros":
            return False
        kernel, stride, dilation = _two(module.kernel_size), _two(module.stride), _two(module.dilation)
        weight, bias, groups = module.weight.detach(), module.bias, module.groups
        step = self._add(
            node,
            "transpose",
            [ref.step],
            macs=weight.numel() // (stride[0] * stride[1]),
            run=lambda x: F.conv_transpose2d(x, weight, bias, stride, 0, 0, groups, dilation),
            label=f"transposed conv {kernel[0]}x{kernel[1]}",
        )
        step.axes = _axes(kernel, stride, _two(module.padding), dilation)
        return True

    def _layer_norm(self, node: fx.Node, first: Any) -> bool:
        names = ("input", "normalized_shape", "weight", "bias", "eps")
        given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        given.pop("input")
        rest: dict[str, Any] = {k: self.values[v] if isinstance(v, fx.Node) else v for k, v in given.items()}
        if not isinstance(first, MapRef) or not first.last or len(tuple(rest["normalized_shape"])) != 1:
            return False
        return self._point(node, first, lambda x: F.layer_norm(x, **rest), "layer norm")

    def _reduce(self, node: fx.Node, first: Any) -> bool:
        """Mean, sum, ... over channels alone."""
        if not isinstance(first, MapRef) or len(node.all_input_nodes) != 1:
            return False
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        keep = node.kwargs.get("keepdim", False) or (len(node.args) > 2 and node.args[-1] is True)
        if isinstance(dim, (tuple, list)) and len(dim) == 1:
            dim = dim[0]
        if not isinstance(dim, int) or dim % 4 != (3 if first.last else 1) or not keep:
            return False
        return self._point(node, first, self._call(node))

    def _call(self, node: fx.Node) -> Callable[..., Tensor]:
        """The node as a function of its map arguments, in the order of ``all_input_nodes``."""
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

    def _elementwise(self, node: fx.Node) -> bool:
        refs = [self.values[a] for a in node.all_input_nodes if isinstance(self.values[a], MapRef)]
        last = refs[0].last
        if any(ref.last != last for ref in refs) or any(
            isinstance(self.values[a], int) and a in self.dense_nodes for a in node.all_input_nodes
        ):
            return False
        for a in node.all_input_nodes:
            constant = self.values[a]
            if isinstance(constant, MapRef):
                continue
            if isinstance(constant, Tensor):
                shape = tuple(constant.shape)
                prelu = node.target in (F.prelu, torch.prelu) or node.target == "prelu"
                even = (
                    constant.numel() == 1
                    or (prelu and not last)
                    or (len(shape) <= 1 or set(shape[:-1]) == {1} if last else len(shape) >= 2 and shape[-2:] == (1, 1))
                )
                if not even or (prelu and last) or (len(shape) == 4 and shape[0] != 1):
                    return False
        if any(self.steps[ref.step].size != self.steps[refs[0].step].size for ref in refs):
            return False
        if len(refs) == 1:
            return self._point(node, refs[0], self._call(node))
        if last:
            return False
        self._add(node, "join", [ref.step for ref in refs], run=self._call(node), label=node.name)
        return True

    def _cat(self, node: fx.Node) -> bool:
        tensors = node.args[0] if node.args else node.kwargs.get("tensors")
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        if not isinstance(tensors, (tuple, list)) or not isinstance(dim, int) or dim % 4 != 1:
            return False
        refs: list[Any] = [self.values[a] if isinstance(a, fx.Node) else None for a in tensors]
        if not all(isinstance(ref, MapRef) and not ref.last for ref in refs):
            return False
        self._add(node, "join", [ref.step for ref in refs], run=lambda *x: torch.cat(x, 1), label="cat")
        return True

    def _split(self, node: fx.Node) -> bool:
        first = self.values.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        if node.target not in ("chunk", "split", torch.chunk, torch.split, torch.functional.split) or not isinstance(
            first, MapRef
        ):
            return False
        dim = node.kwargs.get("dim", node.args[2] if len(node.args) > 2 else 0)
        if not isinstance(dim, int) or first.last or dim % 4 != 1 or len(node.all_input_nodes) != 1:
            return False
        self.values[node] = Part(first, self._call(node))
        return True

    def _part(self, node: fx.Node) -> bool:
        part = self.values[node.all_input_nodes[0]]
        if node.target is not operator.getitem or not isinstance(part, Part) or not isinstance(node.args[1], int):
            return False
        split, item = part.split, node.args[1]
        step = self._add(node, "point", [part.ref.step], run=lambda x: split(x)[item], label="split")
        step.size = self.steps[part.ref.step].size
        return True


def _averages(traced: fx.GraphModule, node: fx.Node, shown: Tensor) -> bool:
    """Whether a node takes the mean of its first argument over the whole map."""
    size = tuple(shown.shape[-2:])
    module = _module(traced, node)
    if isinstance(module, nn.AvgPool2d):
        return _two(module.kernel_size) == size and _two(module.padding) == (0, 0) and module.divisor_override is None
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return module.output_size in (1, (1, 1))
    if module is not None:
        return False
    rest = node.args[1:]
    if node.target is F.adaptive_avg_pool2d:
        wanted = rest[0] if rest else node.kwargs.get("output_size")
        return wanted in (1, (1, 1), [1, 1])
    if node.target is F.avg_pool2d:
        kernel = rest[0] if rest else node.kwargs.get("kernel_size")
        return (
            isinstance(kernel, (int, tuple, list))
            and _two(kernel) == size
            and len(rest) <= 1
            and (set(node.kwargs) <= {"kernel_size"})
        )
    if node.target in ("mean", torch.mean):
        dims = rest[0] if rest else node.kwargs.get("dim")
        return (
            isinstance(dims, (tuple, list))
            and sorted(int(d) % 4 for d in dims) == [2, 3]
            and "dtype" not in node.kwargs
        )
    return False


def _plain(module: nn.Module) -> Callable[[Tensor], Tensor]:
    if isinstance(module, nn.ReLU):
        return F.relu
    return module


def _label(node: fx.Node, module: nn.Module | None) -> str:
    return f"{type(module).__name__.lower()}" if module is not None else node.name


def _conv_macs(weight: Tensor) -> int:
    return weight.numel()  # [out, in / groups, kh, kw]: a pixel of the output costs each weight once


def _axes(
    kernel: Iterable[int], stride: Iterable[int], padding: Iterable[int], dilation: Iterable[int]
) -> tuple[Axis, Axis]:
    rows, columns = (Axis(*given) for given in zip(kernel, stride, padding, dilation, strict=True))
    return rows, columns


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps every value (for shapes and constants)."""

    def record(self, images: Tensor) -> dict[fx.Node, Any]:
        self.seen: dict[fx.Node, Any] = {}
        try:
            self.run(images)
        except Exception as error:
            raise NotIncremental(
                f"its trace does not run: {str(error).splitlines()[0] if str(error) else error!r}"
            ) from error
        return self.seen

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.seen[n] = value
        return value


# -- intervals -----------------------------------------------------------------------------------------
