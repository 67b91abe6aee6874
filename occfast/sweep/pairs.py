"""Why two photographs match or don't: maps of both, and the smallest occluder that changes the decision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import checks
from ..native.reference import cosine
from ..packages import require
from ..plots import Image, draw_map, extent, shown_axes
from .api import occlusion_map
from .evaluators.runner import checked_outputs
from .geometry import SweepGrid
from .options import Method, Mismatch, check_model, device_of
from .precision import float32_as
from .types import Border, Fill

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Contents of the occluder that maps are averaged over, by default.
FILLS: tuple[Fill, ...] = ("mean", "blur", "noise", 0.0)
_FINE = 8  # positions a side of the occluder, in the search for the smallest


@dataclass(frozen=True)
class SmallestOccluder:
    """The smallest occluder that was found to change a decision.

    Attributes:
        photo: 0 or 1, the photograph that it covers.
        top, left, bottom, right: The pixels that it covers.
        similarity: Cosine similarity with it.
    """

    photo: int
    top: int
    left: int
    bottom: int
    right: int
    similarity: float

    def __str__(self) -> str:
        size = f"{self.bottom - self.top}x{self.right - self.left}"
        where = f"rows {self.top} to {self.bottom - 1}, columns {self.left} to {self.right - 1}"
        return f"{size} pixels of photograph {self.photo} ({where}): similarity {self.similarity:.3f}"


@dataclass(frozen=True, eq=False)
class PairMap:
    """Occlusion maps of two photographs that a recognizer compares.

    Attributes:
        similarity: Cosine similarity of the two without an occluder.
        threshold: Similarity from which on the recognizer accepts a pair; None if none was given.
        values: Drop of the similarity with the occluder at each position of the first and of the second photograph,
            mean over the contents of the occluder, float64 [2, rows, columns]. Above 0 the covered part is evidence
            that the photographs show one person; below 0, that they don't.
        standard_error: Of ``values``, over the contents, float64 [2, rows, columns].
        interval: Ends of Student's 95 % intervals of ``values``, float64 [2, 2, rows, columns] (ends first), each
            position by itself: what holds whatever the occluder shows.
        drops: Drop with each content, float64 [contents, 2, rows, columns].
        grid: Positions of the occluder.
        smallest: The smallest occluder that changes the decision; None without a threshold, or if none does.
        evaluations: Number of occluded images that went through the network.
    """

    similarity: float
    threshold: float | None
    values: NDArray[np.float64]
    standard_error: NDArray[np.float64]
    interval: NDArray[np.float64]
    drops: NDArray[np.float64]
    grid: SweepGrid
    smallest: SmallestOccluder | None
    evaluations: int

    @property
    def accepted(self) -> bool | None:
        """Whether the recognizer accepts the pair; None without a threshold."""
        return None if self.threshold is None else self.similarity >= self.threshold

    @property
    def similar(self) -> NDArray[np.bool_]:
        """Where covering lowers the similarity, whatever the occluder shows: bool [2, rows, columns]."""
        found: NDArray[np.bool_] = self.interval[0] > 0
        return found

    @property
    def dissimilar(self) -> NDArray[np.bool_]:
        """Where covering raises the similarity, whatever the occluder shows: bool [2, rows, columns]."""
        found: NDArray[np.bool_] = self.interval[1] < 0
        return found

    def plot(self, photo: int = 0, *, image: Image | None = None, ax: Axes | None = None) -> Axes:
        """Draw the map of a photograph: red is evidence for one person, blue against; pale where contents disagree.

        The smallest occluder that changes the decision is outlined.

        Args:
            photo: 0 or 1.
            image: Photograph [C, H, W] or [H, W] to draw the map over.
            ax: Matplotlib axes; None: those of a new figure of pyplot.

        Raises:
            ValueError: ``photo`` is neither 0 nor 1.
        """
        number = checks.integer(photo, "photo", 0, 1)
        sure = self.similar[number] | self.dissimilar[number]
        shown = np.where(sure, self.values[number], 0.25 * self.values[number])
        largest = max(float(np.abs(self.values).max()), 1e-9)
        ax = shown_axes() if ax is None else ax
        draw_map(
            shown,
            extent(*(axis.numpy() for axis in self.grid.centers)),
            ax=ax,
            image=image,
            label=f"drop of the similarity, photograph {number}",
            limits=(-largest, largest),
        )
        if self.smallest is not None and self.smallest.photo == number:
            from matplotlib.patches import Rectangle

            box = self.smallest
            corner = box.left - 0.5, box.top - 0.5
            ax.add_patch(
                Rectangle(corner, box.right - box.left, box.bottom - box.top, fill=False, linewidth=2, edgecolor="k")
            )
        return ax

    def __str__(self) -> str:
        rule = (
            "" if self.threshold is None else f", {'accepted' if self.accepted else 'rejected'} at {self.threshold:g}"
        )
        parts = [f"similarity {self.similarity:.3f}{rule}"]
        for photo in (0, 1):
            alike, apart = (float(mask[photo].mean()) for mask in (self.similar, self.dissimilar))
            parts.append(f"photograph {photo}: {alike:.0%} of the positions speak for one person, {apart:.0%} against")
        if self.threshold is not None:
            none = "no occluder up to the whole photograph changes the decision"
            parts.append(none if self.smallest is None else f"changes with {self.smallest}")
        return "; ".join(parts)


@torch.no_grad()
def pair_map(
    model: Callable[[Tensor], Tensor],
    first: Tensor,
    second: Tensor,
    occluder: checks.Pair = 24,
    *,
    threshold: float | None = None,
    fills: Sequence[Fill] = FILLS,
    stride: checks.Pair = 4,
    border: Border = "clip",
    method: Method = "auto",
    seed: int = 0,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> PairMap:
    """Explain the comparison of two photographs: which regions speak for one person and which against.

    Each photograph is covered at every position while the other stays as it is. The mean over several contents of the
    occluder is taken, since a recognizer also reacts to what an occluder shows; the contents' spread gives the error.

    Args:
        model: Embedding network in evaluation mode, or a function, from images [n, C, H, W] to embeddings [n, K].
        first, second: The photographs, prepared for the model, floating-point [C, H, W].
        occluder: (height, width) in pixels, or one int.
        threshold: Cosine similarity in (-1, 1) from which on the recognizer accepts a pair, as ``occfast audit``
            reports it. With it, the smallest occluder that changes the decision is looked for: rectangles with the
            occluder's proportions and the first content, halving the interval of sizes, at an eighth of a side from
            position to position. It is found if larger ones change the decision as well, and a decision that it
            changes has been seen to change; another shape or position may do with less.
        fills: Contents of the occluder, at least two, as ``fill`` of :func:`occlusion_map`.
        stride, border, method, batch_size, device: As for :func:`occlusion_map`; the search for the smallest occluder
            is exact.
        seed: For "noise".
        progress: Whether bars are shown on the standard error.

    Raises:
        TypeError, ValueError: An argument is wrong.
    """
    check_model(model)
    require("pair_map", "scipy")
    if threshold is not None:
        threshold = Mismatch(threshold).threshold
    if isinstance(fills, str) or not isinstance(fills, Sequence):
        raise TypeError(f"fills: expected a list of at least two contents, got {fills!r}")
    if len(fills) < 2:
        raise ValueError(f"fills: expected at least two contents, whose spread is the error, got {len(fills)}")
    photos = _photos(first, second)
    grid = SweepGrid.over(tuple(photos.shape[2:]), occluder, stride=stride, border=border)
    place = device_of(model, device) or photos.device
    with float32_as("ieee"):
        embedded = checked_outputs(model(photos.to(place).contiguous()), 2)
    others = embedded.flip(0).to(photos.dtype)
    similarity = float(cosine(embedded[:1].double(), embedded[1:].double())[0])
    settings: dict[str, Any] = dict(
        score="similarity_drop", border=border, seed=seed, batch_size=batch_size, device=device, progress=progress
    )
    drops, count = [], 0
    for fill in fills:
        found = occlusion_map(
            model, photos, others, occluder, fill=fill, stride=stride, method=method, group=False, **settings
        )
        assert found.per_image is not None
        drops.append(found.per_image.astype(np.float64))
        count += found.n_evaluations
    stacked = np.stack(drops)
    mean, error = stacked.mean(0), stacked.std(0, ddof=1) / np.sqrt(len(stacked))
    from scipy.stats import t as student  # takes a while to import

    reach = float(student.ppf(0.975, len(stacked) - 1)) * error
    smallest = None
    if threshold is not None:
        search = _Search(model, photos, others, similarity, threshold, grid.occluder, {**settings, "fill": fills[0]})
        smallest = search.smallest()
        count += search.evaluations
    return PairMap(
        similarity, threshold, mean, error, np.stack([mean - reach, mean + reach]), stacked, grid, smallest, count
    )


def _photos(first: Tensor, second: Tensor) -> Tensor:
    both = []
    for name, photo in (("first", first), ("second", second)):
        found = checks.as_tensor(photo, name)
        if found.dim() != 3 or not found.is_floating_point():
            kind = str(found.dtype).removeprefix("torch.")
            raise ValueError(f"{name}: expected a prepared photograph [C, H, W], got {kind} {list(found.shape)}")
        both.append(found)
    if both[0].shape != both[1].shape or both[0].dtype != both[1].dtype:
        raise ValueError(
            f"second: expected shape and dtype of the first, {list(both[0].shape)}, got {list(both[1].shape)}"
            f" {both[1].dtype}"
        )
    return torch.stack([both[0], both[1].to(both[0].device)])


class _Search:
    """Search for the smallest occluder that changes a decision."""

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        photos: Tensor,
        others: Tensor,
        similarity: float,
        threshold: float,
        proportions: tuple[int, int],
        settings: dict[str, Any],
    ) -> None:
        self._model, self._photos, self._others, self._settings = model, photos, others, settings
        self._similarity, self._threshold = similarity, threshold
        self._image, self._proportions = tuple(photos.shape[2:]), proportions
        self.evaluations = 0

    def smallest(self) -> SmallestOccluder | None:
        """Return it, or None if an occluder of the whole photograph changes nothing."""
        low, high = 0, max(self._image)
        best = self._changing(high)
        while best is not None and high - low > 1:
            middle = (low + high) // 2
            found = self._changing(middle)
            if found is None:
                low = middle
            else:
                high, best = middle, found
        return best

    def _changing(self, longer: int) -> SmallestOccluder | None:
        """Return the occluder of a size that changes the decision most; None if it changes nowhere."""
        sides = tuple(
            min(limit, max(1, round(longer * side / max(self._proportions))))
            for side, limit in zip(self._proportions, self._image, strict=True)
        )
        stride = tuple(max(1, side // _FINE) for side in sides)
        found = occlusion_map(
            self._model, self._photos, self._others, sides, stride=stride, group=False, **self._settings
        )
        self.evaluations += found.n_evaluations
        assert found.per_image is not None
        left = self._similarity - found.per_image.astype(np.float64)  # similarity with the occluder
        accepted = self._similarity >= self._threshold
        photo, row, column = np.unravel_index(left.argmin() if accepted else left.argmax(), left.shape)
        value = float(left[photo, row, column])
        if (value >= self._threshold) == accepted:
            return None
        (top, bottom), (first, last) = (
            (max(0, int(center) - side // 2), min(limit, int(center) - side // 2 + side))
            for center, side, limit in zip(
                (found.centers[0][row], found.centers[1][column]), sides, self._image, strict=True
            )
        )
        return SmallestOccluder(int(photo), top, first, bottom, last, value)
