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

    #: The memory layout that is in use, "contiguous" or "channels_last".
    layout: str

    def images_at_once(self, images: Tensor, memory_limit: int | None) -> int:
        """How many images like these :meth:`start` should get at a time, at least 1."""
        ...

    def start(self, images: Tensor, fill: Tensor) -> object:
        """Take a block of images [n, C, H, W] and its fill (broadcasts to it; same dtype and device)."""
        ...

    def tune(self, total: int, memory_limit: int | None) -> int:
        """Choose the layout and return the batch size for ``total`` positions of the block, both by
        measuring, within ``memory_limit`` bytes.
        """
        ...

    def set_layout(self, layout: str) -> None:
        """Use a layout that :meth:`tune` chose before."""
        ...

    def outputs(self, positions: Tensor) -> Tensor:
        """The outputs [M, K] at flat positions int64 [M]."""
        ...

    def order(self, positions: Tensor) -> Tensor:
        """A permutation [M] of flat positions that brings together what is computed together."""
        ...
