"""Sliding windows over inputs with any number of dimensions, and the average over the windows that cover an element."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..sweep.geometry import SweepGrid


@dataclass(frozen=True)
class Windows:
    """Windows over one input, without its batch dimension.

    The first window begins at index 0 of each dimension. Further ones follow in steps of the stride until the last
    element is covered; the last one is cut there.

    Attributes:
        size: Size of the input, for example (C, H, W).
        window: Size of a window.
        stride: Step between neighboring windows.
    """

    size: tuple[int, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of windows along each dimension."""
        each = zip(self.size, self.window, self.stride, strict=True)
        return tuple(-(-(size - window) // stride) + 1 for size, window, stride in each)

    @property
    def count(self) -> int:
        """Number of windows."""
        return math.prod(self.counts)

    def place(self, number: int) -> tuple[slice, ...]:
        """Return the elements that a window covers; its place along the first dimension changes fastest."""
        found = []
        for count, size, window, stride in zip(self.counts, self.size, self.window, self.stride, strict=True):
            number, step = divmod(number, count)
            found.append(slice(step * stride, min(step * stride + window, size)))
        return tuple(found)

    def grid(self) -> SweepGrid:
        """Return the places of the window's last two dimensions as centers of an occluder."""
        height, width = self.window[-2:]
        return SweepGrid(
            image=(self.size[-2], self.size[-1]),
            occluder=(height, width),
            stride=(self.stride[-2], self.stride[-1]),
            border="valid",
            first=(height // 2, width // 2),
            rows=self.counts[-2],
            columns=self.counts[-1],
        )

    def averaged(self, values: Tensor) -> Tensor:
        """Return the mean value of the windows that cover each element.

        Args:
            values: Float64 [B, *counts].

        Returns:
            Float64 [B, *size].
        """
        for axis, count in enumerate(self.counts):
            start = self.stride[axis] * torch.arange(count, device=values.device)[:, None]
            element = torch.arange(self.size[axis], device=values.device)
            covers = ((element >= start) & (element < start + self.window[axis])).to(values.dtype)
            values = torch.tensordot(values, covers / covers.sum(0), dims=([1], [0]))
        return values
