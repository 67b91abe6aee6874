"""Occlusion of any inputs, window by window."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..progress import Report
from .arguments import Target, repeated_arguments, repeated_target, selected
from .windows import Windows


def window_by_window(
    function: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    windows: Sequence[Windows],
    fills: Sequence[Tensor],
    target: Target,
    arguments: tuple[Any, ...],
    per_eval: int,
    report: Report,
) -> list[Tensor]:
    """Return the drop of the selected output under each window, in the batches in which Captum computes it.

    Args:
        function: Function of the inputs and the arguments.
        inputs: Tensors [N, ...].
        windows, fills: Of each input; a fill broadcasts to it.
        target: Part of the output.
        arguments: Further arguments of the function.
        per_eval: Windows in one batch.
        report: Called with the windows done and the number of all.

    Returns:
        For each input, float64 [outputs, *counts].

    Raises:
        ValueError: The output does not grow with the batch, and ``per_eval`` is above 1.
    """
    expected = selected(as_tensor(function(*(each.clone() for each in inputs), *arguments)), target)
    baseline = expected.flatten().double()
    drops = [torch.zeros(len(baseline), each.count, dtype=torch.float64, device=baseline.device) for each in windows]
    numbers = [(k, number) for k, each in enumerate(windows) for number in range(each.count)]
    for first in range(0, len(numbers), per_eval):
        part = numbers[first : first + per_eval]
        copies = [
            _occluded(tensor, each, fill, [number if of == k else None for of, number in part])
            for k, (tensor, each, fill) in enumerate(zip(inputs, windows, fills, strict=True))
        ]
        output = as_tensor(function(*copies, *repeated_arguments(arguments, len(part))))
        output = selected(output, repeated_target(target, len(part)))
        grows = output.dim() and expected.dim() and output.shape[0] == len(part) * expected.shape[0]
        if output.numel() != len(part) * len(baseline) or (per_eval > 1 and not grows):
            raise ValueError(
                f"perturbations_per_eval: expected 1 for an output that does not grow with the batch, got {per_eval}; "
                f"the output's shape is {list(expected.shape)} for the inputs and {list(output.shape)} for "
                f"{len(part)} windows"
            )
        found = baseline - output.reshape(len(part), -1).double()
        for row, (of, number) in zip(found, part, strict=True):
            drops[of][:, number] = row
        report(first + len(part), len(numbers))
    return [_by_dimension(values, each) for values, each in zip(drops, windows, strict=True)]


def as_tensor(output: Any) -> Tensor:
    """Return an output as a tensor; a function may return a number for the whole batch.

    Raises:
        TypeError: It is neither.
    """
    if isinstance(output, (int, float)):
        return torch.tensor(output)
    if not isinstance(output, Tensor):
        raise TypeError(f"forward_func: expected to return a tensor or a number, got {type(output).__name__}")
    return output


def _occluded(tensor: Tensor, windows: Windows, fill: Tensor, numbers: Sequence[int | None]) -> Tensor:
    """Return copies [len(numbers) * N, ...] of an input, each with one of its windows filled or, for None, as it is."""
    covered = any(number is not None for number in numbers)
    copies = torch.stack([tensor] * len(numbers)).to(fill.dtype if covered else tensor.dtype)
    content = fill.expand(tensor.shape)
    for copy, number in zip(copies, numbers, strict=True):
        if number is not None:
            place = (slice(None), *windows.place(number))
            copy[place] = content[place]
    return copies.flatten(0, 1)


def _by_dimension(values: Tensor, windows: Windows) -> Tensor:
    """Return values [outputs, windows], whose first dimension of places changes fastest, as [outputs, *counts]."""
    rank = len(windows.counts)
    assert values.shape[1] == math.prod(windows.counts)
    return values.reshape(-1, *reversed(windows.counts)).permute(0, *range(rank, 0, -1))
