"""Kernels compared with the time to read and write their bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.gpu.clocks import Clock
from occfast.native import ops

_CACHE = 256 << 20  # bytes; more than the L2 cache of any GPU


@dataclass
class Case:
    """One op on one workload, the bytes that it must read and write, and whether to time its PyTorch twin."""

    op: str
    workload: str
    bytes: int
    run: Callable[[], Any]
    twin: bool = False
    more: tuple[Callable[[], Any], ...] = ()  # the same work on other buffers, if one would stay in the cache


def _pixels(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    if dtype.is_floating_point:
        return torch.rand(shape, device=device).to(dtype)
    return torch.randint(0, 256, shape, device=device, dtype=dtype)


def _drawing(n: int, channels: int, height: int, width: int, device: str) -> tuple[Any, ...]:
    """Return arguments of draw_occluders: a 20x40 occluder with one of three kinds of noise in every image."""
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    cdf = torch.linspace(0, 1, height * width + 1, dtype=torch.float64, device=device)[1:].contiguous()
    return (
        torch.arange(n, device=device),
        cdf,
        rows,
        columns,
        channels,
        height,
        width,
        7,
        1.0,
        [20, 20, 40, 40],
        [0.05, 0.6, 0.0, 1.0],
        [0, 1, 2],
        False,
    )


def kernel_cases(device: str) -> Iterator[Case]:
    """Yield every op on workloads well above the size of the cache, and on a training batch of 256 images."""
    scale = 128 if device == "cpu" else 1
    grid = [100, 100, 0, 0, 1, 1, 20, 20]
    for dtype, shape, layout in (
        (torch.float32, (64, 1, 100, 100), torch.contiguous_format),
        (torch.uint8, (64, 1, 100, 100), torch.contiguous_format),
        (torch.bfloat16, (64, 3, 112, 112), torch.channels_last),
        (torch.float32, (64, 3, 101, 99), torch.contiguous_format),
    ):
        images = _pixels(shape, dtype, device).contiguous(memory_format=layout)
        fill = _pixels((1, shape[1], 1, 1), dtype, device)
        each = images[0].numel() * images.element_size()
        count = 2**29 // scale // each
        positions = torch.randint(0, shape[0] * 10_000, (count,), device=device).sort().values
        yield Case(
            "occlude_positions",
            f"{count} copies of {list(shape[1:])} {_name(dtype)} {_name(layout)}",
            (count + shape[0]) * each,
            lambda i=images, f=fill, p=positions: ops.occlude_positions(i, f, p, grid),
        )

    count, classes, images_n = 2**17 // scale, 1000, 64
    positions = torch.randperm(count, device=device)
    for kind, code in ops.SCORES.items():
        outputs = torch.randn(count, classes, device=device)
        labels = torch.randint(0, classes, (images_n,), device=device)
        references = torch.rand(images_n, classes, device=device, dtype=torch.float64)
        baseline = torch.rand(images_n, device=device, dtype=torch.float64)
        per_image = count // images_n
        scores, bad = (
            torch.zeros(images_n, per_image, dtype=torch.float64, device=device),
            torch.zeros(1, dtype=torch.int32, device=device),
        )
        yield Case(
            "sweep_score",
            f"{kind}, {count} x {classes} float32",
            outputs.numel() * 4 + count * 16,
            lambda a=(outputs, positions, per_image, code, scores, bad, labels, references, baseline): ops.sweep_score(
                *a
            ),
            twin=True,
        )
    scores = torch.rand(8000 // scale, 10_000, dtype=torch.float64, device=device)
    total, squares = torch.zeros(2, 10_000, dtype=torch.float64, device=device)
    yield Case(
        "sweep_accumulate",
        f"{list(scores.shape)} float64",
        scores.numel() * 8,
        lambda: ops.sweep_accumulate(scores, total, squares),
    )

    for dtype, channels, side in ((torch.float32, 64, 50), (torch.float32, 256, 13), (torch.bfloat16, 128, 25)):
        size = dtype.itemsize
        maps = _pixels((4, channels, side, side), dtype, device).contiguous(memory_format=torch.channels_last)
        window, patch = side // 2, side // 2 - 2
        count = 2**29 // scale // (channels * window * window * size)
        patches = _pixels((count, channels, patch, patch), dtype, device).contiguous(memory_format=torch.channels_last)
        images = torch.arange(count, device=device) % 4
        origins = torch.randint(-2, side - patch, (count, 2), device=device)
        out = count * channels * window * window * size
        read = maps.numel() * size + patches.numel() * size + count * 40  # each once, and the indices
        yield Case(
            "gather_windows",
            f"{count} windows {window}x{window} of {channels}x{side}x{side} {_name(dtype)}",
            out + read,
            lambda a=(maps, images, origins, window, window, patches, origins + 1, 0.0): ops.gather_windows(*a),
        )

    n = 2**20 // scale
    drawing = _drawing(n, 3, 112, 112, device)
    yield Case(
        "draw_occluders",
        f"{n} samples, 3 channels",
        n * (8 + 16 + 1 + 4 + 12),
        lambda: ops.draw_occluders(*drawing),
        twin=True,
    )

    for dtype, shape, layout in (
        (torch.uint8, (2**15, 1, 100, 100), torch.contiguous_format),
        (torch.float32, (2**13, 1, 100, 100), torch.contiguous_format),
        (torch.uint8, (2**13, 3, 112, 112), torch.channels_last),
        (torch.float32, (2**11, 3, 112, 112), torch.contiguous_format),
        (torch.float32, (256 * scale, 1, 100, 100), torch.contiguous_format),
        (torch.uint8, (256 * scale, 3, 112, 112), torch.contiguous_format),
    ):
        n = shape[0] // scale
        images = _pixels((n, *shape[1:]), dtype, device).contiguous(memory_format=layout)
        ids, *params = _drawing(n, *shape[1:], device)
        ends = (0.0, 255.0 if dtype == torch.uint8 else 1.0)
        arguments = (images, ids, *ops.draw_occluders(ids, *params), 7, *ends)
        size = images.numel() * images.element_size()
        copies = 0 if device == "cpu" else min(32, _CACHE // (2 * size))
        others = [(images.clone(memory_format=layout), *arguments[1:]) for _ in range(copies)]
        yield Case(
            "paint_occluders",
            f"{[n, *shape[1:]]} {_name(dtype)} {_name(layout)}",
            2 * size,
            lambda a=arguments: ops.paint_occluders(*a),
            twin=n == 256,
            more=tuple(lambda a=other: ops.paint_occluders(*a) for other in others),
        )


def _name(thing: Any) -> str:
    return {"torch.contiguous_format": "NCHW", "torch.channels_last": "NHWC"}.get(
        str(thing), str(thing).removeprefix("torch.")
    )


def time_kernels(device: str, clock: Clock, bandwidth: float) -> list[dict[str, Any]]:
    """Measure each case: seconds, bytes per second, share of the floor, and seconds of the twin."""
    rows = []
    for case in kernel_cases(device):
        seconds, host = clock(case.run, *case.more)
        row = {
            "op": case.op,
            "workload": case.workload,
            "seconds": seconds,
            "host_seconds": host,
            "bytes": case.bytes,
            "bytes_per_s": case.bytes / seconds,
            "share_of_floor": case.bytes / bandwidth / seconds,
        }
        if case.twin:
            before = os.environ.get("OCCFAST_BACKEND")
            os.environ["OCCFAST_BACKEND"] = "reference"
            try:
                row["twin_seconds"] = clock(case.run).device
            finally:
                os.environ.pop("OCCFAST_BACKEND")
                if before is not None:
                    os.environ["OCCFAST_BACKEND"] = before
        rows.append(row)
    return rows
