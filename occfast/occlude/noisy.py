"""Blocks of random intensity and noise (trigueros2018, section 3.1), for training and for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, overload

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.data import get_worker_info

from .. import checks
from ..native import ops
from .base import ArrayLike, Occlusion, OcclusionResult, as_sample_ids
from .locations import LocationDistribution

if TYPE_CHECKING:
    from PIL.Image import Image

Noise = Literal["salt_and_pepper", "speckle", "gaussian", "none"]
#: (height, width) in pixels, one int for both, or ((min, max), (min, max)).
Size = int | Sequence[int] | Sequence[Sequence[int]]

#: The kinds of noise, in the order of :attr:`OccluderInfo.kind`.
NOISES: tuple[Noise, ...] = ("salt_and_pepper", "speckle", "gaussian", "none")


class OccluderInfo(NamedTuple):
    """The random choices for each sample of a batch, on the device of the images.

    Attributes:
        boxes: int32 [N, 4], (top, left, bottom, right) in pixels; all 0 for a sample without an occluder.
        kind: uint8 [N], index into :data:`NOISES`; 255 for a sample without an occluder.
        level: float32 [N], noise level.
        intensity: float32 [N, C].
        sample_ids: int64 [N], the keys of the random choices.
    """

    boxes: Tensor
    kind: Tensor
    level: Tensor
    intensity: Tensor
    sample_ids: Tensor

    def mask(self, height: int, width: int) -> Tensor:
        """Return the covered pixels, bool [N, height, width]."""
        i = torch.arange(height, device=self.boxes.device).view(1, -1, 1)
        j = torch.arange(width, device=self.boxes.device).view(1, 1, -1)
        top, left, bottom, right = (self.boxes[:, k].view(-1, 1, 1) for k in range(4))
        return (i >= top) & (i < bottom) & (j >= left) & (j < right)


class _Params(NamedTuple):
    """The distribution of the occluders, in the order of the native ops' arguments."""

    cdf: Tensor
    row_centers: Tensor
    column_centers: Tensor
    seed: int
    p: float
    sizes: list[int]
    ranges: list[float]
    kinds: list[int]
    gray: bool


class NoisyOccluder(nn.Module):
    """Occludes each image of a batch with one noisy block (trigueros2018, section 3.1).

    Intensities and noise levels lie in [0, 1], which maps to [0, 255] for uint8 images and to ``value_range`` for
    floating-point images. With intensity I, noise level L and a standard normal z, a pixel of an occluder is, clipped
    to [0, 1]:

    - ``gaussian``: I + L z;
    - ``speckle``: I + I L z;
    - ``salt_and_pepper``: 0 or 1, each with probability L / 2, otherwise I;
    - ``none``: I.

    Random numbers come from Philox counters keyed by (seed, sample id, pixel). With explicit ``sample_ids`` a result
    depends on (seed, sample id) alone: not on the batch or its order, nor on the thread, worker, process or device.

    Gradients pass through unchanged to the pixels that are not covered; covered pixels receive a gradient of 0. This
    also holds in forward mode and under ``torch.func.grad``.

    Args:
        size: (height, width) of the occluder in pixels, or ((min, max), (min, max)) to draw both uniformly from closed
            ranges.
        locations: distribution of the occluder's center: a :class:`LocationDistribution` for the size of the images,
            "uniform", or "normal" (see :data:`~occfast.occlude.locations.NORMAL_SPREAD`).
        noise: one or several of :data:`NOISES`, chosen with equal probability.
        level: (low, high) of the noise level, in [0, 1], drawn uniformly.
        intensity: (low, high) of the intensity, in [0, 1], drawn uniformly.
        p: probability that an image is occluded.
        seed: int in [0, 2**63).
        value_range: the values of floating-point images that correspond to 0 and 1; or a pair for each channel, for
            images that are normalized by channels, which takes several times as long.
        color: "channels" draws one intensity for each channel, "gray" one for all channels.
        validate: also checks on a GPU that floating-point images lie within ``value_range``, which waits for the
            device. On the CPU the range is always checked.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of range.
    """

    counter: Tensor

    def __init__(
        self,
        size: Size = (20, 40),
        locations: LocationDistribution | Literal["uniform", "normal"] = "uniform",
        *,
        noise: Noise | Sequence[Noise] = ("salt_and_pepper", "speckle", "gaussian"),
        level: Sequence[float] = (0.0, 0.3),
        intensity: Sequence[float] = (0.0, 1.0),
        p: float = 1.0,
        seed: int = 0,
        value_range: Sequence[float] | Sequence[Sequence[float]] = (0.0, 1.0),
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
        self.value_range = _value_range(value_range)
        if color not in ("channels", "gray"):
            raise ValueError(f"color: expected 'channels' or 'gray', got {color!r}")
        self.color = color
        self.validate = bool(validate)
        self._built: dict[tuple[int, int], LocationDistribution] = {}
        self.register_buffer("counter", torch.zeros((), dtype=torch.int64))

    def __getstate__(self) -> dict[str, Any]:
        # A tensor that is sent to a process started by spawn or forkserver would be shared with it, and all workers
        # would advance one counter. Each of them gets a copy, as under fork.
        state = self.__dict__.copy()
        state["_buffers"] = {**self._buffers, "counter": None}
        state["counter"] = int(self.counter), str(self.counter.device)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        count, device = state.pop("counter", (None, None))
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if count is not None:
            self._buffers["counter"] = torch.tensor(count, device=device)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return (
            f"size={self.sizes}, locations={self.locations!r}, noise={self.noise}, level={self.level}, "
            f"intensity={self.intensity}, p={self.p}, seed={self.seed}"
        )

    def distribution(self, height: int, width: int) -> LocationDistribution:
        """Return the distribution of the centers in images of this size.

        Raises:
            ValueError: if ``locations`` is a distribution for images of another size.
        """
        if isinstance(self.locations, LocationDistribution):
            if self.locations.image_size != (height, width):
                raise ValueError(
                    f"images: expected {self.locations.image_size[0]}x{self.locations.image_size[1]} pixels, "
                    f"the size that the locations are made for, got {height}x{width}"
                )
            return self.locations
        if (height, width) not in self._built:
            make = LocationDistribution.uniform if self.locations == "uniform" else LocationDistribution.normal
            self._built[height, width] = make((height, width))
        return self._built[height, width]

    @overload
    def forward(
        self, images: ArrayLike, sample_ids: ArrayLike | None = None, *, return_info: Literal[False] = False
    ) -> Tensor: ...
    @overload
    def forward(
        self, images: ArrayLike, sample_ids: ArrayLike | None = None, *, return_info: Literal[True]
    ) -> tuple[Tensor, OccluderInfo]: ...
    def forward(
        self, images: ArrayLike, sample_ids: ArrayLike | None = None, *, return_info: bool = False
    ) -> Tensor | tuple[Tensor, OccluderInfo]:
        """Return a copy of the images with occluders.

        Args:
            images: uint8, float16, bfloat16 or float32 [N, C, H, W].
            sample_ids: int64 [N], not negative, the keys of the random choices. By default an internal counter
                supplies them; ``state_dict`` contains it.
            return_info: also returns an :class:`OccluderInfo`.

        Raises:
            TypeError: if an argument has the wrong dtype.
            ValueError: if an argument has the wrong shape, or floating-point images leave ``value_range``.
        """
        batch = checks.as_tensor(images, "images")
        ids, params = self._params(batch, sample_ids)
        differentiated = (batch.requires_grad and torch.is_grad_enabled()) or _has_tangent(batch)
        values = batch.detach() if differentiated else batch
        if self._by_channel(batch):
            limits = self._by_channel_limits(batch)
            result = _occlude_by_channel(values, limits, self._validates(batch), ids, *params)
        else:
            result = _occlude(self._validates(batch), values, ids, *params, *self._limits(batch.dtype))
        out, boxes, kind, level, intensity = result
        info = OccluderInfo(boxes, kind, level, intensity, ids)
        if differentiated:
            out = torch.where(info.mask(*batch.shape[2:])[:, None], out, batch)
        return (out, info) if return_info else out

    def apply_(self, images: Tensor, sample_ids: ArrayLike | None = None) -> OccluderInfo:
        """Occlude the images in place and return the random choices.

        Autograd treats this as any in-place operation of PyTorch.

        Args:
            images: as in :meth:`forward`; contiguous or channels_last.
            sample_ids: as in :meth:`forward`.

        Raises:
            TypeError: if an argument has the wrong dtype.
            ValueError: as in :meth:`forward`; or if the images are a leaf that requires grad, or a view of one.
        """
        records = images.requires_grad and torch.is_grad_enabled()
        if records and (images if images._base is None else images._base).is_leaf:
            raise ValueError(
                "images: expected a tensor that can be changed in place, got a leaf that requires grad; occlude a "
                "clone, or disable gradients with torch.no_grad()"
            )
        ids, params = self._params(images, sample_ids)
        if self._by_channel(images) or _has_tangent(images):
            covered, info = self.forward(images, ids, return_info=True)
            images.copy_(covered)
            return info
        low, high = self._limits(images.dtype)
        if images.numel() and self._validates(images):  # before anything is changed
            least, most = images.aminmax()
            if not bool((least >= low) & (most <= high)):  # false for NaN, which aminmax propagates
                raise ops.outside_range(images, low, high)
        drawn: list[Tensor] = []
        if records:
            _OccludeInPlace.apply(images, drawn, ids, *params, low, high)  # type: ignore[no-untyped-call]
        else:
            drawn.extend(ops.occlude_(images, ids, *params, low, high))
            if not (images.is_inference() or torch.compiler.is_compiling()):
                torch.autograd.graph.increment_version(images)  # what autograd saved of them is stale now
        boxes, kind, level, intensity = drawn
        return OccluderInfo(boxes, kind, level, intensity, ids)

    def _by_channel(self, images: Tensor) -> bool:
        return isinstance(self.value_range[0], tuple) and images.is_floating_point()

    def _limits(self, dtype: torch.dtype) -> tuple[float, float]:
        """Return the value range of all channels, checked against the images' dtype; uint8 images have none."""
        if isinstance(self.value_range[0], tuple):
            return 0.0, 1.0
        _check_range((self.value_range,), dtype)
        low, high = self.value_range
        return low, high

    def _by_channel_limits(self, images: Tensor) -> Tensor:
        """Return the range of each channel, float32 [C, 2]."""
        if len(self.value_range) != images.shape[1]:
            raise ValueError(
                f"value_range: expected a pair for each of the images' {images.shape[1]} channels, got "
                f"{len(self.value_range)}"
            )
        _check_range(self.value_range, images.dtype)
        return torch.tensor(self.value_range, device=images.device)

    def _validates(self, images: Tensor) -> bool:
        # On a GPU, reading the result would wait for the device.
        return images.is_floating_point() and (self.validate or images.device.type == "cpu")

    def draw(self, images: Tensor, sample_ids: ArrayLike | None = None) -> OccluderInfo:
        """Return the random choices for a batch of this shape without painting anything."""
        ids, params = self._params(images, sample_ids)
        channels, height, width = images.shape[1:]
        drawn: tuple[Tensor, Tensor, Tensor, Tensor] = ops.draw_occluders(
            ids, *params[:3], channels, height, width, *params[3:]
        )
        return OccluderInfo(*drawn, ids)

    def _params(self, images: Tensor, sample_ids: ArrayLike | None) -> tuple[Tensor, _Params]:
        """Return the sample ids and the parameters of the native ops."""
        if images.dim() != 4:
            raise ValueError(f"images: expected shape [N, C, H, W], got {list(images.shape)}")
        n, _, height, width = images.shape
        (h0, h1), (w0, w1) = self.sizes
        if h1 > height or w1 > width:
            raise ValueError(f"size: expected at most the images' {height}x{width} pixels, got {h1}x{w1}")
        cdf, rows, columns = _tables(self, height, width, images.device)
        return self._sample_ids(sample_ids, n, images.device), _Params(
            cdf,
            rows,
            columns,
            seed=self.seed,
            p=self.p,
            sizes=[h0, h1, w0, w1],
            ranges=[*self.level, *self.intensity],
            kinds=[ops.KINDS[name] for name in self.noise],
            gray=self.color == "gray",
        )

    def _sample_ids(self, given: ArrayLike | None, n: int, device: torch.device) -> Tensor:
        if given is not None:
            return as_sample_ids(given, n).to(device)
        ids = torch.arange(n, device=device) + self.counter.to(device)
        self.counter.add_(n)
        worker = get_worker_info()
        if worker is not None:
            # Each worker has a copy of the counter. Its seed, which changes every epoch, keeps the workers apart.
            ids = ids + ((worker.seed & 0x3FFFFFFF) << 32)
        return ids


def _tables(occluder: NoisyOccluder, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    # torch.compile cannot trace the checks of a distribution, and need not: it is the same for every batch.
    return occluder.distribution(height, width).tables(device)


# torch.compiler.assume_constant_result does just this, but it imports the compiler, which takes longer than the import
# of this package.
if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13):
    _tables._dynamo_marked_constant = True  # type: ignore[attr-defined]
else:  # earlier compilers take no module there; the graph breaks around the call
    _tables._torchdynamo_disable = True  # type: ignore[attr-defined]


def _occlude(validate: bool, images: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run the native op; with ``validate``, refuse images outside the value range."""
    result: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
    if not validate:
        result = ops.occlude(images, *arguments)
    elif torch.compiler.is_compiling():
        result = ops.occlude_validated(images, *arguments)
    else:
        outside = torch.zeros(1, dtype=torch.int32, device=images.device)
        result = ops.occlude(images, *arguments, outside)
        if int(outside):
            raise ops.outside_range(images, *arguments[-2:])
    return result


def _occlude_by_channel(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run the op for a value range of each channel."""
    run = ops.occlude_by_channel if torch.compiler.is_compiling() else ops.paint_by_channel
    result: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = run(*arguments)
    return result


def _uncovered(gradient: Tensor, boxes: Tensor) -> Tensor:
    """Return a gradient [N, C, H, W] with zeros inside the boxes [N, 4]."""
    i = torch.arange(gradient.shape[2], device=boxes.device).view(1, 1, -1, 1)
    j = torch.arange(gradient.shape[3], device=boxes.device).view(1, 1, 1, -1)
    top, left, bottom, right = (boxes[:, k].view(-1, 1, 1, 1) for k in range(4))
    return gradient.masked_fill((i >= top) & (i < bottom) & (j >= left) & (j < right), 0.0)


class _OccludeInPlace(torch.autograd.Function):
    """In-place native op with the gradient of ``torch.where(mask, occluder, images)``.

    The random choices are appended to a list.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, drawn: list[Tensor], *arguments: Any) -> Tensor:
        drawn.extend(ops.occlude_(images, *arguments))
        ctx.mark_dirty(images)
        ctx.save_for_backward(drawn[0])
        ctx.arguments = len(arguments)
        return images

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (boxes,) = ctx.saved_tensors
        return (_uncovered(gradient, boxes), None, *[None] * ctx.arguments)


def _has_tangent(images: Tensor) -> bool:
    """Return whether forward-mode differentiation follows the images."""
    return not torch.compiler.is_compiling() and forward_ad.unpack_dual(images).tangent is not None


def _check_range(ranges: Sequence[Any], dtype: torch.dtype) -> None:
    largest = max(abs(float(limit)) for pair in ranges for limit in pair)
    if dtype.is_floating_point and largest > torch.finfo(dtype).max:
        raise ValueError(
            f"value_range: expected numbers that {dtype} images can hold, up to {torch.finfo(dtype).max:g}, got "
            f"{largest:g}"
        )


def _interval(value: Sequence[float], name: str, low: float, high: float) -> tuple[float, float]:
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise TypeError(f"{name}: expected (low, high), got {value!r}")
    first, second = (checks.number(v, name, low, high) for v in value)
    if first > second:
        raise ValueError(f"{name}: expected low <= high, got {tuple(value)!r}")
    return first, second


def _value_range(value: Any) -> tuple[float, float] | tuple[tuple[float, float], ...]:
    """Return (low, high), or a pair for each channel where they differ."""
    if isinstance(value, Sequence) and not isinstance(value, str) and value and isinstance(value[0], Sequence):
        found = tuple(_value_pair(pair, f"value_range[{k}]") for k, pair in enumerate(value))
        return found if len(set(found)) > 1 else found[0]
    return _value_pair(value, "value_range")


def _value_pair(value: Any, name: str) -> tuple[float, float]:
    found = _interval(value, name, -checks.MAX_FLOAT32, checks.MAX_FLOAT32)
    if found[0] == found[1]:
        raise ValueError(f"{name}: expected two different numbers, got {tuple(value)!r}")
    return found


def _size_ranges(size: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    if isinstance(size, Sequence) and len(size) == 2 and all(isinstance(s, Sequence) for s in size):
        rows, columns = checks.pair(size[0], "size"), checks.pair(size[1], "size")
        if rows[0] > rows[1] or columns[0] > columns[1]:
            raise ValueError(f"size: expected ((min, max), (min, max)), got {size!r}")
        return rows, columns
    height, width = checks.pair(size, "size")
    return (height, height), (width, width)


@dataclass(frozen=True, eq=False)
class NoisyBlock(Occlusion):
    """One noisy block on each face, as in training, for evaluation.

    Attributes:
        size: (height, width) in pixels.
        at: the center, (row, column) in pixels, or the distribution of the center (P in Eq. 4 of trigueros2018). None
            draws the center uniformly over the image.
        seed: seed of all random choices.
        noise, level, intensity: as in :class:`NoisyOccluder`.
    """

    size: tuple[int, int] = (20, 40)
    at: tuple[int, int] | LocationDistribution | None = None
    seed: int = 0
    noise: Noise | Sequence[Noise] = ("salt_and_pepper", "speckle", "gaussian")
    level: Sequence[float] = (0.0, 0.3)
    intensity: Sequence[float] = (0.0, 1.0)

    needs_landmarks = False

    def __post_init__(self) -> None:
        _ = self._occluder

    @cached_property
    def _occluder(self) -> NoisyOccluder:
        return self._make(self.at if isinstance(self.at, LocationDistribution) else "uniform")

    def _make(self, locations: LocationDistribution | Literal["uniform"]) -> NoisyOccluder:
        return NoisyOccluder(
            self.size, locations, noise=self.noise, level=self.level, intensity=self.intensity, seed=self.seed
        )

    def _occlude(self, images: Tensor, landmarks: Tensor | None, sample_ids: Tensor) -> OcclusionResult:
        occluder, image_size = self._occluder, (images.shape[2], images.shape[3])
        if isinstance(self.at, tuple):
            occluder = self._make(LocationDistribution.at(self.at, image_size))
        out, info = occluder(images, sample_ids, return_info=True)
        return OcclusionResult(out, info.mask(*image_size))

    def about(self) -> dict[str, Any]:
        """Return the settings of the occluder."""
        occluder = self._occluder
        return {
            "kind": "NoisyBlock",
            "size": occluder.sizes,
            "at": list(self.at) if isinstance(self.at, tuple) else repr(occluder.locations),
            "noise": occluder.noise,
            "level": occluder.level,
            "intensity": occluder.intensity,
            "seed": occluder.seed,
        }


AnyImage = TypeVar("AnyImage", Tensor, np.ndarray, "Image")


class PerImage:
    """Adapts a :class:`NoisyOccluder` to transform pipelines that process one image at a time.

    Args:
        occluder: the occluder.
    """

    def __init__(self, occluder: NoisyOccluder) -> None:
        self.occluder = occluder

    def __call__(self, image: AnyImage, sample_id: int | None = None) -> AnyImage:
        """Return the image with an occluder.

        Args:
            image: a PIL image of mode L or RGB, a NumPy array [H, W] or [H, W, C], or a tensor [C, H, W].
            sample_id: key of the random choices, as in :meth:`NoisyOccluder.forward`. By default the occluder's
                internal counter supplies it.

        Returns:
            An image of the same type, mode, shape and dtype.

        Raises:
            TypeError: if the image has another type, or its dtype is not supported by the occluder.
            ValueError: if the image has another shape or mode, or is refused by the occluder.
        """
        ids = None if sample_id is None else torch.tensor([sample_id])
        if isinstance(image, Tensor):
            if image.dim() != 3:
                raise ValueError(f"image: expected shape [C, H, W], got {list(image.shape)}")
            occluded: Tensor = self.occluder(image[None], ids)[0]
            return occluded
        if isinstance(image, np.ndarray):
            if image.ndim not in (2, 3):
                raise ValueError(f"image: expected shape [H, W] or [H, W, C], got {list(image.shape)}")
            planes = torch.tensor(image if image.ndim == 3 else image[..., None]).permute(2, 0, 1)
            out: np.ndarray = self.occluder(planes[None], ids)[0].permute(1, 2, 0).contiguous().numpy()
            return out if image.ndim == 3 else out[..., 0]
        if hasattr(image, "getbands") and hasattr(image, "tobytes"):  # a PIL image; PIL is optional
            if image.mode not in ("L", "RGB"):
                raise ValueError(f"image: expected mode L or RGB, got {image.mode}; convert it first")
            from PIL import Image

            return Image.fromarray(self(np.asarray(image), sample_id))
        raise TypeError(f"image: expected a PIL image, an array or a tensor, got {type(image).__name__}")
