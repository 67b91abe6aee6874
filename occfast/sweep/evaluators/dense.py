"""The dense evaluator: a forward pass of the whole network for each position."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...native import ops
from ..geometry import SweepGrid
from ..memory import available_bytes, is_out_of_memory, peak_bytes, return_freed
from .behavior import same_outputs

#: Share of the free memory that is used if no limit is given.
_SHARE_OF_FREE = 0.25
#: Factor for memory that PyTorch does not see: scratch memory of convolution libraries and fragmentation.
_SCRATCH = 2.0
_LARGEST_BATCH = 4096
_FIRST_BATCH = {"cpu": 8, "cuda": 64}


class DenseEvaluator:
    """Runs a model on occluded copies of a block of images.

    :meth:`tune` measures the fastest batch size and memory format, which depend on the network and the machine.

    Args:
        model: Module or function from images [n, C, H, W] to outputs [n, K].
        grid: The positions.

    Attributes:
        layout: Memory format of the copies, "contiguous" or "channels_last".
        rate: Positions per second that :meth:`tune` measured; 0 if none fitted into memory.
    """

    method = "dense"

    def __init__(self, model: Callable[[Tensor], Tensor], grid: SweepGrid) -> None:
        self._plain = model
        self._grid, self._mask = grid.native(), grid.mask
        self._images = torch.empty(0)
        self._fill = torch.empty(0)
        self._model = model
        self._last: Callable[[Tensor], Tensor] | None = None
        self.layout = "contiguous"
        self.rate = 0.0

    def images_at_once(self, images: Tensor, memory_limit: int | None) -> int:
        """Return the number of images of a block that can be started together: all."""
        return images.shape[0]

    def start(self, images: Tensor, fill: Tensor) -> None:
        """Take the images [N, C, H, W] that positions refer to, and the occluder's values."""
        self._images, self._fill = _arranged(images, self.layout), fill

    def release(self) -> None:
        """Forget the images."""
        self._images = self._fill = torch.empty(0)

    def outputs(self, positions: Tensor) -> Tensor:
        """Run the model on copies occluded at flat positions [M]; return the outputs [M, K]."""
        if self._mask is None:
            copies = ops.occlude_positions(self._images, self._fill, positions, self._grid)
        else:
            copies = occlude_with_mask(
                self._images, self._fill, positions, self._grid, self._mask.tensor(self._images.device)
            )
        return self._model(_arranged(copies, self.layout))

    def order(self, positions: Tensor) -> Tensor:
        """Return the positions' own order, int64 [M]."""
        return torch.arange(len(positions), device=positions.device)

    def set_layout(self, layout: str) -> None:
        """Use "contiguous" (NCHW) or, if the model runs in it, "channels_last" (NHWC). The model is not changed."""
        self.layout, self._model = "contiguous", self._plain
        if layout == "channels_last":
            if self._last is None:
                self._last = self._in_channels_last()
            if self._last is not self._plain:
                self.layout, self._model = layout, self._last
        self._images = _arranged(self._images, self.layout)

    def _in_channels_last(self) -> Callable[[Tensor], Tensor]:
        """Return the model for images in channels_last.

        That is a copy with its weights in channels_last if it computes the same. A copy may read what the model itself
        stores, for example where a hook or another closure refers to the model: then it is the model. If that does not
        take such images (a ``view`` of a feature map raises) it is the model on contiguous images, ``self._plain``.
        """

        def rearranged(images: Tensor) -> Tensor:
            return self._plain(images)

        for model in (_channels_last(self._plain), rearranged):
            try:
                if model is not None and same_outputs(self._plain, _on_channels_last(model), self._images):
                    return model
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # it is the model's own code
                if is_out_of_memory(error):
                    raise
        return self._plain

    def tune(self, total: int, memory_limit: int | None) -> int:
        """Choose the memory format and return the batch size for ``total`` positions. Call after :meth:`start`.

        The batch size is doubled while that makes the sweep faster, in both formats, for at most about a twentieth of
        the time of the sweep.
        """
        device = self._images.device
        limit = memory_limit or int(_SHARE_OF_FREE * available_bytes(device))
        limit -= _parameter_bytes(self._plain)  # of the copy in the other format
        fits = min(total, largest_batch(lambda b: self.outputs(_some_positions(b, total, device)), limit))
        if fits < 1:
            if memory_limit is not None:
                warnings.warn(
                    f"memory_limit: {memory_limit} bytes do not hold a forward pass of one image; it takes more",
                    stacklevel=2,
                )
            fits = 1
        return_freed(device)
        first = min(fits, _FIRST_BATCH[device.type])
        best, budget = (0.0, first, "channels_last"), math.inf
        for layout in ("channels_last", "contiguous"):
            self.set_layout(layout)
            if self.layout != layout:
                continue
            batch = first
            while budget > 0:
                rate, spent = self._rate(batch, total, device)
                return_freed(device)
                slower = rate < 0.95 * best[0]
                best = max(best, (rate, batch, layout))
                budget = min(budget, total / best[0] / 20 if best[0] else 0.0) - spent
                if slower or 2 * batch > fits:
                    break
                batch *= 2
        self.set_layout(best[2])
        self.rate = best[0]
        return best[1]

    def _rate(self, batch: int, total: int, device: torch.device) -> tuple[float, float]:
        """Return positions per second, 0 if they don't fit into memory, and the seconds that measuring took."""
        positions = _some_positions(batch, total, device)
        started = time.perf_counter()
        times = []
        try:
            for _ in range(3):
                begin = time.perf_counter()
                self.outputs(positions)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                times.append(time.perf_counter() - begin)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return 0.0, time.perf_counter() - started
        return batch / min(times[1:]), time.perf_counter() - started


def occlude_with_mask(images: Tensor, fill: Tensor, positions: Tensor, grid: list[int], mask: Tensor) -> Tensor:
    """Return copies of images with the covered pixels of an occluder filled at flat positions, [M, C, H, W].

    Args:
        images: [N, C, H, W].
        fill: Broadcasts to the images.
        positions: int64 [M].
        grid: From :meth:`SweepGrid.native`.
        mask: The covered pixels, bool [height, width] of the occluder.
    """
    rows, columns, first_row, first_column, row_step, column_step, h, w = grid
    n, p = positions // (rows * columns), positions % (rows * columns)
    top = first_row + p // columns * row_step - h // 2
    left = first_column + p % columns * column_step - w // 2
    i = torch.arange(images.shape[2], device=images.device) - top[:, None]  # row of the occluder, [M, H]
    j = torch.arange(images.shape[3], device=images.device) - left[:, None]
    inside = ((i >= 0) & (i < h))[:, :, None] & ((j >= 0) & (j < w))[:, None, :]
    covered = inside & mask[i.clamp(0, h - 1)[:, :, None], j.clamp(0, w - 1)[:, None, :]]
    return torch.where(covered[:, None], fill.expand_as(images)[n], images[n])


def _arranged(images: Tensor, layout: str) -> Tensor:
    if layout == "contiguous":
        return images.contiguous()
    n, c, h, w = images.shape
    if c == 1:  # the memory is the same; the strides tell the convolution the format
        return images.contiguous().as_strided((n, c, h, w), (h * w, 1, w, 1))
    return images.contiguous(memory_format=torch.channels_last)


def _on_channels_last(model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda images: model(_arranged(images, "channels_last"))


def _channels_last(model: Any) -> Callable[[Tensor], Tensor] | None:
    """Return a copy of a model with its weights in channels_last; None if it can't be copied."""
    try:
        copied: nn.Module = copy.deepcopy(model).to(memory_format=torch.channels_last)
    except Exception:  # copying runs the model's own code, which may raise anything
        return None
    return copied


def _parameter_bytes(model: Any) -> int:
    return sum(p.nbytes for p in model.parameters()) if isinstance(model, nn.Module) else 0


def _some_positions(count: int, total: int, device: torch.device) -> Tensor:
    return torch.linspace(0, total - 1, count, device=device).long()


def largest_batch(run: Callable[[int], Any], limit: int) -> int:
    """Return the largest batch whose tensors fit into ``limit`` bytes, from two measured passes; 0: not even one."""
    try:
        one, three = peak_bytes(lambda: run(1)), peak_bytes(lambda: run(3))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return 1
    each = max(1.0, (three - one) / 2)
    fits = int((limit - max(0.0, one - each)) / (_SCRATCH * each))
    return max(int(one <= limit), min(_LARGEST_BATCH, fits))
