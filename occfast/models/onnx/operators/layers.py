"""Layers with weights, and norms."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..builder import Builder, Value
from ..call import Call
from ..errors import Malformed, UnsupportedForm
from .table import operator
from .windows import Window, padded


def _images(call: Call, rank: int | None = None) -> Value:
    """Return the first argument: float32, dependent on the images, of so many dimensions."""
    value = call.value()
    if not value.varies or value.dtype != torch.float32:
        raise UnsupportedForm("a constant or another type than float32 as first argument")
    if rank is not None and value.rank != rank:
        raise UnsupportedForm(f"{value.rank} dimensions")
    return value


def _floats(call: Call, k: int, what: str) -> Tensor:
    found = call.constant(k, what)
    if found.dtype != torch.float32:
        raise UnsupportedForm(f"{what} of {str(found.dtype).removeprefix('torch.')}")
    return found


def _convolution(call: Call) -> tuple[Value, Tensor, Tensor | None, int]:
    """Return maps, weights, biases and number of groups of a convolution, transposed or not."""
    value, weight = _images(call, 4), _floats(call, 1, "weights")
    bias = _floats(call, 2, "biases") if call.has(2) else None
    groups = call.integer("group", 1)
    if weight.dim() != 4 or not weight.numel() or groups < 1 or weight.shape[0] % groups:
        raise Malformed(f"weights of {list(weight.shape)} in {groups} groups")
    return value, weight, bias, groups


@operator("Conv")
def conv(b: Builder, call: Call) -> Value:
    """Add a convolution of maps."""
    value, weight, bias, groups = _convolution(call)
    if value.shape[1] != weight.shape[1] * groups:
        raise Malformed(f"weights of {list(weight.shape)} in {groups} groups for {value.shape[1]} channels")
    window = Window.of_conv(call, (weight.shape[2], weight.shape[3]), (value.shape[2], value.shape[3]))
    # oneDNN computes a padding beyond the kernel's reach wrongly or not at all.
    joined = window.symmetric and all(p <= (k - 1) * d for p, k, d in window.sides)
    if not joined:
        value = padded(b, value, window, 0.0)
    module = nn.Conv2d(
        value.shape[1],
        weight.shape[0],
        window.kernel,
        window.stride,
        window.begin if joined else (0, 0),
        window.dilation,
        groups,
        bias is not None,
        device="meta",
    )
    return b.module(module, "conv", {"weight": weight, **({} if bias is None else {"bias": bias})}, value)


@operator("ConvTranspose")
def conv_transpose(b: Builder, call: Call) -> Value:
    """Add a transposed convolution of maps, with equal pads on both sides."""
    value, weight, bias, groups = _convolution(call)
    if value.shape[1] != weight.shape[0]:
        raise Malformed(f"weights of {list(weight.shape)} for {value.shape[1]} channels")
    if call.given("output_shape") or call.text("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise UnsupportedForm("output_shape or auto_pad")
    window = Window.of_conv(call, (weight.shape[2], weight.shape[3]), (value.shape[2], value.shape[3]))
    output = call.integers("output_padding", 2, 0) or [0, 0]
    if not window.symmetric:
        raise UnsupportedForm(f"pads {window.begin} and {window.end}")
    module = nn.ConvTranspose2d(
        value.shape[1],
        weight.shape[1] * groups,
        window.kernel,
        window.stride,
        window.begin,
        (output[0], output[1]),
        groups,
        bias is not None,
        window.dilation,
        device="meta",
    )
    return b.module(module, "conv_transpose", {"weight": weight, **({} if bias is None else {"bias": bias})}, value)


@operator("BatchNormalization")
def batch_normalization(b: Builder, call: Call) -> Value:
    """Batch normalization with running statistics, of maps or of features."""
    value = _images(call)
    call.alone()
    eps, spatial = call.number("epsilon", 1e-5), True
    call.number("momentum", 0.9)
    if call.opset < 9:
        spatial = call.flag("spatial", True)
    if call.opset >= 14 and call.flag("training_mode"):
        raise UnsupportedForm("training mode")
    if value.rank not in (2, 3, 4) or (not spatial and value.rank != 2):
        raise UnsupportedForm(f"{value.rank} dimensions" + ("" if spatial else ", not spatial"))
    names = ("weight", "bias", "running_mean", "running_var")
    weights = {name: _floats(call, k + 1, f"values for {name}") for k, name in enumerate(names)}
    kind = nn.BatchNorm2d if value.rank == 4 else nn.BatchNorm1d
    module = kind(value.shape[1], eps, device="meta")
    module.num_batches_tracked = torch.tensor(0)
    return b.module(module, "batch_norm", weights, value)


@operator("InstanceNormalization")
def instance_normalization(b: Builder, call: Call) -> Value:
    """Add a normalization of each map by its own statistics."""
    value, eps = _images(call, 4), call.number("epsilon", 1e-5)
    module = nn.InstanceNorm2d(value.shape[1], eps, affine=True, device="meta")
    weights = {"weight": _floats(call, 1, "weights"), "bias": _floats(call, 2, "biases")}
    return b.module(module, "instance_norm", weights, value)


@operator("LayerNormalization")
def layer_normalization(b: Builder, call: Call) -> Value:
    """Add a normalization over the last dimensions."""
    value, eps = _images(call), call.number("epsilon", 1e-5)
    call.alone()
    call.integer("stash_type", 1)
    axis = call.axis(value.rank, -1)
    if axis == 0:
        raise UnsupportedForm("a norm of the whole batch")
    shape = value.shape[axis:]
    weights = {"weight": _floats(call, 1, "weights")}
    if call.has(2):
        weights["bias"] = _floats(call, 2, "biases")
    weights = {name: tensor.expand(shape).contiguous() for name, tensor in weights.items()}
    module = nn.LayerNorm(shape, eps, bias="bias" in weights, device="meta")
    return b.module(module, "layer_norm", weights, value)


@operator("LRN")
def local_response(b: Builder, call: Call) -> Value:
    """Local response normalization over channels."""
    value, size = _images(call, 4), call.integer("size", 0)
    alpha, beta, bias = call.number("alpha", 1e-4), call.number("beta", 0.75), call.number("bias", 1.0)
    if not 1 <= size <= 1 << 16 or size % 2 == 0:
        raise UnsupportedForm(f"size {size}")
    return b.module(nn.LocalResponseNorm(size, alpha, beta, bias), "lrn", {}, value)


@operator("LpNormalization")
def lp_normalization(b: Builder, call: Call) -> Value:
    """Division by the norm along a dimension."""
    value, p = _images(call), call.integer("p", 2)
    axis = call.axis(value.rank, -1)
    if p not in (1, 2):
        raise Malformed(f"expected p of 1 or 2, got {p}")
    return b.call(F.normalize, value, float(p), axis)


def linear(b: Builder, value: Value, weight: Tensor, bias: Tensor | None) -> Value:
    """Add a linear layer with a weight [out, in]."""
    if not weight.numel() or value.shape[-1] != weight.shape[1]:
        raise Malformed(f"weights of {list(weight.shape)} for {list(value.shape)}")
    module = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    weights = {"weight": weight.contiguous(), **({} if bias is None else {"bias": bias})}
    return b.module(module, "linear", weights, value)


@operator("Gemm")
def gemm(b: Builder, call: Call) -> Value:
    """``alpha A B + beta C``: a linear layer."""
    value, weight = _images(call, 2), _floats(call, 1, "weights")
    alpha, beta = call.number("alpha", 1.0), call.number("beta", 1.0)
    if call.opset < 7:
        raise UnsupportedForm("an operator set before version 7")
    if call.flag("transA"):
        raise UnsupportedForm("transA")
    transposed = call.flag("transB")
    if weight.dim() != 2:
        raise Malformed(f"weights of {list(weight.shape)}")
    weight = weight if transposed else weight.T
    weight = weight if alpha == 1 else weight * alpha
    bias = _floats(call, 2, "biases") if call.has(2) else None
    if bias is not None:
        if (
            bias.dim() > 2
            or (bias.dim() == 2 and bias.shape[0] != 1)
            or bias.shape[-1:].numel() not in (1, weight.shape[0])
        ):
            raise UnsupportedForm(f"biases of {list(bias.shape)}")
        bias = bias if beta == 1 else bias * beta
        bias = bias.reshape(-1).expand(weight.shape[0]).contiguous()
    return linear(b, value, weight, bias)


@operator("MatMul")
def matmul(b: Builder, call: Call) -> Value:
    """Add a product of matrices: a linear layer, if the second is constant."""
    first, second = call.value(0), call.value(1)
    if first.dtype != torch.float32 or second.dtype != torch.float32:
        raise UnsupportedForm("other types than float32")
    if not first.varies and not second.varies:
        work = math.prod(first.shape) * (second.shape[-1] if second.rank else 1)
        if work > 1 << 24:
            raise UnsupportedForm("a large product of constants")
        return b.call(torch.matmul, first, second)
    if first.varies and not second.varies and second.rank == 2 and first.rank >= 2:
        return linear(b, first, call.constant(1, "weights").T, None)
    return b.call(torch.matmul, first, second)


__all__ = ["linear"]
