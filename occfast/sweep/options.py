"""Arguments of :func:`~occfast.sweep.occlusion_map`: checks, and what they mean for a sweep."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from .. import checks
from .evaluators.behavior import in_training
from .geometry import checked_region
from .precision import PRECISIONS
from .shapes import OccluderMask, checked_occluder
from .types import Border, Fill, MethodName, Precision, Score, ScoreName

EXACT = ("auto", "dense", "incremental")
METHODS: tuple[MethodName, ...] = get_args(MethodName)
SCORES: tuple[ScoreName, ...] = get_args(ScoreName)

_LARGEST = 3.4e38  # of float32


@dataclass(frozen=True, kw_only=True)
class Adaptive:
    """Options of ``method="adaptive"``: single images' maps from a coarse lattice and kriging.

    Args:
        tolerance: With ``score="error"``: a position is skipped if its label is wrong with at most this probability,
            in (0, 0.5]; None: 0.1. With the other scores: the error that one in twenty skipped positions may exceed,
            above 0; None: 10 % of the range of each image's first positions (the root mean square error is then about
            3 % of it).
        spacing: Pixels between neighboring positions of the coarse lattice, an int or (rows, columns). None: 8, or
            the occluder's side where that is less.
        check: Share in [0, 1] of the skipped positions that are evaluated after all, to estimate how many are wrong.
            None: 0.25 %, and up to 5 % for few images.

    Raises:
        TypeError, ValueError: An option has the wrong type or is out of range.
    """

    tolerance: float | None = None
    spacing: checks.Pair | None = None
    check: float | None = None

    def __post_init__(self) -> None:
        _set(self, tolerance=_optional(self.tolerance, lambda value: _positive(value, "tolerance")))
        _set(self, spacing=_optional(self.spacing, lambda value: checks.pair(value, "spacing")))
        _set(self, check=_optional(self.check, lambda value: checks.number(value, "check", 0.0, 1.0)))


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Options of ``method="sampled"``: the mean map from a few positions of each image.

    Args:
        tolerance: Stop when the standard error at every location is at most this, above 0. None: use all images.
        spacing: Pixels between neighboring positions of an image's lattice, an int or (rows, columns). None: 10.6 %
            of the image's sides; with a ninth as many positions anywhere that is a hundred for each image.
        bandwidth: Standard deviation of the smoothing kernel in pixels, a number of at least 0.1 or (rows, columns).
            None: the occluder's sides.

    Raises:
        TypeError, ValueError: An option has the wrong type or is out of range.
    """

    tolerance: float | None = None
    spacing: checks.Pair | None = None
    bandwidth: float | Sequence[float] | None = None

    def __post_init__(self) -> None:
        _set(self, tolerance=_optional(self.tolerance, lambda value: _positive(value, "tolerance")))
        _set(self, spacing=_optional(self.spacing, lambda value: checks.pair(value, "spacing")))
        _set(self, bandwidth=_optional(self.bandwidth, _widths))


@dataclass(frozen=True)
class Mismatch:
    """The score "mismatch": 1 where a recognizer no longer accepts a face, for embedding networks.

    It accepts a pair whose cosine similarity is at least the threshold, as ``occfast audit`` reports it.

    Args:
        threshold: Cosine similarity, in (-1, 1).

    Raises:
        TypeError, ValueError: The threshold is not a number, or is out of range.
    """

    threshold: float

    def __post_init__(self) -> None:
        found = checks.number(self.threshold, "threshold", above=-1.0)
        if found >= 1:
            raise ValueError(f"threshold: expected a cosine similarity in (-1, 1), got {self.threshold!r}")
        object.__setattr__(self, "threshold", found)


#: Scores of single images that are 0 or 1.
BINARY = ("error", "mismatch")

#: Methods by name, which have no options, or with their options.
Method = MethodName | Adaptive | Sampled


def _set(options: Adaptive | Sampled, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(options, name, value)


def _optional(value: Any, check: Callable[[Any], Any]) -> Any:
    return None if value is None else check(value)


def _positive(value: Any, name: str) -> float:
    return checks.number(value, name, high=_LARGEST, above=0.0)


def _widths(bandwidth: Any) -> tuple[float, float]:
    if isinstance(bandwidth, np.ndarray) and bandwidth.ndim == 1:
        bandwidth = list(bandwidth)
    both = bandwidth if isinstance(bandwidth, Sequence) and not isinstance(bandwidth, str) else (bandwidth, bandwidth)
    if len(both) != 2:
        raise TypeError(f"bandwidth: expected pixels or two of them (rows, columns), got {bandwidth!r}")
    rows, columns = (checks.number(value, "bandwidth", 0.1, 1e6) for value in both)
    return rows, columns


@dataclass(frozen=True)
class Options:
    """Arguments of :func:`~occfast.sweep.occlusion_map` that decide what is computed, checked."""

    occluders: tuple[tuple[int, int] | OccluderMask, ...]
    stride: tuple[int, int]
    border: Border
    region: tuple[int, int, int, int] | None
    fill: Fill
    score: Score | Literal["mismatch"]
    method: MethodName
    seed: int
    batch_size: int | None
    memory_limit: int | None
    skip_misclassified: bool
    adaptive: Adaptive = Adaptive()
    sampled: Sampled = Sampled()
    precision: Precision | None = None
    threshold: float | None = None

    @classmethod
    def checked(
        cls,
        *,
        occluder: Any,
        stride: checks.Pair,
        border: str,
        fill: Fill,
        score: Any,
        method: Method,
        seed: int,
        batch_size: int | None,
        memory_limit: int | str | None,
        skip_misclassified: bool | None,
        precision: str | None,
        region: Any = None,
    ) -> Options:
        """Check each argument as it came from the caller.

        Raises:
            TypeError, ValueError: Naming the argument.
        """
        name = _name_of(method)
        kind: Any = score
        if isinstance(score, Mismatch):
            kind = "mismatch"
        elif isinstance(score, str) and score == "mismatch":
            raise ValueError("score: expected Mismatch(threshold), which says what counts as a match, got 'mismatch'")
        elif not callable(score):
            kind = checks.choice(score, "score", SCORES)
        if isinstance(method, Adaptive) and kind in BINARY and (method.tolerance or 0.0) > 0.5:
            raise ValueError(
                f"tolerance: expected the probability of a wrong label, at most 0.5, got {method.tolerance!r}"
            )
        skip = kind in BINARY if skip_misclassified is None else checks.flag(skip_misclassified, "skip_misclassified")
        made: dict[str, Any] = {
            "border": checks.choice(border, "border", get_args(Border)),
            "score": kind,
            "precision": None if precision is None else checks.choice(precision, "precision", PRECISIONS),
        }
        occluders = _occluders(occluder)
        if len(occluders) > 1 and name not in EXACT:
            raise ValueError(f"occluder: expected one for method={name!r}, got {len(occluders)}")
        if len(occluders) > 1 and border == "valid":
            raise ValueError(
                "occluder: expected one for border='valid', since occluders of other sizes have other centers, got "
                f"{len(occluders)}"
            )
        return cls(
            occluders=occluders,
            region=None if region is None else checked_region(region),
            stride=checks.pair(stride, "stride"),
            fill=checked_fill(fill),
            method=name,
            seed=checks.seed(seed),
            batch_size=None if batch_size is None else checks.integer(batch_size, "batch_size", 1, 2**31 - 1),
            memory_limit=None if memory_limit is None else checks.memory(memory_limit, "memory_limit"),
            skip_misclassified=skip,
            threshold=score.threshold if isinstance(score, Mismatch) else None,
            adaptive=method if isinstance(method, Adaptive) else Adaptive(),
            sampled=method if isinstance(method, Sampled) else Sampled(),
            **made,
        )

    def stated(self) -> dict[str, Any]:
        """Return what the result depends on, for a checkpoint and for the record, as JSON can hold it."""
        fill: Any = self.fill
        if isinstance(fill, Tensor):
            fill = f"tensor {list(fill.shape)}, sum {float(fill.double().sum()):.17g}"
        elif callable(fill):
            fill = _named(fill)
        boxes = [_stated_occluder(each) for each in self.occluders]
        own = {"adaptive": vars(self.adaptive), "sampled": vars(self.sampled)}.get(self.method, {})
        return {
            "occluder": boxes[0] if len(boxes) == 1 else boxes,
            "stride": list(self.stride),
            "border": self.border,
            "fill": fill if isinstance(fill, (str, float)) else list(fill),
            "score": self.score_name,
            "method": self.method,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "skip_misclassified": self.skip_misclassified,
            "precision": self.precision,
            **({} if self.region is None else {"region": list(self.region)}),
            **({} if self.threshold is None else {"threshold": self.threshold}),
            **{name: value for name, value in own.items() if value is not None},
        }

    @property
    def score_name(self) -> str:
        """The name of the score; of a function also a hash of its code."""
        return _named(self.score) if callable(self.score) else self.score

    @property
    def score_label(self) -> str:
        """The name of the score in a map."""
        if callable(self.score):
            return f"drop of {getattr(self.score, '__name__', type(self.score).__name__)}"
        return self.score

    @property
    def binary(self) -> bool:
        """Whether scores of single images are 0 or 1."""
        return self.score in BINARY and len(self.occluders) == 1


def _occluders(occluder: Any) -> tuple[tuple[int, int] | OccluderMask, ...]:
    """Return one occluder, or those of a list."""
    several = isinstance(occluder, (list, tuple)) and any(
        isinstance(each, (list, tuple, np.ndarray, Tensor, OccluderMask)) for each in occluder
    )
    found = []
    for each in occluder if several else [occluder]:
        size, mask = checked_occluder(each)
        found.append(size if mask is None else mask)
    return tuple(found)


def _stated_occluder(occluder: tuple[int, int] | OccluderMask) -> Any:
    if isinstance(occluder, OccluderMask):
        return f"mask {occluder.size[0]}x{occluder.size[1]}, {occluder.digest}"
    return list(occluder)


def _named(function: Callable[..., Any]) -> str:
    """Return the name of a function and a hash of its code and of the simple values in it, to tell it from others."""
    if isinstance(function, functools.partial):
        simple = repr(
            ([_simple(each) for each in function.args], {k: _simple(v) for k, v in function.keywords.items()})
        )
        return f"{_named(function.func)} with {hashlib.sha256(simple.encode()).hexdigest()[:12]}"
    name = getattr(function, "__qualname__", type(function).__qualname__)
    code = getattr(function, "__code__", None)
    if code is None:
        return f"function {name}"
    cells = [_simple(cell.cell_contents) for cell in function.__closure__ or ()]
    defaults = [_simple(each) for each in function.__defaults__ or ()]
    parts = repr((code.co_code, [_simple(each) for each in code.co_consts], code.co_names, cells, defaults))
    return f"function {name}, {hashlib.sha256(parts.encode()).hexdigest()[:12]}"


def _simple(value: Any) -> Any:
    """Return a value whose text is the same in every process, else the name of its type."""
    return value if isinstance(value, (bool, int, float, str, bytes, type(None))) else type(value).__qualname__


def _name_of(method: Any) -> MethodName:
    if isinstance(method, Adaptive):
        return "adaptive"
    if isinstance(method, Sampled):
        return "sampled"
    if not isinstance(method, str):
        names = ", ".join(map(repr, METHODS))
        raise TypeError(f"method: expected one of {names}, Adaptive(...) or Sampled(...), got {method!r}")
    found: Any = checks.choice(method, "method", METHODS)
    return found  # type: ignore[no-any-return]


def check_model(model: object) -> None:
    """Raise TypeError for what can't be called, ValueError for a module in training mode."""
    if not callable(model):
        raise TypeError(f"model: expected an nn.Module or a function, got {type(model).__name__}")
    if isinstance(model, nn.Module) and in_training(model):
        raise ValueError("model: expected evaluation mode, got training mode; call model.eval()")


def device_of(model: object, device: torch.device | str | None) -> torch.device | None:
    """Return the device to sweep on: the model's, if it has parameters; else the one asked for, or None (the images').

    Raises:
        ValueError: The model is on several devices, or on another one than ``device``.
    """
    wanted = None if device is None else checks.device(device)
    if wanted is not None and wanted.type == "cuda" and wanted.index is None:
        wanted = torch.device("cuda", torch.cuda.current_device())
    if not isinstance(model, nn.Module):
        return wanted
    tensors = [*model.parameters(), *model.buffers()]
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        raise ValueError(f"model: expected one device, got {sorted(map(str, devices))}")
    if devices and wanted is not None and wanted not in devices:
        raise ValueError(f"device: expected {devices.pop()}, where the model is, got {wanted}; move the model first")
    return devices.pop() if devices else wanted


def dtype_of(model: object) -> torch.dtype | None:
    """Return the dtype of a model's weights; None if it has none, or several."""
    weights = model.parameters() if isinstance(model, nn.Module) else ()
    dtypes = {weight.dtype for weight in weights if weight.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else None


_FILLS = "a number, a number for each channel, 'mean', 'noise', 'blur', a tensor or a function"
_BLUR = 0.1  # standard deviation of "blur" in the image's shorter side


def checked_fill(fill: object) -> Fill:
    """Return a fill as "mean", "noise", "blur", a float, a list of floats, a function or a tensor.

    Raises:
        TypeError, ValueError: It is something else, or not finite.
    """
    if isinstance(fill, str):
        if fill not in ("mean", "noise", "blur"):
            raise ValueError(f"fill: expected {_FILLS}, got {fill!r}")
        return fill  # type: ignore[return-value]
    if isinstance(fill, Tensor) or hasattr(fill, "__dlpack__"):
        tensor = checks.as_tensor(fill, "fill")
        if tensor.dtype == torch.bool or tensor.is_complex():
            raise TypeError(f"fill: expected real numbers, got {str(tensor.dtype).removeprefix('torch.')}")
        if tensor.dim() > 4:
            raise ValueError(f"fill: expected a tensor that broadcasts to [N, C, H, W], got {list(tensor.shape)}")
        if not bool(tensor.isfinite().all()):
            raise ValueError("fill: expected finite numbers, got NaN or infinity")
        return tensor
    if callable(fill):
        return fill
    if isinstance(fill, Sequence):
        return [checks.number(value, "fill", -_LARGEST, _LARGEST) for value in fill]
    return checks.number(fill, "fill", -_LARGEST, _LARGEST)


def fill_for(fill: Any, images: Tensor, seed: int, indices: Tensor) -> Tensor:
    """Return a fill that :func:`checked_fill` returned, for a block of images.

    Args:
        fill: The fill.
        images: [n, C, H, W].
        seed: Of "noise".
        indices: Numbers of the images among those given, int64 [n].

    Returns:
        Four dimensions that broadcast to those of the images, with their dtype and device.

    Raises:
        ValueError: Its shape does not fit, or the images' dtype can't hold its values.
    """
    _, channels, height, width = images.shape
    if isinstance(fill, str) and fill == "noise":
        # The same pattern for every block, drawn on the CPU so that it is the same on every device.
        pattern = torch.rand((1, channels, height, width), generator=torch.Generator().manual_seed(seed))
        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        return low + (high - low) * pattern.to(images.device, images.dtype)
    if isinstance(fill, str) and fill == "blur":
        return blurred(images, _BLUR * min(height, width))
    if isinstance(fill, str):
        return images.double().mean((2, 3), keepdim=True).to(images.dtype)
    if isinstance(fill, Tensor) and fill.dim() == 4:
        made = _of_images(fill, images, indices)
    elif callable(fill):
        made = _computed(fill, images)
    elif isinstance(fill, Tensor):
        made = _broadcast(fill, channels, height, width)[None]
    elif isinstance(fill, Sequence):
        if len(fill) != channels:
            raise ValueError(f"fill: expected {channels} numbers, one for each channel, got {len(fill)}")
        made = torch.tensor(list(fill), dtype=torch.float64).view(1, channels, 1, 1)
    else:
        made = torch.full((1, 1, 1, 1), fill, dtype=torch.float64)
    made = made.to(images.device, images.dtype)
    if not bool(made.isfinite().all()):
        raise ValueError(f"fill: expected numbers that {str(images.dtype).removeprefix('torch.')} can hold, got larger")
    return made


def check_fill_count(fill: object, images: int) -> None:
    """Raise ValueError for a fill that is one for each image, but of another number of images."""
    if isinstance(fill, Tensor) and fill.dim() == 4 and fill.shape[0] not in (1, images):
        raise ValueError(f"fill: expected one for each image, got {fill.shape[0]} for {images}")


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Return images [n, C, H, W] convolved with a Gaussian of a standard deviation in pixels.

    At the border the kernel is normalized over the pixels inside.
    """
    found = images.double()
    for axis in (2, 3):
        at = torch.arange(images.shape[axis], dtype=torch.float64, device=images.device)
        weights = torch.exp(-0.5 * ((at[:, None] - at) / sigma) ** 2)
        found = torch.tensordot(found, weights / weights.sum(0), dims=([2], [0]))  # the other axis is next
    return found.to(images.dtype)


def _of_images(fill: Tensor, images: Tensor, indices: Tensor) -> Tensor:
    """Return the rows of a fill [N, C, H, W] that belong to images."""
    last = int(indices.max())
    if fill.shape[0] != 1 and last >= fill.shape[0]:
        raise ValueError(f"fill: expected one for each image, got {fill.shape[0]} for at least {last + 1}")
    chosen = fill if fill.shape[0] == 1 else fill[indices.to(fill.device)]
    if any(size not in (1, whole) for size, whole in zip(chosen.shape[1:], images.shape[1:], strict=True)):
        raise ValueError(
            f"fill: expected a tensor that broadcasts to {['N', *images.shape[1:]]}, got {list(fill.shape)}"
        )
    return chosen


def _computed(fill: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return what a function makes of images, with four dimensions."""
    found = fill(images.clone())
    if not isinstance(found, Tensor):
        raise TypeError(f"fill: expected a function that returns a tensor, got {type(found).__name__}")
    if found.dim() > 4 or any(
        size not in (1, whole) for size, whole in zip(found.shape[::-1], reversed(images.shape), strict=False)
    ):
        raise ValueError(
            f"fill: expected a function that returns a tensor that broadcasts to {list(images.shape)}, got "
            f"{list(found.shape)}"
        )
    if not bool(found.isfinite().all()):
        raise ValueError("fill: expected a function that returns finite numbers, got NaN or infinity")
    return found.reshape((1,) * (4 - found.dim()) + tuple(found.shape))


def _broadcast(fill: Tensor, channels: int, height: int, width: int) -> Tensor:
    """Return a fill with three dimensions. A vector is one row of the image, or a number for each channel."""
    if fill.dim() == 1 and len(fill) == channels > 1:
        if channels == width:
            raise ValueError(
                f"fill: {channels} numbers may be one for each channel or one for each column; "
                f"pass shape [{channels}, 1, 1] or [1, 1, {width}]"
            )
        return fill[:, None, None]
    made = fill.reshape((1,) * (3 - fill.dim()) + tuple(fill.shape))
    if any(size not in (1, whole) for size, whole in zip(made.shape, (channels, height, width), strict=True)):
        raise ValueError(
            f"fill: expected a tensor that broadcasts to {[channels, height, width]}, got {list(fill.shape)}"
        )
    return made
