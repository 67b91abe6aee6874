"""The arguments of :func:`~occfast.sweep.occlusion_map`: what they may be and what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .. import checks
from ..native import ops
from .evaluators.behavior import in_training
from .geometry import Border
from .precision import PRECISIONS, Precision

Score = Literal["error", "score_drop", "similarity_drop"]
Fill = float | Sequence[float] | Literal["mean", "noise"] | Tensor

EXACT = ("auto", "dense", "incremental")
METHODS = (*EXACT, "adaptive", "sampled")


@dataclass(frozen=True)
class Options:
    """The arguments of :func:`occlusion_map` that say what to compute."""

    occluder: tuple[int, int]
    stride: tuple[int, int]
    border: Border
    fill: Fill
    score: Score
    method: str
    seed: int
    batch_size: int | None
    memory_limit: int | None
    skip_misclassified: bool
    tolerance: float | None = None
    spacing: tuple[int, int] | None = None
    check: float | None = None
    bandwidth: tuple[float, float] | None = None
    precision: Precision | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {self.method!r}")
        self._check_estimation()
        if self.precision is not None and self.precision not in PRECISIONS:
            raise ValueError(f"precision: expected None, {' or '.join(map(repr, PRECISIONS))}, got {self.precision!r}")
        if self.score not in ops.SCORES:
            raise ValueError(f"score: expected one of {', '.join(ops.SCORES)}, got {self.score!r}")
        if self.batch_size is not None:
            if isinstance(self.batch_size, bool) or not isinstance(self.batch_size, int):
                raise TypeError(f"batch_size: expected an int or None, got {self.batch_size!r}")
            if self.batch_size < 1:
                raise ValueError(f"batch_size: expected at least 1, got {self.batch_size}")

    def _check_estimation(self) -> None:
        """Arguments that only some methods have."""
        of_methods = {
            "tolerance": ("adaptive", "sampled"),
            "spacing": ("adaptive", "sampled"),
            "check": ("adaptive",),
            "bandwidth": ("sampled",),
        }
        for name, methods in of_methods.items():
            value = getattr(self, name)
            if value is not None and self.method not in methods:
                why = f"method={self.method!r} is exact" if self.method in EXACT else f"method={self.method!r} has none"
                raise ValueError(f"{name}: expected None, since {why}, got {value!r}")
        if self.tolerance is not None and not self.tolerance > 0:
            raise ValueError(f"tolerance: expected a number above 0, got {self.tolerance!r}")
        if self.tolerance is not None and (self.method, self.score) == ("adaptive", "error") and self.tolerance > 0.5:
            raise ValueError(f"tolerance: expected the chance of a wrong label, at most 0.5, got {self.tolerance!r}")
        if self.method == "adaptive" and self.check is not None:
            checks.number(self.check, "check", 0.0, 1.0)
        if self.bandwidth is not None and not min(self.bandwidth) > 0:
            raise ValueError(f"bandwidth: expected pixels above 0, got {self.bandwidth!r}")

    def stated(self) -> dict[str, Any]:
        """What the result depends on, for a checkpoint and for the record."""
        fill: Any = self.fill
        if isinstance(fill, Tensor):
            fill = f"tensor {list(fill.shape)}, sum {float(fill.double().sum()):.17g}"
        estimation = {name: getattr(self, name) for name in ("tolerance", "spacing", "check", "bandwidth")}
        return {
            "occluder": list(self.occluder),
            "stride": list(self.stride),
            "border": self.border,
            "fill": fill if isinstance(fill, (str, float)) else list(fill),
            "score": self.score,
            "method": self.method,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "skip_misclassified": self.skip_misclassified,
            "precision": self.precision,
            **{name: value for name, value in estimation.items() if value is not None},
        }


def check_model(model: Any) -> None:
    if not callable(model):
        raise TypeError(f"model: expected an nn.Module or a function, got {type(model).__name__}")
    if isinstance(model, nn.Module) and in_training(model):
        raise ValueError("model: expected evaluation mode, got training mode; call model.eval()")


def device_of(model: Any, device: Any) -> torch.device | None:
    """Where to sweep: where the model is, if it has parameters; else where the images are (None)."""
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


def checked_fill(fill: Any) -> Fill:
    if isinstance(fill, str):
        if fill not in ("mean", "noise"):
            raise ValueError(f"fill: expected a number, a number a channel, 'mean', 'noise' or a tensor, got {fill!r}")
        return fill  # type: ignore[return-value]
    if isinstance(fill, Tensor) or hasattr(fill, "__dlpack__"):
        tensor = checks.as_tensor(fill, "fill")
        if tensor.dim() > 3:
            raise ValueError(f"fill: expected a tensor that broadcasts to [C, H, W], got {list(tensor.shape)}")
        if not bool(tensor.isfinite().all()):
            raise ValueError("fill: expected finite numbers, got NaN or infinity")
        return tensor
    if isinstance(fill, Sequence):
        return [checks.number(v, "fill", -3.4e38, 3.4e38) for v in fill]
    return checks.number(fill, "fill", -3.4e38, 3.4e38)


def fill_for(fill: Fill, images: Tensor, seed: int) -> Tensor:
    """The fill of a block of images: four dimensions, broadcasts to them, same dtype and device."""
    _, channels, height, width = images.shape
    if isinstance(fill, Tensor):
        try:
            torch.broadcast_shapes(fill.shape, (channels, height, width))
            made = fill.reshape((1,) * (3 - fill.dim()) + tuple(fill.shape))
            if any(s not in (1, t) for s, t in zip(made.shape, (channels, height, width), strict=True)):
                raise RuntimeError
        except RuntimeError:
            raise ValueError(
                f"fill: expected a tensor that broadcasts to {[channels, height, width]}, got {list(fill.shape)}"
            ) from None
        return made.to(images.device, images.dtype)[None]
    if fill == "mean":
        return images.double().mean((2, 3), keepdim=True).to(images.dtype)
    if fill == "noise":
        # One pattern whatever the block, drawn on the CPU so that every device covers with the same.
        pattern = torch.rand((1, channels, height, width), generator=torch.Generator().manual_seed(seed))
        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        return low + (high - low) * pattern.to(images.device, images.dtype)
    if isinstance(fill, Sequence) and not isinstance(fill, str):
        if len(fill) != channels:
            raise ValueError(f"fill: expected {channels} numbers, one a channel, got {len(fill)}")
        return torch.tensor(list(fill), dtype=images.dtype, device=images.device).view(1, channels, 1, 1)
    return torch.full((1, 1, 1, 1), float(fill), dtype=images.dtype, device=images.device)
