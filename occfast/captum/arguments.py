"""Arguments of Captum's attribution methods: inputs, windows, baselines and targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .windows import Windows

#: One index, an index for each dimension of the output after the first, or one of these for each example.
Target = int | tuple[int | slice, ...] | Tensor | list[int] | list[tuple[int, ...]] | None

#: A number or a tensor that broadcasts to the input; a tuple of these for several inputs.
Baselines = float | Tensor | tuple[float | Tensor, ...] | None

#: One step for all dimensions, or one for each; a tuple of these for several inputs.
Strides = int | tuple[int, ...] | tuple[int | tuple[int, ...], ...] | None

#: Size of the window without the batch dimension; a tuple of these for several inputs.
WindowShapes = tuple[int, ...] | tuple[tuple[int, ...], ...]


def inputs_of(inputs: Any) -> tuple[Tensor, ...]:
    """Return inputs as a tuple of tensors with one number of examples.

    Raises:
        TypeError, ValueError: They are something else.
    """
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    if not given or not all(isinstance(each, Tensor) for each in given):
        raise TypeError(f"inputs: expected a tensor or a tuple of tensors, got {_kind(inputs)}")
    if any(each.dim() == 0 or each.shape[0] != given[0].shape[0] for each in given):
        shapes = ", ".join(str(list(each.shape)) for each in given)
        raise ValueError(f"inputs: expected one number of examples in the first dimension, got {shapes}")
    if any(each.numel() == 0 for each in given):
        raise ValueError("inputs: expected at least one element, got an empty tensor")
    return given


def windows_of(shapes: Any, strides: Any, inputs: tuple[Tensor, ...]) -> list[Windows]:
    """Return the windows of each input.

    Raises:
        TypeError, ValueError: Naming ``sliding_window_shapes`` or ``strides``.
    """
    if not isinstance(shapes, tuple):
        raise TypeError(f"sliding_window_shapes: expected a tuple, got {_kind(shapes)}")
    if len(inputs) == 1 and not (len(shapes) == 1 and isinstance(shapes[0], tuple)):
        shapes = (shapes,)
    if strides is None:
        strides = (1,) * len(inputs)
    elif len(inputs) == 1 and not (isinstance(strides, tuple) and len(strides) == 1):
        strides = (strides,)
    for name, values in (("sliding_window_shapes", shapes), ("strides", strides)):
        if not isinstance(values, tuple) or len(values) != len(inputs):
            raise ValueError(f"{name}: expected one for each of the {len(inputs)} inputs, got {values!r}")
    return [_windows(*given, number) for number, given in enumerate(zip(inputs, shapes, strides, strict=True))]


def _windows(given: Tensor, shape: Any, stride: Any, number: int) -> Windows:
    size = tuple(given.shape[1:])
    of = f"for input {number} of shape {list(given.shape)}"
    window = _integers(shape, len(size), "sliding_window_shapes", of)
    step = _integers((stride,) * len(size) if _is_int(stride) else stride, len(size), "strides", of)
    for covered, pixels, each in zip(window, size, step, strict=True):
        if covered > pixels:
            raise ValueError(f"sliding_window_shapes: expected windows that fit {of}, got {window}")
        if each > covered < pixels:
            raise ValueError(f"strides: expected steps of at most the window {window} {of}, got {step}")
    return Windows(size, window, step)


def _integers(value: Any, count: int, name: str, of: str) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) != count or not all(map(_is_int, value)):
        raise ValueError(f"{name}: expected a tuple of {count} ints {of}, got {value!r}")
    if any(each < 1 for each in value):
        raise ValueError(f"{name}: expected numbers of at least 1, got {value!r}")
    return tuple(int(each) for each in value)


def baselines_of(baselines: Any, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the baseline of each input, which broadcasts to it.

    Floating-point baselines of floating-point inputs get their dtype; otherwise PyTorch's promotion of types holds, as
    in Captum.

    Raises:
        TypeError, ValueError: They are something else.
    """
    given = (0,) * len(inputs) if baselines is None else baselines
    given = given if isinstance(given, tuple) else (given,)
    if len(given) != len(inputs):
        raise ValueError(f"baselines: expected one for each of the {len(inputs)} inputs, got {len(given)}")
    found = []
    for tensor, each in zip(inputs, given, strict=True):
        if isinstance(each, (np.integer, np.floating)):
            each = each.item()
        if not isinstance(each, (Tensor, int, float)) or isinstance(each, bool):
            raise TypeError(f"baselines: expected numbers or tensors, got {_kind(each)}")
        dtype = tensor.dtype if tensor.is_floating_point() else torch.result_type(tensor, each)
        made = torch.as_tensor(each, device=tensor.device).to(dtype)
        try:
            made.expand(tensor.shape)
        except RuntimeError:
            shape = list(tensor.shape)
            raise ValueError(
                f"baselines: expected a tensor that broadcasts to {shape}, got {list(made.shape)}"
            ) from None
        found.append(made)
    return found


def repeated_target(target: Target, times: int) -> Target:
    """Return the target of a batch that holds all examples several times."""
    if isinstance(target, list):
        return target * times
    if isinstance(target, Tensor) and target.numel() > 1:
        return torch.cat([target] * times)
    return target


def selected(output: Tensor, target: Target) -> Tensor:
    """Return the part of an output that a target names.

    Args:
        output: [N, ...].
        target: None for all of it; an index or a tuple of indices for every example; a tensor [N] or a list of N.

    Raises:
        TypeError, ValueError: The target is something else, or does not fit the output.
    """
    if isinstance(target, np.integer):
        target = int(target)
    if target is None:
        return output
    if isinstance(target, Tensor) and (target.is_floating_point() or target.dtype == torch.bool):
        raise TypeError(f"target: expected integers, got {str(target.dtype).removeprefix('torch.')}")
    try:
        if isinstance(target, Tensor) and target.numel() == 1:
            target = int(target)
        if isinstance(target, (int, tuple)):
            index = target if isinstance(target, tuple) else (target,)
            if len(index) >= output.dim():
                raise IndexError
            return output[(slice(None), *index)]
        if isinstance(target, Tensor):
            target = target.tolist() if target.dim() == 1 else None
        if isinstance(target, list) and len(target) == output.shape[0]:
            if all(map(_is_int, target)):
                if output.dim() != 2:
                    raise IndexError
                return output.gather(1, torch.tensor(target, device=output.device)[:, None])[:, 0]
            if all(isinstance(each, tuple) for each in target):
                return torch.stack([output[(k, *each)] for k, each in enumerate(target)])  # type: ignore[misc]
            raise TypeError("target: expected a list of ints or of tuples, got a list of something else")
        if target is not None and not isinstance(target, list):
            raise TypeError(f"target: expected an int, a tuple, a tensor or a list, got {_kind(target)}")
    except (IndexError, RuntimeError) as error:
        raise ValueError(
            f"target: expected an index into outputs of shape {list(output.shape)}, got {target!r}"
        ) from error
    raise ValueError(f"target: expected one index, or one for each of the {output.shape[0]} examples of the output")


def extra_arguments(given: Any) -> tuple[Any, ...]:
    """Return additional arguments of the forward function as a tuple."""
    if given is None:
        return ()
    return given if isinstance(given, tuple) else (given,)


def repeated_arguments(arguments: Sequence[Any], times: int) -> tuple[Any, ...]:
    """Return additional arguments for a batch that holds all examples several times."""
    return tuple(torch.cat([each] * times) if isinstance(each, Tensor) and each.dim() else each for each in arguments)


def _is_int(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _kind(value: object) -> str:
    return type(value).__name__
