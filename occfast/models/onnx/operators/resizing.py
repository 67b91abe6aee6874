"""Other sizes of maps."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from ..builder import Builder, Value
from ..call import Call
from ..errors import Malformed, UnsupportedForm
from .table import operator

_MOST = 1 << 20


@operator("Resize", "Upsample")
def resize(b: Builder, call: Call) -> Value:
    """Nearest, linear or cubic interpolation of rows and columns."""
    value = call.value()
    if value.rank != 4 or not value.varies or value.dtype != torch.float32:
        raise UnsupportedForm(f"{value.rank} dimensions of {value.dtype}")
    scales, sizes = _wanted(call, value)
    mode = call.text("mode", "nearest", ("nearest", "linear", "cubic"))
    if call.kind == "Upsample" or call.opset < 11:
        place, rounding = "asymmetric", "floor"
    else:
        place = call.text("coordinate_transformation_mode", "half_pixel")
        rounding = call.text("nearest_mode", "round_prefer_floor")
        if call.flag("antialias") or call.flag("exclude_outside"):
            raise UnsupportedForm("antialias or exclude_outside")
        coefficient = call.number("cubic_coeff_a", -0.75)
        call.number("extrapolation_value", 0.0)
        if mode == "cubic" and coefficient != -0.75:
            raise UnsupportedForm(f"cubic_coeff_a {coefficient}")
    before = (value.shape[2], value.shape[3])
    if sizes == before and all(scale == 1 for scale in scales):
        return value
    if mode == "nearest":
        return _nearest(b, value, before, sizes, scales, place, rounding)
    exact = all(abs(n * scale - out) < 1e-4 * out for n, scale, out in zip(before, scales, sizes, strict=True))
    half = place == "half_pixel" or (place == "pytorch_half_pixel" and min(sizes) > 1)
    if not (half and exact) and not (place == "align_corners" and min(sizes) > 1):
        raise UnsupportedForm(f"{mode} with {place!r:.40} to {list(sizes)}")
    kind = {"linear": "bilinear", "cubic": "bicubic"}[mode]
    return b.call(F.interpolate, value, size=sizes, mode=kind, align_corners=place == "align_corners")


def _wanted(call: Call, value: Value) -> tuple[tuple[float, float], tuple[int, int]]:
    """Return the scales and the sizes of rows and columns."""
    axes = call.integers("axes", None, 0) if call.opset >= 18 else None
    if call.opset >= 18 and call.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise UnsupportedForm("keep_aspect_ratio_policy")
    scales: list[float] | None = None
    sizes: list[int] | None = None
    if call.kind == "Upsample" and call.opset < 9:
        scales = call.floats("scales")
    else:
        at = 1 if call.opset < 11 else 2
        if call.has(at) and (found := call.constant(at, "scales")).numel():
            scales = [float(scale) for scale in found.reshape(-1)[:9].tolist()]
        elif call.has(3):
            first = call.value(3)
            if first.varies:
                raise UnsupportedForm("sizes that depend on the images")
            # The batch may be among the sizes.
            rows = [sample.reshape(-1)[:9].tolist() for sample in first.samples]
            if axes is None and len(rows[0]) == 4:
                rows = [row[1:] for row in rows]
                axes = [1, 2, 3]
            if rows[0] != rows[1]:
                raise UnsupportedForm("sizes that depend on the batch size")
            sizes = [int(size) for size in rows[0]]
    given: list[float] | list[int] | None = scales if scales is not None else sizes
    axes = list(range(4)) if axes is None else axes
    if given is None or len(given) != len(axes) or len(set(axes)) < len(axes) or max(axes, default=0) > 3:
        raise Malformed(f"scales {scales}, sizes {sizes}")
    wanted, factors = list(value.shape), [1.0] * 4
    for axis, number in zip(axes, given, strict=True):
        if not (math.isfinite(number) and 0 < number <= _MOST):
            raise Malformed(f"scales {scales}, sizes {sizes}")
        if scales is not None:
            factors[axis], wanted[axis] = float(number), math.floor(value.shape[axis] * float(number))
        else:
            factors[axis], wanted[axis] = number / value.shape[axis], int(number)
    if wanted[:2] != list(value.shape[:2]) or min(wanted[2:]) < 1 or max(wanted[2:]) > _MOST:
        raise UnsupportedForm(f"sizes {wanted[1:]} for {list(value.shape[1:])}")
    return (factors[2], factors[3]), (wanted[2], wanted[3])


def _nearest(
    b: Builder,
    value: Value,
    before: tuple[int, int],
    sizes: tuple[int, int],
    scales: tuple[float, float],
    place: str,
    rounding: str,
) -> Value:
    """Choose rows and columns, by ``F.interpolate`` where it chooses the same."""
    chosen = [_chosen(*given, place, rounding) for given in zip(before, sizes, scales, strict=True)]
    usual = [[k * n // out for k in range(out)] for n, out in zip(before, sizes, strict=True)]
    if chosen == usual and all(out % n == 0 for n, out in zip(before, sizes, strict=True)):
        return b.call(F.interpolate, value, size=sizes, mode="nearest")
    for axis, (indices, n) in enumerate(zip(chosen, before, strict=True), 2):
        if indices != list(range(n)):
            value = b.call(torch.index_select, value, axis, b.constant(torch.tensor(indices)))
    return value


def _chosen(n: int, out: int, scale: float, place: str, rounding: str) -> list[int]:
    indices = []
    for k in range(out):
        if place == "half_pixel" or (place == "pytorch_half_pixel" and out > 1):
            x = (k + 0.5) / scale - 0.5
        elif place == "pytorch_half_pixel":
            x = 0.0
        elif place == "asymmetric":
            x = k / scale
        elif place == "align_corners":
            x = k * (n - 1) / (out - 1) if out > 1 else 0.0
        else:
            raise UnsupportedForm(f"coordinate_transformation_mode {place!r:.40}")
        if rounding == "floor":
            index = math.floor(x)
        elif rounding == "ceil":
            index = math.ceil(x)
        elif rounding == "round_prefer_floor":
            index = math.ceil(x - 0.5)
        elif rounding == "round_prefer_ceil":
            index = math.floor(x + 0.5)
        else:
            raise UnsupportedForm(f"nearest_mode {rounding!r:.40}")
        indices.append(min(max(index, 0), n - 1))
    return indices


__all__ = ["resize"]
