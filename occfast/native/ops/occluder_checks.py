"""The occluder op with a check of the value range, as one op that compiled graphs can contain."""

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
