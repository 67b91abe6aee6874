"""Images and labels, checked, from a tensor or from an iterable larger than memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import as_tensor

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass
class Block:
    """Consecutive images: ``first`` is the number of images before them."""

    first: int
    images: Tensor
    labels: Tensor | None


class Source:
    """Yields checked blocks of at most ``block`` images, always cut at the same places.

    ``total`` is the number of images where it is known. ``digest`` runs over all that was yielded,
    so that a resumed sweep can tell whether it gets the same data. ``shuffle`` is the seed of a random
    order; only a tensor is shuffled. ``dtype`` is what images are swept in, if not their own.
    """

    def __init__(
        self,
        images: Any,
        labels: Any,
        device: torch.device | None,
        shuffle: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.digest = hashlib.sha256()
        self._device, self._dtype = device, dtype
        self._order: Tensor | None = None
        self._batches: Iterable[Any]
        self.total: int | None
        if isinstance(images, Tensor) or hasattr(images, "__dlpack__"):
            whole = as_tensor(images, "images")
            given = None if labels is None else as_tensor(labels, "labels")
            _check(whole, given)
            self._batches = [(whole, given)]
            self.total = whole.shape[0]
            if shuffle is not None:
                self._order = torch.randperm(self.total, generator=torch.Generator().manual_seed(shuffle))
        elif isinstance(images, Iterable) and not isinstance(images, (str, bytes)):
            if labels is not None:
                raise ValueError("labels: expected None where images is an iterable of (images, labels) batches")
            self._batches = images
            self.total = _length(images)
        else:
            raise TypeError(
                "images: expected a tensor, an array with __dlpack__ or an iterable of (images, labels) batches, "
                f"got {type(images).__name__}"
            )
        if self.total == 0:
            raise ValueError("images: expected at least one image, got an empty data set")

    def blocks(self, size: int) -> Iterator[Block]:
        first = 0
        shape: tuple[int, ...] | None = None
        for number, batch in enumerate(self._batches):
            images, labels = _pair(batch, number)
            _check(images, labels, where=f" in batch {number}")
            if shape is None:
                shape = tuple(images.shape[1:])
            if tuple(images.shape[1:]) != shape:
                got = list(images.shape[1:])
                raise ValueError(f"images: expected {list(shape)} as before, got {got} in batch {number}")
            for start in range(0, images.shape[0], size):
                index = slice(start, start + size) if self._order is None else self._order[start : start + size]
                part = images[index]
                marks = None if labels is None else labels[index]
                if not bool(part.isfinite().all()):
                    wrong = first + int((~part.flatten(1).isfinite().all(1)).nonzero()[0])
                    raise ValueError(f"images: expected finite pixels, got NaN or infinity in image {wrong}")
                self._hash(part, marks)
                if self._device is not None:
                    part = part.to(self._device)
                    marks = None if marks is None else marks.to(self._device)
                if self._dtype is not None:
                    part = part.to(self._dtype)
                yield Block(first, part, marks)
                first += part.shape[0]
        if first == 0:
            raise ValueError("images: expected at least one image, got an empty data set")

    def _hash(self, *tensors: Tensor | None) -> None:
        for tensor in tensors:
            if tensor is not None:
                plain = tensor.detach().cpu().contiguous()
                self.digest.update(f"{plain.dtype}{list(plain.shape)}".encode())
                if plain.numel():
                    self.digest.update(plain.view(-1).view(torch.uint8).numpy().data)


def _length(batches: Any) -> int | None:
    """The number of images behind a DataLoader or a list, where it can be told without loading."""
    dataset = getattr(batches, "dataset", None)
    if dataset is not None and not getattr(batches, "drop_last", False):
        try:
            return len(getattr(batches, "sampler", None) or dataset)
        except TypeError:
            return None
    if isinstance(batches, (list, tuple)):
        try:
            return sum(len(batch[0] if isinstance(batch, (list, tuple)) else batch) for batch in batches)
        except TypeError:
            return None
    return None


def _pair(batch: Any, number: int) -> tuple[Tensor, Tensor | None]:
    if isinstance(batch, Tensor) or hasattr(batch, "__dlpack__"):
        return as_tensor(batch, "images"), None
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        images, labels = batch
        return as_tensor(images, "images"), None if labels is None else as_tensor(labels, "labels")
    raise TypeError(f"images: expected batches (images, labels), got {type(batch).__name__} as batch {number}")


def _check(images: Tensor, labels: Tensor | None, where: str = "") -> None:
    if images.dim() != 4:
        raise ValueError(f"images: expected shape [N, C, H, W], got {list(images.shape)}{where}")
    if images.dtype not in _FLOATS:
        got = str(images.dtype).removeprefix("torch.")
        raise TypeError(f"images: expected a floating-point dtype, got {got}{where}")
    if labels is not None and (labels.dim() == 0 or labels.shape[0] != images.shape[0]):
        raise ValueError(f"labels: expected {images.shape[0]} of them, got shape {list(labels.shape)}{where}")
