"""Analysis of a traced network: which part of each layer an occluder changes.

An occluder changes only the outputs of a layer whose receptive field meets it. The analysis turns the graph into steps
that compute a rectangle of a map from windows of earlier maps, as far as it can follow, and evaluates the rest on whole
maps.

Keeping clean activations and recomputing rectangles is the idea of Krypton (Nakandala, Kumar, Papakonstantinou,
"Incremental and approximate inference for faster occlusion-based deep CNN explanations", SIGMOD 2019).
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..behavior import NotIncremental
from .builder import DenseRef, NotFollowed, StepBuilder, two
from .operations import follow
from .steps import Derived, MapRef, Step
from .trace import module_of
from .work import Work, added, of_node

_SIZES = {"size", "dim", "ndimension", "numel", "get_device", "is_floating_point"}
_SIZE_ATTRIBUTES = ("shape", "ndim", "device", "dtype")


class Analysis:
    """The steps of a traced network for images of one size.

    Args:
        traced: The network.
        images: Example images, [N, C, H, W] with N >= 2.
        fold_tail: Whether to compute a convolution whose map is only averaged from window sums.

    Attributes:
        steps: The steps; ``steps[0]`` is the input.
        values: For each node a MapRef, a Derived, a DenseRef or a constant.
        sized: Nodes whose value is made of batch sizes, which is computed anew for each batch.
        program: Steps and nodes of ``sized`` in the order in which to evaluate them.
        last_use: For each entry of the program that is the last to read some steps, those steps.
        dense: Work of the whole network for one image.
        work: Work of each step for one image: of its whole map, without its convolution.
        output: Index of the step that computes the outputs.

    Raises:
        NotIncremental: The network can't be swept incrementally; the message says why.
    """

    def __init__(self, traced: fx.GraphModule, images: Tensor, fold_tail: bool = True) -> None:
        self.traced = traced
        builder = StepBuilder(traced, images)
        output: fx.Node | None = None
        for node in traced.graph.nodes:
            if node.op == "output":
                output = _output(builder, node)
            else:
                _visit(builder, node, fold_tail)
        self.steps = tuple(builder.steps)
        self.values, self.sized = builder.values, builder.sized
        value = self.values[output] if output is not None else None
        if not isinstance(value, DenseRef):
            raise NotIncremental("its output does not depend on the images")
        self.output = value.step
        position = {node: k for k, node in enumerate(traced.graph.nodes)}
        entries: list[Step | fx.Node] = [*self.steps, *self.sized]
        self.program = sorted(
            entries, key=lambda entry: position[builder.first[entry.index] if isinstance(entry, Step) else entry]
        )
        self.last_use = self._last_uses()
        work = {node: of_node(traced, node, builder.shown) for node in traced.graph.nodes}
        self.dense = added(*work.values())
        self.work: dict[int, Work] = {
            step.index: added(*(work[node] for node in self._evaluated(step) if not step.conv or node is not first))
            for step in self.steps
            for first in [builder.first[step.index]]
        }

    def _evaluated(self, step: Step) -> list[fx.Node]:
        """Return the nodes whose values are computed with a step."""
        return [node for node, value in self.values.items() if _owner(value) == step.index]

    def _last_uses(self) -> dict[int, list[int]]:
        final: dict[int, int] = {}
        for k, entry in enumerate(self.program):
            node = entry.node if isinstance(entry, Step) else entry
            if isinstance(entry, Step):
                final.update(dict.fromkeys(entry.inputs, k))
                if entry.is_map or entry.folded is not None or entry.pooled is not None:
                    continue
            for value in map(self.values.get, node.all_input_nodes):
                if isinstance(value, DenseRef):
                    final[value.step] = k
        last_use: dict[int, list[int]] = {}
        for source, k in final.items():
            last_use.setdefault(k, []).append(source)
        return last_use


def _owner(value: Any) -> int | None:
    """Return the step with which a value is computed; None if that is no step."""
    if isinstance(value, Derived):
        return value.ref.step
    return value.step if isinstance(value, (MapRef, DenseRef)) else None


def _output(builder: StepBuilder, node: fx.Node) -> fx.Node:
    result = node.args[0]
    if not isinstance(result, fx.Node) or not isinstance(builder.shown.get(result), Tensor):
        raise NotIncremental("its output is not one tensor")
    if builder.shown[result].dim() != 2:
        raise NotIncremental(f"its output has shape {list(builder.shown[result].shape)}, expected [N, K]")
    return result


def _visit(b: StepBuilder, node: fx.Node, fold_tail: bool) -> None:
    """Give a node its value."""
    if node.op == "placeholder":
        if b.steps:
            raise NotIncremental("its forward takes more than the images")
        b.add(node, "input", [], label="input")
        return
    if node.op == "get_attr":
        b.values[node] = b.shown[node]
        return
    sized = any(a in b.sized for a in node.all_input_nodes)
    varies = any(b.varies(a) for a in node.all_input_nodes)
    if _asks_size(node) or (sized and not varies):
        b.values[node] = None
        if _same_for_any_batch(b, node, sized):
            b.values[node] = b.shown[node]
        else:
            b.sized.add(node)
        return
    if not varies:
        b.values[node] = b.shown[node]
        return
    try:
        if fold_tail and (_fold_tail(b, node) or _pool(b, node)):
            return
        follow(b, node)
    except NotFollowed:
        _dense(b, node)


def _asks_size(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _SIZES
    return node.op == "call_function" and node.target is getattr and node.args[1] in _SIZE_ATTRIBUTES


def _same_for_any_batch(b: StepBuilder, node: fx.Node, sized: bool) -> bool:
    """Return whether a value made of sizes does not depend on the batch size.

    Arithmetic with a batch size always counts as dependent: ``n // 16`` is 0 for both batches that were tried.
    """
    if sized and node.target is not operator.getitem:
        return False
    shown = b.shown[node]
    if isinstance(shown, torch.Size):
        shown = tuple(shown)
    return isinstance(shown, (int, float, bool, str, tuple, torch.device, torch.dtype)) and bool(
        shown == b.of_one[node]
    )


def _dense(b: StepBuilder, node: fx.Node) -> None:
    """Append a step that evaluates a node on whole maps."""
    module, shown = b.module(node), b.shown[node]
    macs = 0
    if isinstance(module, nn.Linear):
        macs = module.in_features * module.out_features * (shown[0].numel() // module.out_features)
    elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        macs = module.weight.numel() * shown[0, 0].numel()
    inputs = []
    for value in map(b.values.get, node.all_input_nodes):
        if isinstance(value, (MapRef, Derived)):
            inputs.append(value.ref.step if isinstance(value, Derived) else value.step)
    label = "" if module is None else type(module).__name__.lower()
    numbers = shown[0].numel() if isinstance(shown, Tensor) and shown.dim() else 0
    b.add(node, "dense", inputs, label=label, description=_description(b.traced, node), macs=macs, numbers=numbers)


def _description(traced: fx.GraphModule, node: fx.Node) -> str:
    module = module_of(traced, node)
    mode = getattr(module, "mode", node.kwargs.get("mode"))
    target = str(node.target).removeprefix("model.")
    name = node.name.removeprefix("model_") if module is None else f"{type(module).__name__} {target!r}"
    return f"{name} ({mode})" if isinstance(mode, str) else name


# The tail ---------------------------------------------------------------------------------------------


def _fold_tail(b: StepBuilder, node: fx.Node) -> bool:
    """Fold a convolution whose only reader averages its whole map, since everything there is linear.

    The mean of a convolution's output is the kernel applied to one window sum for each of its taps, so the convolution
    is computed once instead of at every pixel.
    """
    value, source = b.operand(node), node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or not isinstance(value, MapRef) or value.channels_last:
        return False
    if not _averages(b, node, b.shown[source]):
        return False
    step = b.steps[value.step]
    if step is not b.steps[-1] or step.conv is None or step.after or step.conv.groups != 1:
        return False
    reader = step.node
    while reader is not source:  # dropout and the like between them
        if len(reader.users) != 1:
            return False
        reader = next(iter(reader.users))
    if len(source.users) != 1:
        return False
    shown, conv = b.shown[node], step.conv
    before = b.steps[step.inputs[0]]
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

    b.steps.pop()
    del b.first[step.index]
    b.add(
        node,
        "dense",
        [step.inputs[0]],
        label=f"{step.label} + mean",
        description=_description(b.traced, node),
        folded=folded,
        unfolded=step.macs * step.size[0] * step.size[1],
        macs=conv.weight.numel() + sums.numel() * before.channels,
    )
    return True


def _pool(b: StepBuilder, node: fx.Node) -> bool:
    """Follow the mean or the sum of a whole map, which changes by that of the rectangle."""
    ref, source = b.operand(node), node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or not isinstance(ref, MapRef) or ref.channels_last or not b.is_map(source):
        return False
    sums = node.target in ("sum", torch.sum) and _of_the_map(b, node)
    if not sums and not _averages(b, node, b.shown[source]):
        return False
    shown, step = b.shown[node], b.steps[ref.step]
    area = 1 if sums else step.size[0] * step.size[1]
    tail, dtype = tuple(shown.shape[1:]), shown.dtype
    b.add(
        node,
        "dense",
        [ref.step],
        label="sum" if sums else "mean",
        description=_description(b.traced, node),
        numbers=shown[0].numel(),
        pooled=lambda sums: (sums / area).to(dtype).view(-1, *tail),
    )
    return True


def _averages(b: StepBuilder, node: fx.Node, shown: Tensor) -> bool:
    """Return whether a node takes the mean of its first argument over the whole map."""
    size = tuple(shown.shape[-2:])
    module = b.module(node)
    if isinstance(module, nn.AvgPool2d):
        return two(module.kernel_size) == size and two(module.padding) == (0, 0) and module.divisor_override is None
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return module.output_size in (1, (1, 1))
    if module is not None:
        return False
    if node.target is F.adaptive_avg_pool2d:
        return b.bind(node, "output_size")[0] in (1, (1, 1), [1, 1])
    if node.target is F.avg_pool2d:
        kernel, _, padding, _, _, divisor = b.bind(
            node, "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override", padding=0
        )
        return two(kernel) == size and two(padding) == (0, 0) and divisor is None
    return node.target in ("mean", torch.mean) and _of_the_map(b, node)


def _of_the_map(b: StepBuilder, node: fx.Node) -> bool:
    """Return whether a node works along rows and columns, in the dtype of its argument."""
    dims = b.bind(node, "dim")[0]
    given = isinstance(dims, (tuple, list)) and sorted(int(d) % 4 for d in dims) == [2, 3]
    return given and node.kwargs.get("dtype") is None
