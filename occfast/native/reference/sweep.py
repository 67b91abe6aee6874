"""Twins of the ops of the dense sweep."""

from __future__ import annotations

import torch
from torch import Tensor

from ..enums import Score


def windows(grid: list[int], positions: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return top, left, bottom and right of the occluder at positions of the grid, clipped to the image."""
    _, columns, first_row, first_column, row_step, column_step, h, w = grid
    top = first_row + positions // columns * row_step - h // 2
    left = first_column + positions % columns * column_step - w // 2
    return top.clamp(min=0), left.clamp(min=0), (top + h).clamp(max=height), (left + w).clamp(max=width)


def occlude_positions(images: Tensor, fill: Tensor, positions: Tensor, grid: list[int]) -> Tensor:
    """Return copies of images with the occluder at flat positions, [M, C, H, W]."""
    height, width = images.shape[-2:]
    per_image = grid[0] * grid[1]
    n = positions // per_image
    top, left, bottom, right = (edge.view(-1, 1, 1, 1) for edge in windows(grid, positions % per_image, height, width))
    i = torch.arange(height, device=images.device).view(1, 1, -1, 1)
    j = torch.arange(width, device=images.device).view(1, 1, 1, -1)
    inside = (i >= top) & (i < bottom) & (j >= left) & (j < right)
    copies = images[n]
    return torch.where(inside, fill.expand_as(images)[n], copies)


def first_largest(outputs: Tensor) -> Tensor:
    """Return the lowest index of the largest output of each row (``argmax`` does not say which of several)."""
    index = torch.arange(outputs.shape[1], device=outputs.device)
    largest = outputs == outputs.amax(1, keepdim=True)
    return torch.where(largest, index, outputs.shape[1]).amin(1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine similarity of the rows of two float64 tensors; 0 if one of them is 0."""
    lengths = (a.square().sum(1) * b.square().sum(1)).clamp(min=1e-300).sqrt()
    return (a * b).sum(1) / lengths


def sweep_score(
    outputs: Tensor,
    positions: Tensor,
    per_image: int,
    kind: int,
    scores: Tensor,
    bad: Tensor,
    labels: Tensor | None,
    references: Tensor | None,
    baseline: Tensor | None,
) -> None:
    """Write the scores of the outputs at flat positions; set ``bad`` if an output is not finite."""
    n = positions // per_image
    if kind == Score.ERROR:
        assert labels is not None
        value = (first_largest(outputs) != labels[n]).double()
    elif kind == Score.SCORE_DROP:
        assert labels is not None and baseline is not None
        value = baseline[n] - outputs.gather(1, labels[n, None])[:, 0].double()
    else:
        assert references is not None and baseline is not None
        value = baseline[n] - cosine(outputs.double(), references[n])
    scores.view(-1)[positions] = value
    bad |= (~outputs.isfinite().all()).to(bad.dtype)


def sweep_accumulate(scores: Tensor, total: Tensor, squares: Tensor) -> None:
    """Add the scores of each image, and their squares, to the running sums."""
    for row in scores:  # one by one: the sums do not depend on how the images were split into calls
        total += row
        squares += row * row
