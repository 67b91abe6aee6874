"""Functions of single numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..builder import Builder, Value
from ..call import Call
from ..errors import Malformed, UnsupportedForm
from .table import OPERATORS, operator


def _float(call: Call) -> Value:
    """Return the argument, which has to be float32."""
    value = call.value()
    if value.dtype != torch.float32:
        raise UnsupportedForm(str(value.dtype).removeprefix("torch."))
    return value


def applied(b: Builder, value: Value, module: nn.Module, name: str) -> Value:
    """Return a module's result, of constants too."""
    return b.module(module, name, {}, value) if value.varies else b.call(module, value)


def _plain(kind: str, make: Callable[[], nn.Module]) -> None:
    def read(b: Builder, call: Call) -> Value:
        return applied(b, _float(call), make(), kind.lower())

    OPERATORS[kind] = read


def _function(kind: str, function: Callable[..., Any]) -> None:
    def read(b: Builder, call: Call) -> Value:
        return b.call(function, _float(call))

    OPERATORS[kind] = read


for _kind, _make in {
    "Sigmoid": nn.Sigmoid,
    "Tanh": nn.Tanh,
    "Softplus": nn.Softplus,
    "Softsign": nn.Softsign,
    "Mish": nn.Mish,
    "HardSwish": nn.Hardswish,
}.items():
    _plain(_kind, _make)
for _kind, _target in {
    "Exp": torch.exp,
    "Log": torch.log,
    "Sqrt": torch.sqrt,
    "Erf": torch.erf,
    "Reciprocal": torch.reciprocal,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Round": torch.round,
}.items():
    _function(_kind, _target)


@operator("Relu")
def relu(b: Builder, call: Call) -> Value:
    """``max(x, 0)``."""
    return applied(b, call.value(), nn.ReLU(), "relu")


@operator("Abs", "Neg", "Sign")
def signs(b: Builder, call: Call) -> Value:
    """Functions of numbers of any type."""
    return b.call({"Abs": torch.abs, "Neg": torch.neg, "Sign": torch.sign}[call.kind], call.value())


@operator("LeakyRelu")
def leaky_relu(b: Builder, call: Call) -> Value:
    """``x`` if positive, else ``alpha x``."""
    return applied(b, _float(call), nn.LeakyReLU(call.number("alpha", 0.01)), "leaky_relu")


@operator("Elu", "Celu")
def elu(b: Builder, call: Call) -> Value:
    """Exponential below 0."""
    alpha = call.number("alpha", 1.0)
    if alpha == 0:
        raise Malformed("expected alpha other than 0")
    made = nn.ELU(alpha) if call.kind == "Elu" else nn.CELU(alpha)
    return applied(b, _float(call), made, call.kind.lower())


@operator("Selu")
def selu(b: Builder, call: Call) -> Value:
    """``gamma`` times an ELU of ``alpha``."""
    alpha, gamma = call.number("alpha", 1.6732632423543772), call.number("gamma", 1.0507009873554805)
    usual = abs(alpha - 1.6732632423543772) < 1e-6 and abs(gamma - 1.0507009873554805) < 1e-6
    if not usual:
        raise UnsupportedForm(f"alpha {alpha}, gamma {gamma}")
    return applied(b, _float(call), nn.SELU(), "selu")


@operator("HardSigmoid")
def hard_sigmoid(b: Builder, call: Call) -> Value:
    """``alpha x + beta`` in [0, 1]."""
    value, alpha, beta = _float(call), call.number("alpha", 0.2), call.number("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return applied(b, value, nn.Hardsigmoid(), "hard_sigmoid")
    scaled = b.call(torch.add, b.call(torch.mul, value, alpha), beta)
    return b.call(torch.clamp, scaled, 0.0, 1.0)


@operator("ThresholdedRelu")
def thresholded_relu(b: Builder, call: Call) -> Value:
    """``x`` above ``alpha``, else 0."""
    return applied(b, _float(call), nn.Threshold(call.number("alpha", 1.0), 0.0), "threshold")


@operator("Gelu")
def gelu(b: Builder, call: Call) -> Value:
    """Gaussian error linear unit."""
    approximate = call.text("approximate", "none", ("none", "tanh"))
    return applied(b, _float(call), nn.GELU(approximate), "gelu")


@operator("Clip")
def clip(b: Builder, call: Call) -> Value:
    """``x`` between two bounds: attributes before version 11, arguments since."""
    least: float | None
    most: float | None
    if call.opset < 11:
        least = call.number("min", float("-inf")) if call.given("min") else None
        most = call.number("max", float("inf")) if call.given("max") else None
    else:
        least, most = call.scalar(1, "min"), call.scalar(2, "max")
    value = call.value()
    if value.dtype != torch.float32:
        bounds = [None if bound is None else int(bound) for bound in (least, most)]
        return value if bounds == [None, None] else b.call(torch.clamp, value, *bounds)
    if least == 0 and most is None:
        return applied(b, value, nn.ReLU(), "relu")
    if (least, most) == (0, 6):
        return applied(b, value, nn.ReLU6(), "relu6")
    return value if least is most is None else b.call(torch.clamp, value, least, most)


@operator("PRelu")
def prelu(b: Builder, call: Call) -> Value:
    """``x`` if positive, else ``slope x``."""
    value, slope = _float(call), call.constant(1, "slopes")
    if not value.varies or slope.dtype != torch.float32:
        raise UnsupportedForm("a constant argument, or slopes of another type")
    if slope.numel() == 1 and slope.dim() <= value.rank:
        return b.module(nn.PReLU(1, device="meta"), "prelu", {"weight": slope.reshape(1)}, value)
    along = [k for k, size in enumerate(slope.shape) if size != 1]
    axis = along[0] + value.rank - slope.dim() if len(along) == 1 else -1
    if slope.dim() > value.rank or axis < 1 or slope.numel() != value.shape[axis]:
        raise UnsupportedForm(f"slopes of {list(slope.shape)} for {list(value.shape[1:])}")
    module, weights = nn.PReLU(slope.numel(), device="meta"), {"weight": slope.reshape(-1)}
    if axis == 1:
        return b.module(module, "prelu", weights, value)
    # Channels are dimension 1 of the module, the last one of maps in Keras.
    order = [0, axis, *(k for k in range(1, value.rank) if k != axis)]
    moved = b.module(module, "prelu", weights, b.call(torch.permute, value, order))
    return b.call(torch.permute, moved, [order.index(k) for k in range(value.rank)])


@operator("Softmax", "LogSoftmax")
def softmax(b: Builder, call: Call) -> Value:
    """Softmax along a dimension; before version 13, along it and all later ones together."""
    value, function = _float(call), torch.softmax if call.kind == "Softmax" else torch.log_softmax
    axis = call.axis(value.rank, -1 if call.opset >= 13 else 1)
    if call.opset >= 13 or all(size == 1 for size in value.shape[axis + 1 :]):
        return b.call(function, value, axis)
    if axis == 0:
        raise UnsupportedForm("a softmax of the whole batch")
    flat = b.call(function, b.call(torch.flatten, value, axis), axis)
    return b.viewed("reshape", flat, *(list(sample.shape) for sample in value.samples))


@operator("Dropout", "Identity")
def identity(b: Builder, call: Call) -> Value:
    """Return the argument itself."""
    call.alone()
    if call.kind == "Dropout":
        call.number("ratio", 0.5)
        call.integer("seed", 0)
        call.weight(1, "ratios")
        training = call.weight(2, "modes")
        if training is not None and bool(training.any()):
            raise UnsupportedForm("training mode")
    return call.value()


__all__ = ["applied"]
