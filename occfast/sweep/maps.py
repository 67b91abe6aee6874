"""Occlusion maps: values, errors, pictures and files."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .. import checks
from ..errors import DataError
from ..files import read_npz, write_atomically, write_npz
from ..occlude.locations import LocationDistribution
from ..plots import Image, draw_map, extent, new_figure, png, png_data_uri
from .checkpoint import Checkpoint, CheckpointPart, Fingerprint
from .comparison import MapComparison, compared
from .difference import MapDifference
from .estimate import Disagreement, Sampling, as_json, from_json
from .geometry import SweepGrid
from .options import BINARY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Of the files that :meth:`OcclusionMap.save` writes.
MAP_KIND = "occfast.OcclusionMap"
#: Setting of a map of similarities of images with themselves.
OWN_REFERENCE = "the image without an occluder"
_OPTIONAL = ("per_image", "interval", "bias", "image_indices")
_LABELS = {
    "error": "classification error rate",
    "score_drop": "mean drop of the label's output",
    "probability_drop": "mean drop of the label's probability",
    "similarity_drop": "mean drop of the cosine similarity",
    "mismatch": "share of images that no longer match",
}


@dataclass(frozen=True, eq=False)
class OcclusionMap:
    """Scores of a network with an occluder centered on each pixel of a grid.

    ``m - n`` is the :class:`~occfast.sweep.difference.MapDifference` of two maps, and ``m[k]`` the map of image k. A
    notebook shows a map as a picture
    with its settings.

    Attributes:
        values: Float64 [rows, columns], the mean over images. For "error" the error rate in [0, 1] (O of trigueros2018,
            the mean of Eq. 3).
        standard_error: Float64 [rows, columns], of the mean as an estimate for the population that the images come
            from; NaN with one image. For "sampled": as an estimate of the full sweep of all images that were given.
        per_image: Scores of each image, uint8 ("error", "mismatch") or float32 [n_images, rows, columns]; None if they
            were not kept.
        image_indices: Numbers of the images used among those given, int64 [n_images], one for each row of
            ``per_image``; None in files of earlier versions.
        grid: The centers, and the occluder.
        further: Grids of further occluders over which the map is an average, with the same centers; () for one.
        score: The quantity: "error", "score_drop", "probability_drop", "similarity_drop", "mismatch", or "drop of
            NAME" for a function.
        method: The method that ran: "dense", "incremental", "adaptive" or "sampled".
        n_images: Number of images in the mean.
        n_skipped: Number of images left out because the model misclassifies them without an occluder.
        n_evaluations: Number of forward passes of an occluded image.
        seconds: Wall time of the sweep, over all its parts if it was resumed.
        mean_image: Float32 [C, H, W], the mean of the images used.
        settings: Fill, seed, batch size and so on, for the record.
        estimate: Error of an estimated map relative to the full sweep of the same images:
            :class:`~occfast.sweep.estimate.Disagreement` for "adaptive", :class:`~occfast.sweep.estimate.Sampling` for
            "sampled", else None.
        interval: Ends of the 95 % interval of the full sweep's value at each location, float64 [2, rows, columns], for
            "sampled"; else None.
        bias: Root mean square of the change that smoothing makes at similar locations, float64 [rows, columns], for
            "sampled"; else None.
        precision: "tf32" or "bf16" if the forward passes ran in less than the images' own dtype, else None.
        fingerprint: Origin of a map that was computed with a checkpoint, else None.
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
    image_indices: NDArray[np.int64] | None = None
    further: tuple[SweepGrid, ...] = ()
    fingerprint: Fingerprint | None = field(default=None, repr=False)
    _checkpoint: Checkpoint | CheckpointPart | None = field(default=None, repr=False)

    @property
    def occluder(self) -> tuple[int, int]:
        """(height, width) in pixels; of the first one if there are several."""
        return self.grid.occluder

    @property
    def grids(self) -> tuple[SweepGrid, ...]:
        """Grid of each occluder."""
        return (self.grid, *self.further)

    @property
    def occluder_text(self) -> str:
        """The occluders, as people write them."""
        return ", ".join(grid.occluder_text for grid in self.grids)

    @property
    def centers(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row and column coordinates of the occluder's center, in pixels."""
        rows, columns = self.grid.centers
        return rows.numpy(), columns.numpy()

    @property
    def binary(self) -> bool:
        """Whether scores of single images are 0 or 1: those of "error" and "mismatch"."""
        return self.score in BINARY

    @property
    def accuracy(self) -> tuple[float, float]:
        """Mean and standard deviation (of the population) over locations of 1 - ``values``: a cell of Table 1."""
        if not self.binary:
            raise ValueError(f"accuracy: expected a map of the score 'error' or 'mismatch', got {self.score!r}")
        right = 1.0 - self.values
        return float(right.mean()), float(right.std())

    def __getitem__(self, image_index: int) -> OcclusionMap:
        """Return the map of one image.

        Its errors are NaN, and ``mean_image`` stays that of all images, since single images are not kept. Iteration
        over a map gives the maps of the images used, in their order; ``len`` is their number.

        Args:
            image_index: Number of an image among those given, as in ``image_indices``.

        Raises:
            TypeError: It is not an integer.
            ValueError: The map does not hold the scores of single images.
            IndexError: That image was not used.
        """
        number = checks.integer(image_index, "image_index")
        try:
            values = self._of_image(number)
        except ValueError as error:
            raise (error if self.per_image is None else IndexError(str(error))) from None
        return replace(
            self,
            values=values,
            standard_error=np.full_like(values, np.nan),
            per_image=values[None].astype(np.uint8 if self.score == "error" else np.float32),
            image_indices=np.array([number]),
            n_images=1,
            n_skipped=0,
            settings={**self.settings, "image": f"{number}, one of {self.n_images}"},
            estimate=None,
            interval=None,
            bias=None,
            fingerprint=None,
            _checkpoint=None,
        )

    def __len__(self) -> int:
        return self.n_images

    def __iter__(self) -> Iterator[OcclusionMap]:
        numbers = range(self.n_images) if self.image_indices is None else self.image_indices.tolist()
        return (self[number] for number in numbers)

    def rejection_rate(self, threshold: float) -> NDArray[np.float64]:
        """Return the share of images that a recognizer rejects with the occluder at each position.

        An image is rejected where the cosine similarity of its embeddings with and without the occluder is below the
        threshold. It answers for a recognizer what the score "error" answers for a classifier.

        Args:
            threshold: Cosine similarity in (-1, 1], such as the one that ``occfast audit`` sets by a false match rate.

        Returns:
            Float64 [rows, columns], in [0, 1].

        Raises:
            ValueError: The map is not of "similarity_drop" with the images themselves as references, or does not hold
                the scores of single images.
        """
        threshold = checks.number(threshold, "threshold", high=1.0, above=-1.0)
        if self.score != "similarity_drop" or self.settings.get("reference") != OWN_REFERENCE:
            raise ValueError(
                "rejection_rate: expected a map of the score 'similarity_drop' with labels=None, this one is of "
                f"{self.score!r} with {self.settings.get('reference', 'labels')}"
            )
        if self.per_image is None:
            raise ValueError("rejection_rate: expected a map that holds the scores of single images, this one does not")
        rejected: NDArray[np.float64] = (1.0 - self.per_image.astype(np.float64) < threshold).mean(0)
        return rejected

    def every_pixel(self, image_index: int | None = None) -> NDArray[np.float64]:
        """Return the values at every pixel, float64 [H, W].

        They are interpolated linearly between the centers and constant beyond the outermost ones.

        Args:
            image_index: Number of an image among those given, for its own map; None: the mean map.

        Raises:
            ValueError: There is no map of that image.
        """
        rows, columns = self.centers
        values = self.values if image_index is None else self._of_image(image_index)
        height, width = self.grid.image
        down = np.stack([np.interp(np.arange(height), rows, column) for column in values.T], 1)
        return np.stack([np.interp(np.arange(width), columns, row) for row in down])

    def distribution(self, temperature: float = 0.4) -> LocationDistribution:
        """Return where to place occluders in training: P = softmax(O / T) at every pixel (Eq. 4).

        Args:
            temperature: T, above 0. With a stride above 1 the map O is interpolated, see :meth:`every_pixel`.
        """
        return LocationDistribution.softmax(
            torch.from_numpy(self.every_pixel()), temperature, image_size=self.grid.image
        )

    def __sub__(self, other: OcclusionMap) -> MapDifference:
        if not isinstance(other, OcclusionMap):
            return NotImplemented
        return MapDifference.of(self, other)

    def compare(
        self,
        other: OcclusionMap,
        *,
        level: float = 0.05,
        flips: int = 5000,
        seed: int = 0,
        groups: ArrayLike | None = None,
    ) -> MapComparison:
        """Compare this map with that of another model on the same images, with a paired test over images.

        Images that one of the maps left out (misclassified without an occluder) are left out of both.

        Args:
            other: Map of the same grid, score and images, in the same order.
            level: Probability of a false alarm at any position, in (0, 0.5].
            flips: Number of random sign flips, at least 2; all possible ones if there are fewer.
            seed: Of the random flips.
            groups: Integers [N], one for each image given to the sweep, such as the person: images of a group are not
                independent, and their signs flip together. None: images are independent.

        Raises:
            TypeError, ValueError: The maps are not of the same images, lack the scores of single images or have fewer
                than 2 images or groups in common; or an argument is wrong.
        """
        if not isinstance(other, OcclusionMap):
            raise TypeError(f"other: expected an OcclusionMap, got {type(other).__name__}")
        return compared(self, other, level=level, flips=flips, seed=seed, groups=groups)

    # -- pictures --------------------------------------------------------------------------------------

    def plot(
        self, image_index: int | None = None, *, image: Image | Literal["mean"] | None = None, ax: Axes | None = None
    ) -> Axes:
        """Draw the map, or that of one image.

        Bright is where the occluder hurts. With values below 0 (where the occluder helps) colors diverge from white at
        0: red is a drop of the score, blue a gain.

        Args:
            image_index: Number of an image among those given, for its own map from ``per_image``; None: the mean map.
            image: Image [C, H, W] or [H, W] to draw the map over, or "mean" for ``mean_image``.
            ax: Matplotlib axes; None: those of a new figure of pyplot, which notebooks show.

        Returns:
            The axes.

        Raises:
            ValueError: There is no map of that image.
        """
        if isinstance(image, str):
            checks.choice(image, "image", ["mean"])
            image = self.mean_image
        values = self.values if image_index is None else self._of_image(image_index)
        limits = (0.0, max(float(values.max()), 1e-9)) if self.binary else None
        label = f"{self.score}, image {image_index}"
        if image_index is None:
            label = _LABELS.get(self.score, f"mean {self.score}")
        return draw_map(values, extent(*self.centers), ax=ax, image=image, label=label, limits=limits)

    def _of_image(self, image_index: int) -> NDArray[Any]:
        number = checks.integer(image_index, "image_index", 0)
        if self.per_image is None:
            raise ValueError("image_index: expected a map that holds the scores of single images, this one does not")
        rows = np.arange(self.n_images) if self.image_indices is None else self.image_indices
        found = np.flatnonzero(rows == number)
        if not len(found):
            raise ValueError(
                f"image_index: expected one of the {self.n_images} images used (see image_indices), got {number}"
            )
        chosen: NDArray[Any] = self.per_image[found[0]].astype(np.float64)
        return chosen

    def masked_mean(self) -> NDArray[np.float64]:
        """Return the mean image [C, H, W] in [0, 1], dark where the occluder does no harm (Figure 1, lower row)."""
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

    def to_html(
        self, path: str | os.PathLike[str], *, comparison: MapComparison | None = None, threshold: float | None = None
    ) -> Path:
        """Write a self-contained page and return its path.

        It shows the map, the mean image masked by it, a histogram over locations, the errors and the settings.

        Args:
            path: The file.
            comparison: Result of :meth:`compare`, for a section of the page; None: no such section.
            threshold: Similarity below which images are rejected, for a picture of :meth:`rejection_rate`.
        """
        from .page import render

        return write_atomically(path, render(self, comparison, threshold).encode())

    def _picture(self) -> Figure:
        figure, ax = new_figure()
        self.plot(ax=ax)
        return figure

    def _repr_png_(self) -> bytes:
        return png(self._picture())

    def _repr_html_(self) -> str:
        uri = png_data_uri(self._picture())
        error = "" if self.estimate is None else f"<br>{html.escape(str(self.estimate))}"
        return f'<figure><img src="{uri}"><figcaption>{html.escape(repr(self))}{error}</figcaption></figure>'

    # -- files -----------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the map to ``.npz``, or its picture to ``.png``, ``.pdf`` or ``.svg``, atomically.

        After the ``.npz`` file is on the disk the checkpoint of the sweep is removed.

        Returns:
            The path.

        Raises:
            ValueError: The name has another ending.
            OSError: The disk is full or the folder can't be written; an old file is kept.
        """
        suffix = Path(path).suffix.lower()
        if suffix in (".png", ".pdf", ".svg"):
            import io

            buffer = io.BytesIO()
            self._picture().savefig(buffer, format=suffix[1:], dpi=150)
            return write_atomically(path, buffer.getvalue())
        if suffix != ".npz":
            raise ValueError(f"path: expected a name ending in .npz, .png, .pdf or .svg, got {os.fspath(path)!r}")
        content: dict[str, Any] = {
            "kind": MAP_KIND,
            "about": json.dumps(self._about()),
            "values": self.values,
            "standard_error": self.standard_error,
            "mean_image": self.mean_image,
        }
        for name in _OPTIONAL:
            if getattr(self, name) is not None:
                content[name] = getattr(self, name)
        for number, each in enumerate(self.grids):
            if each.mask is not None:
                content[f"mask{number}"] = each.mask.covered
        if self.fingerprint is not None and self.fingerprint.outputs is not None:
            content["outputs"] = self.fingerprint.outputs
        written = write_npz(path, **content)
        if self._checkpoint is not None:
            self._checkpoint.remove()
        return written

    def _about(self) -> dict[str, Any]:
        return {
            "image": self.grid.image,
            "occluder": self.grid.occluder,
            "stride": self.grid.stride,
            "border": self.grid.border,
            "region": self.grid.region,
            "further": [each.occluder for each in self.further],
            "score": self.score,
            "method": self.method,
            "precision": self.precision,
            "n_images": self.n_images,
            "n_skipped": self.n_skipped,
            "n_evaluations": self.n_evaluations,
            "seconds": self.seconds,
            "settings": self.settings,
            "estimate": as_json(self.estimate),
            "fingerprint": None if self.fingerprint is None else self.fingerprint.about(),
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> OcclusionMap:
        """Read a map that :meth:`save` wrote to ``.npz``.

        Raises:
            FileNotFoundError: There is no file.
            DataError: The file is damaged or something else.
        """
        content = read_npz(path)
        if str(content.get("kind", "")) != MAP_KIND:
            raise DataError(f"{path}: not a saved OcclusionMap")
        try:
            about = json.loads(str(content["about"]))
            grids = [
                SweepGrid.over(
                    about["image"],
                    _occluder(content, number, size),
                    stride=about["stride"],
                    border=about["border"],
                    region=about.get("region"),  # None in files of earlier versions
                )
                for number, size in enumerate([about["occluder"], *about.get("further", [])])
            ]
            origin = about.get("fingerprint")
            loaded = cls(
                values=content["values"],
                standard_error=content["standard_error"],
                estimate=from_json(about.get("estimate")),
                precision=about.get("precision"),  # None in files of earlier versions, which had no other
                **{name: content.get(name) for name in _OPTIONAL},  # type: ignore[arg-type]
                grid=grids[0],
                further=tuple(grids[1:]),
                mean_image=content["mean_image"],
                fingerprint=None if origin is None else Fingerprint.of(origin, content.get("outputs")),
                **{
                    name: about[name]
                    for name in ("score", "method", "n_images", "n_skipped", "n_evaluations", "seconds", "settings")
                },
            )
            _check(loaded)
        except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else error
            raise DataError(f"{path}: not a complete OcclusionMap ({reason})") from error
        return loaded

    def __repr__(self) -> str:
        mean = f"accuracy {self.accuracy[0]:.1%} ± {self.accuracy[1]:.1%}" if self.binary else self.score
        low = f" in {self.precision}" if self.precision else ""
        skipped = f" ({self.n_skipped} misclassified ones left out)" if self.n_skipped else ""
        return (
            f"OcclusionMap({self.grid.rows}x{self.grid.columns} centers, occluder {self.occluder_text}, "
            f"{self.n_images} images{skipped}, {mean}, {self.method}{low})"
        )


def _occluder(content: dict[str, Any], number: int, size: list[int]) -> Any:
    """Return the mask of an occluder in a file, or its size if it is a rectangle."""
    mask = content.get(f"mask{number}")
    if mask is None:
        return size
    if mask.dtype != np.bool_ or list(mask.shape) != size:
        raise ValueError(f"mask{number} is {mask.dtype} {list(mask.shape)}, expected bool {size}")
    return mask


def _check(m: OcclusionMap) -> None:
    """Raise ValueError or TypeError where the parts of a map that was read contradict each other."""
    grid = (m.grid.rows, m.grid.columns)
    n = checks.integer(m.n_images, "n_images", 1)
    for name in ("n_skipped", "n_evaluations"):
        checks.integer(getattr(m, name), name, 0)
    checks.number(m.seconds, "seconds", 0.0)
    if not (isinstance(m.score, str) and m.score.startswith("drop of ")):
        checks.choice(m.score, "score", _LABELS)
    checks.choice(m.method, "method", ("dense", "incremental", "adaptive", "sampled"))
    if m.precision is not None:
        checks.choice(m.precision, "precision", ("tf32", "bf16"))
    if not isinstance(m.settings, dict):
        raise TypeError(f"settings: expected an object, got {type(m.settings).__name__}")
    finite: Callable[[NDArray[Any]], Any] = np.isfinite
    scores: Callable[[NDArray[Any]], Any] = finite
    if m.score == "error" and m.method != "sampled":  # a share; an image's is 0 or 1, or a mean over occluders
        scores = lambda array: (array >= 0) & (array <= 1)  # noqa: E731 - as the others
    wanted: list[tuple[str, tuple[type, ...], tuple[int, ...], Any]] = [
        ("values", (np.float64,), grid, scores),
        ("standard_error", (np.float64,), grid, lambda array: ~np.isinf(array) & ~(array < 0)),
        ("mean_image", (np.float32,), (max(1, *m.mean_image.shape[:1]), *m.grid.image), finite),
        ("per_image", (np.uint8, np.float32), (n, *grid), scores),
        ("image_indices", (np.int64,), (n,), lambda array: (array >= 0).all() and len(np.unique(array)) == n),
        ("interval", (np.float64,), (2, *grid), lambda array: ~np.isinf(array)),
        ("bias", (np.float64,), grid, lambda array: ~np.isinf(array) & ~(array < 0)),
    ]
    for name, dtypes, shape, valid in wanted:
        array = getattr(m, name)
        if array is None:
            continue
        if array.dtype not in dtypes or array.shape != shape:
            raise ValueError(f"{name} are {array.dtype} {list(array.shape)}, expected {list(shape)}")
        if not bool(np.all(valid(array))):
            raise ValueError(f"{name} have values out of range")
