"""Print the plan of an incremental sweep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ...geometry import SweepGrid
from .evaluator import IncrementalEvaluator
from .layout import Layer
from .trace import NotIncremental


@dataclass(frozen=True)
class Explanation:
    """The plan of a sweep as a table (``print`` it)."""

    layers: list[Layer]
    reason: str = ""  # why it can't be swept incrementally
    whole_from: str = ""  # the first node that needs a whole map

    @property
    def speedup(self) -> float:
        """Predicted, against the dense sweep; 1 where it can't be swept incrementally."""
        mine = sum(layer.cost for layer in self.layers)
        return sum(layer.dense for layer in self.layers) / mine if mine and not self.reason else 1.0

    def __str__(self) -> str:
        if self.reason:
            return f"swept densely: {self.reason}"
        dense = sum(layer.dense for layer in self.layers) or 1.0
        lines = [f"{'layer':<28}{'map':>11}{'rectangle':>15}{'dense work':>12}{'of it done':>12}"]
        for layer in self.layers:
            size = "whole" if layer.size is None else f"{layer.size[0]}x{layer.size[1]}"
            rectangle = "" if layer.rectangle is None else f"{layer.rectangle[0]:.1f}x{layer.rectangle[1]:.1f}"
            share = layer.cost / layer.dense if layer.dense else 0.0
            lines.append(
                f"{layer.label[:27]:<28}{size:>11}{rectangle:>15}{layer.dense / dense:>11.1%} {share:>11.1%}"
                + (" shared" if layer.shared else "")
            )
        whole = f"; whole maps from {self.whole_from} on" if self.whole_from else ""
        return "\n".join([*lines, f"predicted speed-up {self.speedup:.1f}x{whole}"])


def explain(
    model: nn.Module,
    size: int | tuple[int, int],
    occluder: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    border: Literal["clip", "valid"] = "clip",
    channels: int | None = None,
) -> Explanation:
    """The plan for a model, images of a size and an occluder (height, width): ``print(explain(...))``.

    ``channels`` of the images; None: those of the model's first convolution, else 3.  Dtype and
    device are those of the model's first parameter.
    """
    grid = SweepGrid.over(size, occluder, stride, border)
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = channels or (first.in_channels if first is not None else 3)
    like = next(model.parameters(), torch.empty(0))
    images = torch.rand((2, channels, *grid.image), generator=torch.Generator().manual_seed(0))
    try:
        evaluator = IncrementalEvaluator(model, grid, images.to(dtype=like.dtype, device=like.device))
    except NotIncremental as error:
        return Explanation([], str(error))
    layers = [*evaluator.layers(), Layer("calls", None, None, 0.0, evaluator.calls)]
    return Explanation(layers, whole_from=evaluator.whole_from)
