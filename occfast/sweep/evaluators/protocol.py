"""Interface of evaluators."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Evaluator(Protocol):
    """Computes the outputs of one network for occluded copies of a block of images.

    A flat position ``n * P + p`` is position p of the grid's P on image n of the block.
    """

    #: Name in ``OcclusionMap.method``.
    method: str

    #: Memory format in use, "contiguous" or "channels_last".
    layout: str

    def images_at_once(self, images: Tensor, memory_limit: int | None) -> int:
        """Return how many images like these to :meth:`start` at a time, at least 1."""
        ...

    def start(self, images: Tensor, fill: Tensor) -> object:
        """Take a block of images [n, C, H, W] and its fill, which broadcasts to it and has its dtype and device."""
        ...

    def tune(self, total: int, memory_limit: int | None) -> int:
        """Choose the memory format and return the batch size for ``total`` positions, within ``memory_limit`` bytes."""
        ...

    def set_layout(self, layout: str) -> None:
        """Use a memory format that :meth:`tune` chose before."""
        ...

    def outputs(self, positions: Tensor) -> Tensor:
        """Return the outputs [M, K] at flat positions int64 [M]."""
        ...

    def release(self) -> None:
        """Free the memory of the images; :meth:`start` comes next."""
        ...

    def order(self, positions: Tensor) -> Tensor:
        """Return a permutation [M] of flat positions that brings together what is computed together."""
        ...
