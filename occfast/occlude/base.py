"""The interface of occlusions, and helpers that several of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .. import checks

#: A gray or an RGB color within [0, 1].
Color = float | tuple[float, float, float]


_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601


_CHUNK = 16  # images that a CPU draws at a time, to stay in its cache


class OcclusionResult(NamedTuple):
    """What an occlusion returns.

    Attributes:
        images: as given, covered; same shape, dtype and device.
        mask: bool [N, H, W], where pixels are covered (wholly, or in part at a soft edge).
    """

    images: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Occlusion(ABC):
    """What all occlusions share; see :meth:`__call__`."""

    #: Whether :meth:`__call__` needs landmarks.
    needs_landmarks = True

    def __call__(self, images: Any, landmarks: Any = None, sample_ids: Any = None) -> OcclusionResult:
        """Cover a batch.

        Args:
            images: uint8, or floating point with values in [0, 1] (checked on the CPU alone: elsewhere that would wait
                for the device), [N, C, H, W] with C 1 or 3 (RGB).
            landmarks: float [N, 5, 2]; not used by occlusions without ``needs_landmarks``.
            sample_ids: int64 [N] that key what is drawn at random; by default 0 … N − 1.

        Raises:
            TypeError, ValueError: naming the argument; also for NaN landmarks, and eyes that coincide.
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
        ids = _sample_ids(sample_ids, batch)
        if batch.device.type != "cpu" or len(batch) <= _CHUNK:
            return self._cover(batch, points, ids)
        chunks = [slice(k, k + _CHUNK) for k in range(0, len(batch), _CHUNK)]
        parts = [self._cover(batch[c], None if points is None else points[c], ids[c]) for c in chunks]
        return OcclusionResult(torch.cat([part.images for part in parts]), torch.cat([part.mask for part in parts]))

    @abstractmethod
    def _cover(self, images: Tensor, landmarks: Tensor | None, ids: Tensor) -> OcclusionResult: ...

    def _landmarks(self, landmarks: Any, images: Tensor) -> Tensor:
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


def uniform(seed: int, ids: Tensor, count: int, stream: int = 0) -> Tensor:
    """Numbers in [0, 1) that depend on (seed, sample id, stream, number) alone, float64 [N, count]: SplitMix64."""

    def mixed(z: Tensor) -> Tensor:
        for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
            z = (z ^ ((z >> shift) & (2 ** (64 - shift) - 1))) * factor
        return z ^ ((z >> 31) & (2**33 - 1))

    golden = torch.tensor(-0x61C8864680B583EB, device=ids.device)
    key = mixed(seed + golden * (stream + 1))
    z = mixed(ids * golden + key)[:, None] + golden * torch.arange(1, count + 1, device=ids.device)
    return ((mixed(z) >> 11) & (2**53 - 1)).double() / 2**53


def _sample_ids(given: Any, images: Tensor) -> Tensor:
    if given is None:
        return torch.arange(len(images), device=images.device)
    ids = checks.as_tensor(given, "sample_ids")
    if ids.dtype != torch.int64:
        raise TypeError(f"sample_ids: expected dtype int64, got {str(ids.dtype).removeprefix('torch.')}")
    if tuple(ids.shape) != (len(images),):
        raise ValueError(f"sample_ids: expected shape [{len(images)}], got {list(ids.shape)}")
    return ids.to(images.device)


def _pixels(images: Tensor) -> tuple[Tensor, Tensor]:
    rows = torch.arange(images.shape[2], dtype=torch.float64, device=images.device).view(1, -1, 1)
    return rows, torch.arange(images.shape[3], dtype=torch.float64, device=images.device).view(1, 1, -1)


def _color(value: Any, channels: int, name: str) -> Tensor:
    """[C, 1, 1]."""
    several = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if len(several) not in (1, 3):
        raise ValueError(f"{name}: expected a number or three (red, green, blue), got {value!r}")
    color = torch.tensor([checks.number(v, name, 0.0, 1.0) for v in several], dtype=torch.float64)
    if channels == 1 and len(several) == 3:
        color = (color * torch.tensor(_LUMA, dtype=torch.float64)).sum()[None]
    return color.expand(channels)[:, None, None]


def _paint(images: Tensor, alpha: Tensor, color: Tensor) -> OcclusionResult:
    """Mix a color in, as much as ``alpha`` [N, H, W] says; outside ``alpha > 0`` the images stay to the bit."""
    mask = alpha > 0
    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
    alpha, color, before = alpha.to(dtype), color.to(images.device, dtype), images.to(dtype)
    if images.dtype == torch.uint8:
        color = color * 255
    painted = before + alpha[:, None] * (color - before)
    if images.dtype == torch.uint8:
        painted = painted.round_()
    return OcclusionResult(torch.where(mask[:, None], painted.to(images.dtype), images), mask)


class Cover(Protocol):
    """Something that covers faces: an :class:`occfast.occlude.Occlusion` or a :class:`NoisyBlock`."""

    @property
    def needs_landmarks(self) -> bool: ...

    def __call__(self, images: Any, landmarks: Any = None, sample_ids: Any = None) -> OcclusionResult: ...
