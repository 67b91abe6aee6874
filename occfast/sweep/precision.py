"""What the numbers of a sweep are: the images' own dtype, or less where that is asked for.

PyTorch's switches for float32 are global, and its default lets convolutions on a GPU round to TF32. A sweep sets them
for its own time: what comes out is then a matter of its arguments alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .types import Precision

PRECISIONS = get_args(Precision)


def lowered(model: Callable[[Tensor], Tensor], precision: Precision | None) -> Callable[[Tensor], Tensor]:
    """The model that is swept: itself, or a copy in bfloat16.

    Raises ValueError for "bf16" and a function, or a module that can't be copied.
    """
    if precision != "bf16":
        return model
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"precision: 'bf16' sweeps a copy of the model and expects an nn.Module, got {type(model).__name__}; lower "
            "the function and its images yourself and pass None"
        )
    try:
        return copy.deepcopy(model).to(torch.bfloat16)
    except Exception as error:  # copying runs the model's own code, which may raise anything
        raise ValueError(f"precision: 'bf16' needs a copy of the model, but copying it fails: {error}") from error


def check_precision(precision: Precision | None, images: Tensor) -> None:
    """Raises ValueError where images can't be swept so: TF32 is float32 on a GPU."""
    if precision == "tf32" and images.device.type != "cuda":
        raise ValueError(f"precision: 'tf32' is of GPUs, expected images and a model on cuda, got {images.device}")
    if precision == "tf32" and images.dtype != torch.float32:
        got = str(images.dtype).removeprefix("torch.")
        raise ValueError(f"precision: 'tf32' rounds float32, expected float32 images, got {got}")


@contextmanager
def float32_as(kind: Literal["ieee", "tf32"]) -> Iterator[None]:
    """Compute in float32 itself or, on a GPU, in TF32, whatever PyTorch's switches say; autocast is off.

    The switches (of matrix products, convolutions and recurrent layers) belong to the process, other threads see them
    too. They are as before afterwards.
    """
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(_switched(_OF_CPU, "ieee"))
        if torch.cuda.is_available():
            stack.enter_context(_switched_on_cuda(kind))
        yield


# Each has an attribute fp32_precision: "ieee", "tf32", "bf16" or "none", which is what its backend says.
_BACKENDS: Any = torch.backends
_OF_CPU = (_BACKENDS.mkldnn.matmul, _BACKENDS.mkldnn.conv, _BACKENDS.mkldnn.rnn)
_OF_CUDA = (_BACKENDS.cuda.matmul, _BACKENDS.cudnn.conv, _BACKENDS.cudnn.rnn)


@contextmanager
def _switched(switches: tuple[Any, ...], kind: str) -> Iterator[None]:
    before = [(switch, switch.fp32_precision) for switch in switches]
    # What is right already is left alone: "none" follows a backend's own switch, and no value set here would.
    same = (kind, "none") if kind == "ieee" else (kind,)
    before = [(switch, value) for switch, value in before if value not in same]
    try:
        for switch, _ in before:
            switch.fp32_precision = kind
        yield
    finally:
        for switch, value in before:
            switch.fp32_precision = value


@contextmanager
def _switched_on_cuda(kind: str) -> Iterator[None]:
    """Both generations of switches, which PyTorch wants to agree: an operation, or a compiled model's guard, that
    reads the older one raises where they don't."""
    matmul, cudnn = _BACKENDS.cuda.matmul, _BACKENDS.cudnn
    newer = [(switch, switch.fp32_precision) for switch in (*_OF_CUDA, _BACKENDS.mkldnn.matmul)]
    older = _older_of_products(), _older_of_convolutions()
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = kind == "tf32"
        for switch in _OF_CUDA:
            switch.fp32_precision = kind
        yield
    finally:
        torch.set_float32_matmul_precision(older[0])
        cudnn.allow_tf32 = older[1]
        for switch, value in newer:  # last, since the older ones set some of them
            switch.fp32_precision = value


def _older_of_products() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # the caller set both generations, and they differ
        pass
    try:
        allowed = bool(_BACKENDS.cuda.matmul.allow_tf32)
    except RuntimeError:
        allowed = _BACKENDS.cuda.matmul.fp32_precision != "tf32"
    return "high" if allowed else "highest"


def _older_of_convolutions() -> bool:
    try:
        return bool(_BACKENDS.cudnn.allow_tf32)
    except RuntimeError:
        return not any(switch.fp32_precision == "tf32" for switch in _OF_CUDA[1:])
