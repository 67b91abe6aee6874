"""The occluder op with checks of the value range, also of each channel, as ops that compiled graphs can contain."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .common import register
from .occluders import occlude

_Result = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def outside_range(images: Tensor, low: float, high: float, where: str = "") -> ValueError:
    """Return the error for floating-point images with values outside [low, high]."""
    found = [f"{float(v):g}" for v in images.float().aminmax()]
    return ValueError(
        f"images: expected values in [{low:g}, {high:g}], the value_range of this occluder{where}, "
        f"got values from {found[0]} to {found[1]}"
    )


def _occlude_validated(images: Tensor, *arguments: Any) -> _Result:
    outside = torch.zeros(1, dtype=torch.int32, device=images.device)
    result: _Result = occlude(images, *arguments, outside)
    if int(outside):
        raise outside_range(images, *arguments[-2:])
    return result


def _fake_occlude_validated(images: Tensor, sample_ids: Tensor, *_: Any) -> _Result:
    n, channels = images.shape[:2]
    return (
        torch.empty_like(images),
        sample_ids.new_empty((n, 4), dtype=torch.int32),
        sample_ids.new_empty((n,), dtype=torch.uint8),
        sample_ids.new_empty((n,), dtype=torch.float32),
        sample_ids.new_empty((n, channels), dtype=torch.float32),
    )


#: :data:`~occfast.native.ops.occlude` with a check: raises ValueError if floating-point images leave [low, high].
occlude_validated = register(
    "occlude_validated(Tensor images, Tensor sample_ids, Tensor cdf, Tensor row_centers, Tensor column_centers, "
    "int seed, float probability, int[] sizes, float[] ranges, int[] kinds, bool gray, float low, float high) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _occlude_validated,
    _fake_occlude_validated,
)


def paint_by_channel(
    images: Tensor, limits: Tensor, validate: bool, sample_ids: Tensor, cdf: Tensor, *arguments: Any
) -> _Result:
    """Occlude copies of images whose channels have ranges of their own.

    Occluders are painted on black with values in [0, 1], and moved to the ranges of the channels.

    Args:
        images: Floating point [N, C, H, W].
        limits: float32 [C, 2], the values that correspond to 0 and 1.
        validate: Raise ValueError if images leave their ranges.
        sample_ids, cdf, arguments: As for :data:`~occfast.native.ops.occlude`, up to ``gray``.
    """
    low, high = limits[:, 0], limits[:, 1]
    if validate and images.numel():
        # Normalize rounds its limits by another order of operations than this range was computed in.
        slack = 2 * torch.finfo(images.dtype).eps * limits.abs().amax(1)
        least, most = (extreme((0, 2, 3)).float() for extreme in (images.amin, images.amax))
        outside = ~((least >= low - slack) & (most <= high + slack))  # true for NaN
        if bool(outside.any()):
            channel = int(outside.int().argmax())
            allowed = float(low[channel]), float(high[channel])
            raise outside_range(images[:, channel], *allowed, f" in channel {channel}")
    black = torch.zeros_like(images, dtype=torch.float32)
    unit, *drawn = occlude(black, sample_ids, cdf, *arguments, 0.0, 1.0)
    painted = unit.mul_((high - low)[:, None, None]).add_(low[:, None, None]).to(images.dtype)
    i = torch.arange(images.shape[2], device=images.device)[:, None]
    j = torch.arange(images.shape[3], device=images.device)
    top, left, bottom, right = (drawn[0][:, k, None, None, None] for k in range(4))
    inside = (i >= top) & (i < bottom) & (j >= left) & (j < right)
    return (torch.where(inside, painted, images), *drawn)


def _fake_occlude_by_channel(images: Tensor, limits: Tensor, validate: bool, sample_ids: Tensor, *_: Any) -> _Result:
    return _fake_occlude_validated(images, sample_ids)


#: :func:`paint_by_channel` as one op.
occlude_by_channel = register(
    "occlude_by_channel(Tensor images, Tensor limits, bool validate, Tensor sample_ids, Tensor cdf, "
    "Tensor row_centers, Tensor column_centers, int seed, float probability, int[] sizes, float[] ranges, "
    "int[] kinds, bool gray) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    paint_by_channel,
    _fake_occlude_by_channel,
)
