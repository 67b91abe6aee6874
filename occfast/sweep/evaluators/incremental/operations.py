"""Operations on maps that can be followed: each appends the step that computes rectangles of its result."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ...convolution import convolve
from .builder import DenseRef, NotFollowed, StepBuilder, axes, two
from .steps import Conv, Derived, MapRef
from .trace import is_alias


def follow(b: StepBuilder, node: fx.Node) -> None:
    """Give a node its value from the maps among its arguments.

    Raises:
        NotFollowed: The node needs whole maps.
    """
    operand = b.operand(node)
    if any(isinstance(b.values[a], DenseRef) or a in b.sized for a in node.all_input_nodes):
        if isinstance(operand, (MapRef, Derived)) and node.target in _RESHAPES:
            _reshape(b, node)  # the batch size may be among its arguments
            return
        raise NotFollowed
    if is_alias(b.traced, node):
        b.values[node] = operand
        return
    if node.target in _CONCATENATIONS:
        _cat(b, node)
        return
    if not isinstance(operand, (MapRef, Derived)) or sum(map(b.varies, node.all_input_nodes)) > 1:
        _elementwise(b, node)
        return
    if node.target in _PERMUTATIONS:
        _permute(b, node, operand)
    elif node.target in _RESHAPES or isinstance(b.module(node), (nn.Flatten, nn.Unflatten)):
        _reshape(b, node)
    elif node.target is operator.getitem:
        _index(b, node, operand)
    elif node.target is getattr and isinstance(b.shown[node.args[0]], tuple):  # type: ignore[index]
        b.pixelwise(node, b.applied(node))
    elif node.target in _OF_CHANNELS or isinstance(b.module(node), _MODULES_OF_CHANNELS):
        _of_channels(b, node, operand)
    elif isinstance(operand, Derived) or not b.is_map(node):
        raise NotFollowed
    elif (module := b.module(node)) is not None:
        _module(b, node, module, operand)
    elif node.target in _CASTS:
        dtype = b.shown[node].dtype
        b.point(node, operand, lambda x: x.to(dtype))
    elif handler := _FUNCTIONS.get(node.target):
        handler(b, node, operand)
    else:
        _elementwise(b, node)


def _functions(names: Iterable[str]) -> set[Any]:
    places = (torch, F, operator, torch._C._nn)
    return {getattr(place, name) for name in names for place in places if hasattr(place, name)}


def _named(names: Iterable[str]) -> set[Any]:
    """Return functions and methods of these names."""
    names = set(names)
    return _functions(names) | names


# Pixel by pixel ---------------------------------------------------------------------------------------

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
    nn.SyncBatchNorm,
)
#: Point modules that treat dimension 1 as channels.
_PER_CHANNEL = (nn.BatchNorm2d, nn.SyncBatchNorm, nn.PReLU)
_ELEMENTWISE = _named(
    [
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
        "clip",
        "clamp_min",
        "clamp_max",
        "exp",
        "log",
        "log1p",
        "expm1",
        "sqrt",
        "rsqrt",
        "abs",
        "neg",
        "square",
        "reciprocal",
        "erf",
        "sin",
        "cos",
        "softshrink",
        "hardshrink",
        "tanhshrink",
        "sign",
        "round",
        "floor",
        "ceil",
        "nan_to_num",
        "pos",
        "positive",
        "absolute",
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
        "truediv",
    ]
)
_MAX_MIN = {torch.max, torch.min, "max", "min"}
_PRELU = {F.prelu, torch.prelu, "prelu"}
_CASTS = {"to", "type", "type_as", "float", "double", "half", "bfloat16"}


def _elementwise(b: StepBuilder, node: fx.Node) -> None:
    """Follow an elementwise operation on maps and constants that are the same at every pixel."""
    refs = [b.values[a] for a in node.all_input_nodes if b.varies(a)]
    if not refs or not all(isinstance(ref, MapRef) for ref in refs) or not b.is_map(node):
        raise NotFollowed
    if node.target not in _ELEMENTWISE and not (node.target in _MAX_MIN and _of_two(b, node)):
        raise NotFollowed
    last = refs[0].channels_last
    if any(ref.channels_last != last for ref in refs):
        raise NotFollowed
    for a in node.all_input_nodes:
        constant = b.values[a]
        if isinstance(constant, Tensor) and not _even(constant, last, node.target in _PRELU):
            raise NotFollowed
    sizes = {b.steps[ref.step].size for ref in refs}
    if len(sizes) > 1:
        raise NotFollowed
    if len(refs) == 1:
        b.point(node, refs[0], b.call(node))
        return
    if last:
        raise NotFollowed
    b.add(node, "join", [ref.step for ref in refs], run=b.call(node), label=node.name)


def _of_two(b: StepBuilder, node: fx.Node) -> bool:
    """Return whether ``max`` compares two tensors."""
    other = node.args[1] if len(node.args) > 1 else node.kwargs.get("other")
    return isinstance(other, fx.Node) and isinstance(b.shown[other], Tensor)


def _even(constant: Tensor, last: bool, of_prelu: bool) -> bool:
    """Return whether a constant that is broadcast to a map is the same at every pixel."""
    shape = tuple(constant.shape)
    if of_prelu and last:
        return False
    if len(shape) == 4 and shape[0] != 1:
        return False
    if constant.numel() == 1 or of_prelu:
        return True
    if last:
        return len(shape) <= 1 or set(shape[:-1]) == {1}
    return len(shape) >= 2 and shape[-2:] == (1, 1)


# Channels ---------------------------------------------------------------------------------------------

#: Operations along the dimensions that an argument names: the names of the arguments after the first, with the default
#: of ``dim`` where there is one.
_OF_CHANNELS: dict[Any, tuple[tuple[str, ...], Any]] = {
    name: (arguments, default)
    for names, arguments, default in (
        ("mean sum amax amin prod logsumexp var std unbind cumsum", ("dim",), None),
        ("softmax log_softmax", ("dim",), None),
        ("glu", ("dim",), -1),
        ("max min", ("dim",), None),
        ("norm", ("p", "dim"), None),
        ("normalize", ("p", "dim"), 1),
        ("chunk", ("chunks", "dim"), 0),
        ("split", ("split_size", "dim"), 0),
        ("tensor_split", ("indices_or_sections", "dim"), 0),
        ("narrow", ("dim",), None),
        ("select", ("dim",), None),
        ("index_select", ("dim",), None),
        ("flip", ("dims",), None),
        ("roll", ("shifts", "dims"), None),
    )
    for name in _named(names.split())
} | {
    torch.functional.split: (("split_size", "dim"), 0),
    torch.functional.norm: (("p", "dim"), None),
    torch.linalg.norm: (("ord", "dim"), None),
    torch.linalg.vector_norm: (("ord", "dim"), None),
    F.channel_shuffle: ((), 1),
    torch.channel_shuffle: ((), 1),
    F.local_response_norm: ((), 1),
}
_MODULES_OF_CHANNELS = (nn.Softmax, nn.LogSoftmax, nn.Softmax2d, nn.GLU, nn.ChannelShuffle, nn.LocalResponseNorm)


def _of_channels(b: StepBuilder, node: fx.Node, operand: MapRef | Derived) -> None:
    """Follow an operation along dimensions that are neither the batch nor those of the map."""
    before = b.shown[node.args[0]]  # type: ignore[index]
    module = b.module(node)
    if module is not None:
        dims = getattr(module, "dim", 1)
        if isinstance(module, nn.GLU):
            dims = module.dim
    else:
        if node.target in _MAX_MIN and (len(node.args) > 1 and isinstance(node.args[1], fx.Node)):
            _elementwise(b, node)  # of a map and a constant
            return
        names, default = _OF_CHANNELS[node.target]
        given = b.bind(node, *names, **{names[-1]: default} if names else {})
        dims = given[-1] if names else default
        if node.target == "flip" and len(node.args) > 2:
            dims = b.constant(node.args[1:])
    if not isinstance(before, Tensor):
        raise NotFollowed
    dims = dims if isinstance(dims, (tuple, list)) else (dims,)
    if not all(isinstance(dim, int) and not isinstance(dim, bool) for dim in dims):
        raise NotFollowed
    along = {dim % before.dim() for dim in dims}
    if isinstance(operand, MapRef) and operand.channels_last:
        if along != {3} or not b.is_map(node) or b.shown[node].shape[:3] != before.shape[:3]:
            raise NotFollowed
        b.point(node, operand, b.applied(node))
        return
    if not along or not along <= set(range(1, before.dim() - 2)):
        raise NotFollowed
    b.pixelwise(node, b.applied(node))


_RESHAPES = _named(["view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"])
_PERMUTATIONS = _named(["permute", "transpose", "swapaxes", "swapdims"])


def _reshape(b: StepBuilder, node: fx.Node) -> None:
    """Follow another view of the channels. A reshaped tensor is a function of its shape alone."""
    before, shown = b.shown[node.args[0]], b.shown[node]  # type: ignore[index]
    if not isinstance(before, Tensor) or shown.dim() < 3 or shown.dtype != before.dtype or not b.has_batch(node):
        raise NotFollowed
    if before.shape[-2:] != shown.shape[-2:]:
        raise NotFollowed
    dims = tuple(shown.shape[1:-2])
    if math.prod(dims) != math.prod(before.shape[1:-2]):
        raise NotFollowed
    b.pixelwise(node, lambda x: x.reshape(x.shape[0], *dims, *x.shape[-2:]))


def _permute(b: StepBuilder, node: fx.Node, operand: MapRef | Derived) -> None:
    """Follow a permutation of the channels' dimensions, or one of a map to [N, H, W, C] and back."""
    count = b.shown[node].dim()
    given = b.constant(node.args[1:]) or tuple(b.constant(dict(node.kwargs)).values())
    if node.target in ("permute", torch.permute):
        order = given[0] if len(given) == 1 else given
        order = tuple(int(dim) % count for dim in order)
    else:
        i, j = (int(dim) % count for dim in given)
        swapped = list(range(count))
        swapped[i], swapped[j] = j, i
        order = tuple(swapped)
    if isinstance(operand, MapRef) and order == ((0, 3, 1, 2) if operand.channels_last else (0, 2, 3, 1)):
        b.values[node] = MapRef(operand.step, not operand.channels_last)
        return
    if order[0] != 0 or order[-2:] != (count - 2, count - 1):
        raise NotFollowed
    b.pixelwise(node, lambda x: x.permute(order))


def _index(b: StepBuilder, node: fx.Node, operand: MapRef | Derived) -> None:
    """Follow an item of a tuple, a choice of channels, or a part of a map with a step."""
    before, key = b.shown[node.args[0]], b.constant(node.args[1])  # type: ignore[index]
    if not isinstance(before, Tensor):
        if not isinstance(key, (int, slice)):
            raise NotFollowed
        b.pixelwise(node, lambda x: x[key])
        return
    keys = list(key) if isinstance(key, tuple) else [key]
    if sum(k is Ellipsis for k in keys) > 1 or any(k is None or isinstance(k, bool) for k in keys):
        raise NotFollowed
    at = next((i for i, k in enumerate(keys) if k is Ellipsis), len(keys))
    fill = [slice(None)] * (before.dim() - sum(k is not Ellipsis for k in keys))
    keys = [*keys[:at], *fill, *keys[at + 1 :]]
    batch, channels, parts = keys[0], keys[1:-2], keys[-2:]
    advanced = [k for k in channels if not isinstance(k, (int, slice))]
    if batch != slice(None) or not all(isinstance(k, slice) for k in parts):
        raise NotFollowed
    if len(advanced) > 1 or (advanced and any(isinstance(k, int) for k in channels)):
        raise NotFollowed
    if advanced and not isinstance(advanced[0], (list, Tensor)):
        raise NotFollowed
    if isinstance(operand, MapRef) and operand.channels_last:
        raise NotFollowed
    if all(part == slice(None) for part in parts):
        chosen = (slice(None), *channels)
        b.pixelwise(node, lambda x: x[chosen])
        return
    if not isinstance(operand, MapRef) or not b.is_map(node):
        raise NotFollowed
    spans = [part.indices(size) for part, size in zip(parts, before.shape[-2:], strict=True)]
    strides = tuple(step for _, _, step in spans)
    picked = (slice(None), *channels, slice(None, None, strides[0]), slice(None, None, strides[1]))
    b.add(
        node,
        "window",
        [operand.step],
        label="slice",
        run=lambda x: x[picked],
        axes=axes((1, 1), strides, [-start for start, _, _ in spans], (1, 1)),
    )


def _cat(b: StepBuilder, node: fx.Node) -> None:
    tensors = node.args[0] if node.args else node.kwargs.get("tensors")
    dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    if not isinstance(tensors, (tuple, list)) or not isinstance(dim, int) or dim % 4 != 1 or not b.is_map(node):
        raise NotFollowed
    refs = [b.values[a] if isinstance(a, fx.Node) else None for a in tensors]
    if not all(isinstance(ref, MapRef) and not ref.channels_last for ref in refs):
        raise NotFollowed
    b.add(node, "join", [ref.step for ref in refs if ref], run=lambda *x: torch.cat(x, 1), label="cat")


_CONCATENATIONS = {torch.cat, torch.concat, torch.concatenate}


# Windows ----------------------------------------------------------------------------------------------


def _module(b: StepBuilder, node: fx.Node, module: nn.Module, ref: MapRef) -> None:
    if ref.channels_last:
        if isinstance(module, nn.Linear):
            b.point(node, ref, module, "Linear", macs=module.weight.numel())
        elif isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
            b.point(node, ref, module, "LayerNorm")
        elif isinstance(module, _POINT_MODULES) and not isinstance(module, _PER_CHANNEL):
            b.point(node, ref, module)
        else:
            raise NotFollowed
    elif isinstance(module, _POINT_MODULES):
        b.point(node, ref, F.relu if isinstance(module, nn.ReLU) else module)
    elif type(module) is nn.Conv2d and module.padding_mode == "zeros":
        _conv(b, node, ref, module.weight, module.bias, module.stride, module.padding, module.dilation, module.groups)
    elif type(module) is nn.ConvTranspose2d and module.padding_mode == "zeros":
        _transpose(b, node, ref, module)
    elif isinstance(module, nn.MaxPool2d) and not module.return_indices:
        _max_pool(b, node, ref, module.kernel_size, module.stride, module.padding, module.dilation)
    elif isinstance(module, nn.AvgPool2d):
        _avg_pool(
            b,
            node,
            ref,
            module.kernel_size,
            module.stride,
            module.padding,
            module.count_include_pad,
            module.divisor_override,
        )
    elif isinstance(module, nn.AdaptiveAvgPool2d):
        _adaptive(b, node, ref)
    elif isinstance(module, (nn.ZeroPad2d, nn.ConstantPad2d)):
        _pad(b, node, ref, list(module.padding), float(getattr(module, "value", 0.0)))
    elif isinstance(module, nn.Upsample):
        _nearest(b, node, ref, module.mode)
    elif isinstance(module, nn.PixelShuffle):
        _pixel_shuffle(b, node, ref, module.upscale_factor)
    elif isinstance(module, nn.PixelUnshuffle):
        _pixel_unshuffle(b, node, ref, module.downscale_factor)
    else:
        raise NotFollowed


def _conv(
    b: StepBuilder,
    node: fx.Node,
    ref: MapRef,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> None:
    if not isinstance(weight, Tensor):
        raise NotFollowed
    kernel, strides, dilations = tuple(weight.shape[-2:]), two(stride), two(dilation)
    if padding == "same":
        pads = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilations, strict=True))
    else:
        pads = (0, 0) if padding == "valid" else two(padding)
    weights = weight.detach().contiguous(memory_format=torch.channels_last)
    biases = None if bias is None else bias.detach()
    b.add(
        node,
        "window",
        [ref.step],
        label=f"conv {kernel[0]}x{kernel[1]}" + (f" /{strides[0]}" if max(strides) > 1 else ""),
        conv=Conv(weights, biases, strides, dilations, groups),
        macs=weight.numel(),  # [out, in / groups, kh, kw]: a pixel of the output uses each weight once
        run=lambda x: convolve(x, weights, biases, strides, (0, 0), dilations, groups),
        axes=axes(kernel, strides, pads, dilations),
    )


def _transpose(b: StepBuilder, node: fx.Node, ref: MapRef, module: nn.ConvTranspose2d) -> None:
    kernel, stride, dilation = two(module.kernel_size), two(module.stride), two(module.dilation)
    weight, bias, groups = module.weight.detach(), module.bias, module.groups
    b.add(
        node,
        "transpose",
        [ref.step],
        label=f"transposed conv {kernel[0]}x{kernel[1]}",
        macs=weight.numel() // (stride[0] * stride[1]),
        run=lambda x: F.conv_transpose2d(x, weight, bias, stride, 0, 0, groups, dilation),
        axes=axes(kernel, stride, two(module.padding), dilation),
    )


def _max_pool(
    b: StepBuilder, node: fx.Node, ref: MapRef, kernel: Any, stride: Any, padding: Any, dilation: Any
) -> None:
    kernels, strides = two(kernel), two(stride if stride not in (None, []) else kernel)
    dilations = two(dilation)
    b.add(
        node,
        "window",
        [ref.step],
        label=f"max pool {kernels[0]}x{kernels[1]}",
        padding_value=-math.inf,
        run=lambda x: F.max_pool2d(x, kernels, strides, 0, dilations),
        axes=axes(kernels, strides, two(padding), dilations),
    )


def _avg_pool(
    b: StepBuilder,
    node: fx.Node,
    ref: MapRef,
    kernel: Any,
    stride: Any,
    padding: Any,
    include: bool,
    divisor: int | None,
) -> None:
    kernels, strides = two(kernel), two(stride if stride not in (None, []) else kernel)
    pads = two(padding)
    before, shown = b.steps[ref.step], b.shown[node]
    counts = []
    for k, s, p, size, out in zip(kernels, strides, pads, before.size, shown.shape[-2:], strict=True):
        start = torch.arange(out) * s - p
        end = torch.minimum(start + k, torch.tensor(size + p))
        counts.append(end - start if include else end.clamp(max=size) - start.clamp(min=0))
    even = divisor is not None or all(bool((c == k).all()) for c, k in zip(counts, kernels, strict=True))
    b.add(
        node,
        "window",
        [ref.step],
        label=f"avg pool {kernels[0]}x{kernels[1]}",
        run=lambda x: F.avg_pool2d(x, kernels, strides, 0, divisor_override=divisor if even else 1),
        axes=axes(kernels, strides, pads, (1, 1)),
        counts=None if even else (counts[0].to(shown), counts[1].to(shown)),
    )


def _adaptive(b: StepBuilder, node: fx.Node, ref: MapRef) -> None:
    size, out = b.steps[ref.step].size, b.shown[node].shape[-2:]
    if out == (1, 1) or any(s % o for s, o in zip(size, out, strict=True)):
        raise NotFollowed  # the whole map at once, or windows of several sizes
    kernel = (size[0] // out[0], size[1] // out[1])
    _avg_pool(b, node, ref, kernel, kernel, 0, True, None)


def _pad(b: StepBuilder, node: fx.Node, ref: MapRef, amounts: list[int], value: float) -> None:
    amounts = [int(amount) for amount in amounts] + [0] * (8 - len(amounts))
    if len(amounts) != 8 or any(amounts[6:]):
        raise NotFollowed
    if any(amounts[4:6]):
        if any(amounts[:4]):
            raise NotFollowed
        b.pixelwise(node, lambda x: F.pad(x, amounts[:6], value=value))
        return
    pads = (amounts[2], amounts[0])
    b.add(node, "pad", [ref.step], label="pad", padding_value=value, axes=axes((1, 1), (1, 1), pads, (1, 1)))


def _scale(
    b: StepBuilder, node: fx.Node, ref: MapRef, factor: tuple[int, int], run: Callable[[Tensor], Tensor], label: str
) -> None:
    b.add(node, "scale", [ref.step], label=label, run=run, axes=axes(factor, factor, (0, 0), (1, 1)))


def _nearest(b: StepBuilder, node: fx.Node, ref: MapRef, mode: str) -> None:
    size, out = b.steps[ref.step].size, b.shown[node].shape[-2:]
    if mode not in ("nearest", "nearest-exact") or any(o % s for s, o in zip(size, out, strict=True)):
        raise NotFollowed
    rows, columns = out[0] // size[0], out[1] // size[1]
    _scale(
        b,
        node,
        ref,
        (rows, columns),
        lambda x: x.repeat_interleave(rows, 2).repeat_interleave(columns, 3),
        f"nearest x{rows}",
    )


def _pixel_shuffle(b: StepBuilder, node: fx.Node, ref: MapRef, factor: int) -> None:
    _scale(b, node, ref, (factor, factor), lambda x: F.pixel_shuffle(x, factor), f"pixel shuffle x{factor}")


def _pixel_unshuffle(b: StepBuilder, node: fx.Node, ref: MapRef, factor: int) -> None:
    both = (factor, factor)
    b.add(
        node,
        "window",
        [ref.step],
        label=f"pixel unshuffle /{factor}",
        run=lambda x: F.pixel_unshuffle(x, factor),
        axes=axes(both, both, (0, 0), (1, 1)),
    )


# Functions of a map -----------------------------------------------------------------------------------


def _conv_function(b: StepBuilder, node: fx.Node, ref: MapRef) -> None:
    names = ("weight", "bias", "stride", "padding", "dilation", "groups")
    _conv(b, node, _first_dims(ref), *b.bind(node, *names, stride=1, padding=0, dilation=1, groups=1))


def _max_pool_function(b: StepBuilder, node: fx.Node, ref: MapRef) -> None:
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    *given, _, _ = b.bind(node, *names, padding=0, dilation=1)
    _max_pool(b, node, _first_dims(ref), *given)


def _avg_pool_function(b: StepBuilder, node: fx.Node, ref: MapRef) -> None:
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    kernel, stride, padding, _, include, divisor = b.bind(node, *names, padding=0, count_include_pad=True)
    _avg_pool(b, node, _first_dims(ref), kernel, stride, padding, include, divisor)


def _adaptive_function(b: StepBuilder, node: fx.Node, ref: MapRef) -> None:
    _adaptive(b, node, _first_dims(ref))


def _pad_function(b: StepBuilder, node: fx.Node, ref: MapRef) -> None:
    amounts, mode, value = b.bind(node, "pad", "mode", "value", mode="constant")
    if mode != "constant":
        raise NotFollowed
    _pad(b, node, _first_dims(ref), list(amounts), float(value or 0.0))


def _interpolate(b: StepBuilder, node: fx.Node, ref: MapRef) -> None:
    _nearest(b, node, _first_dims(ref), b.bind(node, "size", "scale_factor", "mode", mode="nearest")[2])


def _pixel_shuffle_function(b: StepBuilder, node: fx.Node, ref: MapRef) -> None:
    _pixel_shuffle(b, node, _first_dims(ref), int(b.bind(node, "upscale_factor")[0]))


def _pixel_unshuffle_function(b: StepBuilder, node: fx.Node, ref: MapRef) -> None:
    _pixel_unshuffle(b, node, _first_dims(ref), int(b.bind(node, "downscale_factor")[0]))


def _batch_norm(b: StepBuilder, node: fx.Node, ref: MapRef) -> None:
    names = ("running_mean", "running_var", "weight", "bias", "training")
    mean, variance, weight, bias, training = b.bind(node, *names, training=False)
    eps = b.bind(node, *names, "momentum", "eps", eps=1e-5)[-1]
    if training is not False or mean is None or variance is None:
        raise NotFollowed
    b.point(node, _first_dims(ref), lambda x: F.batch_norm(x, mean, variance, weight, bias, eps=eps), "batch norm")


def _layer_norm(b: StepBuilder, node: fx.Node, ref: MapRef) -> None:
    shape, weight, bias, eps = b.bind(node, "normalized_shape", "weight", "bias", "eps", eps=1e-5)
    if not ref.channels_last or len(tuple(shape)) != 1:
        raise NotFollowed
    b.point(node, ref, lambda x: F.layer_norm(x, shape, weight, bias, eps), "layer norm")


def _linear(b: StepBuilder, node: fx.Node, ref: MapRef) -> None:
    weight, bias = b.bind(node, "weight", "bias")
    if not ref.channels_last:
        raise NotFollowed
    b.point(node, ref, lambda x: F.linear(x, weight, bias), "linear", macs=weight.numel())


def _first_dims(ref: MapRef) -> MapRef:
    if ref.channels_last:
        raise NotFollowed
    return ref


_FUNCTIONS: dict[Any, Callable[[StepBuilder, fx.Node, MapRef], None]] = {
    F.conv2d: _conv_function,
    torch.conv2d: _conv_function,
    F.max_pool2d: _max_pool_function,
    torch.max_pool2d: _max_pool_function,
    F.avg_pool2d: _avg_pool_function,
    F.adaptive_avg_pool2d: _adaptive_function,
    F.pad: _pad_function,
    F.interpolate: _interpolate,
    F.pixel_shuffle: _pixel_shuffle_function,
    F.pixel_unshuffle: _pixel_unshuffle_function,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.linear: _linear,
}
