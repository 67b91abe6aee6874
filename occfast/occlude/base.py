"""The interface of occlusions, and the helpers that several of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .. import checks


class SupportsDLPack(Protocol):
    """An array of another library, such as NumPy, CuPy or JAX."""

    def __dlpack__(self) -> Any: ...


#: A tensor, or an array that shares its memory through DLPack.
ArrayLike = Tensor | SupportsDLPack
#: A gray value or an RGB color, with components in [0, 1].
Color = float | tuple[float, float, float]

#: Weights of red, green and blue in gray (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)
_CHUNK = 16  # images that the CPU draws at a time; larger chunks leave its cache


class OcclusionResult(NamedTuple):
    """The result of an occlusion.

    Attributes:
        images: the occluded images, with the shape, dtype and device of the input.
        mask: bool [N, H, W], True where a pixel is covered completely or, at a soft edge, partly.
    """

    images: Tensor
    mask: Tensor


class OcclusionLike(Protocol):
    """Anything that can be called like an :class:`Occlusion`."""

    @property
    def needs_landmarks(self) -> bool:
        """Whether :meth:`__call__` needs landmarks."""

    def __call__(
        self, images: ArrayLike, landmarks: ArrayLike | None = None, sample_ids: ArrayLike | None = None
    ) -> OcclusionResult:
        """Occlude a batch of images."""


@dataclass(frozen=True)
class Occlusion(ABC):
    """Base class of occlusions. A subclass implements :meth:`_occlude`.

    Occlusions do not modify their input. Pixels outside the returned mask keep their exact values. Random choices
    depend on (seed, sample id) alone, not on the batch or its order.
    """

    #: Whether :meth:`__call__` needs landmarks.
    needs_landmarks = True

    def __call__(
        self, images: ArrayLike, landmarks: ArrayLike | None = None, sample_ids: ArrayLike | None = None
    ) -> OcclusionResult:
        """Occlude a batch of images.

        Args:
            images: uint8, or floating point with values in [0, 1], [N, C, H, W] with C = 1 (gray) or 3 (RGB). The
                range is checked on the CPU only; on other devices the check would wait for the device.
            landmarks: float [N, 5, 2], (row, column) in pixels: left eye, right eye, nose, left and right corner of the
                mouth, as seen in the image. Ignored unless :attr:`needs_landmarks` is set.
            sample_ids: int64 [N], the keys of the random choices. Defaults to 0, ..., N - 1.

        Raises:
            TypeError: if an argument has the wrong type or dtype.
            ValueError: if an argument has the wrong shape or range, landmarks are not finite, or both eyes coincide.
        """
        batch = checks.as_tensor(images, "images")
        if batch.dim() != 4 or batch.shape[1] not in (1, 3) or 0 in batch.shape:
            raise ValueError(f"images: expected shape [N, 1 or 3, H, W], got {list(batch.shape)}")
        if batch.dtype != torch.uint8 and not batch.is_floating_point():
            raise TypeError(f"images: expected uint8 or floating point, got {str(batch.dtype).removeprefix('torch.')}")
        if batch.is_floating_point() and batch.device.type == "cpu":
            low, high = (float(v) for v in batch.aminmax())
            if not (low >= 0 and high <= 1):
                raise ValueError(f"images: expected values in [0, 1], got {low:g} to {high:g}")
        points = self._landmarks(landmarks, batch) if self.needs_landmarks else None
        ids = torch.arange(len(batch)) if sample_ids is None else as_sample_ids(sample_ids, len(batch))
        ids = ids.to(batch.device)
        if batch.device.type != "cpu" or len(batch) <= _CHUNK:
            return self._occlude(batch, points, ids)
        chunks = [slice(k, k + _CHUNK) for k in range(0, len(batch), _CHUNK)]
        parts = [self._occlude(batch[c], None if points is None else points[c], ids[c]) for c in chunks]
        return OcclusionResult(torch.cat([part.images for part in parts]), torch.cat([part.mask for part in parts]))

    @abstractmethod
    def _occlude(self, images: Tensor, landmarks: Tensor | None, sample_ids: Tensor) -> OcclusionResult:
        """Occlude a checked batch; see :meth:`__call__`."""

    def about(self) -> dict[str, Any]:
        """Return the settings as values that JSON can hold."""
        return {"kind": type(self).__name__, **{field.name: getattr(self, field.name) for field in fields(self)}}

    def _landmarks(self, landmarks: ArrayLike | None, images: Tensor) -> Tensor:
        if landmarks is None:
            raise ValueError(f"landmarks: expected [{len(images)}, 5, 2] for {type(self).__name__}, got none")
        points = checks.as_tensor(landmarks, "landmarks").to(images.device, torch.float64)
        if tuple(points.shape) != (len(images), 5, 2):
            raise ValueError(f"landmarks: expected shape [{len(images)}, 5, 2], got {list(points.shape)}")
        bad = ~points.isfinite().flatten(1).all(1)
        if bool(bad.any()):
            raise ValueError(f"landmarks: expected finite numbers, image {int(bad.nonzero()[0])} has none")
        flat = (points[:, 1] - points[:, 0]).norm(dim=1) < 1e-6
        if bool(flat.any()):
            raise ValueError(f"landmarks: expected two eyes apart, not in image {int(flat.nonzero()[0])}")
        return points


@dataclass(frozen=True)
class Compose(Occlusion):
    """Applies several occlusions one after the other. The mask is the union of their masks.

    Attributes:
        parts: the occlusions, at least one.
    """

    parts: tuple[Occlusion, ...] = ()

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("parts: expected at least one occlusion, got none")

    @property
    def needs_landmarks(self) -> bool:  # type: ignore[override]
        """Whether one of the parts needs landmarks."""
        return any(part.needs_landmarks for part in self.parts)

    def _occlude(self, images: Tensor, landmarks: Tensor | None, sample_ids: Tensor) -> OcclusionResult:
        mask = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool, device=images.device)
        for part in self.parts:
            images, covered = part(images, landmarks, sample_ids)
            mask = mask | covered
        return OcclusionResult(images, mask)

    def about(self) -> dict[str, Any]:
        """Return the description of each part, as for a report."""
        return {"kind": "Compose", "parts": [part.about() for part in self.parts]}


def uniform(seed: int, sample_ids: Tensor, count: int, stream: int = 0) -> Tensor:
    """Draw uniform numbers that depend on (seed, sample id, stream, position) alone, by SplitMix64.

    Args:
        seed: int in [0, 2**63).
        sample_ids: int64 [N].
        count: numbers for each sample.
        stream: numbers of different streams are independent.

    Returns:
        float64 [N, count] in [0, 1).
    """

    def mixed(z: Tensor) -> Tensor:
        for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
            z = (z ^ ((z >> shift) & (2 ** (64 - shift) - 1))) * factor
        return z ^ ((z >> 31) & (2**33 - 1))

    golden = torch.tensor(-0x61C8864680B583EB, device=sample_ids.device)
    key = mixed(seed + golden * (stream + 1))
    z = mixed(sample_ids * golden + key)[:, None] + golden * torch.arange(1, count + 1, device=sample_ids.device)
    return ((mixed(z) >> 11) & (2**53 - 1)).double() / 2**53


def as_sample_ids(value: ArrayLike, count: int) -> Tensor:
    """Return sample ids as a tensor, int64 [count].

    Raises:
        TypeError: if the dtype is not int64.
        ValueError: if the shape is not [count].
    """
    ids = checks.as_tensor(value, "sample_ids")
    if ids.dtype != torch.int64:
        raise TypeError(f"sample_ids: expected dtype int64, got {str(ids.dtype).removeprefix('torch.')}")
    if tuple(ids.shape) != (count,):
        raise ValueError(f"sample_ids: expected shape [{count}], got {list(ids.shape)}")
    return ids


def pixel_grid(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the coordinates of the pixels: rows, float64 [1, H, 1], and columns, float64 [1, 1, W]."""
    rows = torch.arange(images.shape[2], dtype=torch.float64, device=images.device).view(1, -1, 1)
    return rows, torch.arange(images.shape[3], dtype=torch.float64, device=images.device).view(1, 1, -1)


def color_of(value: Color | str, channels: int, name: str) -> Tensor:
    """Return a color for images of ``channels`` channels, float64 [channels, 1, 1]; ``name`` is for errors."""
    several = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if len(several) not in (1, 3):
        raise ValueError(f"{name}: expected a number or three (red, green, blue), got {value!r}")
    color = torch.tensor([checks.number(v, name, 0.0, 1.0) for v in several], dtype=torch.float64)
    if channels == 1 and len(several) == 3:
        color = (color * torch.tensor(LUMA, dtype=torch.float64)).sum()[None]
    return color.expand(channels)[:, None, None]


def paint(images: Tensor, alpha: Tensor, color: Tensor) -> OcclusionResult:
    """Blend a color into images.

    Args:
        images: [N, C, H, W], uint8 or floating point in [0, 1].
        alpha: [N, H, W], opacity in [0, 1]. Pixels with opacity 0 keep their exact values.
        color: in [0, 1], broadcastable to the images.
    """
    mask = alpha > 0
    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
    alpha, color, before = alpha.to(dtype), color.to(images.device, dtype), images.to(dtype)
    if images.dtype == torch.uint8:
        color = color * 255
    painted = before + alpha[:, None] * (color - before)
    if images.dtype == torch.uint8:
        painted = painted.round_()
    return OcclusionResult(torch.where(mask[:, None], painted.to(images.dtype), images), mask)
