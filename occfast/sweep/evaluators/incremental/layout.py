"""Sizes and positions of all rectangles of a sweep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .intervals import Extent, Intervals


@dataclass
class AxisLayout:
    """The geometry of one class of grid rows (or columns): lengths, and where they start on every grid row."""

    extents: dict[int, Extent]  # of each step's rectangle
    windows: dict[tuple[int, int], Extent]  # of the window of a step's input
    crops: dict[int, Extent]  # of a transposed convolution's rectangle in what it computes
    same: set[tuple[int, int]]  # inputs whose rectangle is the window already
    slot: dict[Any, int]  # where each is in the table
    table: Tensor  # [slots, grid rows] int64: all starts
    ends: EdgeLayout | None  # of the shared steps: the corners


@dataclass
class EdgeLayout:
    """Of shared steps: the pieces at the occluder's first and last edge, for a class of grid rows."""

    length: dict[int, int]  # of a step's piece; 0: there is none
    edges: dict[int, tuple[int, int]]  # the first edge that any member has there, and how many (2, or 1 at a border)
    window: dict[tuple[int, int], int]  # of the window of its input
    slot: dict[Any, int]
    table: Tensor  # [slots, 2, grid rows] int64: where pieces and windows start, first edge and last
    cuts: dict[int, Tensor]  # of each step: [grid rows, 8] int64, ``Cuts`` in csrc/api.h

    def origins(self, name: Any, index: Tensor, across: int, axis: int) -> Tensor:
        """Where strips or their windows begin, [2 * rows, 2]; ``across`` along the other axis."""
        starts = self.table[self.slot[name]][:, index].flatten()
        pair = [starts, torch.full_like(starts, across)]
        return torch.stack(pair if axis == 0 else pair[::-1], -1)


@dataclass(frozen=True)
class Layer:
    """A row of the plan: multiply-adds (moving a number counts as four) densely and incrementally, for one position."""

    label: str
    size: tuple[int, int] | None  # of the map; None: computed whole
    rectangle: tuple[float, float] | None  # what is computed of it, the mean over positions
    dense: float
    cost: float
    shared: bool = False


def _ends_of(cut: Intervals) -> list[Any]:
    """For each grid row, how many rows depend on the occluder's first edge and how many on its last."""
    return [np.clip(cut.full_low - cut.low, 0, None), np.clip(cut.high - cut.full_high, 0, None)]
