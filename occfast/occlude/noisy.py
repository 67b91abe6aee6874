"""Noisy occluders placed where a map says that it hurts (trigueros2018, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import get_worker_info

from .. import checks
from ..native import ops
from .locations import LocationDistribution

Noise = Literal["salt_and_pepper", "speckle", "gaussian", "none"]


class OccluderInfo(NamedTuple):
    """What was drawn for each sample of a batch; tensors on the images' device.

    boxes : int32 [N, 4], (top, left, bottom, right) in pixels, all 0 where the sample was left alone
    kind : uint8 [N], index into :data:`NOISES`, 255 where left alone
    level, intensity : float32 [N], [N, C]
    sample_ids : int64 [N], what the draws were keyed by
    """

    boxes: Tensor
    kind: Tensor
    level: Tensor
    intensity: Tensor
    sample_ids: Tensor

    def mask(self, height: int, width: int) -> Tensor:
        """Which pixels are covered: bool [N, height, width]."""
        i = torch.arange(height, device=self.boxes.device).view(1, -1, 1)
        j = torch.arange(width, device=self.boxes.device).view(1, 1, -1)
        top, left, bottom, right = (self.boxes[:, k].view(-1, 1, 1) for k in range(4))
        return (i >= top) & (i < bottom) & (j >= left) & (j < right)


#: Names of the kinds of noise, in the order of ``OccluderInfo.kind``.
NOISES: tuple[Noise, ...] = ("salt_and_pepper", "speckle", "gaussian", "none")


class NoisyOccluder(nn.Module):
    """Covers each image of a batch with one noisy block (trigueros2018, section 3.1).

    Intensities and levels live in the unit interval and are mapped to the images' values: [0, 255]
    for uint8, ``value_range`` for floats.  With I the intensity, L the level, z a standard normal and
    u uniform, an occluder's pixel is, cut to [0, 1],

    - ``gaussian``: I + L z (L is the standard deviation),
    - ``speckle``: I + I L z,
    - ``salt_and_pepper``: 0 or 1, each with probability L / 2, else I,
    - ``none``: I.

    Every draw comes from Philox counters keyed by (seed, sample id, pixel), so with explicit
    ``sample_ids`` a result depends on (seed, sample id) alone: not on the batch, its order, the
    threads, the worker, the process or the device.

    Args:
        size: (height, width) in pixels, or ((min, max), (min, max)) drawn uniformly, both ends included
        locations: a LocationDistribution for the images' size, "uniform", or "normal" (:data:`NORMAL_SPREAD`)
        noise: one name or several of :data:`NOISES`, each as likely
        level, intensity: (low, high) within [0, 1], drawn uniformly
        p: probability of covering an image at all
        seed: int in [0, 2**63)
        value_range: the values that 0 and 1 stand for in floating-point images
        color: "channels" draws an intensity for each channel, "gray" one for all
        validate: also check on a GPU that floating-point images lie within ``value_range``, which waits for the
            device; on the CPU it is always checked

    Raises:
        ValueError, TypeError: Naming the argument.
    """

    counter: Tensor

    def __init__(
        self,
        size: Any = (20, 40),
        locations: LocationDistribution | Literal["uniform", "normal"] = "uniform",
        noise: Noise | Sequence[Noise] = ("salt_and_pepper", "speckle", "gaussian"),
        level: Sequence[float] = (0.0, 0.3),
        intensity: Sequence[float] = (0.0, 1.0),
        p: float = 1.0,
        seed: int = 0,
        value_range: Sequence[float] = (0.0, 1.0),
        color: Literal["channels", "gray"] = "channels",
        validate: bool = False,
    ) -> None:
        super().__init__()
        self.sizes = _size_ranges(size)
        if not isinstance(locations, LocationDistribution) and locations not in ("uniform", "normal"):
            raise ValueError(f"locations: expected a LocationDistribution, 'uniform' or 'normal', got {locations!r}")
        self.locations = locations
        names = (noise,) if isinstance(noise, str) else tuple(noise)
        if not names or len(set(names)) != len(names) or not set(names) <= set(NOISES):
            raise ValueError(f"noise: expected one or more of {', '.join(NOISES)}, got {noise!r}")
        self.noise = names
        self.level = _interval(level, "level", 0.0, 1.0)
        self.intensity = _interval(intensity, "intensity", 0.0, 1.0)
        self.p = checks.number(p, "p", 0.0, 1.0)
        self.seed = checks.seed(seed)
        self.value_range = _interval(value_range, "value_range", -3.4e38, 3.4e38)
        if self.value_range[0] == self.value_range[1]:
            raise ValueError(f"value_range: expected two different numbers, got {tuple(value_range)!r}")
        if color not in ("channels", "gray"):
            raise ValueError(f"color: expected 'channels' or 'gray', got {color!r}")
        self.color = color
        self.validate = bool(validate)
        self._built: dict[tuple[int, int], LocationDistribution] = {}
        self.register_buffer("counter", torch.zeros((), dtype=torch.int64))

    def extra_repr(self) -> str:
        return (
            f"size={self.sizes}, locations={self.locations!r}, noise={self.noise}, level={self.level}, "
            f"intensity={self.intensity}, p={self.p}, seed={self.seed}"
        )

    def distribution(self, height: int, width: int) -> LocationDistribution:
        """Where the centers for images of a size are drawn from."""
        if isinstance(self.locations, LocationDistribution):
            if self.locations.image_size != (height, width):
                raise ValueError(
                    f"images: expected {self.locations.image_size[0]}x{self.locations.image_size[1]} pixels, "
                    f"which the locations are for, got {height}x{width}"
                )
            return self.locations
        if (height, width) not in self._built:
            make = LocationDistribution.uniform if self.locations == "uniform" else LocationDistribution.normal
            self._built[height, width] = make((height, width))
        return self._built[height, width]

    @overload
    def forward(self, images: Any, sample_ids: Any = None, return_info: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, images: Any, sample_ids: Any, return_info: Literal[True]) -> tuple[Tensor, OccluderInfo]: ...
    def forward(
        self, images: Any, sample_ids: Any = None, return_info: bool = False
    ) -> Tensor | tuple[Tensor, OccluderInfo]:
        """Images with occluders; the given ones are left as they are.

        Args:
            images: uint8, float16, bfloat16 or float32 [N, C, H, W] (tensor or ``__dlpack__``)
            sample_ids: int64 [N], not negative: what the draws are keyed by.  Without them an internal counter
                advances, which ``state_dict`` holds.
            return_info: also return an :class:`OccluderInfo`
        """
        batch = checks.as_tensor(images, "images")
        ids, law = self._law(batch, sample_ids)
        outside = torch.zeros(1, dtype=torch.int32, device=batch.device) if self._validates(batch) else None
        out: Tensor
        out, boxes, kind, level, intensity = ops.occlude(batch, ids, *law, *self.value_range, outside)
        if outside is not None and int(outside):
            raise self._outside(batch)
        return (out, OccluderInfo(boxes, kind, level, intensity, ids)) if return_info else out

    def apply_(self, images: Tensor, sample_ids: Any = None) -> OccluderInfo:
        """The same, painted on the images themselves (contiguous or channels_last); returns what was drawn."""
        ids, law = self._law(images, sample_ids)
        low, high = self.value_range
        if images.numel() and self._validates(images):  # before anything is changed
            least, most = images.aminmax()
            if not bool((least >= low) & (most <= high)):  # nor NaN, which aminmax hands on
                raise self._outside(images)
        drawn: tuple[Tensor, Tensor, Tensor, Tensor] = ops.occlude_(images, ids, *law, low, high)
        return OccluderInfo(*drawn, ids)

    def _validates(self, images: Tensor) -> bool:
        # On a GPU looking at the answer would wait for the device.
        return images.is_floating_point() and (self.validate or images.device.type == "cpu")

    def _outside(self, images: Tensor) -> ValueError:
        low, high = self.value_range
        found = [f"{float(v):g}" for v in images.float().aminmax()]
        return ValueError(
            f"images: expected values in [{low:g}, {high:g}], the value_range of this occluder, "
            f"got values from {found[0]} to {found[1]}"
        )

    def draw(self, images: Tensor, sample_ids: Any = None) -> OccluderInfo:
        """What would be painted on a batch of this shape, without painting."""
        ids, (*tables, seed, p, sizes, ranges, kinds, gray) = self._law(images, sample_ids)
        size = images.shape[1:]
        drawn: tuple[Tensor, Tensor, Tensor, Tensor] = ops.draw_occluders(
            ids, *tables, *size, seed, p, sizes, ranges, kinds, gray
        )
        return OccluderInfo(*drawn, ids)

    def _law(self, images: Tensor, sample_ids: Any) -> tuple[Tensor, tuple[Any, ...]]:
        """The sample ids, and what the native ops draw from: tables, seed, p, sizes, ranges, kinds, gray."""
        if images.dim() != 4:
            raise ValueError(f"images: expected shape [N, C, H, W], got {list(images.shape)}")
        n, _, height, width = images.shape
        (h0, h1), (w0, w1) = self.sizes
        if h1 > height or w1 > width:
            raise ValueError(f"size: expected at most the images' {height}x{width} pixels, got {h1}x{w1}")
        ids = self._sample_ids(sample_ids, n, images.device)
        return ids, (
            *self.distribution(height, width).tables(images.device),
            self.seed,
            self.p,
            [h0, h1, w0, w1],
            [*self.level, *self.intensity],
            [ops.KINDS[name] for name in self.noise],
            self.color == "gray",
        )

    def _sample_ids(self, given: Any, n: int, device: torch.device) -> Tensor:
        if given is not None:
            ids = checks.as_tensor(given, "sample_ids")
            if ids.dtype != torch.int64:
                raise TypeError(f"sample_ids: expected dtype int64, got {str(ids.dtype).removeprefix('torch.')}")
            if tuple(ids.shape) != (n,):
                raise ValueError(f"sample_ids: expected shape [{n}], got {list(ids.shape)}")
            return ids.to(device)
        ids = torch.arange(n, device=device) + self.counter.to(device)
        self.counter.add_(n)
        worker = get_worker_info()
        if worker is not None:
            # Each worker holds a copy of the counter: its seed, another each epoch, keeps them apart.
            ids = ids + ((worker.seed & 0x3FFFFFFF) << 32)
        return ids


def _interval(value: Sequence[float], name: str, low: float, high: float) -> tuple[float, float]:
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise TypeError(f"{name}: expected (low, high), got {value!r}")
    first, second = (checks.number(v, name, low, high) for v in value)
    if first > second:
        raise ValueError(f"{name}: expected low <= high, got {tuple(value)!r}")
    return first, second


def _size_ranges(size: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    if isinstance(size, Sequence) and len(size) == 2 and all(isinstance(s, Sequence) for s in size):
        rows, columns = checks.pair(size[0], "size"), checks.pair(size[1], "size")
        if rows[0] > rows[1] or columns[0] > columns[1]:
            raise ValueError(f"size: expected ((min, max), (min, max)), got {size!r}")
        return rows, columns
    height, width = checks.pair(size, "size")
    return (height, height), (width, width)


class PerImage:
    """Lets a :class:`NoisyOccluder` stand in any per-image transform pipeline.

    Takes a PIL image (modes L and RGB), a NumPy array [H, W] or [H, W, C], or a tensor [C, H, W] and
    returns the same type, mode, shape and dtype.

    Raises TypeError for anything else, and what the occluder raises.
    """

    def __init__(self, occluder: NoisyOccluder) -> None:
        self.occluder = occluder

    def __call__(self, image: Any, sample_id: int | None = None) -> Any:
        """``sample_id`` keys the draw, as in :meth:`NoisyOccluder.forward`; None counts on."""
        ids = None if sample_id is None else torch.tensor([sample_id])
        if isinstance(image, Tensor):
            if image.dim() != 3:
                raise ValueError(f"image: expected shape [C, H, W], got {list(image.shape)}")
            return self.occluder(image[None], ids)[0]
        if isinstance(image, np.ndarray):
            if image.ndim not in (2, 3):
                raise ValueError(f"image: expected shape [H, W] or [H, W, C], got {list(image.shape)}")
            planes = torch.tensor(image if image.ndim == 3 else image[..., None]).permute(2, 0, 1)
            out = self.occluder(planes[None], ids)[0].permute(1, 2, 0).contiguous().numpy()
            return out if image.ndim == 3 else out[..., 0]
        if hasattr(image, "getbands") and hasattr(image, "tobytes"):  # PIL, which is not required
            if image.mode not in ("L", "RGB"):
                raise ValueError(f"image: expected mode L or RGB, got {image.mode}; convert it first")
            from PIL import Image

            return Image.fromarray(self(np.asarray(image), sample_id))
        raise TypeError(f"image: expected a PIL image, an array or a tensor, got {type(image).__name__}")
