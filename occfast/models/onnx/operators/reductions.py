"""Means, sums, extremes and norms along dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..builder import Builder, Value
from ..call import Call, positive
from ..errors import UnsupportedForm
from .table import operator

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "ReduceMean": torch.mean,
    "ReduceSum": torch.sum,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
    "ReduceL1": lambda x, dim, keepdim: torch.linalg.vector_norm(x, 1, dim, keepdim),
    "ReduceL2": torch.linalg.vector_norm,
    "ReduceProd": torch.prod,
    "ReduceLogSumExp": torch.logsumexp,
    "ReduceSumSquare": torch.sum,
}
#: Version since which the dimensions are an argument.
_ARGUMENT = {"ReduceSum": 13}


@operator(*_FUNCTIONS)
def reduce(b: Builder, call: Call) -> Value:
    """Add a reduction along some dimensions, or all."""
    value, keep = call.value(), call.flag("keepdims", True)
    given: list[int] | None
    if call.opset >= _ARGUMENT.get(call.kind, 18):
        empty = call.flag("noop_with_empty_axes")
        given = call.numbers(1, "dimensions") if call.has(1) else None
        if not given and empty:
            if call.kind == "ReduceSumSquare":
                return b.call(torch.square, value)
            if call.kind in ("ReduceL1", "ReduceL2"):
                return b.call(torch.abs, value)
            return value
    else:
        given = call.integers("axes")
    axes = sorted({positive(axis, value.rank) for axis in given or range(value.rank)})
    if value.varies and (0 in axes or value.dtype != torch.float32):
        raise UnsupportedForm("a reduction of the batch, or of another type than float32")
    if call.kind == "ReduceProd":
        if value.varies:
            raise UnsupportedForm("products that depend on the images")
        for axis in reversed(axes):
            value = b.call(lambda x, axis=axis: torch.prod(x, axis, keep).to(x.dtype), value)
        return value
    if value.dtype != torch.float32 and call.kind not in ("ReduceSum", "ReduceMax", "ReduceMin"):
        raise UnsupportedForm(str(value.dtype).removeprefix("torch."))
    if call.kind == "ReduceL2":
        return b.call(torch.linalg.vector_norm, value, 2, axes, keep)
    if call.kind == "ReduceL1":
        return b.call(torch.linalg.vector_norm, value, 1, axes, keep)
    if call.kind == "ReduceSumSquare":
        value = b.call(torch.square, value)
    return b.call(_FUNCTIONS[call.kind], value, axes, keep)


@operator("ArgMax", "ArgMin")
def arg(b: Builder, call: Call) -> Value:
    """Never followed: the answer of a network is its scores."""
    raise UnsupportedForm("indices as a result")


__all__ = ["reduce"]
