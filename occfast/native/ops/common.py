"""Helpers of every op: registration, dispatch to a native module, and checks of arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import loader
from ..enums import Dtype

IMAGE_DTYPES = {
    torch.uint8: Dtype.UINT8,
    torch.float16: Dtype.FLOAT16,
    torch.bfloat16: Dtype.BFLOAT16,
    torch.float32: Dtype.FLOAT32,
}
OUTPUT_DTYPES = {torch.float32: Dtype.FLOAT32, torch.float64: Dtype.FLOAT64}

library = torch.library.Library("occfast", "DEF")


def register(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Register an op for CPU and CUDA under ``torch.ops.occfast`` and return it."""
    name = schema.split("(", 1)[0]
    library.define(schema)
    for key in ("CPU", "CUDA"):
        library.impl(name, implementation, key)
    torch.library.register_fake(f"occfast::{name}", fake, lib=library)
    return getattr(torch.ops.occfast, name).default


def module_for(device: torch.device) -> Any:
    """Return the native module for a device, or None if the PyTorch twins are to run."""
    if loader.requested() == "reference":
        return None
    return loader.module("cuda" if device.type == "cuda" else "cpu")


def has_kernels(device: torch.device) -> bool:
    """Return whether the ops run natively on a device, not as PyTorch twins."""
    return module_for(device) is not None


@functools.lru_cache(maxsize=64)
def _threads(native: Any, count: int) -> Any:
    return native.ExecContext(threads=count, stream=None)


def call(native: Any, function: str, device: torch.device, *arguments: Any) -> None:
    """Call a native function with PyTorch's number of threads, or on PyTorch's current stream of a GPU.

    Args:
        native: The module of :func:`module_for`.
        function: The name of the function.
        device: The device of the tensors.
        *arguments: Structs of ``native``; ``csrc/api.h`` has their fields.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            stream = torch.cuda.current_stream(device).cuda_stream
            getattr(native, function)(*arguments, native.ExecContext(threads=1, stream=stream))
    else:
        getattr(native, function)(*arguments, _threads(native, torch.get_num_threads()))


def address(tensor: Tensor | None) -> int | None:
    """Return the address of a tensor's data, or None for None."""
    return None if tensor is None else tensor.data_ptr()


def expect(condition: bool, name: str, expected: str, got: Any) -> None:
    """Raise ValueError if the condition does not hold."""
    if not condition:
        got = list(got) if isinstance(got, torch.Size) else got
        raise ValueError(f"{name}: expected {expected}, got {got}")


def expect_dtype(tensor: Tensor, name: str, *dtypes: torch.dtype) -> None:
    """Raise TypeError if the tensor has none of the dtypes."""
    if tensor.dtype not in dtypes:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name}: expected dtype {names}, got {str(tensor.dtype).removeprefix('torch.')}")


def expect_shape(tensor: Tensor, name: str, shape: tuple[int, ...]) -> None:
    """Raise ValueError if the tensor has another shape."""
    if tensor.shape != shape:
        raise ValueError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")


def expect_device(device: torch.device, **tensors: Tensor | None) -> None:
    """Raise ValueError if one of the tensors is on another device."""
    for name, tensor in tensors.items():
        if tensor is not None:
            expect(tensor.device == device, name, f"a tensor on {device}", tensor.device)


def is_channels_last(images: Tensor) -> bool:
    """Return whether a 4-D tensor is stored as NHWC and not as NCHW as well."""
    return not images.is_contiguous() and images.is_contiguous(memory_format=torch.channels_last)


def dense(images: Tensor) -> tuple[Tensor, torch.memory_format]:
    """Return the images in one of the two layouts of the kernels, copied only if they are in neither."""
    if is_channels_last(images):
        return images, torch.channels_last
    return images.contiguous(), torch.contiguous_format


def strides_of(shape: torch.Size, layout: torch.memory_format) -> tuple[int, int, int, int]:
    """Compute the strides of a layout (those of a tensor are arbitrary along dimensions of size 1)."""
    _, c, h, w = shape
    if layout == torch.channels_last:
        return (c * h * w, 1, w * c, c)
    return (c * h * w, h * w, w, 1)


def expect_positions(positions: Tensor, end: int) -> None:
    """Raise ValueError for positions outside [0, end) on a CPU."""
    # On a GPU the kernel checks them, with a message: a check here would wait for the device.
    if positions.device.type == "cpu" and positions.numel():
        low, high = torch.aminmax(positions)
        expect(int(low) >= 0 and int(high) < end, "positions", f"values in [0, {end})", f"[{low}, {high}]")


def nothing(*_: Any) -> None:
    """Do nothing: the fake of an op that only writes to its arguments."""
    return None
