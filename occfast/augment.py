"""Noisy occluders placed where a map says that it hurts (trigueros2018, section 3.1)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import get_worker_info

from . import checks
from .errors import DataError
from .files import read_npz, write_npz
from .native import ops

Noise = Literal["salt_and_pepper", "speckle", "gaussian", "none"]

#: Standard deviation of the "normal" scheme along each axis, as a fraction of the image's size.  trigueros2018
#: centres its random occluders on the image "from a standard normal distribution" and gives no scale; with a
#: quarter, two standard deviations reach the edge, so 95 % of the centres of an axis fall inside unconditioned.
NORMAL_SPREAD = 0.25


@dataclass(frozen=True, eq=False)
class LocationDistribution:
    """Where the centre of an occluder is drawn from: one probability for each centre of a grid.

    Attributes:
        probabilities: float64 [rows, columns], not negative, sums to 1
        row_centers, column_centers: int64 [rows], [columns], pixels, increasing, inside the image
        image_size: (height, width) of the images it is meant for
    """

    probabilities: Tensor
    row_centers: Tensor
    column_centers: Tensor
    image_size: tuple[int, int]
    _cdf: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        p = self.probabilities
        if p.dtype != torch.float64 or p.dim() != 2 or p.numel() == 0:
            raise ValueError(f"probabilities: expected float64 [rows, columns], got {p.dtype} {list(p.shape)}")
        if not bool(p.isfinite().all()) or bool((p < 0).any()) or abs(float(p.sum()) - 1) > 1e-9:
            raise ValueError(f"probabilities: expected finite numbers >= 0 that sum to 1, sum is {float(p.sum())}")
        for name, centers, size, limit in (
            ("row_centers", self.row_centers, p.shape[0], self.image_size[0]),
            ("column_centers", self.column_centers, p.shape[1], self.image_size[1]),
        ):
            if centers.dtype != torch.int64 or tuple(centers.shape) != (size,):
                raise ValueError(f"{name}: expected int64 [{size}], got {centers.dtype} {list(centers.shape)}")
            if bool((centers.diff() <= 0).any()) or int(centers[0]) < 0 or int(centers[-1]) >= limit:
                raise ValueError(f"{name}: expected increasing pixels in [0, {limit}), got {centers.tolist()}")

    # -- how to make one -------------------------------------------------------------------------------

    @classmethod
    def from_weights(
        cls, weights: Any, image_size: Sequence[int] | None = None, centers: tuple[Any, Any] | None = None
    ) -> LocationDistribution:
        """In proportion to any map of finite numbers >= 0, [rows, columns], not all 0.

        Without ``centers`` the map has one entry for each pixel.
        """
        w = checks.as_tensor(weights, "weights").detach().to("cpu", torch.float64)
        if w.dim() != 2 or w.numel() == 0:
            raise ValueError(f"weights: expected [rows, columns], got {list(w.shape)}")
        if not bool(w.isfinite().all()) or bool((w < 0).any()) or float(w.sum()) <= 0:
            raise ValueError("weights: expected finite numbers >= 0, not all 0")
        rows, columns = centers if centers is not None else (torch.arange(w.shape[0]), torch.arange(w.shape[1]))
        size = tuple(image_size) if image_size is not None else tuple(w.shape)
        w = w / w.max()  # the sum of huge weights stays finite
        return cls(
            w / w.sum(),
            torch.as_tensor(rows, dtype=torch.int64).cpu(),
            torch.as_tensor(columns, dtype=torch.int64).cpu(),
            (int(size[0]), int(size[1])),
        )

    @classmethod
    def softmax(
        cls,
        values: Any,
        temperature: float,
        image_size: Sequence[int] | None = None,
        centers: tuple[Any, Any] | None = None,
    ) -> LocationDistribution:
        """Eq. 4 of trigueros2018: P = exp(O / T) / sum exp(O / T) of a map O [rows, columns], T > 0."""
        temperature = checks.in_range(temperature, "temperature", 1e-12, 1e12)
        o = checks.as_tensor(values, "values").detach().to("cpu", torch.float64)
        if o.dim() != 2 or not bool(o.isfinite().all()):
            raise ValueError(f"values: expected finite numbers [rows, columns], got {list(o.shape)}")
        return cls.from_weights(((o - o.max()) / temperature).exp(), image_size, centers)

    @classmethod
    def uniform(cls, image_size: Sequence[int]) -> LocationDistribution:
        """Every pixel is as likely a centre."""
        height, width = image_size
        return cls.from_weights(torch.ones(height, width, dtype=torch.float64))

    @classmethod
    def normal(cls, image_size: Sequence[int], spread: float = NORMAL_SPREAD) -> LocationDistribution:
        """The R scheme of trigueros2018: normal about the image's centre, cut at its edge.

        ``spread`` is the standard deviation along each axis in fractions of the image's size; see
        :data:`NORMAL_SPREAD` for the default.
        """
        spread = checks.in_range(spread, "spread", 1e-6, 1e6)
        axes = [
            torch.exp(-0.5 * ((torch.arange(s, dtype=torch.float64) - (s - 1) / 2) / (spread * s)) ** 2)
            for s in image_size
        ]
        return cls.from_weights(axes[0][:, None] * axes[1])

    def mix(self, other: LocationDistribution, weight: float) -> LocationDistribution:
        """``(1 - weight)`` of this and ``weight`` of another over the same centres, weight in [0, 1]."""
        weight = checks.in_range(weight, "weight", 0, 1)
        if (
            self.image_size != other.image_size
            or not torch.equal(self.row_centers, other.row_centers)
            or not torch.equal(self.column_centers, other.column_centers)
        ):
            raise ValueError(f"other: expected the centres of {self!r}, got {other!r}")
        mixed = (1 - weight) * self.probabilities + weight * other.probabilities
        return self.from_weights(mixed, self.image_size, (self.row_centers, self.column_centers))

    def masked(self, allowed: Any) -> LocationDistribution:
        """This distribution given that the centre is allowed: bool [rows, columns]."""
        mask = checks.as_tensor(allowed, "allowed")
        if mask.dtype != torch.bool or mask.shape != self.probabilities.shape:
            raise ValueError(
                f"allowed: expected bool {list(self.probabilities.shape)}, got {mask.dtype} {list(mask.shape)}"
            )
        kept = torch.where(mask.cpu(), self.probabilities, 0.0)
        if float(kept.sum()) == 0:
            raise ValueError("allowed: expected some centre of positive probability, got none")
        return self.from_weights(kept, self.image_size, (self.row_centers, self.column_centers))

    # -- what to do with it ----------------------------------------------------------------------------

    def tables(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Cumulative probabilities float64 [rows * columns] (the last positive cell ends at exactly 1) and
        the centres, on a device."""
        if device not in self._cdf:
            flat = self.probabilities.flatten()
            cdf = flat.cumsum(0).clamp(max=1.0)
            last = int(flat.nonzero()[-1])
            cdf[last:] = 1.0
            self._cdf[device] = (cdf.to(device), self.row_centers.to(device), self.column_centers.to(device))
        return self._cdf[device]

    @property
    def entropy(self) -> float:
        """In bits; log2 of the number of centres if uniform."""
        p = self.probabilities
        return float(-(p * p.clamp(min=1e-300).log2()).sum())

    def plot(self, ax: Any = None, image: Any = None) -> Any:
        """Draw the probabilities (over a grey image [H, W] if given); returns the Matplotlib axes."""
        from .plots import draw_map

        return draw_map(self.probabilities.numpy(), self._extent(), ax=ax, image=image, label="probability")

    def _extent(self) -> tuple[float, float, float, float]:
        from .plots import extent

        return extent(self.row_centers.numpy(), self.column_centers.numpy())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a ``.npz``."""
        write_npz(
            path,
            kind="occfast.LocationDistribution",
            probabilities=self.probabilities.numpy(),
            row_centers=self.row_centers.numpy(),
            column_centers=self.column_centers.numpy(),
            image_size=np.array(self.image_size),
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LocationDistribution:
        """Read what :meth:`save` wrote.  Raises DataError if the file is damaged or something else."""
        content = read_npz(path)
        if str(content.get("kind", "")) != "occfast.LocationDistribution":
            raise DataError(f"{path}: not a saved LocationDistribution")
        try:
            height, width = (int(v) for v in content["image_size"])
            return cls(
                torch.from_numpy(content["probabilities"]),
                torch.from_numpy(content["row_centers"]),
                torch.from_numpy(content["column_centers"]),
                (height, width),
            )
        except (KeyError, ValueError) as error:
            raise DataError(f"{path}: not a whole LocationDistribution ({error})") from error

    def __repr__(self) -> str:
        rows, columns = self.probabilities.shape
        return f"LocationDistribution({rows}x{columns} centres over {self.image_size}, entropy {self.entropy:.1f} bits)"


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
        colour: "channels" draws an intensity for each channel, "grey" one for all
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
        colour: Literal["channels", "grey"] = "channels",
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
        self.p = checks.in_range(p, "p", 0.0, 1.0)
        self.seed = checks.seed(seed)
        self.value_range = _interval(value_range, "value_range", -3.4e38, 3.4e38)
        if self.value_range[0] == self.value_range[1]:
            raise ValueError(f"value_range: expected two different numbers, got {tuple(value_range)!r}")
        if colour not in ("channels", "grey"):
            raise ValueError(f"colour: expected 'channels' or 'grey', got {colour!r}")
        self.colour = colour
        self.validate = bool(validate)
        self._built: dict[tuple[int, int], LocationDistribution] = {}
        self.register_buffer("counter", torch.zeros((), dtype=torch.int64))

    def extra_repr(self) -> str:
        return (
            f"size={self.sizes}, locations={self.locations!r}, noise={self.noise}, level={self.level}, "
            f"intensity={self.intensity}, p={self.p}, seed={self.seed}"
        )

    def distribution(self, height: int, width: int) -> LocationDistribution:
        """Where the centres for images of a size are drawn from."""
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
        ids, (*tables, seed, p, sizes, ranges, kinds, grey) = self._law(images, sample_ids)
        size = images.shape[1:]
        drawn: tuple[Tensor, Tensor, Tensor, Tensor] = ops.draw_occluders(
            ids, *tables, *size, seed, p, sizes, ranges, kinds, grey
        )
        return OccluderInfo(*drawn, ids)

    def _law(self, images: Tensor, sample_ids: Any) -> tuple[Tensor, tuple[Any, ...]]:
        """The sample ids, and what the native ops draw from: tables, seed, p, sizes, ranges, kinds, grey."""
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
            self.colour == "grey",
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
    first, second = (checks.in_range(v, name, low, high) for v in value)
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
