"""Shapes of occluders other than rectangles, as masks."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import checks


class OccluderMask:
    """The pixels that an occluder covers within its bounding box; immutable, equal if all pixels are.

    Args:
        covered: Bool [height, width], with a covered pixel in each border row and column.
    """

    def __init__(self, covered: NDArray[np.bool_]) -> None:
        self._covered = np.array(covered, dtype=bool)
        self._covered.flags.writeable = False

    @property
    def covered(self) -> NDArray[np.bool_]:
        """Bool [height, width], read-only."""
        return self._covered

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width = self._covered.shape
        return height, width

    @property
    def digest(self) -> str:
        """Short hash of the pixels."""
        return hashlib.sha256(np.packbits(self._covered).tobytes() + repr(self.size).encode()).hexdigest()[:12]

    def tensor(self, device: torch.device) -> Tensor:
        """Return the mask as a tensor on a device."""
        return torch.from_numpy(self._covered.copy()).to(device)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OccluderMask) and np.array_equal(self._covered, other._covered)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"OccluderMask({self.size[0]}x{self.size[1]}, {self._covered.mean():.0%} covered)"


def disk(diameter: checks.Pair) -> NDArray[np.bool_]:
    """Return the mask of a disk, or of an ellipse, for the argument ``occluder``.

    Args:
        diameter: In pixels, one number or (height, width).

    Returns:
        Bool [height, width]: pixels whose center is inside.
    """
    height, width = checks.pair(diameter, "diameter")
    rows, columns = ((2 * np.arange(size) + 1 - size) / size for size in (height, width))
    inside: NDArray[np.bool_] = rows[:, None] ** 2 + columns**2 <= 1.0
    return inside


def band(length: float, width: float, angle: float = 0.0) -> NDArray[np.bool_]:
    """Return the mask of a straight band, for the argument ``occluder``.

    Args:
        length, width: In pixels, at least 1.
        angle: Of the band against the horizontal, counterclockwise, in degrees.

    Returns:
        Bool [height, width]: pixels whose center is inside the band.
    """
    sides = [checks.number(value, name, 1.0, 1e5) for name, value in (("length", length), ("width", width))]
    turn = math.radians(checks.number(angle, "angle", -1e6, 1e6))
    reach = math.ceil(math.hypot(*sides) / 2) + 1
    away = np.arange(-reach, reach + 1) + (0.5 if round(sides[1]) % 2 == 0 else 0.0)
    across = np.arange(-reach, reach + 1) + (0.5 if round(sides[0]) % 2 == 0 else 0.0)
    along = across * math.cos(turn) - away[:, None] * math.sin(turn)
    beside = across * math.sin(turn) + away[:, None] * math.cos(turn)
    inside = (np.abs(along) <= sides[0] / 2 + 1e-9) & (np.abs(beside) <= sides[1] / 2 + 1e-9)
    return trimmed(inside)


def trimmed(covered: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the bounding box of the covered pixels. Raises ValueError if there are none."""
    rows, columns = (np.flatnonzero(covered.any(axis)) for axis in (1, 0))
    if not len(rows):
        raise ValueError("occluder: expected a mask with at least one covered pixel, got none")
    return np.ascontiguousarray(covered[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def checked_occluder(occluder: Any) -> tuple[tuple[int, int], OccluderMask | None]:
    """Return the size of one occluder and, unless it is a rectangle, its mask.

    Args:
        occluder: (height, width), an int, or a mask: bool [height, width] as a tensor or an array.

    Raises:
        TypeError, ValueError: It is something else.
    """
    if isinstance(occluder, OccluderMask):
        return occluder.size, occluder
    if isinstance(occluder, (Tensor, np.ndarray)) and occluder.ndim == 2:
        covered = checks.as_tensor(occluder, "occluder")
        if covered.dtype != torch.bool:
            got = str(covered.dtype).removeprefix("torch.")
            raise TypeError(f"occluder: expected a mask of bools [height, width], got {got}")
        found = trimmed(covered.cpu().numpy())
        return (found.shape[0], found.shape[1]), None if found.all() else OccluderMask(found)
    return checks.pair(occluder, "occluder"), None
