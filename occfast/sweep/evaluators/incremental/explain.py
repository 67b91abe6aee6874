"""The plan of an incremental sweep as a table."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ....checks import integer
from ...geometry import SweepGrid
from ...types import Border, Region
from ..behavior import NotIncremental
from .evaluator import IncrementalEvaluator
from .forecast import Layer


@dataclass(frozen=True)
class Explanation:
    """The plan of a sweep; ``print`` shows it as a table.

    Attributes:
        layers: The time of each layer, of calls and of the set-up.
        reason: Why the model can't be swept incrementally; "" if it can.
        whole_from: The first layer that needs a whole map; "" if none does.
    """

    layers: list[Layer]
    reason: str = ""
    whole_from: str = ""

    @property
    def speedup(self) -> float:
        """Predicted speed-up over the dense sweep; 1 if the model can't be swept incrementally."""
        mine = sum(layer.cost for layer in self.layers)
        return sum(layer.dense for layer in self.layers) / mine if mine and not self.reason else 1.0

    def __str__(self) -> str:
        if self.reason:
            return f"swept densely: {self.reason}"
        dense = sum(layer.dense for layer in self.layers) or 1.0
        lines = [f"{'layer':<28}{'map':>11}{'rectangle':>15}{'dense time':>12}{'of it spent':>12}"]
        for layer in self.layers:
            size = "whole" if layer.size is None else f"{layer.size[0]}x{layer.size[1]}"
            rectangle = "" if layer.rectangle is None else f"{layer.rectangle[0]:.1f}x{layer.rectangle[1]:.1f}"
            spent = layer.cost / (layer.dense or dense)
            lines.append(
                f"{layer.label[:27]:<28}{size:>11}{rectangle:>15}{layer.dense / dense:>11.1%} {spent:>11.1%}"
                + (" shared" if layer.shared else "")
            )
        whole = f"; whole maps from {self.whole_from} on" if self.whole_from else ""
        return "\n".join([*lines, f"predicted speed-up {self.speedup:.1f}x{whole}"])


def explain(
    model: nn.Module,
    size: int | tuple[int, int],
    occluder: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] = 1,
    border: Border = "clip",
    region: Region | None = None,
    channels: int | None = None,
    images: int = 1,
) -> Explanation:
    """Return the plan of an incremental sweep, or the reason why the sweep is dense.

    Args:
        model: Module in evaluation mode. Its first parameter gives dtype and device.
        size: Height and width of the images, or one number for both.
        occluder: Height and width of the occluder, or one number for both.
        stride: Distance of neighboring positions, (rows, columns) or one number for both.
        border, region: As for :func:`~occfast.occlusion_map`.
        channels: Channels of the images; None: those of the model's first convolution, else 3.
        images: Images to sweep, among which the set-up is divided.

    Example:
        >>> print(explain(model, size=(100, 100), occluder=(20, 40)))
    """
    grid = SweepGrid.over(size, occluder, stride=stride, border=border, region=region)
    if not isinstance(model, nn.Module):
        return Explanation([], "a function can't be traced, an nn.Module can")
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = channels or (first.in_channels if first is not None else 3)
    like = next(model.parameters(), torch.empty(0))
    pair = torch.rand((2, channels, *grid.image), generator=torch.Generator().manual_seed(0))
    try:
        evaluator = IncrementalEvaluator(model, grid, pair.to(dtype=like.dtype, device=like.device))
    except NotIncremental as error:
        return Explanation([], str(error))
    return Explanation(evaluator.forecast(integer(images, "images", 1)).rows(), whole_from=evaluator.plan.whole_from)
