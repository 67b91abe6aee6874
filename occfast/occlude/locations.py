"""Distributions of an occluder's center (trigueros2018, Eq. 4)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .. import checks
from ..errors import DataError
from ..files import read_npz, write_npz
from .base import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Rows and columns of centers, in pixels.
Centers = tuple[Sequence[int] | Tensor, Sequence[int] | Tensor]

#: Standard deviation of the "normal" scheme along each axis, as a fraction of the image's size. trigueros2018 draws
#: random occluders "from a standard normal distribution" about the center of the image and gives no scale. With a
#: quarter, two standard deviations reach the edge, so that truncation removes 5 % of an axis's distribution.
NORMAL_SPREAD = 0.25


@dataclass(frozen=True, eq=False)
class LocationDistribution:
    """Distribution of an occluder's center over a grid of pixels.

    Attributes:
        probabilities: float64 [rows, columns], not negative, with sum 1.
        row_centers: int64 [rows], increasing, pixels inside the image.
        column_centers: int64 [columns], likewise.
        image_size: (height, width) of the images.

    Raises:
        ValueError: if the attributes contradict this description.
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

    @classmethod
    def from_weights(
        cls, weights: ArrayLike, *, image_size: Sequence[int] | None = None, centers: Centers | None = None
    ) -> LocationDistribution:
        """Return the distribution in proportion to a map of weights.

        Args:
            weights: [rows, columns], finite, not negative, not all 0.
            image_size: (height, width) of the images. Defaults to the shape of the map.
            centers: rows and columns of the centers in pixels. By default the map has one entry for each pixel.
        """
        w = checks.as_tensor(weights, "weights").detach().to("cpu", torch.float64)
        if w.dim() != 2 or w.numel() == 0:
            raise ValueError(f"weights: expected [rows, columns], got {list(w.shape)}")
        if not bool(w.isfinite().all()) or bool((w < 0).any()) or float(w.sum()) <= 0:
            raise ValueError("weights: expected finite numbers >= 0, not all 0")
        rows, columns = centers if centers is not None else (torch.arange(w.shape[0]), torch.arange(w.shape[1]))
        size = _image_size(image_size) if image_size is not None else tuple(w.shape)
        w = w / w.max()  # keeps the sum of huge weights finite
        return cls(
            w / w.sum(),
            _centers(rows, "row_centers"),
            _centers(columns, "column_centers"),
            (int(size[0]), int(size[1])),
        )

    @classmethod
    def softmax(
        cls,
        values: ArrayLike,
        temperature: float,
        *,
        image_size: Sequence[int] | None = None,
        centers: Centers | None = None,
    ) -> LocationDistribution:
        """Return P = exp(O / T) / sum exp(O / T) of a map O at temperature T (Eq. 4 of trigueros2018).

        Args:
            values: the map O, [rows, columns], finite.
            temperature: T, positive.
            image_size: as in :meth:`from_weights`.
            centers: as in :meth:`from_weights`.
        """
        temperature = checks.number(temperature, "temperature", 1e-12, 1e12)
        o = checks.as_tensor(values, "values").detach().to("cpu", torch.float64)
        if o.dim() != 2 or not bool(o.isfinite().all()):
            raise ValueError(f"values: expected finite numbers [rows, columns], got {list(o.shape)}")
        return cls.from_weights(((o - o.max()) / temperature).exp(), image_size=image_size, centers=centers)

    @classmethod
    def uniform(cls, image_size: Sequence[int]) -> LocationDistribution:
        """Return the uniform distribution over all pixels of images of this (height, width)."""
        return cls.from_weights(torch.ones(_image_size(image_size), dtype=torch.float64))

    @classmethod
    def normal(cls, image_size: Sequence[int], spread: float = NORMAL_SPREAD) -> LocationDistribution:
        """Return a normal distribution about the center of the image, truncated at its edges.

        This is the R scheme of trigueros2018.

        Args:
            image_size: (height, width).
            spread: standard deviation along each axis as a fraction of the image's size; see :data:`NORMAL_SPREAD`.
        """
        spread = checks.number(spread, "spread", 1e-6, 1e6)
        axes = [
            torch.exp(-0.5 * ((torch.arange(s, dtype=torch.float64) - (s - 1) / 2) / (spread * s)) ** 2)
            for s in _image_size(image_size)
        ]
        return cls.from_weights(axes[0][:, None] * axes[1])

    @classmethod
    def at(cls, center: tuple[int, int], image_size: Sequence[int]) -> LocationDistribution:
        """Return the distribution whose only center is this (row, column)."""
        row, column = center
        return cls.from_weights(torch.ones(1, 1).double(), image_size=image_size, centers=([row], [column]))

    def mix(self, other: LocationDistribution, weight: float) -> LocationDistribution:
        """Return the mixture of ``1 - weight`` of this distribution and ``weight`` of another over the same centers.

        Args:
            other: a distribution over the same centers.
            weight: in [0, 1].
        """
        weight = checks.number(weight, "weight", 0, 1)
        if (
            self.image_size != other.image_size
            or not torch.equal(self.row_centers, other.row_centers)
            or not torch.equal(self.column_centers, other.column_centers)
        ):
            raise ValueError(f"other: expected the centers of {self!r}, got {other!r}")
        return self._with((1 - weight) * self.probabilities + weight * other.probabilities)

    def masked(self, allowed: ArrayLike) -> LocationDistribution:
        """Return this distribution conditioned on the allowed centers.

        Args:
            allowed: bool [rows, columns].
        """
        mask = checks.as_tensor(allowed, "allowed")
        if mask.dtype != torch.bool or mask.shape != self.probabilities.shape:
            raise ValueError(
                f"allowed: expected bool {list(self.probabilities.shape)}, got {mask.dtype} {list(mask.shape)}"
            )
        kept = torch.where(mask.cpu(), self.probabilities, 0.0)
        if float(kept.sum()) == 0:
            raise ValueError("allowed: expected some center of positive probability, got none")
        return self._with(kept)

    def _with(self, weights: Tensor) -> LocationDistribution:
        centers = (self.row_centers, self.column_centers)
        return self.from_weights(weights, image_size=self.image_size, centers=centers)

    def tables(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return the lookup tables for sampling on a device.

        Returns:
            Cumulative probabilities, float64 [rows * columns], exactly 1 from the last cell of positive probability
            on; and the row and column centers.
        """
        if device not in self._cdf:
            flat = self.probabilities.flatten()
            cdf = flat.cumsum(0).clamp(max=1.0)
            last = int(flat.nonzero()[-1])
            cdf[last:] = 1.0
            self._cdf[device] = (cdf.to(device), self.row_centers.to(device), self.column_centers.to(device))
        return self._cdf[device]

    @property
    def entropy(self) -> float:
        """Entropy in bits; log2 of the number of centers for a uniform distribution."""
        p = self.probabilities
        return float(-(p * p.clamp(min=1e-300).log2()).sum())

    def plot(self, *, ax: Axes | None = None, image: ArrayLike | None = None) -> Axes:
        """Draw the probabilities and return the Matplotlib axes.

        Args:
            ax: the axes to draw on. Defaults to new ones.
            image: gray image [H, W] to draw the probabilities over.
        """
        from ..plots import draw_map

        axes: Axes = draw_map(self.probabilities.numpy(), self._extent(), ax=ax, image=image, label="probability")
        return axes

    def _extent(self) -> tuple[float, float, float, float]:
        from ..plots import extent

        return extent(self.row_centers.numpy(), self.column_centers.numpy())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the distribution to an ``.npz`` file."""
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
        """Read a file that :meth:`save` wrote.

        Raises:
            DataError: if the file is damaged or is not a saved distribution.
        """
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
        except (KeyError, ValueError, TypeError, OverflowError) as error:
            raise DataError(f"{path}: incomplete LocationDistribution ({error})") from error

    def __repr__(self) -> str:
        rows, columns = self.probabilities.shape
        return f"LocationDistribution({rows}x{columns} centers over {self.image_size}, entropy {self.entropy:.1f} bits)"


def _image_size(value: Sequence[int]) -> tuple[int, int]:
    """Return (height, width) of images that can be decoded."""
    height, width = checks.pair(value, "image_size")
    if height * width > checks.MAX_PIXELS:
        raise ValueError(f"image_size: expected at most {checks.MAX_PIXELS:,} pixels, got {height}x{width}")
    return height, width


def _centers(value: Any, name: str) -> Tensor:
    """Return centers as int64 on the CPU."""
    found = torch.as_tensor(value)
    if found.numel() and (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool):
        raise TypeError(f"{name}: expected integers, got {found.dtype}")
    return found.to("cpu", torch.int64)
