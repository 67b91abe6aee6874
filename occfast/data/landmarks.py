"""Tables of landmarks: CSV files with one line for each image.

The columns are ``image`` and, for each of ``left_eye``, ``right_eye``, ``nose``, ``mouth_left`` and ``mouth_right``,
either ``_x`` and ``_y`` (to the right and downward) or ``_column`` and ``_row``, in pixels. Further columns, such as
``identity``, are kept. Empty cells mean that an image has no landmarks. CelebA's lists are read as well.
"""

from __future__ import annotations

import csv
import io
import math
import posixpath
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..errors import DataError
from ..files import read_text, write_atomically
from .lists import is_count, read_lines

POINTS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
_AXES = (("row", "column"), ("y", "x"))
#: Columns of CelebA's lists, and ours.
_CELEBA_COLUMNS = {
    "image_id": "image",
    **{
        f"{theirs}_{axis}": f"{ours}_{axis}"
        for theirs, ours in zip(("lefteye", "righteye", "nose", "leftmouth", "rightmouth"), POINTS, strict=True)
        for axis in "xy"
    },
}


@dataclass(frozen=True)
class LandmarkTable:
    """Landmarks of N images by name.

    Attributes:
        names: names of the images, unique.
        points: float64 [N, 5, 2], (row, column) in pixels; NaN for images without landmarks.
        columns: further columns of the file, with N texts each.
    """

    names: list[str]
    points: Tensor
    columns: dict[str, list[str]]

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {_key(name): k for k, name in enumerate(self.names)}

    def has(self, name: str) -> bool:
        """Return whether the table has a line for this image."""
        return _key(name) in self._positions

    def of(self, names: Sequence[str]) -> Tensor:
        """Return the landmarks of these images, float64 [len(names), 5, 2]; NaN for images that the table lacks."""
        found = [self._positions.get(_key(name), -1) for name in names]
        index = torch.tensor(found, dtype=torch.int64)
        points = self.points[index.clamp_min(0)] if len(self.points) else torch.zeros(len(found), 5, 2).double()
        return points.masked_fill((index < 0)[:, None, None], math.nan)


def _key(name: str) -> str:
    """Return a name as it is looked up: "./Ann/1.jpg" and backslashes between folders name the same image."""
    return unicodedata.normalize("NFC", posixpath.normpath(name.replace("\\", "/")))


def read_table(path: str | Path, needed: Sequence[str]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Read a CSV file in UTF-8 with a header, with or without a byte-order mark, with the line ends of any system.

    Returns:
        The header, and (line number, cells) of every line that is not empty.

    Raises:
        DataError: if the file is not UTF-8, a column of ``needed`` is missing or occurs twice, or a line has the wrong
            number of cells.
    """
    path = Path(path)
    text = read_text(path)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [cell.strip() for cell in next(reader, [])]
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}") from error
    for name in needed:
        if header.count(name) != 1:
            raise DataError(f"{path}, line 1: expected one column {name!r}, got {', '.join(header) or 'nothing'}")
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(f"{path}, line {line}: expected {len(header)} cells, got {len(row)}")
    return header, rows


def read_landmarks(path: str | Path) -> LandmarkTable:
    """Read a table of landmarks: CSV, or CelebA's ``list_landmarks_align_celeba.txt``.

    Raises:
        DataError: if the file is not such a table; the message has the line.
    """
    path = Path(path)
    header, rows = _celeba_table(path) if path.suffix.lower() == ".txt" else read_table(path, [])
    header = [_CELEBA_COLUMNS.get(name, name) for name in header]
    axes = next((pair for pair in _AXES if f"{POINTS[0]}_{pair[0]}" in header), _AXES[1])
    wanted = [f"{point}_{axis}" for point in POINTS for axis in axes]
    for name in ("image", *wanted):
        if header.count(name) != 1:
            raise DataError(f"{path}, line 1: expected one column {name!r}, got {', '.join(header) or 'nothing'}")
    image, places = header.index("image"), [header.index(name) for name in wanted]
    names: list[str] = []
    keys: dict[str, int] = {}
    points = []
    for line, row in rows:
        name = row[image]
        if keys.setdefault(_key(name), line) != line:
            raise DataError(f"{path}, line {line}: image {name!r} is there already, at line {keys[_key(name)]}")
        names.append(name)
        points.append([_number(row[place], header[place], f"{path}, line {line}") for place in places])
    others = [k for k in range(len(header)) if k != image and k not in places]
    return LandmarkTable(
        names,
        torch.tensor(points, dtype=torch.float64).reshape(-1, 5, 2),
        {header[k]: [row[k] for _, row in rows] for k in others},
    )


def _celeba_table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Read the number of images, the names of the columns, and an image with ten numbers on each line."""
    lines = read_lines(path)
    if len(lines) < 2 or not is_count(lines[0][1].strip()):
        raise DataError(f"{path}, line 1: expected the number of images, as in CelebA's list of landmarks")
    header = ["image", *lines[1][1].split()]
    rows = [(line, text.split()) for line, text in lines[2:]]
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(f"{path}, line {line}: expected {len(header)} cells, got {len(row)}")
    if len(rows) != int(lines[0][1]):
        raise DataError(f"{path}: expected {int(lines[0][1])} images by line 1, got {len(rows)}")
    return header, rows


def _number(cell: str, column: str, source: str) -> float:
    if not cell.strip():
        return math.nan
    try:
        value = float(cell)
    except ValueError:
        value = math.inf
    if not math.isfinite(value):
        raise DataError(f"{source}: expected a number in {column!r}, got {cell!r}")
    return value


def write_landmarks(
    path: str | Path, names: Sequence[str], points: Tensor, columns: dict[str, Sequence[object]] | None = None
) -> Path:
    """Write a table of landmarks, (x, y) in pixels, with empty cells for NaN, followed by further ``columns``."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = columns or {}
    writer.writerow(["image", *(f"{point}_{axis}" for point in POINTS for axis in ("x", "y")), *columns])
    for k, (name, five) in enumerate(zip(names, points.tolist(), strict=True)):
        cells = ["" if math.isnan(v) else repr(v) for row, column in five for v in (column, row)]
        writer.writerow([name, *cells, *(values[k] for values in columns.values())])
    return write_atomically(path, out.getvalue().encode())
