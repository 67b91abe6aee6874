"""Pooling of maps."""

from __future__ import annotations

import math
import operator as python

import torch
from torch import Tensor, nn

from ..builder import Builder, Value
from ..call import Call
from ..errors import UnsupportedForm
from .table import operator
from .windows import Window, padded


def _maps(call: Call) -> Value:
    value = call.value()
    if not value.varies or value.dtype != torch.float32 or value.rank != 4:
        raise UnsupportedForm(f"{value.rank} dimensions of {value.dtype}")
    return value


def _small(window: Window) -> bool:
    """Return whether PyTorch's modules can pad so themselves."""
    return all(2 * p <= k for p, k, _ in window.sides)


def _positions(module: nn.Module, value: Value) -> tuple[int, int]:
    """Return the size of a module's maps."""
    shape = module(value.samples[0]).shape
    return (shape[2], shape[3])


@operator("MaxPool")
def max_pool(b: Builder, call: Call) -> Value:
    """Add the largest number of each window."""
    value = _maps(call)
    call.alone()
    call.integer("storage_order", 0)
    window = Window.of_pool(call, (value.shape[2], value.shape[3]))
    if _small(window):
        # What is padded never is the largest, so that the number of windows decides, not how the end is padded.
        for ceil in (False, True):
            module = nn.MaxPool2d(window.kernel, window.stride, window.begin, window.dilation, ceil_mode=ceil)
            if _positions(module, value) == window.out:
                return b.module(module, "max_pool", {}, value)
    value = padded(b, value, window.reaching((value.shape[2], value.shape[3])), -math.inf)
    return b.module(nn.MaxPool2d(window.kernel, window.stride, 0, window.dilation), "max_pool", {}, value)


@operator("AveragePool")
def average_pool(b: Builder, call: Call) -> Value:
    """Add the mean of each window, with or without what is padded."""
    value = _maps(call)
    size = (value.shape[2], value.shape[3])
    window, ceil = Window.of_pool(call, size), call.flag("ceil_mode")
    include = call.flag("count_include_pad")
    if window.dilation != (1, 1):
        raise UnsupportedForm(f"dilations {window.dilation}")
    if window.symmetric and _small(window):
        module = nn.AvgPool2d(window.kernel, window.stride, window.begin, ceil, include)
        return b.module(module, "avg_pool", {}, value)
    if include and not ceil:
        return b.module(nn.AvgPool2d(window.kernel, window.stride), "avg_pool", {}, padded(b, value, window, 0.0))
    # Windows that reach over the end count what they read alone, as those of ceil_mode do.
    if not include and _small(window):
        module = nn.AvgPool2d(window.kernel, window.stride, window.begin, True, False)
        if _positions(module, value) == window.out:
            return b.module(module, "avg_pool", {}, value)
    if include:
        raise UnsupportedForm(f"pads {window.begin} and {window.end} with ceil_mode and count_include_pad")
    sums = nn.AvgPool2d(window.kernel, window.stride, divisor_override=1)
    pooled = b.module(sums, "sum_pool", {}, padded(b, value, window.reaching(size), 0.0))
    rows, columns = (
        _counts(*given) for given in zip(window.out, window.stride, window.kernel, window.begin, size, strict=True)
    )
    return b.call(python.truediv, pooled, b.constant((rows[:, None] * columns).float()))


def _counts(out: int, stride: int, kernel: int, begin: int, size: int) -> Tensor:
    """Return for each window the numbers that it reads besides what is padded, at least 1."""
    start = torch.arange(out) * stride - begin
    return ((start + kernel).clamp(max=size) - start.clamp(min=0)).clamp(min=1)


@operator("GlobalAveragePool")
def global_average_pool(b: Builder, call: Call) -> Value:
    """Add the mean of whole maps."""
    return b.module(nn.AdaptiveAvgPool2d((1, 1)), "global_avg_pool", {}, _maps(call))


@operator("GlobalMaxPool")
def global_max_pool(b: Builder, call: Call) -> Value:
    """Add the largest number of whole maps."""
    return b.module(nn.AdaptiveMaxPool2d((1, 1)), "global_max_pool", {}, _maps(call))


__all__ = ["average_pool", "max_pool"]
