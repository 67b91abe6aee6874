"""How long work will take, measured before it begins."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

_MEASURED = 8  # images of the forward pass that is timed


def seconds_each(network: nn.Module, images: Tensor) -> float:
    """Measure the seconds that a forward pass takes for an image.

    Args:
        network: Network in evaluation mode.
        images: Prepared images [N, C, H, W] on its device, of which the first few are used.
    """
    import torch

    images, times = images[:_MEASURED], []
    for _ in range(3):  # the first ones are slower
        begin = time.perf_counter()
        outputs_of(network, images)
        if images.device.type == "cuda":
            torch.cuda.synchronize(images.device)
        times.append(time.perf_counter() - begin)
    return min(times) / len(images)


def outputs_of(network: nn.Module, images: Tensor) -> Any:
    """Run the network; an image that it does not take is one error."""
    import torch

    from ..evaluate.embedding import reason_of

    try:
        with torch.no_grad():
            return network(images)
    except RuntimeError as error:
        raise ValueError(
            f"model: fails on images of shape {list(images.shape[1:])} ({reason_of(error)}); see --color and --size"
        ) from error
