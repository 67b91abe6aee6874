"""Arithmetic of two values, comparisons and changes of the type."""

from __future__ import annotations

import operator as python
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..builder import Builder, Value
from ..call import Call
from ..errors import Malformed, UnsupportedForm
from .table import operator


def plain(value: Value, rank: int) -> Any:
    """Return a constant of one number as that number, where this leaves the result's shape; else the value."""
    if value.varies or value.sized or value.samples[0].numel() != 1 or value.rank > rank:
        return value
    return value.samples[0].item()


def binary(b: Builder, function: Callable[..., Any], first: Value, second: Value) -> Value:
    """Add a call of a function of two values."""
    if first.dtype != second.dtype:
        raise Malformed(f"its arguments are of {first.dtype} and {second.dtype}")
    if not first.varies and not second.varies:
        return b.call(function, first, second)
    if first.dtype == torch.float64:
        raise UnsupportedForm("float64")
    if first.varies:
        return b.call(function, first, plain(second, first.rank))
    return b.call(function, plain(first, second.rank), second)


def divided(a: Any, b: Any) -> Any:
    """Return a quotient; of whole numbers, without its fraction. Division by -1 would overflow in hardware."""
    if isinstance(a, Tensor) and isinstance(b, Tensor) and not a.is_floating_point():
        if b.device.type != "meta" and bool((b == 0).any()):
            raise Malformed("it divides by 0")
        safe = torch.where(b == -1, torch.ones_like(b), b)
        return torch.where(b == -1, -a, torch.div(a, safe, rounding_mode="trunc"))
    return a / b


def _remainder(a: Tensor, b: Tensor) -> Tensor:
    if b.device.type != "meta" and not b.is_floating_point() and bool((b == 0).any()):
        raise Malformed("it divides by 0")
    safe = torch.where(b == -1, torch.ones_like(b), b)
    return torch.remainder(a, safe)


_TWO: dict[str, Callable[..., Any]] = {
    "Add": python.add,
    "Sub": python.sub,
    "Mul": python.mul,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "And": torch.logical_and,
    "Or": torch.logical_or,
}


@operator(*_TWO)
def two(b: Builder, call: Call) -> Value:
    """Arithmetic and comparisons with broadcasting."""
    return binary(b, _TWO[call.kind], call.value(0), call.value(1))


@operator("Div")
def div(b: Builder, call: Call) -> Value:
    """Add a quotient."""
    first, second = call.value(0), call.value(1)
    if first.varies or second.varies:
        if first.dtype != torch.float32:
            raise UnsupportedForm("whole numbers that depend on the images")
        return binary(b, python.truediv, first, second)
    return binary(b, divided, first, second)


@operator("Mod")
def mod(b: Builder, call: Call) -> Value:
    """Compute a remainder of constants, with the divisor's sign."""
    if call.flag("fmod"):
        raise UnsupportedForm("fmod")
    first, second = call.value(0), call.value(1)
    if first.varies or second.varies:
        raise UnsupportedForm("remainders that depend on the images")
    return binary(b, _remainder, first, second)


@operator("Pow")
def power(b: Builder, call: Call) -> Value:
    """Add a power; the exponent may have another type."""
    first, second = call.value(0), call.value(1)
    if second.varies or first.dtype not in (torch.float32, torch.int64):
        raise UnsupportedForm("exponents that depend on the images, or other types")
    if not first.varies:
        if first.dtype != torch.float32 and bool((call.constant(1, "exponents") < 0).any()):
            raise Malformed("a whole number has a negative exponent")
        return b.call(lambda x, y: torch.pow(x, y).to(x.dtype), first, second)
    exponent = plain(second, first.rank)
    if isinstance(exponent, Value):
        raise UnsupportedForm("several exponents")
    return b.call(torch.pow, first, exponent)


@operator("Max", "Min", "Sum", "Mean")
def several(b: Builder, call: Call) -> Value:
    """Add the largest, the smallest, the sum or the mean of values."""
    values = call.values()
    if not values:
        raise Malformed("it has no arguments")
    functions: dict[str, Callable[..., Any]] = {"Max": torch.maximum, "Min": torch.minimum}
    function = functions.get(call.kind, python.add)
    result = values[0]
    for value in values[1:]:
        if function is python.add:
            result = binary(b, function, result, value)
            continue
        if result.dtype != value.dtype:
            raise Malformed(f"its arguments are of {result.dtype} and {value.dtype}")
        result = b.call(function, result, value)
    return b.call(python.truediv, result, len(values)) if call.kind == "Mean" and len(values) > 1 else result


@operator("Not")
def invert(b: Builder, call: Call) -> Value:
    """Logical negation."""
    return b.call(torch.logical_not, call.value())


@operator("Where")
def where(b: Builder, call: Call) -> Value:
    """Add a choice between two values."""
    condition, first, second = call.values()
    if first.dtype != second.dtype or condition.dtype != torch.bool:
        raise Malformed(f"its arguments are of {condition.dtype}, {first.dtype} and {second.dtype}")
    return b.call(torch.where, condition, first, second)


_CASTS = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float32,  # float16 is computed in float32
    11: torch.float64,
    16: torch.float32,
}


@operator("Cast", "CastLike")
def cast(b: Builder, call: Call) -> Value:
    """Another type; float16 and bfloat16 stay float32."""
    call.integer("saturate", 1)
    value = call.value()
    if call.kind == "CastLike":
        wanted = call.value(1).dtype
    else:
        number = call.integer("to", 0)
        if number not in _CASTS:
            raise UnsupportedForm(f"to the type {number}")
        wanted = _CASTS[number]
    if value.dtype == wanted:
        return value
    if value.varies and (wanted != torch.float32 or value.dtype == torch.float64):
        raise UnsupportedForm(f"images to {str(wanted).removeprefix('torch.')}")
    return b.call("to", value, wanted)


__all__ = ["binary", "plain"]
