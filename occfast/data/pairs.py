"""Lists of pairs: LFW's ``pairs.txt`` and ``pairsDev*.txt``, lists of the MFR2 kind, and lists of paths."""

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
from .folder import read_lines


class ListedPair(NamedTuple):
    """A pair as its list names it.

    Attributes:
        first, second: the images: a path, or ``Name/Name_0001`` where the list has a name and a number.
        same: whether they show one person.
        fold: from 0; None where the list has no folds.
        line: of the list, from 1.
    """

    first: str
    second: str
    same: bool
    fold: int | None
    line: int


@dataclass(frozen=True, eq=False)
class Pairs:
    """The pairs of a list that a data set has images for.

    Attributes:
        index: numbers of the images, int64 [P, 2].
        same: bool [P].
        folds: int64 [P], or None.
        missing: pairs of the list that name an image which is not there, in the order of the list.
        source: the list.
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
        pairs: in the order of the file.
        path: of the file.
    """

    pairs: Sequence[ListedPair]
    path: Path

    def __len__(self) -> int:
        return len(self.pairs)

    def resolve(self, dataset: FaceDataset, missing: Literal["warn", "error"] = "warn") -> Pairs:
        """Find the images in a data set, by their names with or without folders and the file's ending.

        Args:
            dataset: whose :attr:`~FaceDataset.names` are looked through.
            missing: what to do about pairs that name an image which is not there: "warn" tells how many there are and
                keeps them in :attr:`Pairs.missing`; "error" raises.

        Raises:
            DataError: no pair's images are there; a name that two images have; missing ones, where that is an error.
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
            told = (
                f"{self.path}: {len(absent)} of {len(self.pairs)} pairs name an image that is not there, the first is "
                f"line {k.line}: {gone}"
            )
            if missing == "error" or not here:
                raise DataError(told)
            warnings.warn(told, stacklevel=2)
        folds = [pair.fold for _, _, pair in here]
        return Pairs(
            index=torch.tensor([(a, b) for a, b, _ in here], dtype=torch.int64),
            same=torch.tensor([pair.same for _, _, pair in here]),
            folds=None if folds[0] is None else torch.tensor(folds, dtype=torch.int64),
            missing=absent,
            source=self.path.name,
        )


class _Names:
    """Images by name, by name without the file's ending, and by the last part of either."""

    def __init__(self, names: Sequence[str], path: Path) -> None:
        self.path = path
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
            places = self.loose.get(key, [])
            if len(places) == 1:
                return places[0]
            if places:
                raise DataError(f"{self.path}: {name} may be any of {len(places)} images that end so; give whole names")
        return None


def _stem(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return folder + slash + (last.rpartition(".")[0] or last)


def _last(name: str) -> tuple[str, str]:
    last = name.rpartition("/")[2]
    return last, _stem(last)


def read_pairs(path: str | Path) -> PairList:
    """Read a list of pairs.

    Cells are divided by tabs, else by commas, else by spaces.  A first line of one or two numbers is LFW's: pairs of
    each kind (``pairsDevTest.txt``), or folds and pairs of each kind in a fold (``pairs.txt``); the list must then
    hold exactly as many.  Other lines are

    - ``name 1 4``: images 1 and 4 of one person;
    - ``name 1 other 2``: images of two people;
    - ``path path 1``, ``1 path path``: 1 one person, 0 two people; or ``path path 1 3`` with the fold.

    Raises:
        DataError: with the line, where it is none of these or the counts don't agree.
    """
    path = Path(path)
    lines = read_lines(path)
    if not lines:
        raise DataError(f"{path}: expected a list of pairs, it is empty")
    text = "\n".join(line for _, line in lines)
    divider = "\t" if "\t" in text else "," if "," in text else None
    rows = [(number, [cell.strip() for cell in line.split(divider)]) for number, line in lines]
    header = rows[0][1]
    if len(header) <= 2 and all(map(_is_number, header)):
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
        pairs = [_listed(path, number, cells) for number, cells in rows]
    with_fold = sum(pair.fold is not None for pair in pairs)
    if with_fold not in (0, len(pairs)):
        raise DataError(f"{path}: expected the fold on all lines or none, {with_fold} of {len(pairs)} have it")
    return PairList(pairs, path)


def _listed(path: Path, line: int, cells: list[str]) -> ListedPair:
    if all(cells):
        number = [_is_number(cell) for cell in cells]
        if len(cells) == 3 and number[1] and number[2]:
            return ListedPair(_official(cells[0], cells[1]), _official(cells[0], cells[2]), True, None, line)
        if len(cells) == 4 and number[1] and number[3]:
            first, second = _official(cells[0], cells[1]), _official(cells[2], cells[3])
            return ListedPair(first, second, cells[0] == cells[2], None, line)
        if len(cells) == 3 and cells[0] in ("0", "1"):
            return ListedPair(cells[1], cells[2], cells[0] == "1", None, line)
        if len(cells) in (3, 4) and cells[2] in ("0", "1") and not number[1] and (len(cells) == 3 or number[3]):
            fold = int(cells[3]) if len(cells) == 4 else None
            return ListedPair(cells[0], cells[1], cells[2] == "1", fold, line)
    raise DataError(
        f"{path}, line {line}: expected 'name 1 4', 'name 1 other 2', 'path path 1' or '1 path path', "
        f"got {' '.join(cells)!r:.120}"
    )


def _is_number(cell: str) -> bool:
    return cell.isascii() and cell.isdecimal() and len(cell) < 10


def _official(name: str, number: str) -> str:
    return f"{name}/{name}_{int(number):04d}"
