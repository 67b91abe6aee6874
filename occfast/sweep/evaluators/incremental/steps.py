"""Data types of the plan: the steps of a network and the geometry of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx

Kind = Literal["input", "window", "transpose", "scale", "pad", "point", "join", "dense"]


@dataclass(frozen=True)
class Axis:
    """Geometry of a step along one axis: it maps an input interval to an output interval."""

    kernel: int = 1
    stride: int = 1
    padding: int = 0  # before the map; the padding after it follows from the output's size
    dilation: int = 1

    @property
    def span(self) -> int:
        """Number of input pixels from the first to the last that a kernel reads."""
        return (self.kernel - 1) * self.dilation + 1


@dataclass(frozen=True)
class Conv:
    """Weights [O, C / groups, kh, kw] and geometry of a convolution; its padding is in the step's axes."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


@dataclass(frozen=True)
class Step:
    """One step of the incremental pass.

    ``run`` takes the windows of the inputs, [M, C, h, w] each, and returns the rectangle of the output. A dense step
    works on whole maps: it evaluates its graph node, or calls ``folded`` or ``pooled``.

    Attributes:
        index: Position in the list of steps.
        node: Graph node whose value over the whole map is this step's output.
        kind: How an output interval follows from the input intervals.
        inputs: Indices of the steps whose maps it reads.
        channels, size, dtype: Of the output map. For a dense step, ``channels`` and ``size`` are 0.
        axes: Geometry of rows and columns.
        after: Functions applied to each pixel of the result.
        padding_value: Value outside the input map.
        macs: Multiply-adds per pixel of the output; for a dense step, per image.
        numbers: Of the output of a dense step, per image.
        label: Name in the printed plan.
        description: Name in messages.
        channels_last: Whether the value of ``node`` is [N, H, W, C].
        conv: Set for a convolution.
        folded: Function of the whole input map that replaces a convolution and the average after it.
        unfolded: Multiply-adds per image of what ``folded`` replaces.
        pooled: Function of the sum of the input map over its pixels, float64 [M, C], for a mean of the whole map.
        counts: Divisors of rows and columns, for average pooling with incomplete windows at the border.
    """

    index: int
    node: fx.Node
    kind: Kind
    inputs: tuple[int, ...] = ()
    channels: int = 0
    size: tuple[int, int] = (0, 0)
    dtype: torch.dtype = torch.float32
    axes: tuple[Axis, Axis] = (Axis(), Axis())
    run: Callable[..., Tensor] | None = None
    after: tuple[Callable[[Tensor], Tensor], ...] = ()
    padding_value: float = 0.0
    macs: int = 0
    numbers: int = 0
    label: str = ""
    description: str = ""
    channels_last: bool = False
    conv: Conv | None = None
    folded: Callable[[Tensor], Tensor] | None = None
    unfolded: int = 0
    pooled: Callable[[Tensor], Tensor] | None = None
    counts: tuple[Tensor, Tensor] | None = None

    @property
    def is_map(self) -> bool:
        """Whether the step computes rectangles of a map."""
        return self.kind != "dense"

    @property
    def cost(self) -> int:
        """Work per pixel of the output in multiply-adds. Moving a number counts as four."""
        return self.macs + 4 * self.channels


@dataclass(frozen=True)
class MapRef:
    """A graph value that is the map of a step, seen as [N, H, W, C] if ``channels_last``."""

    step: int
    channels_last: bool = False


@dataclass(frozen=True)
class Derived:
    """A graph value computed pixel by pixel from the map of a step, but not a map [N, C, H, W] itself.

    Examples are the tuple that ``chunk(2, dim=1)`` returns and the map with its channels viewed as groups,
    [N, G, C / G, H, W].

    Attributes:
        ref: The map.
        function: Computes the value from [M, C, h, w] for any h and w.
    """

    ref: MapRef
    function: Callable[[Tensor], Any]
