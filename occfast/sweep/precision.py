"""Arithmetic of a sweep: the images' own dtype, or less on request.

PyTorch's switches for float32 are global, and by default convolutions on a GPU round to TF32. A sweep sets the switches
while it runs, so that its result depends on its arguments alone.
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
    """Return the model to sweep: the given one, or a copy in bfloat16.

    Raises:
        ValueError: "bf16" with a function, or with a module that can't be copied.
    """
    if precision != "bf16":
        return model
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"precision: 'bf16' sweeps a copy of the model and expects an nn.Module, got {type(model).__name__}; "
            "convert the function and its images yourself and pass None"
        )
    try:
        return copy.deepcopy(model).to(torch.bfloat16)
    except Exception as error:  # copying runs the model's own code, which may raise anything
        raise ValueError(f"precision: 'bf16' needs a copy of the model, but copying it fails: {error}") from error


def check_precision(precision: Precision | None, images: Tensor) -> None:
    """Raise ValueError if images can't be swept with a precision: TF32 needs float32 images on a GPU."""
    if precision == "tf32" and images.device.type != "cuda":
        raise ValueError(f"precision: 'tf32' is of GPUs, expected images and a model on cuda, got {images.device}")
    if precision == "tf32" and images.dtype != torch.float32:
        got = str(images.dtype).removeprefix("torch.")
        raise ValueError(f"precision: 'tf32' rounds float32, expected float32 images, got {got}")


@contextmanager
def float32_as(kind: Literal["ieee", "tf32"]) -> Iterator[None]:
    """Compute in IEEE float32 or, on a GPU, in TF32, whatever PyTorch's switches are; autocast is off.

    The switches of matrix products, convolutions and recurrent layers are process-wide: other threads see them too.
    They are restored afterwards.
    """
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(_switched(_OF_CPU, "ieee"))
        if torch.cuda.is_available():
            stack.enter_context(_switched_on_cuda(kind))
        yield


@contextmanager
def without_benchmark() -> Iterator[None]:
    """Let cuDNN choose convolutions by its heuristics, whatever ``torch.backends.cudnn.benchmark`` is.

    Windows come in many shapes, and with the switch on cuDNN times every algorithm for each of them. The switch is
    process-wide and is restored afterwards.
    """
    before = _BACKENDS.cudnn.benchmark
    _BACKENDS.cudnn.benchmark = False
    try:
        yield
    finally:
        _BACKENDS.cudnn.benchmark = before


# Each has an attribute fp32_precision: "ieee", "tf32", "bf16", or "none" to follow its backend.
_BACKENDS: Any = torch.backends
_OF_CPU = (_BACKENDS.mkldnn.matmul, _BACKENDS.mkldnn.conv, _BACKENDS.mkldnn.rnn)
_OF_CUDA = (_BACKENDS.cuda.matmul, _BACKENDS.cudnn.conv, _BACKENDS.cudnn.rnn)


@contextmanager
def _switched(switches: tuple[Any, ...], kind: str) -> Iterator[None]:
    before = [(switch, switch.fp32_precision) for switch in switches]
    # Values that are right already are left alone: "none" follows a backend's own switch, and can't be set here.
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
    """Set both generations of switches. PyTorch raises where they disagree and an operation reads the older one."""
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
