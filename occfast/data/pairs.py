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
from .lists import is_count, read_lines, split_cells


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
            DataError: if no pair has both images, two images match one name, two lines contradict each other, or images
                are missing with "error".

        A warning names pairs that the list calls one person, but whose images the data set assigns to two.
        """
        if missing not in ("warn", "error"):
            raise ValueError(f"missing: expected 'warn' or 'error', got {missing!r}")
        places = _Names(dataset.names, self.path)
        found = [(places.find(pair.first), places.find(pair.second), pair) for pair in self.pairs]
        absent = [pair for a, b, pair in found if a is None or b is None]
        here = [(a, b, pair) for a, b, pair in found if a is not None and b is not None]
        _check_contradictions(here, dataset, self.path)
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


def _check_contradictions(found: Sequence[tuple[int, int, ListedPair]], dataset: FaceDataset, path: Path) -> None:
    """Refuse pairs listed as one person and as two; warn of pairs of one person that are two in the data set."""
    known: dict[tuple[int, int], ListedPair] = {}
    for a, b, pair in found:
        other = known.setdefault((min(a, b), max(a, b)), pair)
        if other.same != pair.same or (a == b and not pair.same):
            before = "it is one image" if a == b else f"line {other.line} says the opposite"
            kind = "one person" if pair.same else "two people"
            raise DataError(f"{path}, line {pair.line}: {pair.first} and {pair.second} are {kind} here, but {before}")
    labels = dataset.labels.tolist()
    split = [pair for a, b, pair in found if pair.same and labels[a] != labels[b]]
    if split:
        warnings.warn(
            f"{path}: {len(split)} of {len(found)} pairs are one person in the list and two in the data set, the first "
            f"is line {split[0].line}: {split[0].first}, {split[0].second}",
            stacklevel=3,
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

    Cells are separated by tabs, else by commas, else by semicolons, else by spaces; between commas and semicolons they
    may be quoted. Empty cells at the end of a line are ignored, and so are lines that begin with ``#``. A first line of
    one or two numbers is LFW's header: the number of pairs of each kind (``pairsDevTest.txt``), or the number of folds
    and of pairs of each kind in a fold (``pairs.txt``). The list must then have exactly that many pairs. A first line
    with titles, such as ``fold,first,second,same``, says which columns hold the two images, the flag and the fold.
    The other lines are

    - ``name 1 4``: images 1 and 4 of one person;
    - ``name 1 other 2``: images of two people;
    - ``path path 1`` or ``1 path path``: two images and a flag, which is 1 or True for one person and 0, -1 or False
      for two;
    - ``path path 1 3``: the same with the number of the fold;
    - ``path 1``: one image on each line, where two lines with equal flags make a pair.

    In a list without a header, lines of two numbers and a flag, such as ``600 601 0``, hold names of images, with or
    without a fold. A list that may as well have its flags first, such as ``1 600 601``, needs titles.

    Raises:
        DataError: if a line has none of these forms, or the number of lines contradicts the header.
    """
    path = Path(path)
    lines = [(number, line) for number, line in read_lines(path) if not line.lstrip().startswith("#")]
    if not lines:
        raise DataError(f"{path}: expected a list of pairs, it is empty")
    whole = all(";" in line for _, line in lines)
    divider = next((s for s in ("\t", ",") if any(s in line for _, line in lines)), ";" if whole else None)
    rows = [(number, _cells(line, divider)) for number, line in lines]
    header = lines[0][1].replace(",", " ").split()
    columns = _columns(split_cells(lines[0][1], divider)) if len(rows) > 1 else None
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
    elif columns is not None:
        pairs = [_titled(path, number, split_cells(line, divider), columns) for number, line in lines[1:]]
    else:
        titled = len(rows) > 1 and len(rows[0][1]) > 1 and all(cell.lower() in _TITLES for cell in rows[0][1])
        rows = rows[1:] if titled else rows
        if len(rows) > 1 and all(len(cells) == 2 and cells[1].lower() in _FLAGS for _, cells in rows):
            rows = _joined(path, rows)
        are_names = False if titled else _numbers_are_names(path, rows)
        pairs = [_listed(path, number, cells, numbers_are_names=are_names) for number, cells in rows]
    with_fold = sum(pair.fold is not None for pair in pairs)
    if with_fold not in (0, len(pairs)):
        raise DataError(f"{path}: expected the fold on all lines or none, {with_fold} of {len(pairs)} have it")
    return PairList(pairs, path)


_FLAGS = {"1": True, "true": True, "1.0": True, "0": False, "-1": False, "false": False, "0.0": False, "-1.0": False}
#: Roles of columns by their titles, in lower case.
_ROLES = {
    **dict.fromkeys(("image1", "img1", "path1", "file1", "first", "image_1", "left"), "first"),
    **dict.fromkeys(("image2", "img2", "path2", "file2", "second", "image_2", "right"), "second"),
    **dict.fromkeys(("label", "same", "is_same", "issame", "match", "flag", "is_same_person", "same_person"), "same"),
    "fold": "fold",
    **dict.fromkeys(("", "id", "index", "pair", "unnamed: 0"), "none"),
}
#: Titles of other columns.
_TITLES = frozenset(
    (
        *("name", "name1", "name2", "imagenum", "imagenum1", "imagenum2", "person", "person1", "person2"),
        *("image", "img", "path", "file", *_ROLES),
    )
)


def _columns(titles: list[str]) -> dict[str, int] | None:
    """Return the columns of the images, the flag and the fold by their titles; None if these are no such titles."""
    roles = [_ROLES.get(title.lower(), "other") for title in titles]
    named = [role for role in roles if role != "none"]
    if sorted(set(named) - {"fold"}) != ["first", "same", "second"] or len(set(named)) != len(named):
        return None
    return {role: roles.index(role) for role in named}


def _titled(path: Path, line: int, cells: list[str], columns: dict[str, int]) -> ListedPair:
    """Read a line of a list whose first line has titles."""
    if len(cells) > max(columns.values()):
        first, second, flag, fold = (
            cells[columns[role]] if role in columns else None for role in ("first", "second", "same", "fold")
        )
        same = _FLAGS.get(str(flag).lower())
        if first and second and same is not None and (fold is None or is_count(fold)):
            return ListedPair(first, second, same, None if fold is None else int(fold), line)
    raise DataError(
        f"{path}, line {line}: expected two images, a flag such as 1 or False{' and a fold' * ('fold' in columns)} in "
        f"the columns that line 1 names, got {' '.join(cells)!r:.120}"
    )


def _numbers_are_names(path: Path, rows: list[tuple[int, list[str]]]) -> bool:
    """Return whether the numbers in a list without a header are names of images, a flag and perhaps a fold."""
    numbers = [(line, cells) for line, cells in rows if len(cells) in (3, 4) and all(map(is_count, cells))]
    if not numbers or all(cells[2] in ("0", "1") for _, cells in numbers):
        return bool(numbers)
    if all(len(cells) == 3 and cells[0] in ("0", "1") for _, cells in numbers):
        raise DataError(
            f"{path}, line {numbers[0][0]}: expected titles above, since {' '.join(numbers[0][1])!r} may be 'flag name "
            "name' (same,first,second) or 'name 1 4' (name,imagenum1,imagenum2)"
        )
    return False


def _cells(line: str, divider: str | None) -> list[str]:
    cells = split_cells(line, divider)
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
        if len(cells) == 4 and number[1] and number[3] and not (number[0] and number[2] and numbers_are_names):
            first, second = (_official(path, line, cells[k], cells[k + 1]) for k in (0, 2))
            return ListedPair(first, second, cells[0] == cells[2], None, line)
        if len(cells) == 3 and flag[0] is not None and flag[2] is None:
            return ListedPair(cells[1], cells[2], flag[0], None, line)
        if len(cells) == 3 and flag[2] is not None and (numbers_are_names or not number[1] or not number[2]):
            return ListedPair(cells[0], cells[1], flag[2], None, line)
        if len(cells) == 4 and flag[2] is not None and number[3] and (numbers_are_names or not number[1]):
            return ListedPair(cells[0], cells[1], flag[2], int(cells[3]), line)
    raise DataError(
        f"{path}, line {line}: expected 'name 1 4', 'name 1 other 2', 'path path 1' or '1 path path', "
        f"got {' '.join(cells)!r:.120}"
    )


def _official(path: Path, line: int, name: str, number: str) -> str:
    if int(number) == 0:
        raise DataError(f"{path}, line {line}: expected numbers of images from 1, got {number} of {name!r}")
    return f"{name}/{name}_{int(number):04d}"
