"""What a network expects of its images: stored with its weights, since a mismatch silently costs accuracy."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError

COLORS = ("gray", "RGB", "BGR")


@dataclass(frozen=True)
class Preprocessing:
    """How images become a network's input.

    Attributes:
        size: (height, width) in pixels.
        color: "gray" (one channel), "RGB" or "BGR".
        mean, std: the input is (x / 255 - mean) / std of 8-bit pixels x.
        alignment: how faces were aligned, as ``Alignment.as_dict()`` of :mod:`occfast.data.align` tells it (template,
            size, points, transform, border, color); None where that is not known.
    """

    size: tuple[int, int]
    color: str = "gray"
    mean: float = 0.5
    std: float = 0.5
    alignment: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size: expected (height, width) of at least 1 pixel, got {self.size}")
        if self.color not in COLORS:
            raise ValueError(f"color: expected one of {', '.join(map(repr, COLORS))}, got {self.color!r}")
        if not self.std > 0:
            raise ValueError(f"std: expected a positive number, got {self.std}")

    @property
    def channels(self) -> int:
        """1 for gray, else 3."""
        return 1 if self.color == "gray" else 3

    def scale(self, images: Tensor) -> Tensor:
        """Images in [0, 1], float [N, C, H, W], to the network's range; channels_last, which CPUs convolve faster."""
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def __call__(self, images: Tensor) -> Tensor:
        """Images as they are stored, uint8 [N, C, H, W] (gray or RGB), to the network's input, float32.

        Raises:
            ValueError: images of another size or number of channels: nothing is resized or converted here.
            TypeError: another dtype.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"images: expected uint8, got {str(images.dtype).removeprefix('torch.')}")
        self.check(images)
        return self.scale(self.order(images.float() / 255))

    def order(self, images: Tensor) -> Tensor:
        """RGB images to the network's order of the channels; gray ones stay."""
        return images.flip(1) if self.color == "BGR" else images

    def check(self, images: Tensor) -> None:
        """Raises ValueError where images [N, C, H, W] have another size or number of channels."""
        expected = (self.channels, *self.size)
        if images.dim() != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(f"images: expected [N, {', '.join(map(str, expected))}], got {list(images.shape)}")

    def to_json(self) -> str:
        """For the metadata of a file of weights."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str, where: str = "preprocessing") -> Preprocessing:
        """What :meth:`to_json` gave.  Raises DataError, beginning with ``where``, for anything else."""
        try:
            values = json.loads(text)
            height, width = values.pop("size")
            if values.get("color") == "gray":  # written by 0.1.0 before its release
                values["color"] = "gray"
            if isinstance(values.get("alignment"), dict) and values["alignment"].get("color") == "gray":
                values["alignment"]["color"] = "gray"
            return cls(size=(int(height), int(width)), **values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{where}: not a description of preprocessing ({error})") from error

    def require(self, other: Preprocessing) -> None:
        """Refuse images prepared in another way.

        Raises:
            ValueError: naming the first difference.  What is not known of an alignment (None) contradicts nothing.
        """
        for name in ("size", "color", "mean", "std"):
            if getattr(self, name) != getattr(other, name):
                raise ValueError(
                    f"preprocessing: the weights expect {name} {getattr(self, name)}, got {getattr(other, name)}"
                )
        if self.alignment is None or other.alignment is None:
            return
        for name in sorted(self.alignment.keys() | other.alignment.keys()):
            mine, theirs = (_plain(a.get(name)) for a in (self.alignment, other.alignment))
            if mine != theirs and None not in (mine, theirs):  # colors as the images came: `color` above tells
                raise ValueError(f"preprocessing: the weights expect faces aligned with {name} {mine}, got {theirs}")


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))  # tuples and lists alike
