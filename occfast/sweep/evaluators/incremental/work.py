"""Work of the nodes of a graph, as amounts of a few kinds whose speed is measured once on a machine."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .trace import is_alias, module_of

#: Amount of each kind of work. The kinds are those of :data:`~.rates.KINDS`.
Work = Mapping[str, float]

#: Channels at which convolutions are measured; between them the time of a multiply-add is interpolated.
INPUTS, OUTPUTS = (3, 16, 64, 256), (16, 64, 256)

_FREE = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "transpose", "permute", "chunk", "split"}
_FREE |= {"narrow", "select", "getitem", "getattr", "expand", "expand_as", "unbind", "size", "dim", "view_as", "t"}
_FREE |= {"swapaxes", "swapdims", "movedim", "tensor_split", "detach", "to", "float", "type", "type_as"}
_SLOW = {"exp", "log", "log1p", "expm1", "sin", "cos", "tanh", "sigmoid", "silu", "logsigmoid", "softplus", "softmin"}
_SLOW |= {"elu", "selu", "celu", "mish", "softmax", "log_softmax", "rsqrt", "sqrt", "logsumexp", "softmax2d", "glu"}
_SLOWER = {"gelu", "erf", "pow", "cumsum", "lp_pool2d", "lppool2d"}
_TWO = {"add", "sub", "mul", "div", "truediv", "maximum", "minimum", "rsub", "where", "max", "min", "prelu"}
_REDUCED = {"mean", "sum", "amax", "amin", "std", "var", "norm", "vector_norm", "prod", "adaptive_avg_pool2d"}
_REDUCED |= {"adaptive_max_pool2d", "adaptiveavgpool2d", "adaptivemaxpool2d"}
_COPIED = {"cat", "concat", "concatenate", "stack", "pad", "roll", "flip", "index_select", "contiguous", "clone"}
_COPIED |= {"repeat_interleave", "pixel_shuffle", "pixelshuffle", "pixel_unshuffle", "pixelunshuffle", "repeat"}
_COPIED |= {"channel_shuffle", "channelshuffle", "zeropad2d", "constantpad2d", "reflectionpad2d", "normalize"}
_MATRIX = {"matmul", "bmm", "einsum", "baddbmm"}


def interpolated(kind: str, macs: float, inputs: int, outputs: int) -> dict[str, float]:
    """Return multiply-adds of a convolution as amounts of those at the measured channels."""
    found: dict[str, float] = {}
    for i, share in _between(INPUTS, inputs):
        for o, of_that in _between(OUTPUTS, outputs):
            if share * of_that:
                found[f"{kind} {i} {o}"] = macs * share * of_that
    return found


def _between(measured: tuple[int, ...], wanted: int) -> Iterator[tuple[int, float]]:
    place = math.log2(min(max(wanted, measured[0]), measured[-1]))
    for low, high in itertools.pairwise(measured):
        if low <= wanted <= high or (wanted < low and low == measured[0]) or high == measured[-1]:
            share = (place - math.log2(low)) / math.log2(high / low)
            yield low, 1 - share
            yield high, share
            return


def added(*works: Work) -> dict[str, float]:
    """Return the sum of some works."""
    total: dict[str, float] = {}
    for work in works:
        for kind, amount in work.items():
            total[kind] = total.get(kind, 0.0) + amount
    return total


def scaled(work: Work, factor: float) -> dict[str, float]:
    """Return a work times a factor."""
    return {kind: amount * factor for kind, amount in work.items()}


def of_node(traced: fx.GraphModule, node: fx.Node, shown: Mapping[fx.Node, Any]) -> dict[str, float]:
    """Return the work of a node for one image; a guess where its arguments are not those of PyTorch's functions.

    Args:
        traced: The network.
        node: One of its nodes.
        shown: Values of all nodes for an example of several images.
    """
    try:
        return _of_node(traced, node, shown)
    except Exception:  # a plan never fails because of a forecast
        out = shown.get(node)
        return {"call": 1.0, "relu": _numbers(out) if isinstance(out, Tensor) else 0.0}


def _numbers(tensor: Tensor) -> float:
    """Return how many numbers a tensor has for each image."""
    return tensor.numel() / max(1, len(tensor)) if tensor.dim() else 1.0


def _of_node(traced: fx.GraphModule, node: fx.Node, shown: Mapping[fx.Node, Any]) -> dict[str, float]:
    out = shown.get(node)
    if node.op in ("placeholder", "get_attr", "output") or is_alias(traced, node):
        return {}
    if not isinstance(out, Tensor) or not out.dim():
        out = next((item for item in out if isinstance(item, Tensor)), None) if isinstance(out, (tuple, list)) else None
        if out is None or name_of(traced, node) in _FREE:
            return {}
    given = [shown[a] for a in node.all_input_nodes if isinstance(shown.get(a), Tensor)]
    if not given:
        return {}
    numbers, read = _numbers(out), max(map(_numbers, given))
    module, name = module_of(traced, node), name_of(traced, node)
    call = {"call": 1.0}
    if module is not None and type(module).forward is nn.Sequential.forward:
        return {**call, "relu": numbers}
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) or node.target in (F.conv2d, torch.conv2d):
        weight = module.weight if module is not None else _weight(node, shown)
        if not isinstance(weight, Tensor):
            return {**call, "relu": numbers}
        transposed = isinstance(module, nn.ConvTranspose2d)
        groups = given[0].shape[1] // weight.shape[1] if module is None else int(getattr(module, "groups", 1))
        pixels = (given[0] if transposed else out).shape[-1] * (given[0] if transposed else out).shape[-2]
        found = convolution(weight, pixels, groups, transposed)
        if node.meta.get("batch_norm"):  # folded into it here, a step of its own in the dense sweep
            found = added(found, {"batch_norm": numbers, "call": 1.0})
        return added(found, call)
    if isinstance(module, nn.Linear) or node.target is F.linear:
        weight = module.weight if module is not None else _weight(node, shown)
        if isinstance(weight, Tensor):
            rows = numbers / weight.shape[0]
            return {**call, "linear": rows * weight.numel(), **({"weights": weight.numel()} if rows <= 1 else {})}
    if name in _MATRIX:
        return {**call, "bmm": numbers * given[0].shape[-1], "relu": numbers}
    if name == "scaled_dot_product_attention":
        tokens = given[1].shape[-2]
        return {**call, "bmm": 2 * numbers * tokens, "sigmoid": 2 * numbers / out.shape[-1] * tokens}
    if name == "max_pool2d" or isinstance(module, nn.MaxPool2d):
        return {**call, "max_pool": numbers * _taps(module, node)}
    if name == "avg_pool2d" or isinstance(module, nn.AvgPool2d):
        return {**call, "avg_pool": min(numbers * _taps(module, node), 2 * read + numbers)}
    if name in ("interpolate", "upsample") or isinstance(module, nn.Upsample):
        smooth = getattr(module, "mode", node.kwargs.get("mode", "nearest")) not in ("nearest", "nearest-exact")
        return {**call, "bilinear" if smooth else "copy": numbers}
    if isinstance(module, (nn.GroupNorm, nn.InstanceNorm2d)) or name in ("group_norm", "instance_norm"):
        return {**call, "group_norm": numbers}
    if isinstance(module, nn.LayerNorm) or name == "layer_norm":
        return {**call, "layer_norm": numbers}
    if isinstance(module, nn.modules.batchnorm._BatchNorm) or name == "batch_norm":
        return {**call, "batch_norm": numbers}
    if name in ("local_response_norm", "localresponsenorm"):
        return {"call": 8.0, "gelu": 4 * numbers}
    if name in _REDUCED and numbers < read:
        return {**call, "mean": read}
    if name in _FREE:
        return _copies(node, name, out, given, shown)
    if name in _COPIED:
        return {**call, "copy": numbers}
    if name in _SLOWER:
        return {**call, "gelu" if not _simple_power(node, name) else "add": numbers}
    if name in _SLOW or isinstance(module, (nn.PReLU, nn.Softmax)):
        return {**call, "sigmoid" if not isinstance(module, nn.PReLU) else "add": numbers}
    return {**call, "add" if name in _TWO and len(given) > 1 else "relu": max(numbers, read)}


def convolution(weight: Tensor, pixels: float, groups: int, transposed: bool = False) -> dict[str, float]:
    """Return the work of a convolution with weights [O, C / groups, kh, kw] of ``pixels`` outputs, by PyTorch."""
    macs = weight.numel() * pixels
    taps = weight[0, 0].numel()
    if transposed:
        return {"transposed": macs}
    outputs, inputs = weight.shape[0], weight.shape[1]
    if groups > 1 and inputs == 1:
        numbers = outputs * pixels  # a base and a part for each tap, through 9 and 49 taps
        share = min(max(taps - 9, 0) / 40, 1.0) if taps <= 49 else 1.0
        more = taps / 49 if taps > 49 else min(1.0, taps / 9)
        return {"depthwise 9": numbers * (1 - share) * more, "depthwise 49": numbers * share * more}
    if groups > 1:
        return {"grouped": macs}
    return interpolated("conv 1" if taps == 1 else "conv 9", macs, inputs, outputs)


def name_of(traced: fx.GraphModule, node: fx.Node) -> str:
    """Return the name of what a node calls, in lower case."""
    module = module_of(traced, node)
    if module is not None:
        return type(module).__name__.lower()
    if node.op == "call_method":
        return str(node.target)
    return str(getattr(node.target, "__name__", node.target)).rstrip("_")


def _weight(node: fx.Node, shown: Mapping[fx.Node, Any]) -> Any:
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
    return shown.get(given) if isinstance(given, fx.Node) else given


def _taps(module: nn.Module | None, node: fx.Node) -> float:
    given = getattr(module, "kernel_size", None)
    if given is None:
        given = node.args[1] if len(node.args) > 1 else node.kwargs.get("kernel_size", 2)
    sides = given if isinstance(given, (tuple, list)) else (given, given)
    return math.prod(side if isinstance(side, int) else 7 for side in sides)


def _simple_power(node: fx.Node, name: str) -> bool:
    exponent = node.args[1] if len(node.args) > 1 else node.kwargs.get("exponent")
    return name == "pow" and exponent in (2, 3, 0.5)


def _copies(
    node: fx.Node, name: str, out: Tensor, given: list[Tensor], shown: Mapping[fx.Node, Any]
) -> dict[str, float]:
    """Return the work of a change of the shape: a copy where the result is no view."""
    if (
        name in ("reshape", "flatten", "view_as")
        and given
        and out.untyped_storage().data_ptr() != (given[0].untyped_storage().data_ptr())
    ):
        return {"call": 1.0, "transpose": _numbers(out)}
    return {"call": 0.25}
