"""Least-squares transforms between landmarks, and warping of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

BORDERS = ("repeat", "black")


def similarity(source: Tensor, target: Tensor) -> Tensor:
    """Fit the rotation, uniform scale and translation from ``target`` points to ``source`` points by least squares.

    Args:
        source: [..., K, 2] points, (row, column), with K >= 2.
        target: likewise; leading dimensions broadcast.

    Returns:
        float64 [..., 2, 3]: ``source ≈ matrix @ (row, column, 1)`` of the target, as :func:`warp` expects.
    """
    s, t, s0, t0 = _centered(source, target)
    spread = (t * t).sum((-2, -1))
    a = (s * t).sum((-2, -1)) / spread
    b = (s[..., 0] * t[..., 1] - s[..., 1] * t[..., 0]).sum(-1) / spread
    turn = torch.stack([torch.stack([a, b], -1), torch.stack([-b, a], -1)], -2)
    return _with_shift(turn, s0, t0)


def affine(source: Tensor, target: Tensor) -> Tensor:
    """Fit the affine map from ``target`` points to ``source`` points by least squares, as :func:`similarity` does.

    K is at least 3, and the target points must not be collinear.
    """
    s, t, s0, t0 = _centered(source, target)
    turn = torch.linalg.solve(t.mT @ t, t.mT @ s).mT
    return _with_shift(turn, s0, t0)


def upright(source: Tensor, target: Tensor) -> Tensor:
    """Fit independent scales and translations of rows and columns by least squares, as :func:`similarity` does."""
    s, t, s0, t0 = _centered(source, target)
    return _with_shift(torch.diag_embed((s * t).sum(-2) / (t * t).sum(-2)), s0, t0)


def _centered(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    source, target = source.double(), target.double().to(source.device)
    s0, t0 = source.mean(-2), target.mean(-2)
    return source - s0[..., None, :], target - t0[..., None, :], s0, t0


def _with_shift(turn: Tensor, s0: Tensor, t0: Tensor) -> Tensor:
    return torch.cat([turn, (s0 - (turn @ t0[..., None])[..., 0])[..., None]], -1)


SOLVERS = {"similarity": similarity, "affine": affine, "box": upright}


def warp(images: Tensor | Sequence[Tensor], matrices: Tensor, size: tuple[int, int], border: str = "repeat") -> Tensor:
    """Warp images with bilinear interpolation.

    Args:
        images: uint8 [C, H, W]; or N images as [N, C, H, W] or as a sequence of any sizes with equal C.
        matrices: [2, 3] or [N, 2, 3], which map (row, column, 1) of the result to (row, column) of the image.
        size: (height, width) of the result.
        border: values beyond the image: "repeat" repeats its edge, "black" is 0.

    Returns:
        uint8 [C, height, width] or [N, C, height, width], on the images' device.
    """
    if border not in BORDERS:
        raise ValueError(f"border: expected one of {BORDERS}, got {border!r}")
    if isinstance(images, Tensor) and images.ndim == 3:
        return warp(images[None], matrices[None], size, border)[0]
    for k, image in enumerate(images):
        if image.ndim != 3 or image.shape[0] != images[0].shape[0] or 0 in image.shape:
            raise ValueError(
                f"images: expected [C, H, W] of one C, got {list(image.shape)} at {k} after {list(images[0].shape)}"
            )
        if image.dtype != torch.uint8:
            raise TypeError(f"images: expected uint8, got {image.dtype} at {k}")
    if len(images) == 0:
        raise ValueError("images: expected at least one, got none")
    if matrices.shape != (len(images), 2, 3):
        raise ValueError(f"matrices: expected shape [{len(images)}, 2, 3], got {list(matrices.shape)}")
    device = images[0].device
    rows = matrices.double().tolist()
    if not all(math.isfinite(v) for matrix in rows for row in matrix for v in row):
        raise ValueError("matrices: expected finite numbers, got others")
    if device.type != "cpu":
        return _sample(*_canvas(images), rows, size, border)
    # On a CPU, processing one image at a time, and only the part of it that is used, stays in the cache.
    parts = [_sample(*_cut(image, matrix, size), size, border) for image, matrix in zip(images, rows, strict=True)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


Matrix = list[list[float]]


def _cut(image: Tensor, matrix: Matrix, size: tuple[int, int]) -> tuple[Tensor, None, list[Matrix]]:
    """Return the part [1, C, h, w] of an image that is used, or all of it if that is over half, and its matrix."""
    spans = []
    for (down, across, start), length in zip(matrix, image.shape[1:], strict=True):
        ends = (down * (size[0] - 1), across * (size[1] - 1))
        low = min(max(math.floor(start + min(0.0, ends[0]) + min(0.0, ends[1])), 0), length - 1)
        high = min(math.ceil(start + max(0.0, ends[0]) + max(0.0, ends[1])), length - 1)
        spans.append((low, max(low, high) + 1))
    (top, bottom), (left, right) = spans
    if 2 * (bottom - top) * (right - left) > image.shape[1] * image.shape[2]:
        return image[None], None, [matrix]
    moved = [[*row[:2], row[2] - first] for row, first in zip(matrix, (top, left), strict=True)]
    return image[None, :, top:bottom, left:right], None, [moved]


def _canvas(images: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Return images as [N, C, H, W], padded with zeros, and, if sizes differ, their last rows and columns, [N, 2]."""
    if isinstance(images, Tensor):
        return images, None
    shapes = [image.shape[1:] for image in images]
    if len(set(shapes)) == 1:
        return torch.stack(list(images)), None
    height, width = (max(shape[axis] for shape in shapes) for axis in (0, 1))
    canvas = images[0].new_zeros(len(images), images[0].shape[0], height, width)
    for place, image in zip(canvas, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return canvas, torch.tensor(shapes, dtype=torch.float64, device=canvas.device) - 1


@lru_cache(maxsize=64)
def _steps(length: int, device: torch.device) -> Tensor:
    return torch.arange(length, dtype=torch.float64, device=device)


def _sample(images: Tensor, last: Tensor | None, matrices: list[Matrix], size: tuple[int, int], border: str) -> Tensor:
    """Call ``grid_sample`` once, in float64, because some pixels would round differently in float32."""
    if 1 in images.shape[-2:]:  # grid_sample's coordinates cannot represent positions outside an axis of one pixel
        images = F.pad(images, (0, 1, 0, 1), "replicate" if border == "repeat" else "constant")
    half_height, half_width = ((n - 1) / 2 for n in images.shape[-2:])
    terms = torch.tensor(
        [[[*column, half_width], [*row, half_height]] for row, column in matrices],
        dtype=torch.float64,
        device=images.device,
    )
    a, b, c, half = terms[..., None, None].unbind(2)
    # places[n, (column, row), row, column] as contiguous planes, because passes over them take most of the time.
    places = (_steps(size[0], images.device)[:, None] * a + _steps(size[1], images.device) * b).add_(c)
    if last is not None and border == "repeat":
        last = last.flip(1)[..., None, None]
        places = places.clamp(torch.zeros_like(last), last)
    grid = places.div_(half).sub_(1).permute(0, 2, 3, 1)
    padding = "border" if border == "repeat" else "zeros"
    out = F.grid_sample(images.double(), grid, padding_mode=padding, align_corners=True)
    return out.round_().to(torch.uint8)
