"""Ops of the noisy occluders, which are drawn from (seed, sample id) and painted in one pass."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..enums import NoiseKind
from .common import (
    IMAGE_DTYPES,
    address,
    call,
    dense,
    expect,
    expect_device,
    expect_dtype,
    expect_shape,
    is_channels_last,
    module_for,
    nothing,
    register,
    strides_of,
)

#: Kinds of noise by name.
KINDS = {kind.name.lower(): kind for kind in NoiseKind}


@lru_cache(maxsize=64)
def _check_params(
    height: int,
    width: int,
    seed: int,
    probability: float,
    sizes: tuple[int, ...],
    ranges: tuple[float, ...],
    kinds: tuple[int, ...],
) -> None:
    expect(seed >= 0, "seed", "a number in [0, 2**63)", seed)
    expect(0 <= probability <= 1, "probability", "a number in [0, 1]", probability)
    expect(
        len(sizes) == 4 and 1 <= sizes[0] <= sizes[1] <= height and 1 <= sizes[2] <= sizes[3] <= width,
        "sizes",
        f"[min height, max height, min width, max width] within {height}x{width}",
        list(sizes),
    )
    expect(len(ranges) == 4, "ranges", "[min level, max level, min intensity, max intensity]", list(ranges))
    expect(
        1 <= len(kinds) <= 4 and set(kinds) <= set(KINDS.values()),
        "kinds",
        f"one to four of {sorted(map(int, KINDS.values()))}",
        list(kinds),
    )


def _check_draw(
    sample_ids: Tensor,
    cdf: Tensor,
    row_centers: Tensor,
    column_centers: Tensor,
    height: int,
    width: int,
    seed: int,
    probability: float,
    sizes: list[int],
    ranges: list[float],
    kinds: list[int],
) -> None:
    device = sample_ids.device
    expect_dtype(sample_ids, "sample_ids", torch.int64)
    expect(sample_ids.dim() == 1, "sample_ids", "shape [N]", sample_ids.shape)
    if device.type == "cpu" and sample_ids.numel():
        lowest = int(sample_ids.min())
        expect(lowest >= 0, "sample_ids", "no negative number", lowest)
    expect_dtype(cdf, "cdf", torch.float64)
    for name, centers in (("row_centers", row_centers), ("column_centers", column_centers)):
        expect_dtype(centers, name, torch.int64)
        expect(centers.dim() == 1 and centers.numel() > 0, name, "one dimension, not empty", centers.shape)
    expect_shape(cdf, "cdf", (row_centers.numel() * column_centers.numel(),))
    _check_params(height, width, seed, probability, tuple(sizes), tuple(ranges), tuple(kinds))
    expect_device(device, cdf=cdf, row_centers=row_centers, column_centers=column_centers)


def _draw_occluders(
    sample_ids: Tensor,
    cdf: Tensor,
    row_centers: Tensor,
    column_centers: Tensor,
    channels: int,
    height: int,
    width: int,
    seed: int,
    probability: float,
    sizes: list[int],
    ranges: list[float],
    kinds: list[int],
    gray: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    device = sample_ids.device
    _check_draw(sample_ids, cdf, row_centers, column_centers, height, width, seed, probability, sizes, ranges, kinds)
    native = module_for(device)
    if native is None:
        return reference.draw_occluders(
            sample_ids,
            cdf,
            row_centers,
            column_centers,
            channels,
            height,
            width,
            seed,
            probability,
            sizes,
            ranges,
            kinds,
            gray,
        )
    out = _fake_draw_occluders(sample_ids, cdf, row_centers, column_centers, channels)
    sample_ids, cdf = sample_ids.contiguous(), cdf.contiguous()
    row_centers, column_centers = row_centers.contiguous(), column_centers.contiguous()
    draw = _draw(
        native,
        sample_ids,
        cdf,
        row_centers,
        column_centers,
        channels,
        height,
        width,
        _params(native, seed, probability, sizes, ranges, kinds, gray),
        _occluders(native, out),
    )
    call(native, "draw_occluders", device, draw)
    return out


def _params(
    native: Any, seed: int, probability: float, sizes: list[int], ranges: list[float], kinds: list[int], gray: bool
) -> Any:
    min_height, max_height, min_width, max_width = sizes
    min_level, max_level, min_intensity, max_intensity = ranges
    return native.OccluderParams(
        seed=seed,
        probability=probability,
        min_height=min_height,
        max_height=max_height,
        min_width=min_width,
        max_width=max_width,
        min_level=min_level,
        max_level=max_level,
        min_intensity=min_intensity,
        max_intensity=max_intensity,
        kinds=kinds,
        gray=gray,
    )


def _occluders(native: Any, tensors: tuple[Tensor, Tensor, Tensor, Tensor]) -> Any:
    boxes, kind, level, intensity = tensors
    return native.Occluders(
        boxes=boxes.data_ptr(), kind=kind.data_ptr(), level=level.data_ptr(), intensity=intensity.data_ptr()
    )


def _draw(
    native: Any,
    sample_ids: Tensor,
    cdf: Tensor,
    row_centers: Tensor,
    column_centers: Tensor,
    channels: int,
    height: int,
    width: int,
    params: Any,
    occluders: Any,
) -> Any:
    return native.DrawOccluders(
        sample_ids=sample_ids.data_ptr(),
        n=sample_ids.numel(),
        channels=channels,
        image_height=height,
        image_width=width,
        locations=native.Locations(
            cdf=cdf.data_ptr(),
            row_centers=row_centers.data_ptr(),
            rows=row_centers.numel(),
            column_centers=column_centers.data_ptr(),
            columns=column_centers.numel(),
        ),
        params=params,
        occluders=occluders,
    )


def _painted(
    native: Any,
    images: Tensor,
    out: Tensor,
    layout: torch.memory_format,
    sample_ids: Tensor,
    occluders: Any,
    seed: int,
    low: float,
    high: float,
    outside: Tensor | None,
) -> Any:
    return native.PaintOccluders(
        images=images.data_ptr(),
        out=out.data_ptr(),
        dtype=IMAGE_DTYPES[images.dtype],
        shape=images.shape,
        strides=strides_of(images.shape, layout),
        sample_ids=sample_ids.data_ptr(),
        occluders=occluders,
        seed=seed,
        low=low,
        high=high,
        outside=address(outside),
    )


def _fake_draw_occluders(
    sample_ids: Tensor, cdf: Tensor, row_centers: Tensor, column_centers: Tensor, channels: int, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n = sample_ids.shape[0]
    return (
        sample_ids.new_empty((n, 4), dtype=torch.int32),
        sample_ids.new_empty((n,), dtype=torch.uint8),
        sample_ids.new_empty((n,), dtype=torch.float32),
        sample_ids.new_empty((n, channels), dtype=torch.float32),
    )


def _paint(
    images: Tensor,
    out: Tensor,
    layout: torch.memory_format,
    sample_ids: Tensor,
    boxes: Tensor,
    kind: Tensor,
    level: Tensor,
    intensity: Tensor,
    seed: int,
    low: float,
    high: float,
    outside: Tensor | None = None,
) -> None:
    n, channels = images.shape[:2]
    for name, tensor, dtype, shape in (
        ("sample_ids", sample_ids, torch.int64, (n,)),
        ("boxes", boxes, torch.int32, (n, 4)),
        ("kind", kind, torch.uint8, (n,)),
        ("level", level, torch.float32, (n,)),
        ("intensity", intensity, torch.float32, (n, channels)),
    ):
        expect_dtype(tensor, name, dtype)
        expect_shape(tensor, name, shape)
    expect_device(images.device, sample_ids=sample_ids, boxes=boxes, kind=kind, level=level, intensity=intensity)
    expect(seed >= 0, "seed", "a number in [0, 2**63)", seed)
    if boxes.device.type == "cpu" and n:
        height, width = images.shape[-2:]
        inside = (boxes >= 0).all() and (boxes <= torch.tensor([height, width, height, width])).all()
        expect(bool(inside), "boxes", f"(top, left, bottom, right) within {height}x{width}", "a box outside")
    if outside is not None:
        expect_dtype(outside, "outside", torch.int32)
        expect_shape(outside, "outside", (1,))
        expect_device(images.device, outside=outside)
    native = module_for(images.device)
    if native is None:
        reference.paint_occluders(images, out, sample_ids, boxes, kind, level, intensity, seed, low, high, outside)
        return
    sample_ids, boxes, kind = sample_ids.contiguous(), boxes.contiguous(), kind.contiguous()
    level, intensity = level.contiguous(), intensity.contiguous()
    occluders = _occluders(native, (boxes, kind, level, intensity))
    paint = _painted(native, images, out, layout, sample_ids, occluders, seed, low, high, outside)
    call(native, "paint_occluders", images.device, paint)


def _check_images(images: Tensor) -> None:
    expect(images.dim() == 4, "images", "shape [N, C, H, W]", images.shape)
    expect_dtype(images, "images", *IMAGE_DTYPES)


def _layout_in_place(images: Tensor) -> torch.memory_format:
    expect(
        is_channels_last(images) or images.is_contiguous(),
        "images",
        "a contiguous or channels_last tensor to paint in place",
        f"strides {images.stride()}",
    )
    return dense(images)[1]


def _paint_occluders(images: Tensor, *arguments: Any) -> Tensor:
    _check_images(images)
    images, layout = dense(images)
    out = torch.empty_like(images, memory_format=layout)
    _paint(images, out, layout, *arguments)
    return out


def _paint_occluders_in_place(images: Tensor, *arguments: Any) -> None:
    _check_images(images)
    _paint(images, images, _layout_in_place(images), *arguments)


def _fake_paint_occluders(images: Tensor, *_: Any) -> Tensor:
    layout = torch.channels_last if is_channels_last(images) else torch.contiguous_format
    return torch.empty_like(images, memory_format=layout)


def _draw_and_paint(
    images: Tensor,
    out: Tensor,
    layout: torch.memory_format,
    sample_ids: Tensor,
    cdf: Tensor,
    row_centers: Tensor,
    column_centers: Tensor,
    seed: int,
    probability: float,
    sizes: list[int],
    ranges: list[float],
    kinds: list[int],
    gray: bool,
    low: float,
    high: float,
    outside: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, channels, height, width = images.shape
    _check_draw(sample_ids, cdf, row_centers, column_centers, height, width, seed, probability, sizes, ranges, kinds)
    expect_shape(sample_ids, "sample_ids", (n,))
    expect_device(images.device, sample_ids=sample_ids, outside=outside)
    if outside is not None:
        expect_dtype(outside, "outside", torch.int32)
        expect_shape(outside, "outside", (1,))
    native = module_for(images.device)
    if native is None:
        drawn = reference.draw_occluders(
            sample_ids,
            cdf,
            row_centers,
            column_centers,
            channels,
            height,
            width,
            seed,
            probability,
            sizes,
            ranges,
            kinds,
            gray,
        )
        reference.paint_occluders(images, out, sample_ids, *drawn, seed, low, high, outside)
        return drawn
    drawn = _fake_draw_occluders(sample_ids, cdf, row_centers, column_centers, channels)
    sample_ids, cdf = sample_ids.contiguous(), cdf.contiguous()
    row_centers, column_centers = row_centers.contiguous(), column_centers.contiguous()
    params, occluders = _params(native, seed, probability, sizes, ranges, kinds, gray), _occluders(native, drawn)
    draw = _draw(native, sample_ids, cdf, row_centers, column_centers, channels, height, width, params, occluders)
    paint = _painted(native, images, out, layout, sample_ids, occluders, seed, low, high, outside)
    call(native, "draw_and_paint", images.device, draw, paint)
    return drawn


def _occlude(images: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _check_images(images)
    images, layout = dense(images)
    out = torch.empty_like(images, memory_format=layout)
    return (out, *_draw_and_paint(images, out, layout, *arguments))


def _occlude_in_place(images: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_images(images)
    return _draw_and_paint(images, images, _layout_in_place(images), *arguments)


def _fake_occlude(images: Tensor, sample_ids: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (_fake_paint_occluders(images), *_fake_occlude_in_place(images, sample_ids))


def _fake_occlude_in_place(images: Tensor, sample_ids: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _fake_draw_occluders(sample_ids, sample_ids, sample_ids, sample_ids, images.shape[1])


#: One occluder per sample, from (seed, sample id) alone: ``boxes`` int32 [N,4] (top, left, bottom, right), ``kind``
#: uint8 [N] (a :class:`NoiseKind`, or 255 without an occluder), ``level`` float32 [N], ``intensity`` float32 [N,C].
draw_occluders = register(
    "draw_occluders(Tensor sample_ids, Tensor cdf, Tensor row_centers, Tensor column_centers, int channels, "
    "int height, int width, int seed, float probability, int[] sizes, float[] ranges, int[] kinds, bool gray) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _draw_occluders,
    _fake_draw_occluders,
)

_PAINT = (
    "Tensor sample_ids, Tensor boxes, Tensor kind, Tensor level, Tensor intensity, int seed, float low, float high, "
    "Tensor(b!)? outside=None)"
)

#: A copy of the images with drawn occluders painted on it. ``low`` and ``high`` are the values of intensities 0 and 1.
#: ``outside`` int32 [1] is set to 1 if a floating-point image has NaN or a value outside [low, high].
paint_occluders = register(
    f"paint_occluders(Tensor images, {_PAINT} -> Tensor", _paint_occluders, _fake_paint_occluders
)

#: As ``paint_occluders``, in place; the images must be contiguous or channels_last.
paint_occluders_ = register(f"paint_occluders_(Tensor(a!) images, {_PAINT} -> ()", _paint_occluders_in_place, nothing)

_OCCLUDE = (
    "Tensor sample_ids, Tensor cdf, Tensor row_centers, Tensor column_centers, int seed, float probability, "
    "int[] sizes, float[] ranges, int[] kinds, bool gray, float low, float high, Tensor(b!)? outside=None)"
)

#: ``draw_occluders`` and ``paint_occluders`` in one call; returns (painted images, boxes, kind, level, intensity).
occlude = register(
    f"occlude(Tensor images, {_OCCLUDE} -> (Tensor, Tensor, Tensor, Tensor, Tensor)", _occlude, _fake_occlude
)

#: As ``occlude``, in place; returns (boxes, kind, level, intensity).
occlude_ = register(
    f"occlude_(Tensor(a!) images, {_OCCLUDE} -> (Tensor, Tensor, Tensor, Tensor)",
    _occlude_in_place,
    _fake_occlude_in_place,
)
