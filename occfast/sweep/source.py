"""Images and labels, checked, from a tensor or from an iterable that may be larger than memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import as_tensor
from .types import Batch, ImageInput, LabelInput

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_IMAGES = ("images", "image")
_LABELS = ("labels", "label")


@dataclass
class Block:
    """Consecutive images.

    Attributes:
        first: Number of images before them.
        images, labels: [n, C, H, W] and [n, ...] or None.
        indices: Numbers of the images among those that the caller gave, int64 [n].
    """

    first: int
    images: Tensor
    labels: Tensor | None
    indices: Tensor


class Source:
    """Checked blocks of images, always cut at the same places.

    Args:
        images, labels: As for :func:`~occfast.sweep.occlusion_map`.
        device: Device of the blocks; None: where the images are.
        shuffle: Seed of a random order of a tensor's images; None: their own order. An iterable is never shuffled.
        dtype: Dtype of the blocks' images; None: their own.

    Attributes:
        total: Number of images, None where it is not known.
        digest: Hash of all that was yielded, so that a resumed sweep can check that it gets the same.

    Raises:
        TypeError, ValueError: Naming ``images`` or ``labels``; also while blocks are read.
    """

    def __init__(
        self,
        images: ImageInput,
        labels: LabelInput | None,
        device: torch.device | None,
        shuffle: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.digest = hashlib.sha256()
        self._device, self._dtype = device, dtype
        self._order: Tensor | None = None
        self._batches: Iterable[Batch]
        self.total: int | None
        if isinstance(images, Tensor) or hasattr(images, "__dlpack__"):
            whole = as_tensor(images, "images")  # type: ignore[arg-type]
            given = _labels(labels)
            _check(whole, given)
            self._batches = [(whole, given)]
            self.total = whole.shape[0]
            if shuffle is not None:
                self._order = torch.randperm(self.total, generator=torch.Generator().manual_seed(shuffle))
        elif isinstance(images, Iterable) and not isinstance(images, (str, bytes, Mapping)):
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
        """Yield blocks of at most ``size`` images."""
        first = 0
        kind: tuple[list[int], torch.dtype] | None = None
        for number, batch in enumerate(self._batches):
            images, labels = _pair(batch, number)
            _check(images, labels, suffix=f" in batch {number}")
            kind = kind or (list(images.shape[1:]), images.dtype)
            for one, other in zip(kind, (list(images.shape[1:]), images.dtype), strict=True):
                if one != other:
                    expected, got = (str(value).removeprefix("torch.") for value in (one, other))
                    raise ValueError(f"images: expected {expected} as before, got {got} in batch {number}")
            before = first
            for start in range(0, images.shape[0], size):
                index = slice(start, start + size) if self._order is None else self._order[start : start + size]
                part = images[index]
                marks = None if labels is None else labels[index]
                indices = torch.arange(before, before + images.shape[0])[index]
                if not bool(part.isfinite().all()):
                    wrong = int(indices[int((~part.flatten(1).isfinite().all(1)).nonzero()[0])])
                    raise ValueError(f"images: expected finite pixels, got NaN or infinity in image {wrong}")
                self._hash(part, marks)
                if self._device is not None:
                    part = part.to(self._device)
                    marks = None if marks is None else marks.to(self._device)
                if self._dtype is not None:
                    part = part.to(self._dtype)
                # A model that calls view() on feature maps takes no others; a dense sweep tries channels_last.
                part = part.contiguous()
                yield Block(first, part, marks, indices)
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
    """Return the number of images of a DataLoader or a list, or None if it is not known without loading them."""
    dataset = getattr(batches, "dataset", None)
    if dataset is not None and not getattr(batches, "drop_last", False):
        try:
            return len(getattr(batches, "sampler", None) or dataset)
        except TypeError:
            return None
    if isinstance(batches, (list, tuple)):
        try:
            return sum(len(_parts(batch, number)[0]) for number, batch in enumerate(batches))
        except TypeError:
            return None
    return None


def _labels(labels: Any) -> Tensor | None:
    """Return labels as a tensor; those of an integer dtype become int64."""
    if labels is None:
        return None
    if isinstance(labels, Sequence) and not isinstance(labels, (str, bytes)):
        if any(isinstance(value, bool) or not isinstance(value, (int, np.integer)) for value in labels):
            raise TypeError("labels: expected a tensor, an array or a list of ints, got a list of something else")
        found = torch.tensor([int(value) for value in labels], dtype=torch.int64)
    else:
        found = as_tensor(labels, "labels")
    integer = not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool)
    return found.long() if integer and found.dtype != torch.uint64 else found


def _parts(batch: Any, number: int) -> tuple[Any, Any]:
    """Return the images and the labels (or None) of a batch, as they are."""
    if isinstance(batch, Tensor) or hasattr(batch, "__dlpack__"):
        return batch, None
    if isinstance(batch, (tuple, list)) and 2 <= len(batch) <= 3:
        if len(batch) == 3:
            _check_ids(batch[2], number)
        return batch[0], batch[1]
    if isinstance(batch, Mapping):
        images, labels = ([name for name in names if name in batch] for names in (_IMAGES, _LABELS))
        if len(images) == 1 and len(labels) <= 1:
            return batch[images[0]], batch[labels[0]] if labels else None
        got = f"the keys {', '.join(map(repr, batch))}"
    else:
        got = type(batch).__name__ + (f" of {len(batch)}" if isinstance(batch, (tuple, list)) else "")
    raise TypeError(
        "images: expected batches of images, (images, labels), (images, labels, sample ids) or mappings with the keys "
        f"'images' and 'labels', got {got} as batch {number}"
    )


def _check_ids(ids: Any, number: int) -> None:
    """Refuse a third part of a batch that can't be sample ids, which a sweep has no use for."""
    if not (isinstance(ids, Tensor) and ids.dtype == torch.int64 and ids.dim() == 1):
        got = f"{str(ids.dtype)[6:]} {list(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise TypeError(f"images: expected sample ids, int64 [N], as the third of batch {number}, got {got}")


def _pair(batch: Batch, number: int) -> tuple[Tensor, Tensor | None]:
    images, labels = _parts(batch, number)
    return as_tensor(images, "images"), _labels(labels)


def _check(images: Tensor, labels: Tensor | None, suffix: str = "") -> None:
    if images.dim() != 4:
        more = "; add the missing batch or channel dimension" if images.dim() == 3 else ""
        raise ValueError(f"images: expected shape [N, C, H, W], got {list(images.shape)}{suffix}{more}")
    if images.dtype not in _FLOATS:
        got = str(images.dtype).removeprefix("torch.")
        more = ", for example images.float() / 255" if images.dtype == torch.uint8 else ""
        raise TypeError(
            f"images: expected a floating-point dtype, got {got}{suffix}; scale the pixels as the model expects{more}"
        )
    if 0 in images.shape[1:]:
        raise ValueError(f"images: expected at least one channel, row and column, got {list(images.shape)}{suffix}")
    if labels is not None and (labels.dim() == 0 or labels.shape[0] != images.shape[0]):
        raise ValueError(f"labels: expected {images.shape[0]} of them, got shape {list(labels.shape)}{suffix}")
