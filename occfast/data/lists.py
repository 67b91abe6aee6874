"""Text lists of images: lines, path and person, and the two layouts of ``.lst`` files."""

from __future__ import annotations

import contextlib
import csv
import posixpath
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from ..files import read_text


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Read the lines of a UTF-8 file that are not empty, with their numbers from 1.

    A byte-order mark and the line ends of any system are accepted.

    Raises:
        DataError: if the file cannot be read or is not UTF-8.
    """
    text = read_text(path)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def split_cells(line: str, divider: str | None) -> list[str]:
    """Return the cells of a line, stripped; between commas and semicolons they may be quoted."""
    cells = line.split(divider)
    if divider in (",", ";") and '"' in line:
        with contextlib.suppress(csv.Error):
            cells = next(csv.reader([line], delimiter=divider, skipinitialspace=True))
    return [cell.strip() for cell in cells]


def is_count(cell: str) -> bool:
    """Return whether a cell is a whole number of at most nine digits."""
    return cell.isascii() and cell.isdecimal() and len(cell) < 10


@dataclass(frozen=True)
class Listed:
    """A parsed ``.lst`` file.

    Attributes:
        names: paths of the images, with "/" between folders, unique.
        labels: first label of each image, as text; a whole number such as "7.000000" becomes "7".
        keys: key of each image in the ``.rec`` file. Lists of insightface do not state the keys; they are the numbers
            of the lines, from 1.
        states_keys: whether the file states the keys.
        lines: number of each image's line.
    """

    names: list[str]
    labels: list[str]
    keys: list[int]
    states_keys: bool
    lines: list[int]


def read_lst(path: Path) -> Listed:
    """Read a ``.lst`` file of mxnet or of insightface.

    mxnet's im2rec writes a key, one or several labels, and a path; insightface's face2rec2 reads a flag, a path, and a
    label, and ignores further columns. Columns are separated by tabs.

    Raises:
        DataError: if a line has neither layout, or a key or a path occurs twice.
    """
    names: dict[str, int] = {}
    keys: dict[int, int] = {}
    labels = []
    layouts: set[bool] = set()
    for number, line in read_lines(path):
        if line.lstrip().startswith("#"):
            continue
        cells = [cell.strip() for cell in line.split("\t")]
        states_keys = len(cells) >= 3 and is_count(cells[0]) and all(map(_is_number, cells[1:-1]))
        if states_keys:
            key, label, name = int(cells[0]), cells[1], cells[-1]
        elif len(cells) >= 3 and cells[0] in ("0", "1") and _is_number(cells[2]):
            key, label, name, states_keys = len(names) + 1, cells[2], cells[1], False
        else:
            raise DataError(
                f"{path}, line {number}: expected number, label, path (or flag, path, label) with tabs between, "
                f"got {line!r:.120}"
            )
        layouts.add(states_keys)
        name = posixpath.normpath(name.replace("\\", "/"))
        if len(layouts) > 1:
            raise DataError(f"{path}, line {number}: expected the columns of the lines before it, got {line!r:.120}")
        if not cells[-1] or name == ".":
            raise DataError(f"{path}, line {number}: expected a path, got {line!r:.120}")
        if names.setdefault(name, number) != number:
            raise DataError(f"{path}, line {number}: {name!r} is there already, at line {names[name]}")
        if keys.setdefault(key, number) != number:
            raise DataError(f"{path}, line {number}: key {key} is there already, at line {keys[key]}")
        labels.append(_label(label))
    return Listed(list(names), labels, list(keys), layouts != {False}, list(names.values()))


def read_list(path: Path) -> tuple[list[str], list[str]]:
    """Read the names and identities of a list of images; see :class:`~occfast.data.ImageList`.

    Raises:
        DataError: if a line is malformed, an image occurs twice, or one number is a person in two spellings (1 and 01).
    """
    if path.suffix.lower() == ".lst":
        listed = read_lst(path)
        return listed.names, listed.labels
    seen: dict[str, int] = {}
    identities: list[str] = []
    columns: tuple[int, int] | None = None  # of the path and the person, if the first line has titles
    width = 2
    for number, line in read_lines(path):
        if line.lstrip().startswith("#"):
            continue
        if columns is None:
            divider = next((s for s in ("\t", ",", ";") if s in line), None)
        cells = split_cells(line, divider) if divider else [cell.strip() for cell in line.rsplit(None, 1)]
        if not seen and columns is None:
            columns, width = _titled(cells), len(cells)
            if columns is not None:
                continue
        if columns is None:
            while len(cells) > 2 and not cells[-1]:  # separators at the end of the line
                cells.pop()
        elif len(cells) == width:
            cells = [cells[k] for k in columns]
        if len(cells) != 2 or not all(cells):
            raise DataError(f"{path}, line {number}: expected a path and a person, got {line!r}")
        # "x/../a.jpg" is "a.jpg", which would count twice.
        name, identity = posixpath.normpath(cells[0].replace("\\", "/")), cells[1]
        if seen.setdefault(name, number) != number:
            raise DataError(f"{path}, line {number}: {name!r} is there already, at line {seen[name]}")
        identities.append(identity)
    _check_spelling(identities, list(seen.values()), path)
    return list(seen), identities


#: Titles of columns, in lower case.
_PATHS = frozenset(("path", "image", "file", "filename", "file_name", "image_path", "image_id", "img"))
_PEOPLE = frozenset(("person", "label", "identity", "id", "name", "class", "subject", "target", "class_id"))


def _titled(cells: list[str]) -> tuple[int, int] | None:
    """Return the columns of the path and the person, if the cells are titles."""
    titles = [cell.lower() for cell in cells]
    columns = [[k for k, title in enumerate(titles) if title in known] for known in (_PATHS, _PEOPLE)]
    return (columns[0][0], columns[1][0]) if [len(found) for found in columns] == [1, 1] else None


def _check_spelling(identities: list[str], lines: list[int], path: Path) -> None:
    """Refuse one number that is written in two ways, such as 1 and 01, which would become two people."""
    spelled: dict[str, tuple[str, int]] = {}
    for identity, line in zip(identities, lines, strict=True):
        known, before = spelled.setdefault(_label(identity), (identity, line))
        if known != identity:
            raise DataError(
                f"{path}, line {line}: expected every person in one spelling, got {identity!r} and {known!r}, at line "
                f"{before}"
            )


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _label(cell: str) -> str:
    try:
        if cell.isascii() and cell.isdecimal():
            return str(int(cell))
        return str(int(float(cell))) if float(cell).is_integer() else cell
    except (ValueError, OverflowError):
        return cell
