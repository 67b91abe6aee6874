"""Location distributions: where an occluder's center is drawn (trigueros2018, Eq. 4)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import checks
from ..errors import DataError
from ..files import read_npz, write_npz

#: Standard deviation of the "normal" scheme along each axis, as a fraction of the image's size.  trigueros2018
#: centers its random occluders on the image "from a standard normal distribution" and gives no scale; with a
#: quarter, two standard deviations reach the edge, so 95 % of the centers of an axis fall inside unconditioned.
NORMAL_SPREAD = 0.25


@dataclass(frozen=True, eq=False)
class LocationDistribution:
    """Where the center of an occluder is drawn from: one probability for each center of a grid.

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
        temperature = checks.number(temperature, "temperature", 1e-12, 1e12)
        o = checks.as_tensor(values, "values").detach().to("cpu", torch.float64)
        if o.dim() != 2 or not bool(o.isfinite().all()):
            raise ValueError(f"values: expected finite numbers [rows, columns], got {list(o.shape)}")
        return cls.from_weights(((o - o.max()) / temperature).exp(), image_size, centers)

    @classmethod
    def uniform(cls, image_size: Sequence[int]) -> LocationDistribution:
        """Every pixel is as likely a center."""
        height, width = image_size
        return cls.from_weights(torch.ones(height, width, dtype=torch.float64))

    @classmethod
    def normal(cls, image_size: Sequence[int], spread: float = NORMAL_SPREAD) -> LocationDistribution:
        """The R scheme of trigueros2018: normal about the image's center, cut at its edge.

        ``spread`` is the standard deviation along each axis in fractions of the image's size; see
        :data:`NORMAL_SPREAD` for the default.
        """
        spread = checks.number(spread, "spread", 1e-6, 1e6)
        axes = [
            torch.exp(-0.5 * ((torch.arange(s, dtype=torch.float64) - (s - 1) / 2) / (spread * s)) ** 2)
            for s in image_size
        ]
        return cls.from_weights(axes[0][:, None] * axes[1])

    def mix(self, other: LocationDistribution, weight: float) -> LocationDistribution:
        """``(1 - weight)`` of this and ``weight`` of another over the same centers, weight in [0, 1]."""
        weight = checks.number(weight, "weight", 0, 1)
        if (
            self.image_size != other.image_size
            or not torch.equal(self.row_centers, other.row_centers)
            or not torch.equal(self.column_centers, other.column_centers)
        ):
            raise ValueError(f"other: expected the centers of {self!r}, got {other!r}")
        mixed = (1 - weight) * self.probabilities + weight * other.probabilities
        return self.from_weights(mixed, self.image_size, (self.row_centers, self.column_centers))

    def masked(self, allowed: Any) -> LocationDistribution:
        """This distribution given that the center is allowed: bool [rows, columns]."""
        mask = checks.as_tensor(allowed, "allowed")
        if mask.dtype != torch.bool or mask.shape != self.probabilities.shape:
            raise ValueError(
                f"allowed: expected bool {list(self.probabilities.shape)}, got {mask.dtype} {list(mask.shape)}"
            )
        kept = torch.where(mask.cpu(), self.probabilities, 0.0)
        if float(kept.sum()) == 0:
            raise ValueError("allowed: expected some center of positive probability, got none")
        return self.from_weights(kept, self.image_size, (self.row_centers, self.column_centers))

    # -- what to do with it ----------------------------------------------------------------------------

    def tables(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Cumulative probabilities float64 [rows * columns] (the last positive cell ends at exactly 1) and
        the centers, on a device."""
        if device not in self._cdf:
            flat = self.probabilities.flatten()
            cdf = flat.cumsum(0).clamp(max=1.0)
            last = int(flat.nonzero()[-1])
            cdf[last:] = 1.0
            self._cdf[device] = (cdf.to(device), self.row_centers.to(device), self.column_centers.to(device))
        return self._cdf[device]

    @property
    def entropy(self) -> float:
        """In bits; log2 of the number of centers if uniform."""
        p = self.probabilities
        return float(-(p * p.clamp(min=1e-300).log2()).sum())

    def plot(self, ax: Any = None, image: Any = None) -> Any:
        """Draw the probabilities (over a gray image [H, W] if given); returns the Matplotlib axes."""
        from ..plots import draw_map

        return draw_map(self.probabilities.numpy(), self._extent(), ax=ax, image=image, label="probability")

    def _extent(self) -> tuple[float, float, float, float]:
        from ..plots import extent

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
        return f"LocationDistribution({rows}x{columns} centers over {self.image_size}, entropy {self.entropy:.1f} bits)"
