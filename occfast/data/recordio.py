"""Faces in RecordIO files: ``train.rec``, ``train.idx``, ``property``."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import torch

from ..errors import DataError
from ..files import read_bytes, read_json
from .faces import Alignment, EncodedFaces, check_people
from .landmarks import read_landmarks
from .lists import is_count, read_lst
from .record_file import Header, RecordFile

_WHOLE = 1 << 24  # whole numbers beyond are not exact in float32


class RecordIO(EncodedFaces):
    """Faces in a ``.rec`` file, indexed and memory-mapped, usable in any number of worker processes.

    Two kinds of files are read: those of mxnet's im2rec, in which every record is an image, and those of insightface,
    whose record 0 states the keys at which the images end and the records of the identities begin.

    Args:
        path: the ``.rec``, or a folder that contains one.
        index: the ``.idx``. Defaults to the one beside the ``.rec``; without one, the file is scanned.
        gray: as in :class:`EncodedFaces`.

    Attributes:
        file: the records.
        keys: keys of the images in the index, int64 [N].
        property: (identities, height, width) from the file ``property``, or None.

    Files beside the ``.rec`` are optional: ``<stem>.lst`` has the names of the images, matched by key; ``<stem>.json``
    the names of the people and the alignment; ``<stem>.landmarks.csv`` the landmarks. ``occfast data convert`` writes
    them. Without them, images are named by key and people by label. A file that cannot be read gives a warning.

    Raises:
        DataError: if the file is not RecordIO, is truncated or damaged, has a label that is not a whole number, or its
            ``.lst`` contradicts the records.
    """

    def __init__(self, path: str | Path, index: str | Path | None = None, *, gray: bool | None = False) -> None:
        super().__init__(gray=gray)
        self.path = find_rec(Path(path))
        self.file = RecordFile(self.path, index)
        self.property = None
        with optional(self.path.with_name("property")):
            self.property = read_property(self.path.with_name("property"))
        self._records, self._labels = self._images()
        labels = self._labels
        self.keys = self.file.keys[self._records]
        wrong = np.flatnonzero((labels != np.floor(labels)) | (labels < 0) | (labels >= _WHOLE))
        if len(wrong):
            record = self._records[wrong[0]]
            raise DataError(f"{self._at(record)}: expected a label that is a whole number, got {labels[wrong[0]]}")
        stored, numbers = np.unique(labels.astype(np.int64), return_inverse=True)
        self._stored = stored
        self.labels = torch.from_numpy(numbers.astype(np.int64))
        self.names, self.people = _KeyNames(self.keys), [str(label) for label in stored]
        self._read_beside()

    def _images(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of the records that are images, and their labels."""
        everything = np.arange(len(self.file))
        first = np.flatnonzero(self.file.keys == 0)
        header, content = self.file.header(int(first[0])) if len(first) else (None, b"")
        if header is None or not header.listed or len(header.labels) != 2 or content:
            if len(everything) == 0:
                raise DataError(f"{self.path}: expected records, found none")
            return everything, self.file.labels(everything)
        begin, end = header.labels
        order = np.argsort(self.file.keys)
        keys = self.file.keys[order]
        if not (1 <= begin <= end and begin.is_integer() and end.is_integer()):
            raise DataError(
                f"{self._at(int(first[0]))}: expected keys where identities begin and end, got {begin}, {end}"
            )
        images = order[(keys >= 1) & (keys < int(begin))]
        if len(images) == 0:
            raise DataError(f"{self.path}: expected images, found none before key {int(begin)}")
        labels = self._by_range(images, order[(keys >= int(begin)) & (keys < int(end))])
        if labels is None:  # the ranges do not partition the images: read the label of each image
            labels = self.file.labels(images)
        return images, labels

    def _by_range(self, images: np.ndarray, identities: np.ndarray) -> np.ndarray | None:
        """Return the labels by the ranges of the identities, without touching every image; None if that fails."""
        keys = self.file.keys[images]
        edges = [1]
        for record in identities.tolist():
            header = self.file.header(record)[0]
            span = header.labels[:2]
            if len(span) < 2 or span[0] != edges[-1] or not span[1].is_integer() or span[1] <= edges[-1]:
                return None
            edges.append(int(span[1]))
        if len(edges) < 2 or edges[-1] >= _WHOLE or not np.array_equal(keys, np.arange(1, edges[-1])):
            return None
        starts = np.array(edges[:-1]) - 1
        firsts = np.array([self.file.header(int(images[start]))[0].labels[0] for start in starts], np.float32)
        return np.repeat(firsts, np.diff(edges))

    def _read_beside(self) -> None:
        table = self.path.with_suffix(".lst")
        if table.is_file():
            self._read_names(table)
        about = self.path.with_suffix(".json")
        if about.is_file():
            with optional(about):
                values = read_json(about)
                people = values.get("people")
                if people is not None:
                    if not isinstance(people, list) or len(people) <= self._stored[-1]:
                        raise DataError(f"{about}: expected the names of {self._stored[-1] + 1} people")
                    named = [str(people[label]) for label in self._stored]
                    check_people(named, str(about))
                    self.people = named
                self.alignment = Alignment.read(values.get("alignment"), str(about))
        landmarks = self.path.with_suffix(".landmarks.csv")
        if landmarks.is_file():
            with optional(landmarks):
                self.landmarks = read_landmarks(landmarks).of(self.names)

    def _read_names(self, table: Path) -> None:
        """Take the names of the images from a ``.lst``, matched by key.

        Raises:
            DataError: if the list contradicts the records: another label, or no line for a record.
        """
        listed = None
        with optional(table):
            listed = read_lst(table)
        if listed is None:
            return
        place = {key: k for k, key in enumerate(listed.keys)}
        lines = [place.get(key, -1) for key in self.keys.tolist()]
        if not listed.states_keys:
            # Its lines are numbered as the records are, unless images were left out when it was packed.
            stored = [self.people[label] for label in self.labels.tolist()]
            if stored != [listed.labels[line] if line >= 0 else None for line in lines] or len(listed.names) > len(
                self
            ):
                warnings.warn(
                    f"{table}: not used, since it states no keys and its labels differ from those in {self.path.name}; "
                    "images are named by key",
                    stacklevel=4,
                )
                return
        advice = f"if {table.name} belongs to other records, rename it"
        for key, line, label in zip(self.keys.tolist(), lines, self.labels.tolist(), strict=True):
            if line < 0:
                raise DataError(f"{table}: expected a line for key {key}, which is in {self.path.name}; {advice}")
            if listed.labels[line] != self.people[label]:
                raise DataError(
                    f"{table}, line {listed.lines[line]}: key {key} has label {listed.labels[line]} here and "
                    f"{self.people[label]} in {self.path.name}; {advice}"
                )
        if len(listed.names) > len(self):
            warnings.warn(
                f"{table}: {len(listed.names) - len(self)} of {len(listed.names)} lines have no record in "
                f"{self.path.name}",
                stacklevel=4,
            )
        self.names = [listed.names[line] for line in lines]

    def _at(self, record: int) -> str:
        return f"{self.path}, offset {self.file.offsets[record]}"

    def header(self, k: int) -> Header:
        """Return the header of image k, with all its labels."""
        return self.file.header(int(self._records[self._index(k)]))[0]

    def place(self, k: int) -> str:
        """Return the location of image k for error messages."""
        return self._at(int(self._records[k]))

    def encoded(self, k: int) -> bytes:
        """Read the stored image file of image k; raise DataError if its label is not that of its identity."""
        label, content = self.file.labeled(int(self._records[k]))
        if label != self._labels[k]:
            raise DataError(
                f"{self.place(k)}: expected label {self._labels[k]:.0f}, as the identities' ranges say, got {label}"
            )
        return content


@contextlib.contextmanager
def optional(path: Path) -> Iterator[None]:
    """Turn errors of a file beside others into warnings, since those can be used without it."""
    try:
        yield
    except DataError as error:
        warnings.warn(f"{path.name} is not used: {error}", stacklevel=6)


class _KeyNames(Sequence[str]):
    """Keys as texts, converted on demand, since some files have millions."""

    def __init__(self, keys: np.ndarray) -> None:
        self.keys = keys

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, k: int) -> str: ...
    @overload
    def __getitem__(self, k: slice) -> list[str]: ...
    def __getitem__(self, k: int | slice) -> str | list[str]:
        return [str(key) for key in self.keys[k]] if isinstance(k, slice) else str(self.keys[k])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def find_rec(path: Path) -> Path:
    """Return the ``.rec`` itself, or the only one in a folder, or its ``train.rec``."""
    if not path.is_dir():
        return path
    found = sorted(path.glob("*.rec"))
    if len(found) == 1:
        return found[0]
    if path / "train.rec" in found:
        return path / "train.rec"
    raise DataError(f"{path}: expected one .rec file or train.rec, found {len(found)}")


def read_property(path: Path) -> tuple[int, int, int] | None:
    """Read (identities, height, width) from the first line of insightface's file ``property``.

    Further lines, such as the number of images that RecBuilder writes, are ignored.

    Returns:
        The three numbers, or None if there is no such file.

    Raises:
        DataError: if the first line is not of this form.
    """
    if not path.is_file():
        return None
    lines = read_bytes(path).decode("ascii", "replace").strip().splitlines() or [""]
    cells = [cell.strip() for cell in lines[0].split(",")]
    if len(cells) != 3 or not all(map(is_count, cells)):
        raise DataError(f"{path}: expected identities,height,width, got {','.join(cells)[:60]!r}")
    identities, height, width = (int(cell) for cell in cells)
    return identities, height, width
