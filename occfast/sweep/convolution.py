"""A workaround for faults of oneDNN: 16-bit convolutions with a stride on processors with AMX.

oneDNN 3.12 (in PyTorch 2.13) computes two kinds of convolutions wrongly there, in bfloat16 and perhaps in float16:

- Outputs that are one column wide: it takes a wrong distance between the rows of its input. Results are wrong, and NaN
  where the memory behind them holds NaN. The windows of a sweep are often that narrow.
- A stride along columns that equals the kernel's width, with 16 or 24 input channels and others.

Both equal convolutions with a stride of 1 along columns, which are right: the only column of an output does not depend
on the stride, and kernels side by side see the columns below them as channels. ``docs/method/upstream-faults.md``
shows the faults.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..native import processor

_HALF = (torch.float16, torch.bfloat16)
_convolution = torch.ops.aten.convolution.default


def convolve(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Convolve [N, C, ..., W], in a way that oneDNN computes right.

    The arguments are those of :func:`torch.nn.functional.conv2d`, with a number for each dimension.
    """
    if images.dtype in _HALF and images.device.type == "cpu" and stride[-1] > 1:
        reach = (weight.shape[-1] - 1) * dilation[-1] + 1
        if reach <= images.shape[-1] + 2 * padding[-1] < reach + stride[-1]:
            images, stride, padding = _one_column(images, reach, stride, padding)
        elif weight.shape[-1] == stride[-1] == reach and padding[-1] == 0 and groups == 1:
            images, weight, stride = _side_by_side(images, weight, stride)
    zeros = [0] * len(stride)
    result: Tensor = _convolution(images, weight, bias, stride, padding, dilation, False, zeros, groups)
    return result


def _one_column(
    images: Tensor, reach: int, stride: Sequence[int], padding: Sequence[int]
) -> tuple[Tensor, list[int], list[int]]:
    """Return the columns that the only output column depends on, with the stride and the padding to convolve them."""
    behind = reach - padding[-1] - images.shape[-1]
    if padding[-1] or behind:
        images = F.pad(images, (padding[-1], behind))
    return images, [*stride[:-1], 1], [*padding[:-1], 0]


def _side_by_side(images: Tensor, weight: Tensor, stride: Sequence[int]) -> tuple[Tensor, Tensor, list[int]]:
    """Return images and kernels that do not overlap along columns, the columns of each kernel as channels."""
    width = stride[-1]

    def folded(x: Tensor) -> Tensor:  # [N, C, ..., W] to [N, width * C, ..., W // width]
        columns = x.shape[-1] // width
        last = x.movedim(1, -1)[..., : columns * width, :]
        return last.reshape(*last.shape[:-2], columns, -1).movedim(-1, 1)

    return folded(images), folded(weight), [*stride[:-1], 1]


class _RightConvolutions(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _convolution and not kwargs:
            images, weight, bias, stride, padding, dilation, transposed, _, groups = args
            if not transposed and len(stride) == len(padding) == len(dilation) == images.dim() - 2:
                return convolve(images, weight, bias, stride, padding, dilation, groups)
        return func(*args, **(kwargs or {}))


@contextmanager
def right_convolutions(images: Tensor) -> Iterator[None]:
    """Compute convolutions of any model on such images right while the block runs.

    Only 16-bit images on a processor with AMX need it. Elsewhere this does nothing.
    """
    if images.dtype not in _HALF or images.device.type != "cpu" or not has_amx():
        yield
        return
    with _RightConvolutions():  # type: ignore[no-untyped-call]
        yield


@lru_cache(maxsize=1)
def has_amx() -> bool:
    """Return whether the processor multiplies 16-bit matrices with AMX."""
    return not processor.features().isdisjoint({"amx_bf16", "amx_fp16"})
