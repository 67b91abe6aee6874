"""What every op needs: registration, dispatch to a native module, and the checks of arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import loader

IMAGE_DTYPES = {torch.uint8: 0, torch.float16: 1, torch.bfloat16: 2, torch.float32: 3}
OUTPUT_DTYPES = {torch.float32: 3, torch.float64: 4}

library = torch.library.Library("occfast", "DEF")


def register(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    name = schema.split("(", 1)[0]
    library.define(schema)
    for key in ("CPU", "CUDA"):
        library.impl(name, implementation, key)
    torch.library.register_fake(f"occfast::{name}", fake, lib=library)
    return getattr(torch.ops.occfast, name).default


def module_for(device: torch.device) -> Any:
    """The module for a device, or None where the PyTorch twins are to run."""
    if loader.requested() == "reference":
        return None
    return loader.module("cuda" if device.type == "cuda" else "cpu")


def call(function: Callable[..., None], device: torch.device, *arguments: Any) -> None:
    """Run a native function with PyTorch's threads, or on PyTorch's current stream of that device."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            function(*arguments, 1, torch.cuda.current_stream(device).cuda_stream)
    else:
        function(*arguments, torch.get_num_threads(), 0)


def expect(condition: bool, name: str, expected: str, got: Any) -> None:
    if not condition:
        got = list(got) if isinstance(got, torch.Size) else got
        raise ValueError(f"{name}: expected {expected}, got {got}")


def expect_dtype(tensor: Tensor, name: str, *dtypes: torch.dtype) -> None:
    if tensor.dtype not in dtypes:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name}: expected dtype {names}, got {str(tensor.dtype).removeprefix('torch.')}")


def expect_shape(tensor: Tensor, name: str, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")


def expect_device(device: torch.device, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None:
            expect(tensor.device == device, name, f"a tensor on {device}", tensor.device)


def is_channels_last(images: Tensor) -> bool:
    """Whether a 4-D tensor is stored as NHWC (and is not plain NCHW as well)."""
    return not images.is_contiguous() and images.is_contiguous(memory_format=torch.channels_last)


def dense(images: Tensor) -> tuple[Tensor, torch.memory_format]:
    """The images in one of the two layouts that the kernels know, copied only if they are in neither."""
    if is_channels_last(images):
        return images, torch.channels_last
    return images.contiguous(), torch.contiguous_format


def strides_of(shape: torch.Size, layout: torch.memory_format) -> tuple[int, int, int, int]:
    # Computed: PyTorch leaves the strides of dimensions of size 1 open.
    _, c, h, w = shape
    if layout == torch.channels_last:
        return (c * h * w, 1, w * c, c)
    return (c * h * w, h * w, w, 1)


def expect_positions(positions: Tensor, end: int) -> None:
    # On a GPU the kernel traps instead: looking here would wait for the device.
    if positions.device.type == "cpu" and positions.numel():
        low, high = torch.aminmax(positions)
        expect(int(low) >= 0 and int(high) < end, "positions", f"values in [0, {end})", f"[{low}, {high}]")


def nothing(*_: Any) -> None:
    """The fake of an op that only writes into its arguments."""
    return None
