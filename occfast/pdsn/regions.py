"""Regions of a face: a grid, boxes around landmarks (LM1), bands between landmarks (LM2), or custom boxes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..checks import Pair, number, pair
from ..errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

#: Parts of a face and their landmarks, of the five; the mouth has both corners.
PARTS: Mapping[str, tuple[int, ...]] = {"left eye": (0,), "right eye": (1,), "nose": (2,), "mouth": (3, 4)}


@dataclass(frozen=True, eq=False)
class Regions:
    """Named boxes of an image, each of which counts as occluded or not as a whole.

    Attributes:
        kind: "grid", "lm1", "lm2", "lm2 split" or "boxes".
        names: Names of the R regions.
        boxes: (top, left, bottom, right) in pixels, int64 [R, 4]; bottom and right are exclusive.
        size: (height, width) of the images, in pixels.
        percentile: Percentile of the mean mask up to which features are discarded: the paper's choice for this kind.
        landmarks: Landmarks (0 to 4) expected in each region; empty for regions such as the forehead.
        spread: Standard deviations of landmarks, in pixels, that place the regions on another face; empty for regions
            that are not made from landmarks.
    """

    kind: str
    names: tuple[str, ...]
    boxes: Tensor
    size: tuple[int, int]
    percentile: float
    landmarks: tuple[tuple[int, ...], ...]
    spread: Mapping[str, tuple[float, ...]]

    def __post_init__(self) -> None:
        height, width = self.size
        if self.boxes.shape != (len(self.names), 4) or not self.names:
            raise ValueError(f"boxes: expected shape [{len(self.names)}, 4], got {list(self.boxes.shape)}")
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"names: expected different names, got {list(self.names)}")
        for name, (top, left, bottom, right) in zip(self.names, self.boxes.tolist(), strict=True):
            if not (0 <= top < bottom <= height and 0 <= left < right <= width):
                raise ValueError(
                    f"boxes: expected (top, left, bottom, right) of at least one pixel inside {height}×{width}, "
                    f"got {(top, left, bottom, right)} for {name!r}"
                )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def masks(self) -> Tensor:
        """Pixels of each region, bool [R, H, W]."""
        return paint(self.boxes, self.size)

    # -- use ---------------------------------------------------------------------------------------------

    def at(self, landmarks: Tensor) -> Tensor:
        """Place the regions by the landmarks of single faces, with the sizes of the training set.

        Args:
            landmarks: (row, column) in pixels, float [N, 5, 2].

        Returns:
            Boxes clipped to the image, int64 [N, R, 4]; empty (bottom ≤ top or right ≤ left) if nothing is left.

        Raises:
            ValueError: The regions are not made from landmarks.
        """
        landmarks = _landmarks(landmarks)
        if self.kind == "lm1":
            return _around(landmarks, self.spread, self.size)
        if self.kind in ("lm2", "lm2 split"):
            eyes = landmarks[:, :2, 0].mean(1)
            mouth = landmarks[:, 3:, 0].mean(1)
            return _bands(eyes, mouth, self.spread, self.size, landmarks[:, 2, 1] if self.kind != "lm2" else None)
        raise ValueError(f"regions: expected regions made from landmarks (LM1, LM2), got {self.kind!r}")

    def coverage(self, occlusion: Tensor, boxes: Tensor | None = None) -> Tensor:
        """Compute the share of each region that is occluded.

        Args:
            occlusion: Occluded pixels, bool [N, H, W].
            boxes: Regions of each image, int64 [N, R, 4]; see :meth:`at`. Default: the common regions.

        Returns:
            float64 [N, R] in [0, 1]; 0 for an empty region.

        Raises:
            TypeError: ``occlusion`` is not bool.
            ValueError: Shapes differ.
        """
        if occlusion.dtype != torch.bool:
            raise TypeError(f"occlusion: expected dtype bool, got {str(occlusion.dtype).removeprefix('torch.')}")
        if occlusion.dim() != 3 or tuple(occlusion.shape[1:]) != self.size:
            raise ValueError(
                f"occlusion: expected shape [N, {self.size[0]}, {self.size[1]}], got {list(occlusion.shape)}"
            )
        n = len(occlusion)
        if boxes is None:
            boxes = self.boxes.expand(n, -1, -1)
        elif boxes.shape != (n, len(self), 4):
            raise ValueError(f"boxes: expected shape [{n}, {len(self)}, 4], got {list(boxes.shape)}")
        # With a summed-area table, any box takes four look-ups.
        table = torch.zeros(n, self.size[0] + 1, self.size[1] + 1, dtype=torch.int64, device=occlusion.device)
        table[:, 1:, 1:] = occlusion.long().cumsum(1).cumsum(2)
        top, left, bottom, right = boxes.to(occlusion.device).unbind(-1)
        row = torch.arange(n, device=occlusion.device)[:, None]
        covered = table[row, bottom, right] - table[row, top, right] - table[row, bottom, left] + table[row, top, left]
        area = (bottom - top).clamp_min(0) * (right - left).clamp_min(0)
        return torch.where(area > 0, covered / area.clamp_min(1).double(), 0.0)

    def occluded(self, occlusion: Tensor, boxes: Tensor | None = None, share: float = 0.5) -> Tensor:
        """Return which regions are occluded.

        Args:
            occlusion: Occluded pixels, bool [N, H, W].
            boxes: Regions of each image, int64 [N, R, 4]. Default: the common regions.
            share: Share of a region, in (0, 1], from which it counts as occluded.

        Returns:
            bool [N, R].
        """
        return self.coverage(occlusion, boxes) >= number(share, "share", 1e-9, 1.0)

    def inside(self, landmarks: Tensor, *, own: bool = False) -> tuple[Tensor, float]:
        """Compute the share of faces whose landmarks are in their regions (in the paper about 95 % each, 90 % all).

        Args:
            landmarks: (row, column) in pixels, float [N, 5, 2].
            own: Use the regions of each face (:meth:`at`) instead of the common ones.

        Returns:
            Share of faces with all landmarks of a region inside, float64 [R], NaN for regions without landmarks; and
            the share of faces for which this holds for all regions.
        """
        landmarks = _landmarks(landmarks)
        boxes = self.at(landmarks) if own else self.boxes.expand(len(landmarks), -1, -1)
        shares, whole = [], torch.ones(len(landmarks), dtype=torch.bool)
        for region, points in enumerate(self.landmarks):
            if not points:
                shares.append(float("nan"))
                continue
            where = landmarks[:, list(points)] + 0.5  # a landmark at 7.4 lies on pixel 7, which spans 6.5 to 7.5
            if self.kind == "lm1" and len(points) == 2:
                where = where.mean(1, keepdim=True)
            box = boxes[:, region, None].double()
            held = ((where >= box[..., :2]) & (where < box[..., 2:])).all(-1).all(-1)
            shares.append(float(held.double().mean()))
            whole &= held
        return torch.tensor(shares, dtype=torch.float64), float(whole.double().mean())

    # -- pictures and files ------------------------------------------------------------------------------

    def draw(
        self, image: Tensor | NDArray[Any] | None = None, *, ax: Axes | None = None, landmarks: Tensor | None = None
    ) -> Axes:
        """Draw the regions over a face, as in Figure 4.

        Args:
            image: The face, e.g. a mean face, [C, H, W] or [H, W]. Default: none.
            ax: Matplotlib axes. Default: those of a new figure.
            landmarks: Landmarks to draw as dots, float [N, 5, 2]. Labels then show the share of them inside.

        Returns:
            The axes.
        """
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle

        from ..plots import gray

        height, width = self.size
        if ax is None:
            ax = Figure(figsize=(3.2, 4.0), layout="constrained").subplots()
        if image is not None:
            ax.imshow(gray(image.numpy() if isinstance(image, Tensor) else image), cmap="gray")
        shares = self.inside(landmarks)[0].tolist() if landmarks is not None else [float("nan")] * len(self)
        if landmarks is not None:
            points = landmarks.reshape(-1, 2).numpy()
            ax.plot(points[:, 1], points[:, 0], ".", markersize=1, color="white", alpha=0.5)
        for k, (name, share) in enumerate(zip(self.names, shares, strict=True)):
            top, left, bottom, right = self.boxes[k].tolist()
            color = f"C{k % 10}"
            place = (left - 0.5, top - 0.5), right - left, bottom - top
            ax.add_patch(Rectangle(*place, facecolor=color, edgecolor=color, alpha=0.25))
            ax.add_patch(Rectangle(*place, fill=False, edgecolor=color, linewidth=1.2))
            text = name if np.isnan(share) else f"{name} {100 * share:.0f} %"
            middle, small = (left + right - 1) / 2, right - left < width / 4
            ax.text(
                middle,
                top - 1 if small else (top + bottom - 1) / 2,
                text,
                color="white",
                fontsize=7,
                ha="center",
                va="bottom" if small else "center",
            )
        ax.set_xlim(-0.5, width - 0.5)
        ax.set_ylim(height - 0.5, -0.5)
        ax.set_aspect("equal")
        ax.set_axis_off()
        return ax

    def to_json(self) -> str:
        """Return the regions as JSON, as in the files of dictionaries and of ``occfast pdsn regions``."""
        about = {
            "kind": self.kind,
            "names": self.names,
            "boxes": self.boxes.tolist(),
            "size": self.size,
            "percentile": self.percentile,
            "landmarks": self.landmarks,
            "spread": dict(self.spread),
        }
        return json.dumps(about)

    @classmethod
    def from_json(cls, text: str, source: str = "regions") -> Regions:
        """Read the text of :meth:`to_json`.

        Args:
            text: JSON.
            source: Origin of the text, for messages.

        Raises:
            DataError: The text is something else.
        """
        try:
            about = json.loads(text)
            return cls(
                kind=str(about["kind"]),
                names=tuple(map(str, about["names"])),
                boxes=torch.tensor(about["boxes"], dtype=torch.int64),
                size=(int(about["size"][0]), int(about["size"][1])),
                percentile=float(about["percentile"]),
                landmarks=tuple(tuple(map(int, points)) for points in about["landmarks"]),
                spread={name: tuple(map(float, values)) for name, values in about["spread"].items()},
            )
        except (
            KeyError,
            IndexError,
            TypeError,
            ValueError,
            AttributeError,
            OverflowError,
            RecursionError,
            RuntimeError,  # of torch, for numbers beyond int64
        ) as error:
            raise DataError(f"{source}: not a description of regions ({error})") from error


def paint(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the pixels of boxes, int64 [..., 4], as bool [..., H, W]."""
    rows = torch.arange(size[0], device=boxes.device)[:, None]
    columns = torch.arange(size[1], device=boxes.device)[None]
    top, left, bottom, right = (edge[..., None, None] for edge in boxes.unbind(-1))
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


def grid(rows: int, columns: int, size: Pair) -> Regions:
    """Return the cells of a grid, row by row (PDSN: 3×3); edges are rounded if ``size`` is not divisible.

    Args:
        rows: Number of rows, at least 1.
        columns: Number of columns, at least 1.
        size: (height, width) of the images, in pixels.

    Raises:
        TypeError: An argument is not an integer.
        ValueError: There are more cells than pixels.
    """
    rows, columns = pair((rows, columns), "rows, columns")
    height, width = pair(size, "size")
    if rows > height or columns > width:
        raise ValueError(f"rows, columns: expected at most one cell a pixel of {height}×{width}, got {rows}×{columns}")
    tops = [round(k * height / rows) for k in range(rows + 1)]
    lefts = [round(k * width / columns) for k in range(columns + 1)]
    cells = {
        f"{r + 1},{c + 1}": (tops[r], lefts[c], tops[r + 1], lefts[c + 1]) for r in range(rows) for c in range(columns)
    }
    return replace(boxes(cells, (height, width)), kind="grid")


def boxes(named: Mapping[str, Sequence[int]], size: Pair, *, percentile: float = 25.0) -> Regions:
    """Return custom regions.

    Args:
        named: (top, left, bottom, right) in pixels by name; bottom and right are exclusive.
        size: (height, width) of the images, in pixels.
        percentile: See :class:`Regions`.

    Raises:
        TypeError: ``size`` or ``percentile`` has the wrong type.
        ValueError: A box is not four integers, is empty or outside the image.
    """
    table = []
    for name, box in named.items():
        if len(box) != 4 or not all(isinstance(edge, int) and not isinstance(edge, bool) for edge in box):
            raise ValueError(f"boxes: expected four ints (top, left, bottom, right) for {name!r}, got {box!r}")
        table.append(list(box))
    if not table:
        raise ValueError("boxes: expected at least one region, got none")
    return Regions(
        "boxes",
        tuple(named),
        torch.tensor(table, dtype=torch.int64),
        pair(size, "size"),
        number(percentile, "percentile", 0.0, 100.0),
        ((),) * len(table),
        {},
    )


def landmark_boxes(landmarks: Tensor, size: Pair) -> Regions:
    """Return the regions LM1: boxes of 4σ₁ × 4σ₂ (width × height) around each eye, the nose and the mouth.

    Boxes are centered at the mean position; that of the mouth is the midpoint of its corners. σ₁ and σ₂ are the
    population standard deviations of the columns and rows. A pixel belongs to a box if its center does.

    Args:
        landmarks: Landmarks of the training set, (row, column) in pixels, float [N, 5, 2].
        size: (height, width) of the images, in pixels.

    Raises:
        TypeError: The landmarks are not floating point.
        ValueError: Their shape is wrong, one is not finite, or a box would be empty.
    """
    landmarks, size = _landmarks(landmarks), pair(size, "size")
    places = torch.stack([landmarks[:, list(points)].mean(1) for points in PARTS.values()], 1)
    mean, sigma = places.mean(0), places.std(0, correction=0)
    spread = {name: (float(s[0]), float(s[1])) for name, s in zip(PARTS, sigma, strict=True)}
    usual = torch.stack([mean[0], mean[1], mean[2], mean[3], mean[3]])[None]
    found = _around(usual, spread, size)[0]
    _no_empty(found, tuple(PARTS))
    return Regions("lm1", tuple(PARTS), found, size, 20.0, tuple(PARTS.values()), spread)


def landmark_bands(landmarks: Tensor, size: Pair, *, split: bool = False) -> Regions:
    """Return the regions LM2: five bands across the width, for forehead, eyes, nose, mouth and chin.

    The band of the eyes extends from 3σ above to 2σ below the mean row of all eyes, that of the mouth from 2σ above to
    2σ below the mean row of both corners. The others fill the space above, between and below.

    Args:
        landmarks: Landmarks of the training set, (row, column) in pixels, float [N, 5, 2].
        size: (height, width) of the images, in pixels.
        split: Split each band into a left and a right half at the mean column of the nose, an extension of the paper.

    Raises:
        TypeError: The landmarks are not floating point.
        ValueError: Their shape is wrong, one is not finite, or a band would be empty.
    """
    landmarks, size = _landmarks(landmarks), pair(size, "size")
    eyes, mouth = landmarks[:, :2, 0].flatten(), landmarks[:, 3:, 0].flatten()
    spread = {"eyes": (float(eyes.std(correction=0)),), "mouth": (float(mouth.std(correction=0)),)}
    middle = landmarks[:, 2, 1].mean()[None] if split else None
    found = _bands(eyes.mean()[None], mouth.mean()[None], spread, size, middle)[0]
    names = ["forehead", "eyes", "nose", "mouth", "chin"]
    points: list[tuple[int, ...]] = [(), (0, 1), (2,), (3, 4), ()]
    if split:
        names = [f"{side} {name}" for name in names for side in ("left", "right")]
        points = [(), (), (0,), (1,), (), (), (3,), (4,), (), ()]  # the nose lies on the dividing line
    _no_empty(found, tuple(names))
    return Regions("lm2 split" if split else "lm2", tuple(names), found, size, 30.0, tuple(points), spread)


def named(kind: str, size: Pair, landmarks: Tensor | None = None) -> Regions:
    """Return regions by the name that the command line uses.

    Args:
        kind: "3x3" or any other "RxC", "lm1", "lm2" or "lm2-split".
        size: (height, width) of the images, in pixels.
        landmarks: Landmarks of the training set, float [N, 5, 2]; required by all but grids.

    Raises:
        ValueError: The name is unknown, or the landmarks are missing.
    """
    rows, _, columns = kind.partition("x")
    if rows.isdecimal() and columns.isdecimal():
        return grid(int(rows), int(columns), size)
    if kind not in ("lm1", "lm2", "lm2-split"):
        raise ValueError(f"regions: expected a grid such as '3x3', 'lm1', 'lm2' or 'lm2-split', got {kind!r}")
    if landmarks is None:
        raise ValueError(f"landmarks: expected those of a training set, which {kind!r} needs, got none")
    return landmark_boxes(landmarks, size) if kind == "lm1" else landmark_bands(landmarks, size, split=kind != "lm2")


# -- geometry --------------------------------------------------------------------------------------------


def _landmarks(landmarks: Tensor) -> Tensor:
    if landmarks.dim() != 3 or landmarks.shape[1:] != (5, 2) or len(landmarks) == 0:
        raise ValueError(f"landmarks: expected shape [N, 5, 2] with N at least 1, got {list(landmarks.shape)}")
    if not landmarks.is_floating_point():
        raise TypeError(f"landmarks: expected a floating-point tensor, got {landmarks.dtype}")
    if not bool(torch.isfinite(landmarks).all()):
        raise ValueError("landmarks: expected finite numbers, got NaN or infinity")
    return landmarks.detach().cpu().double()


def _edges(low: Tensor, high: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Return the first pixel with a center of at least ``low``, and the first beyond ``high``, clipped to the image."""
    return low.ceil().long().clamp(0, limit), (high.floor().long() + 1).clamp(0, limit)


def _around(landmarks: Tensor, spread: Mapping[str, tuple[float, ...]], size: tuple[int, int]) -> Tensor:
    out = []
    for name, points in PARTS.items():
        place, sigma = landmarks[:, list(points)].mean(1), spread[name]
        top, bottom = _edges(place[:, 0] - 2 * sigma[0], place[:, 0] + 2 * sigma[0], size[0])
        left, right = _edges(place[:, 1] - 2 * sigma[1], place[:, 1] + 2 * sigma[1], size[1])
        out.append(torch.stack([top, left, bottom, right], -1))
    return torch.stack(out, 1)


def _bands(
    eyes: Tensor, mouth: Tensor, spread: Mapping[str, tuple[float, ...]], size: tuple[int, int], middle: Tensor | None
) -> Tensor:
    (sigma_eyes,), (sigma_mouth,) = spread["eyes"], spread["mouth"]
    eyes_top, eyes_bottom = _edges(eyes - 3 * sigma_eyes, eyes + 2 * sigma_eyes, size[0])
    mouth_top, mouth_bottom = _edges(mouth - 2 * sigma_mouth, mouth + 2 * sigma_mouth, size[0])
    # If both bands overlap (large spreads, a face on its side), that of the mouth begins below that of the eyes.
    mouth_top = torch.maximum(mouth_top, eyes_bottom)
    none, all_rows = torch.zeros_like(eyes_top), torch.full_like(eyes_top, size[0])
    cuts = torch.stack([none, eyes_top, eyes_bottom, mouth_top, torch.maximum(mouth_bottom, mouth_top), all_rows], 1)
    tops, bottoms = cuts[:, :-1], cuts[:, 1:]
    left, right = torch.zeros_like(tops), torch.full_like(tops, size[1])
    if middle is None:
        return torch.stack([tops, left, bottoms, right], -1)
    # A pixel with its center on the dividing line belongs to the right half.
    part = middle.ceil().long().clamp(0, size[1])[:, None].expand_as(tops)
    halves = [torch.stack([tops, left, bottoms, part], -1), torch.stack([tops, part, bottoms, right], -1)]
    return torch.stack(halves, 2).flatten(1, 2)


def _no_empty(found: Tensor, names: tuple[str, ...]) -> None:
    empty = (found[:, 2] <= found[:, 0]) | (found[:, 3] <= found[:, 1])
    if bool(empty.any()):
        which = [name for name, gone in zip(names, empty.tolist(), strict=True) if gone]
        raise ValueError(
            f"landmarks: no pixel is left for {', '.join(which)}; the spread of the landmarks is too small or too "
            "large, or the size is not that of their images"
        )
