"""Text lists of images: lines, path and person, and the two layouts of ``.lst`` files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

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
        name = PurePosixPath(name.replace("\\", "/")).as_posix()
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
        DataError: if a line is malformed or an image occurs twice.
    """
    if path.suffix.lower() == ".lst":
        listed = read_lst(path)
        return listed.names, listed.labels
    seen: dict[str, int] = {}
    identities = []
    for number, line in read_lines(path):
        if line.lstrip().startswith("#"):
            continue
        separator = next((s for s in ("\t", ",") if s in line), None)
        cells = [cell.strip() for cell in (line.split(separator) if separator else line.rsplit(None, 1))]
        while len(cells) > 2 and not cells[-1]:  # separators at the end of the line
            cells.pop()
        if len(cells) != 2 or not all(cells):
            raise DataError(f"{path}, line {number}: expected a path and a person, got {line!r}")
        name, identity = PurePosixPath(cells[0].replace("\\", "/")).as_posix(), cells[1]
        if seen.setdefault(name, number) != number:
            raise DataError(f"{path}, line {number}: {name!r} is there already, at line {seen[name]}")
        identities.append(identity)
    return list(seen), identities


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _label(cell: str) -> str:
    try:
        return str(int(float(cell))) if float(cell).is_integer() else cell
    except (ValueError, OverflowError):
        return cell
