"""The result of a sweep: an occlusion map with its error, its settings and its uses."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import DataError
from ..files import read_npz, write_atomically, write_npz
from ..occlude.locations import LocationDistribution
from ..plots import draw_map, extent, png_data_uri
from .estimate import Disagreement, Sampling, as_json, from_json
from .geometry import SweepGrid

_KIND = "occfast.OcclusionMap"
_OPTIONAL = ("per_image", "interval", "bias")
_LABELS = {
    "error": "classification error rate",
    "score_drop": "mean drop of the label's output",
    "similarity_drop": "mean drop of the cosine similarity",
}


@dataclass(frozen=True, eq=False)
class OcclusionMap:
    """What happens to a network when an occluder is centered on each pixel of a grid.

    Attributes:
        values: float64 [rows, columns], the mean over images; for "error" the error rate in [0, 1] (O of
            trigueros2018, the mean of Eq. 3)
        standard_error: float64 [rows, columns]; NaN with one image. Of the mean as an estimate for the population
            that the images come from; of "sampled": as an estimate of the full sweep of the whole set that was given
        per_image: uint8 ("error") or float32 [N, rows, columns], or None where it was not kept
        grid: the centers
        score, method: what was measured, and how it was evaluated
        n_images, n_skipped: images in the mean; images left out because they are wrong uncovered
        n_evaluations: forward passes of an occluded image
        seconds: wall time of the sweep, over all its parts if it was resumed
        mean_image: float32 [C, H, W], the mean of the images that were used
        settings: fill, seed, batch size and the like, for the record
        estimate: for the methods that estimate, how far the map may be from the full sweep of the same images:
            :class:`~occfast.sweep.estimate.Disagreement` ("adaptive") or :class:`~occfast.sweep.estimate.Sampling`
            ("sampled"); else None
        interval: float64 [2, rows, columns] of "sampled": the ends of the 95 % interval that holds the value of the
            full sweep at that location; else None
        bias: float64 [rows, columns] of "sampled": what smoothing changes at locations like this one, root mean
            square; else None
        precision: "tf32" or "bf16" where the forward passes ran in less than the images' own dtype, else None
    """

    values: NDArray[np.float64]
    standard_error: NDArray[np.float64]
    per_image: NDArray[Any] | None
    grid: SweepGrid
    score: str
    method: str
    n_images: int
    n_skipped: int
    n_evaluations: int
    seconds: float
    mean_image: NDArray[np.float32]
    settings: dict[str, Any] = field(default_factory=dict)
    estimate: Disagreement | Sampling | None = None
    interval: NDArray[np.float64] | None = None
    bias: NDArray[np.float64] | None = None
    precision: str | None = None

    @property
    def occluder(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.grid.occluder

    @property
    def centers(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row and column coordinates of the occluder's center, in pixels."""
        rows, columns = self.grid.centers
        return rows.numpy(), columns.numpy()

    @property
    def accuracy(self) -> tuple[float, float]:
        """Mean and (population) standard deviation of 1 - ``values`` over locations: a cell of Table 1."""
        if self.score != "error":
            raise ValueError(f"accuracy: expected a map of the score 'error', this one is of {self.score!r}")
        right = 1.0 - self.values
        return float(right.mean()), float(right.std())

    def every_pixel(self) -> NDArray[np.float64]:
        """Return the values at every pixel, float64 [H, W].

        They are interpolated linearly between the centers and constant beyond the outermost ones.
        """
        rows, columns = self.centers
        height, width = self.grid.image
        down = np.stack([np.interp(np.arange(height), rows, column) for column in self.values.T], 1)
        return np.stack([np.interp(np.arange(width), columns, row) for row in down])

    def distribution(self, temperature: float = 0.4) -> LocationDistribution:
        """Return where to place occluders in training: P = softmax(O / T) at every pixel (Eq. 4).

        Args:
            temperature: T, above 0. With a stride above 1 the map O is interpolated, see :meth:`every_pixel`.
        """
        return LocationDistribution.softmax(
            torch.from_numpy(self.every_pixel()), temperature, image_size=self.grid.image
        )

    # -- pictures --------------------------------------------------------------------------------------

    def plot(self, ax: Any = None, image: Any = None) -> Any:
        """Draw the map, over an image [C, H, W] or [H, W] if given; returns the Matplotlib axes.

        Bright is where covering hurts. ``image="mean"`` takes the mean of the images.
        """
        if isinstance(image, str):
            if image != "mean":
                raise ValueError(f"image: expected an array or 'mean', got {image!r}")
            image = self.mean_image
        limits = (0.0, max(float(self.values.max()), 1e-9)) if self.score == "error" else None
        return draw_map(
            self.values, extent(*self.centers), ax=ax, image=image, label=_LABELS[self.score], limits=limits
        )

    def masked_mean(self) -> NDArray[np.float64]:
        """The mean image [C, H, W] in [0, 1], dark where covering does no harm (Figure 1, lower row)."""
        mean = self.mean_image.astype(np.float64)
        mean = (mean - mean.min()) / max(float(np.ptp(mean)), 1e-12)
        weight = self.values - min(0.0, float(self.values.min()))
        weight = weight / max(float(weight.max()), 1e-12)
        height, width = self.grid.image
        rows, columns = self.centers
        # Each pixel takes the value of the nearest center.
        i = np.abs(np.arange(height)[:, None] - rows).argmin(1)
        j = np.abs(np.arange(width)[:, None] - columns).argmin(1)
        return np.asarray(mean * weight[np.ix_(i, j)])

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Write one self-contained page: the map, the mean image masked by it, the accuracy, a
        histogram over locations and the settings."""
        from .page import render

        return write_atomically(path, render(self).encode())

    def _repr_png_(self) -> bytes:
        import base64

        return base64.b64decode(png_data_uri(self.plot().figure).split(",", 1)[1])

    # -- files -----------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write everything to ``.npz``, or the picture to ``.png``, ``.pdf`` or ``.svg``, atomically.

        Raises ValueError for another ending, OSError if the disk is full (an old file is kept).
        """
        suffix = Path(path).suffix.lower()
        if suffix in (".png", ".pdf", ".svg"):
            import io

            buffer = io.BytesIO()
            self.plot().figure.savefig(buffer, format=suffix[1:], dpi=150)
            return write_atomically(path, buffer.getvalue())
        if suffix != ".npz":
            raise ValueError(f"path: expected a name ending in .npz, .png, .pdf or .svg, got {os.fspath(path)!r}")
        content: dict[str, Any] = {
            "kind": _KIND,
            "about": json.dumps(self._about()),
            "values": self.values,
            "standard_error": self.standard_error,
            "mean_image": self.mean_image,
        }
        for name in _OPTIONAL:
            if getattr(self, name) is not None:
                content[name] = getattr(self, name)
        return write_npz(path, **content)

    def _about(self) -> dict[str, Any]:
        return {
            "image": self.grid.image,
            "occluder": self.grid.occluder,
            "stride": self.grid.stride,
            "border": self.grid.border,
            "score": self.score,
            "method": self.method,
            "precision": self.precision,
            "n_images": self.n_images,
            "n_skipped": self.n_skipped,
            "n_evaluations": self.n_evaluations,
            "seconds": self.seconds,
            "settings": self.settings,
            "estimate": as_json(self.estimate),
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> OcclusionMap:
        """Read what :meth:`save` wrote to ``.npz``.

        Raises DataError if the file is damaged or something else, FileNotFoundError if there is none.
        """
        content = read_npz(path)
        if str(content.get("kind", "")) != _KIND:
            raise DataError(f"{path}: not a saved OcclusionMap")
        try:
            about = json.loads(str(content["about"]))
            grid = SweepGrid.over(about["image"], about["occluder"], about["stride"], about["border"])
            more: dict[str, Any] = {name: content.get(name) for name in _OPTIONAL}
            loaded = cls(
                values=content["values"],
                standard_error=content["standard_error"],
                estimate=from_json(about.get("estimate")),
                precision=about.get("precision"),  # None in files of earlier versions, which had no other
                **more,
                grid=grid,
                mean_image=content["mean_image"],
                **{
                    name: about[name]
                    for name in ("score", "method", "n_images", "n_skipped", "n_evaluations", "seconds", "settings")
                },
            )
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(f"{path}: not a whole OcclusionMap ({error})") from error
        if loaded.values.shape != (grid.rows, grid.columns):
            raise DataError(f"{path}: values are {loaded.values.shape}, the grid {(grid.rows, grid.columns)}")
        return loaded

    def __repr__(self) -> str:
        mean = f"accuracy {self.accuracy[0]:.1%} ± {self.accuracy[1]:.1%}" if self.score == "error" else self.score
        return (
            f"OcclusionMap({self.grid.rows}x{self.grid.columns} centers, occluder {self.occluder}, "
            f"{self.n_images} images, {mean}, {self.method}{f' in {self.precision}' if self.precision else ''})"
        )
