"""Batches and costs that suit a kind of device."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from .rates import Rates, arithmetic, is_calibrated, rates


@dataclass(frozen=True)
class DeviceProfile:
    """How a sweep is cut into batches on a kind of device.

    Attributes:
        layer_bytes: Bytes of one layer's windows and rectangles in a batch.
        positions: Largest number of positions in a batch.
        sizes: Batches are filled up to one of this many sizes between a power of two and the next, so that libraries
            plan few convolutions and graphs are replayed; None: they are cut evenly.
        classes: Numbers of classes of grid rows, and of grid columns, among which a plan chooses.
        call: Cost of an entry of the network's program for a batch, in multiply-adds that take as long.
        counts_batches: Whether a plan counts the batches of a group, not only the group. A batch that fills a
            processor's cache takes far longer than its calls, so there the number of groups decides.
        dense_batch: Copies in a forward pass of the dense sweep.
        pieces: Pieces at least that a block of images is cut into, so that processes can share a single image.
        spans_images: Whether the strips of all images of a block are kept, so that a batch has positions of several.
    """

    layer_bytes: int
    positions: int
    sizes: int | None
    classes: tuple[int, ...]
    call: float
    counts_batches: bool
    dense_batch: int
    pieces: int
    spans_images: bool


#: 16 MiB were the fastest in bench/results/sweep-batch-cpu.md; a call takes about 50 microseconds on two cores.
CPU = DeviceProfile(16 << 20, 256, None, (16, 8, 6, 4, 3, 2, 1), 4e6, False, 8, 12, False)

#: No GPU has confirmed these figures. A batch must be large enough to fill a GPU, and its calls must not take longer
#: than its work: thousands of positions, and few groups of them. A single class of rows and columns is no candidate: W1
#: would compute 15 to 20 % more.
CUDA = DeviceProfile(1 << 30, 8192, 16, (4, 3, 2), 3e9, True, 256, 1, True)

#: Multiply-adds of a GPU that take as long as the calls of an entry, about 65 microseconds, where nothing is measured.
_CALL_ON_CUDA = {"float64": 2e9, "float32": 3e9, "tf32": 8e9, "float16": 16e9, "bfloat16": 16e9}
_READS = 2.0  # windows that an entry reads, at most
_LAUNCHES = 3.0  # further calls of an entry: a convolution, what follows it, and starts of rectangles


def profile_of(device: torch.device, dtype: torch.dtype, *, measured: bool = True) -> DeviceProfile:
    """Return what suits a device and the arithmetic in force on it.

    Args:
        device: A CPU or a GPU.
        dtype: Of the images.
        measured: Whether one process sweeps. Several must choose alike, so nothing is measured for them, and each has
            images of its own.
    """
    if device.type != "cuda":
        return CPU
    call = _CALL_ON_CUDA.get(arithmetic(device, dtype), CUDA.call)
    if measured and is_calibrated(device):
        call = call_cost(rates(device, dtype))
    return replace(CUDA, call=call, spans_images=measured)


def call_cost(speeds: Rates) -> float:
    """Return the cost of an entry's calls in multiply-adds of a convolution.

    It is rounded to a power of four: a plan decides about the last bits of a map, which noise must not change.
    """
    seconds = _READS * speeds["step"] + _LAUNCHES * speeds["call"]
    return float(4 ** round(math.log(seconds / speeds["conv 9 64 64"], 4)))
