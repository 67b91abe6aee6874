"""What a way of evaluating a network under an occluder offers to the engine."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Evaluator(Protocol):
    """The outputs of one network for occluded copies of a block of images.

    A flat position ``n * P + p`` is position p of the grid's P on image n of the block.
    """

    #: What ``OcclusionMap.method`` will say.
    method: str

    def start(self, images: Tensor, fill: Tensor) -> Tensor:
        """Take a block of images [n, C, H, W] and its fill (broadcasts to it; same dtype and device);
        return the outputs without an occluder, [n, K]."""
        ...

    def outputs(self, positions: Tensor) -> Tensor:
        """The outputs [M, K] at flat positions int64 [M]."""
        ...
