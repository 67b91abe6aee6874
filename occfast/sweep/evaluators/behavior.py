"""What a sweep takes for granted of a model, tried out on two images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .incremental.trace import BatchDependent, NotDeterministic

#: How far outputs may differ by rounding alone, relative to the largest.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 2e-2}


def example(images: Tensor) -> Tensor:
    """Two images like these."""
    return torch.cat((images[:1], images[-1:].flip(-1)))


def compared_outputs(model: Callable[[Tensor], Tensor], pair: Tensor, tolerance: float) -> Tensor:
    """The outputs [2, K] for two images, computed twice, and once for the second image alone.

    Raises NotDeterministic or BatchDependent where they differ, the latter by more than ``tolerance`` times the
    largest.
    """
    first, again, alone = model(pair), model(pair), model(pair[1:])
    if not torch.equal(first, again):
        raise NotDeterministic("two runs on the same images differ: it is not deterministic")
    if float((first[1:] - alone).abs().max()) > tolerance * (float(first.abs().max()) or 1.0):
        raise BatchDependent("the output for an image depends on the other images of its batch")
    return first
