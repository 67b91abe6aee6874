"""Lists of pairs: LFW's ``pairs.txt`` and ``pairsDev*.txt``, and other lists of names or paths."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import DataError
from .faces import FaceDataset
from .lists import is_count, read_lines


class ListedPair(NamedTuple):
    """A pair as a list states it.

    Attributes:
        first, second: the images: paths, or ``Name/Name_0001`` if the list has names and numbers.
        same: whether both show one person.
        fold: number of the fold, from 0; None if the list has no folds.
        line: number of the line, from 1.
    """

    first: str
    second: str
    same: bool
    fold: int | None
    line: int


@dataclass(frozen=True, eq=False)
class Pairs:
    """The pairs of a list whose images are in a data set.

    Attributes:
        index: numbers of the images, int64 [P, 2].
        same: whether both images show one person, bool [P].
        folds: number of the fold, int64 [P]; or None.
        missing: pairs of the list with an image that the data set lacks, in the order of the list.
        source: name of the list.
    """

    index: Tensor
    same: Tensor
    folds: Tensor | None
    missing: list[ListedPair]
    source: str

    def __len__(self) -> int:
        return len(self.same)


@dataclass(frozen=True)
class PairList:
    """A list of pairs.

    Attributes:
        pairs: the pairs in the order of the file.
        path: the file.
    """

    pairs: Sequence[ListedPair]
    path: Path

    def __len__(self) -> int:
        return len(self.pairs)

    def resolve(self, dataset: FaceDataset, missing: Literal["warn", "error"] = "warn") -> Pairs:
        """Find the images in a data set, by their names with or without folders and the file's ending.

        Args:
            dataset: any data set of faces.
            missing: "warn" gives a warning if images are missing and keeps their pairs in :attr:`Pairs.missing`;
                "error" raises an error.

        Raises:
            DataError: if no pair has both images, two images match one name, or images are missing with "error".
        """
        if missing not in ("warn", "error"):
            raise ValueError(f"missing: expected 'warn' or 'error', got {missing!r}")
        places = _Names(dataset.names, self.path)
        found = [(places.find(pair.first), places.find(pair.second), pair) for pair in self.pairs]
        absent = [pair for a, b, pair in found if a is None or b is None]
        here = [(a, b, pair) for a, b, pair in found if a is not None and b is not None]
        if absent:
            k = absent[0]
            gone = ", ".join(name for name in (k.first, k.second) if places.find(name) is None)
            message = (
                f"{self.path}: {len(absent)} of {len(self.pairs)} pairs name an image that is not there, the first is "
                f"line {k.line}: {gone}"
            )
            if missing == "error" or not here:
                raise DataError(message)
            warnings.warn(message, stacklevel=2)
        folds = [pair.fold for _, _, pair in here]
        return Pairs(
            index=torch.tensor([(a, b) for a, b, _ in here], dtype=torch.int64),
            same=torch.tensor([pair.same for _, _, pair in here]),
            folds=None if folds[0] is None else torch.tensor(folds, dtype=torch.int64),
            missing=absent,
            source=self.path.name,
        )


class _Names:
    """Images by name, by name without suffix, and by the last part of either."""

    def __init__(self, names: Sequence[str], path: Path) -> None:
        self.path, self.names = path, names
        self.exact = {name: k for k, name in enumerate(names)}
        self.loose: dict[str, list[int]] = {}
        for k, name in enumerate(names):
            for key in {_stem(name), *_last(name)}:
                self.loose.setdefault(key, []).append(k)

    def find(self, name: str) -> int | None:
        name = name.replace("\\", "/")
        if name in self.exact:
            return self.exact[name]
        for key in (name, _stem(name), *_last(name)):
            places = [k for k in self.loose.get(key, []) if _may_be(name, self.names[k])]
            if len(places) == 1:
                return places[0]
            if places:
                raise DataError(f"{self.path}: {name} may be any of {len(places)} images that end so; give whole names")
        return None


def _may_be(one: str, other: str) -> bool:
    """Return whether the folders of two paths agree as far as both state them."""
    a, b = ([part for part in name.split("/")[:-1] if part not in ("", ".")] for name in (one, other))
    shared = min(len(a), len(b))
    return a[len(a) - shared :] == b[len(b) - shared :]


def _stem(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return folder + slash + (last.rpartition(".")[0] or last)


def _last(name: str) -> tuple[str, str]:
    last = name.rpartition("/")[2]
    return last, _stem(last)


def read_pairs(path: str | Path) -> PairList:
    """Read a list of pairs.

    Cells are separated by tabs, else by commas, else by spaces. Empty cells at the end of a line are ignored, and so is
    a first line with the names of the columns. A first line of one or two numbers is LFW's header: the number of pairs
    of each kind (``pairsDevTest.txt``), or the number of folds and of pairs of each kind in a fold (``pairs.txt``). The
    list must then have exactly that many pairs. The other lines are

    - ``name 1 4``: images 1 and 4 of one person;
    - ``name 1 other 2``: images of two people;
    - ``path path 1`` or ``1 path path``: two images and a flag, which is 1 or True for one person and 0, -1 or False
      for two;
    - ``path path 1 3``: the same with the number of the fold;
    - ``path 1``: one image on each line, where two lines with equal flags make a pair.

    In a list without a header, lines of two numbers and a flag, such as ``600 601 0``, hold names of images.

    Raises:
        DataError: if a line has none of these forms, or the number of lines contradicts the header.
    """
    path = Path(path)
    lines = read_lines(path)
    if not lines:
        raise DataError(f"{path}: expected a list of pairs, it is empty")
    text = "\n".join(line for _, line in lines)
    divider = "\t" if "\t" in text else "," if "," in text else None
    rows = [(number, _cells(line, divider)) for number, line in lines]
    header = lines[0][1].replace(",", " ").split()
    if 1 <= len(header) <= 2 and all(map(is_count, header)):
        folds, each = (1, int(header[0])) if len(header) == 1 else (int(header[0]), int(header[1]))
        if len(rows) - 1 != 2 * folds * each or len(rows) == 1:
            raise DataError(
                f"{path}, line {rows[0][0]}: expected {folds} × 2 × {each} pairs after it, got {len(rows) - 1} lines"
            )
        pairs = [_listed(path, number, cells) for number, cells in rows[1:]]
        if folds > 1:
            pairs = [pair._replace(fold=k // (2 * each)) for k, pair in enumerate(pairs)]
        for k, pair in enumerate(pairs):
            if pair.same != (k // each % 2 == 0):
                kind = "one person" if not pair.same else "two people"
                raise DataError(f"{path}, line {pair.line}: expected a pair of {kind} here by the counts of line 1")
    else:
        if len(rows) > 1 and len(rows[0][1]) > 1 and all(cell.lower() in _TITLES for cell in rows[0][1]):
            rows = rows[1:]
        if len(rows) > 1 and all(len(cells) == 2 and cells[1].lower() in _FLAGS for _, cells in rows):
            rows = _joined(path, rows)
        numbers = [cells for _, cells in rows if len(cells) == 3 and all(map(is_count, cells))]
        are_names = bool(numbers) and all(cells[2] in ("0", "1") for cells in numbers)
        pairs = [_listed(path, number, cells, numbers_are_names=are_names) for number, cells in rows]
    with_fold = sum(pair.fold is not None for pair in pairs)
    if with_fold not in (0, len(pairs)):
        raise DataError(f"{path}: expected the fold on all lines or none, {with_fold} of {len(pairs)} have it")
    return PairList(pairs, path)


_FLAGS = {"1": True, "true": True, "0": False, "-1": False, "false": False}
#: Names of columns in headers.
_TITLES = frozenset(
    (
        *("name", "name1", "name2", "imagenum", "imagenum1", "imagenum2", "person", "person1", "person2"),
        *("image", "image1", "image2", "img1", "img2", "path", "path1", "path2", "file", "file1", "file2"),
        *("first", "second", "label", "same", "is_same", "issame", "match", "fold"),
    )
)


def _cells(line: str, divider: str | None) -> list[str]:
    cells = [cell.strip() for cell in line.split(divider)]
    while len(cells) > 1 and not cells[-1]:
        cells.pop()
    return cells


def _joined(path: Path, rows: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    """Join every two lines of an image and a flag."""
    if len(rows) % 2:
        raise DataError(f"{path}, line {rows[-1][0]}: expected two lines for each pair, the second one is missing")
    joined = []
    for (first, a), (second, b) in zip(rows[::2], rows[1::2], strict=True):
        if _FLAGS[a[1].lower()] != _FLAGS[b[1].lower()]:
            raise DataError(f"{path}, line {second}: expected the flag of the line before, {a[1]}, got {b[1]}")
        joined.append((first, [a[0], b[0], a[1]]))
    return joined


def _listed(path: Path, line: int, cells: list[str], *, numbers_are_names: bool = False) -> ListedPair:
    if all(cells):
        number = [is_count(cell) for cell in cells]
        flag = [_FLAGS.get(cell.lower()) for cell in cells]
        if len(cells) == 3 and number[1] and number[2] and not (number[0] and numbers_are_names):
            return ListedPair(
                _official(path, line, cells[0], cells[1]), _official(path, line, cells[0], cells[2]), True, None, line
            )
        if len(cells) == 4 and number[1] and number[3]:
            first, second = (_official(path, line, cells[k], cells[k + 1]) for k in (0, 2))
            return ListedPair(first, second, cells[0] == cells[2], None, line)
        if len(cells) == 3 and flag[0] is not None and flag[2] is None:
            return ListedPair(cells[1], cells[2], flag[0], None, line)
        if len(cells) == 3 and flag[2] is not None and (numbers_are_names or not number[1]):
            return ListedPair(cells[0], cells[1], flag[2], None, line)
        if len(cells) == 4 and flag[2] is not None and number[3] and not number[1]:
            return ListedPair(cells[0], cells[1], flag[2], int(cells[3]), line)
    raise DataError(
        f"{path}, line {line}: expected 'name 1 4', 'name 1 other 2', 'path path 1' or '1 path path', "
        f"got {' '.join(cells)!r:.120}"
    )


def _official(path: Path, line: int, name: str, number: str) -> str:
    if int(number) == 0:
        raise DataError(f"{path}, line {line}: expected numbers of images from 1, got {number} of {name!r}")
    return f"{name}/{name}_{int(number):04d}"
