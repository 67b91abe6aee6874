"""Labeled Faces in the Wild (Huang et al. 2007)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

from ..errors import DataError
from .folder import ImageFiles, find_images
from .landmarks import LandmarkTable
from .lists import is_count, read_lines
from .roots import find_root

#: Files of the official lists of people.
VIEWS = {"view1-train": "peopleDevTrain.txt", "view1-test": "peopleDevTest.txt", "view2": "people.txt"}

_FOLDERS = ("images", "lfw", "lfw_funneled", "lfw-deepfunneled")


class LFW(ImageFiles):
    """Labeled Faces in the Wild in its official layout, ``Name/Name_0001.jpg``.

    Args:
        root: folder with ``images`` (or ``lfw``, ``lfw_funneled``, ``lfw-deepfunneled``, or the folders of the people)
            and optionally ``landmarks.csv`` and the official lists; or a folder with ``lfw-py``, as torchvision makes
            it. None uses the folder ``lfw`` in $OCCFAST_DATA.
        min_images: leaves out people with fewer images; 10 leaves 158 people and 4,324 images.
        people: keeps only these people: "view1-train", "view1-test", "view2" (the official lists) or names.
        exclude, gray: as in :class:`ImageFiles`.
        landmarks: CSV file by names as in :attr:`names`. Defaults to ``landmarks.csv`` in ``root``, if present.

    Attributes:
        missing: people of the official list whose images are missing; a warning names them as well.
        others: files that are not images in the official layout.

    Raises:
        DataError: if there are no images in this layout, or ``people`` or ``exclude`` has unknown names.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        min_images: int = 1,
        people: str | Iterable[str] | None = None,
        exclude: Iterable[str] = (),
        landmarks: LandmarkTable | str | Path | None = None,
        gray: bool | None = False,
    ) -> None:
        self.base = find_root(root, "lfw", "LFW: images/Name/Name_0001.jpg and so on (occfast data fetch lfw)")
        if (self.base / "lfw-py").is_dir():  # the folder that torchvision makes
            self.base /= "lfw-py"
        images = next((self.base / name for name in _FOLDERS if (self.base / name).is_dir()), self.base)
        inner = [images / name for name in _FOLDERS if (images / name).is_dir()]
        if images != self.base and len(inner) == 1:  # unpacked twice
            images = inner[0]
        found, others = find_images(images)
        names = [name for name in found if _is_official(name)]
        if not names:
            raise DataError(f"{images}: expected Name/Name_0001.jpg and so on, found no such image")
        self.others = sorted([*others, *set(found).difference(names)])
        if landmarks is None and (self.base / "landmarks.csv").is_file():
            landmarks = self.base / "landmarks.csv"
        identities = [name.split("/")[0] for name in names]
        self.missing: list[str] = []
        if isinstance(people, str):
            people = self._listed(people, names, set(identities))
        super().__init__(
            images,
            names,
            identities,
            min_images=min_images,
            people=people,
            exclude=exclude,
            landmarks=landmarks,
            gray=gray,
        )

    def _listed(self, view: str, names: list[str], present: set[str]) -> list[str]:
        if view not in VIEWS:
            raise ValueError(f"people: expected one of {', '.join(VIEWS)} or names, got {view!r}")
        path = self.base / VIEWS[view]
        counts: dict[str, int] = {}
        for person in names:
            counts[person.split("/")[0]] = counts.get(person.split("/")[0], 0) + 1
        wanted = {name: count for fold in read_people(path) for name, count in fold.items()}
        self.missing = [
            f"{name} ({counts.get(name, 0)} of {count} images)"
            for name, count in wanted.items()
            if counts.get(name, 0) < count
        ]
        if self.missing:
            warnings.warn(
                f"{path}: {len(self.missing)} of {len(wanted)} people are not whole on the disk: "
                f"{', '.join(self.missing[:5])}",
                stacklevel=3,
            )
        return [name for name in wanted if name in present]

    def find(self, person: str, number: int) -> int | None:
        """Return the number of the image that the official lists call ``person number``, or None."""
        for suffix in (".jpg", ".png", ".jpeg"):
            k = self.positions.get(f"{person}/{person}_{number:04d}{suffix}")
            if k is not None:
                return k
        return None


def _is_official(name: str) -> bool:
    parts = name.split("/")
    stem, _, number = parts[-1].rpartition(".")[0].rpartition("_")
    return len(parts) == 2 and stem == parts[0] and len(number) == 4 and number.isdecimal()


def read_people(path: str | Path) -> list[dict[str, int]]:
    """Read an official list of people.

    Returns:
        The number of images by name for each fold; ``peopleDev*.txt`` has one fold.

    Raises:
        DataError: if the file is not such a list or is truncated.
    """
    path = Path(path)
    lines = read_lines(path)
    first = lines[0][1].split() if lines else []
    if len(first) != 1 or not is_count(first[0]):
        raise DataError(f"{path}, line 1: expected the number of folds or of people, got {' '.join(first)[:60]!r}")
    one_fold = len(lines) < 2 or len(lines[1][1].split()) != 1
    folds, at = 1 if one_fold else int(first[0]), 0 if one_fold else 1
    result: list[dict[str, int]] = []
    for _ in range(folds):
        if at >= len(lines) or not is_count(lines[at][1].strip()):
            raise DataError(f"{path}: expected {folds} folds, each with its number of people, found {len(result)}")
        count, at = int(lines[at][1].strip()), at + 1
        if len(lines) - at < count:
            raise DataError(f"{path}: expected {count} people after line {lines[at - 1][0]}, found {len(lines) - at}")
        fold: dict[str, int] = {}
        for number, line in lines[at : at + count]:
            cells = line.split()
            if len(cells) != 2 or not is_count(cells[1]) or cells[0] in fold:
                raise DataError(f"{path}, line {number}: expected a new name and a number of images, got {line!r}")
            fold[cells[0]] = int(cells[1])
        result.append(fold)
        at += count
    if at != len(lines):
        raise DataError(f"{path}, line {lines[at][0]}: expected the end of the list, got {lines[at][1]!r}")
    return result
