"""Calls of PyTorch's internal operators, as programs hold them, in terms of ``torch`` and its functions for layers."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

#: (kind of node, target, args, kwargs)
Call = tuple[str, Any, tuple[Any, ...], dict[str, Any]]

#: Methods of a tensor with the operator's own arguments.
_METHODS = {
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "unsqueeze", "squeeze", "expand", "expand_as",
    "contiguous", "clone", "detach", "chunk", "narrow", "select", "unbind", "view_as", "reshape_as", "type_as", "t",
    "numel", "dim", "flip", "roll", "movedim", "tensor_split", "size",
}  # fmt: skip
#: Functions of torch or torch.nn.functional with the operator's own arguments.
_FUNCTIONS = {
    "relu", "relu6", "leaky_relu", "prelu", "silu", "gelu", "hardswish", "hardsigmoid", "hardtanh", "sigmoid", "tanh",
    "selu", "celu", "mish", "softplus", "softsign", "threshold", "clamp", "clamp_min", "clamp_max", "exp", "log",
    "log1p", "expm1", "sqrt", "rsqrt", "abs", "neg", "square", "reciprocal", "erf", "sin", "cos", "sign", "round",
    "floor", "ceil", "add", "sub", "mul", "div", "pow", "maximum", "minimum", "rsub", "cat", "stack", "conv2d",
    "linear", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "pixel_shuffle", "pixel_unshuffle", "mean", "sum",
    "amax", "amin", "max", "min", "softmax", "log_softmax", "norm", "glu", "dropout", "channel_shuffle", "pad",
    "cumsum", "index_select", "logsumexp", "std", "var", "prod", "matmul", "bmm", "where", "hardshrink", "softshrink",
    "nan_to_num",
}  # fmt: skip
_IN_PLACE = {
    "relu_",
    "relu6_",
    "leaky_relu_",
    "silu_",
    "hardswish_",
    "hardsigmoid_",
    "hardtanh_",
    "celu_",
    "selu_",
    "elu_",
}


def plain(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """Return a call of an operator ``aten::name`` in common terms; None where there are none."""
    kwargs = {key: value for key, value in kwargs.items() if value is not None and (key, value) != ("alpha", 1)}
    if name in _SPECIAL:
        return _SPECIAL[name](args, kwargs)
    if name in _METHODS:
        return "call_method", name, args, {key: v for key, v in kwargs.items() if key != "memory_format"}
    if name in _IN_PLACE and hasattr(F, name[:-1]):
        args = args[:2] if name == "elu_" else args
        return "call_function", getattr(F, name[:-1]), args, {**kwargs, "inplace": True}
    if name.endswith("_") and hasattr(torch.Tensor, name):
        return "call_method", name, args, kwargs
    if name in _FUNCTIONS:
        return "call_function", getattr(F, name, None) or getattr(torch, name), _without_defaults(args), kwargs
    return None


def _without_defaults(args: tuple[Any, ...]) -> tuple[Any, ...]:
    while args and args[-1] is None:
        args = args[:-1]
    return args


def _convolution(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = args[:9]
    if len(stride) != 2:
        return None
    if transposed:
        return (
            "call_function",
            F.conv_transpose2d,
            (x, weight, bias, stride, padding, output_padding, groups, dilation),
            {},
        )
    return "call_function", F.conv2d, (x, weight, bias, stride, padding, dilation, groups), {}


def _batch_norm(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    x, weight, bias, mean, variance, training, momentum, eps = args[:8]
    return "call_function", F.batch_norm, (x, mean, variance, weight, bias, training, momentum, eps), {}


def _layer_norm(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    return "call_function", F.layer_norm, args[:5], {key: v for key, v in kwargs.items() if key != "cudnn_enable"}


def _slice(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    defaults: tuple[Any, ...] = (0, None, None, 1)
    x, dim, start, end, step = (*args, *defaults[len(args) - 1 :])
    if not isinstance(dim, int) or dim < 0:
        return None
    end = None if isinstance(end, int) and end >= (1 << 62) else end
    part = slice(0 if start is None else start, end, step)
    if part == slice(0, None, 1):
        return "call_method", "contiguous", (x,), {}  # all of it
    return "call_function", operator.getitem, (x, (*[slice(None)] * dim, part)), {}


def _elu(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    if any(scale != 1 for scale in args[2:]):
        return None
    return "call_function", F.elu, args[:2], {}


def _to(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    dtype = next((a for a in (*args[1:], *kwargs.values()) if isinstance(a, torch.dtype)), None)
    return None if dtype is None else ("call_method", "to", (args[0], dtype), {})


def _nearest(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    x, size = args[:2]
    scales = args[2] if len(args) > 2 else kwargs.get("scale_factors")
    if size is None and isinstance(scales, (list, tuple)):
        return "call_function", F.interpolate, (x,), {"scale_factor": tuple(scales)}
    return None if size is None else ("call_function", F.interpolate, (x,), {"size": size})


def _same(target: Any, count: int | None = None) -> Callable[[tuple[Any, ...], dict[str, Any]], Call]:
    return lambda args, kwargs: ("call_function", target, args[:count], kwargs)


_SPECIAL: dict[str, Callable[[tuple[Any, ...], dict[str, Any]], Call | None]] = {
    "convolution": _convolution,
    "_convolution": _convolution,
    "conv_transpose2d": _same(F.conv_transpose2d),
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "slice": _slice,
    "elu": _elu,
    "to": _to,
    "_to_copy": _to,
    "upsample_nearest2d": _nearest,
    "constant_pad_nd": lambda args, kwargs: (
        "call_function", F.pad, (args[0], list(args[1]), "constant", *args[2:]), kwargs
    ),
    "linalg_vector_norm": _same(torch.linalg.vector_norm),
    "feature_dropout": _same(F.dropout2d),
    "sym_size": lambda args, kwargs: ("call_method", "size", args, kwargs),
    "alias": lambda args, kwargs: ("call_method", "detach", args[:1], {}),
    "split_with_sizes": lambda args, kwargs: ("call_method", "split", args, kwargs),
    "split": lambda args, kwargs: ("call_method", "split", args, kwargs),
}  # fmt: skip


def in_plain_terms(traced: fx.GraphModule) -> None:
    """Replace calls of internal operators in a graph by common ones, in place. Others stay."""
    for node in traced.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if node.target.namespace != "aten":
            continue
        call = plain(node.target._schema.name.partition("::")[2], tuple(node.args), dict(node.kwargs))
        if call is not None:
            node.op, node.target, node.args, node.kwargs = call
