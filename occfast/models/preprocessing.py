"""Preparation of a network's images, stored with its weights: a mismatch costs accuracy without an error."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .. import checks
from ..errors import DataError

Color = Literal["gray", "RGB", "BGR"]
COLORS: tuple[Color, ...] = ("gray", "RGB", "BGR")
#: One number for all channels, or one for each of three.
PerChannel = float | tuple[float, ...]


def per_channel(value: object, name: str, *, above: float | None = None) -> PerChannel:
    """Return a number, or a tuple of three numbers that are not all equal.

    Raises:
        TypeError: ``value`` is neither a number nor a sequence of numbers.
        ValueError: A number is not finite or not greater than ``above``, or the sequence has another length than 3.
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        return checks.number(value, name, above=above)
    if len(value) != 3:
        raise ValueError(f"{name}: expected one number, or one for each of three channels, got {len(value)}")
    found = tuple(checks.number(each, f"{name}[{k}]", above=above) for k, each in enumerate(value))
    return found[0] if len(set(found)) == 1 else found


def as_factor(value: PerChannel, images: Tensor) -> float | Tensor:
    """Return what :func:`per_channel` gave so that it broadcasts with images [N, C, H, W]."""
    return images.new_tensor(value)[:, None, None] if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Preprocessing:
    """Preparation of a network's input.

    Attributes:
        size: (height, width) in pixels.
        color: "gray" (one channel), "RGB" or "BGR".
        mean, std: The input is (x / 255 - mean) / std for 8-bit pixels x; std > 0. One number, or one for each channel
            in the order of ``color``.
        alignment: Alignment of the faces as a dictionary (``Alignment.as_dict()`` of :mod:`occfast.data`: template,
            size, points, transform, border, color); None if unknown.
    """

    size: tuple[int, int]
    color: Color = "gray"
    mean: PerChannel = 0.5
    std: PerChannel = 0.5
    alignment: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        checks.pair(self.size, "size")
        checks.choice(self.color, "color", COLORS)
        for name, above in (("mean", None), ("std", 0.0)):
            value = per_channel(getattr(self, name), name, above=above)
            if isinstance(value, tuple) and self.color == "gray":
                raise ValueError(f"{name}: expected one number for gray images, got {len(value)}")
            object.__setattr__(self, name, value)
        if self.alignment is not None and not (
            isinstance(self.alignment, dict) and isinstance(self.alignment.get("template"), str)
        ):
            raise TypeError(f"alignment: expected None or the record of an alignment, got {self.alignment!r}")

    @property
    def channels(self) -> int:
        """Number of channels: 1 for gray, else 3."""
        return 1 if self.color == "gray" else 3

    def scale(self, images: Tensor) -> Tensor:
        """Scale images in [0, 1], float [N, C, H, W], to the network's range; the result is contiguous."""
        mean, std = as_factor(self.mean, images), as_factor(self.std, images)
        return images.contiguous().sub(mean).div_(std)

    def scaled(self, shade: float) -> float | list[float]:
        """Return an intensity in [0, 1] on the network's scale: a number, or one for each channel."""
        if not isinstance(self.mean, tuple) and not isinstance(self.std, tuple):
            return (shade - self.mean) / self.std
        mean, std = (value if isinstance(value, tuple) else (value,) * 3 for value in (self.mean, self.std))
        return [(shade - m) / s for m, s in zip(mean, std, strict=True)]

    def __call__(self, images: Tensor) -> Tensor:
        """Convert stored images to the network's input.

        Args:
            images: uint8 [N, C, H, W], gray or RGB.

        Returns:
            float32 [N, C, H, W].

        Raises:
            ValueError: If size or number of channels differ; nothing is resized or converted here.
            TypeError: If the dtype is not uint8.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"images: expected uint8, got {str(images.dtype).removeprefix('torch.')}")
        self.check(images)
        return self.scale(self.order(images.float() / 255))

    def order(self, images: Tensor) -> Tensor:
        """Reorder the channels of RGB images for the network; gray images stay as they are."""
        return images.flip(1) if self.color == "BGR" else images

    def check(self, images: Tensor) -> None:
        """Check the size and the number of channels of images [N, C, H, W]; raise ValueError if they differ."""
        expected = (self.channels, *self.size)
        if images.dim() != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(f"images: expected [N, {', '.join(map(str, expected))}], got {list(images.shape)}")

    def to_json(self) -> str:
        """Return JSON for the metadata of a weights file."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str, source: str = "preprocessing") -> Preprocessing:
        """Read what :meth:`to_json` returned; raise DataError, beginning with ``source``, for anything else.

        Files written before version 0.1.0 spell the color "grey"; they are read too.
        """
        try:
            values = json.loads(text)
            height, width = values.pop("size")
            for part in (values, values.get("alignment")):
                if isinstance(part, dict) and part.get("color") == "grey":
                    part["color"] = "gray"
            return cls(size=(height, width), **values)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise DataError(f"{source}: not a description of preprocessing ({error})") from error

    def require(self, other: Preprocessing) -> None:
        """Check that images were prepared as this network expects them.

        An unknown alignment (None) matches every other.

        Raises:
            ValueError: If they differ; the message names the first difference.
        """
        for name in ("size", "color", "mean", "std"):
            if getattr(self, name) != getattr(other, name):
                raise ValueError(
                    f"preprocessing: the weights expect {name} {getattr(self, name)}, got {getattr(other, name)}"
                )
        if self.alignment is None or other.alignment is None:
            return
        names = [a.get("template") for a in (self.alignment, other.alignment)]
        if names[0] != names[1] and None not in names:
            raise ValueError(f"preprocessing: the weights expect faces aligned to {names[0]}, got {names[1]}")
        for name in sorted(self.alignment.keys() | other.alignment.keys()):
            mine, theirs = (_plain(a.get(name)) for a in (self.alignment, other.alignment))
            if mine != theirs and None not in (mine, theirs):  # color None: as the images came; `color` above decides
                raise ValueError(f"preprocessing: the weights expect faces aligned with {name} {mine}, got {theirs}")


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))  # tuples and lists compare alike
