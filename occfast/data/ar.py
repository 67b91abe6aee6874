"""The AR faces (Martinez and Benavente 1998): expressions, light, sunglasses and scarves in two sessions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..files import read_bytes
from .faces import Face, FaceDataset, number_people
from .folder import ImageFiles, find_images
from .images import SUFFIXES, recolor
from .landmarks import LandmarkTable
from .matlab import read_mat
from .roots import find_root


@dataclass(frozen=True)
class Shot:
    """Conditions of an AR photograph, given by its number from 1 to 26.

    Attributes:
        session: 1 or 2 (numbers 14 to 26, a fortnight later).
        expression: "neutral", "smile", "anger" or "scream".
        light: "even", "left", "right" or "both".
        occlusion: None, "sunglasses" or "scarf".
    """

    session: int
    expression: str
    light: str
    occlusion: str | None


_LIGHTS = ("even", "left", "right")
_SESSION = (
    *((expression, "even", None) for expression in ("neutral", "smile", "anger", "scream")),
    *(("neutral", light, None) for light in ("left", "right", "both")),
    *(("neutral", light, occlusion) for occlusion in ("sunglasses", "scarf") for light in _LIGHTS),
)


def shot(number: int) -> Shot:
    """Return the conditions of photograph ``number`` (1 to 26)."""
    if not 1 <= number <= 2 * len(_SESSION):
        raise ValueError(f"number: expected 1 to {2 * len(_SESSION)}, got {number}")
    session, within = divmod(number - 1, len(_SESSION))
    return Shot(session + 1, *_SESSION[within])


class _Shots:
    """Access to images by the conditions of the photograph.

    Attributes:
        numbers: number of each photograph, 1 to 26, int64 [N].
    """

    numbers: Tensor

    def shot(self, k: int) -> Shot:
        """Return the conditions of image k."""
        return shot(int(self.numbers[k]))

    def shots(
        self,
        *,
        occlusion: str | Sequence[str | None] | None = ("sunglasses", "scarf", None),
        light: str | Sequence[str] = ("even", "left", "right", "both"),
        expression: str | Sequence[str] = ("neutral", "smile", "anger", "scream"),
        session: int | Sequence[int] = (1, 2),
    ) -> Tensor:
        """Return the images with these conditions, int64, increasing. Each argument is one value or several."""
        chosen = {
            "occlusion": (_several(occlusion), (None, "sunglasses", "scarf")),
            "light": (_several(light), (*_LIGHTS, "both")),
            "expression": (_several(expression), ("neutral", "smile", "anger", "scream")),
            "session": (_several(session), (1, 2)),
        }
        for name, (values, allowed) in chosen.items():
            for value in values:
                if value not in allowed:
                    raise ValueError(f"{name}: expected one of {allowed}, got {value!r}")
        return torch.tensor(
            [
                k
                for k in range(len(self.numbers))
                if all(getattr(self.shot(k), name) in values for name, (values, _) in chosen.items())
            ],
            dtype=torch.int64,
        )


def _several(value: object) -> tuple[object, ...]:
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)


_FILE = re.compile(r"(?P<sex>[mMwWfF])-?(?P<person>\d{1,9})-(?P<number>\d{1,2})(?:[-_].*)?$")
#: (channels, height, width) of AR's own ``.raw`` files: the planes of red, green and blue.
RAW_SHAPE = (3, 576, 768)


class AR(_Shots, ImageFiles):
    """The AR faces, identified by file name: ``M-001-08`` is photograph 8 of the man 001; see :func:`shot`.

    Image files and AR's own ``.raw`` files (768×576 RGB) are read. ``M-01-08`` and ``M-001-08`` are the same person.

    Args:
        root: folder with the images, at any depth. None uses the folder ``ar`` in $OCCFAST_DATA.
        landmarks: CSV file by names as in :attr:`names`. Defaults to ``landmarks.csv`` in ``root``, if present.
        min_images, people, exclude, gray: as in :class:`ImageFiles`; people are named "M-001", "W-001".

    Attributes:
        numbers: number of each photograph, 1 to 26, int64 [N].
        others: files with other names.

    Raises:
        DataError: if there is no such image, a number exceeds 26, or a photograph occurs twice.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        landmarks: LandmarkTable | str | Path | None = None,
        min_images: int = 1,
        people: Iterable[str] | None = None,
        exclude: Iterable[str] = (),
        gray: bool | None = False,
    ) -> None:
        root = find_root(root, "ar", "the AR faces: M-001-01 to W-060-26 as image files")
        images, others = find_images(root, SUFFIXES | {".raw"})
        names, identities, seen = [], [], dict[tuple[str, int], str]()
        for name in images:
            match = _FILE.match(PurePosixPath(name).stem)
            if match is None:
                others.append(name)
                continue
            sex = match["sex"].upper().replace("F", "W")
            person, number = f"{sex}-{int(match['person']):03d}", int(match["number"])
            if not 1 <= number <= 26:
                raise DataError(f"{root / name}: expected a photograph's number from 1 to 26, got {number}")
            if seen.setdefault((person, number), name) != name:
                raise DataError(
                    f"{root / name}: photograph {number} of {person} is there already: {seen[person, number]}"
                )
            names.append(name)
            identities.append(person)
        if not names:
            raise DataError(f"{root}: expected images named as M-001-08, found none among {len(others)} files")
        self.others = sorted(others)
        if landmarks is None and (root / "landmarks.csv").is_file():
            landmarks = root / "landmarks.csv"
        super().__init__(
            root,
            names,
            identities,
            landmarks=landmarks,
            min_images=min_images,
            people=people,
            exclude=exclude,
            gray=gray,
        )
        numbers = {name: number for (_, number), name in seen.items()}
        self.numbers = torch.tensor([numbers[name] for name in self.names])

    def _is_raw(self, k: int) -> bool:
        return self.names[k].lower().endswith(".raw")

    def encoded(self, k: int) -> bytes | None:
        """Return the stored image file of image k; None for raw files, which hold pixels only."""
        return None if self._is_raw(k) else super().encoded(k)

    def __getitem__(self, k: int) -> Face:
        k = self._index(k)
        if not self._is_raw(k):
            return super().__getitem__(k)
        content = read_bytes(self.path(k))
        if len(content) != math.prod(RAW_SHAPE):
            raise DataError(
                f"{self.path(k)}: expected {math.prod(RAW_SHAPE):,} bytes, 768×576 RGB, got {len(content):,}"
            )
        image = torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(RAW_SHAPE)
        return Face(recolor(image, self.gray), int(self.labels[k]), self.names[k], self.landmarks_of(k))


class AR10P(_Shots, FaceDataset):
    """Ten people of AR with thirteen photographs each, 60×40 gray, from scikit-feature's ``warpAR10P.mat``.

    The rows of the file are ordered by person and within a person by AR's own numbers, 1 to 13: seven clean
    (expressions, lights), three with sunglasses, three with a scarf.

    Args:
        path: the file, or a folder with it. None uses ``ar10p/warpAR10P.mat`` in $OCCFAST_DATA.
        gray: False repeats the gray channel to RGB, [3, 60, 40]; True and None return gray images, [1, 60, 40].

    Attributes:
        numbers: number of each photograph, 1 to 13, int64 [N].
        images: uint8 [130, 1, 60, 40].

    Raises:
        DataError: if the file cannot be read or has other contents.
    """

    SIZE = (60, 40)

    def __init__(self, path: str | Path | None = None, *, gray: bool | None = None) -> None:
        self.gray = gray
        path = Path(path) if path is not None else find_root(None, "ar10p", "AR10P: warpAR10P.mat")
        path = path / "warpAR10P.mat" if path.is_dir() else path
        values, identities = _read_mat(path)
        shots = len(_SESSION)
        expected = np.repeat(np.arange(len(values) // shots), shots)
        if len(values) == 0 or len(values) % shots or not np.array_equal(identities - identities[0], expected):
            raise DataError(f"{path}: expected {shots} rows a person, person after person, in Y, got another order")
        self.path = path
        # The pixels of a row run down the columns.
        self.images = torch.from_numpy(values.reshape(-1, 1, self.SIZE[1], self.SIZE[0]).swapaxes(2, 3).copy())
        self.numbers = torch.arange(shots).repeat(len(values) // shots) + 1
        people = [f"{identity:02d}" for identity in identities]
        self.names = [f"{person}-{int(number):02d}" for person, number in zip(people, self.numbers, strict=True)]
        self.people, self.labels = number_people(people, str(path))

    def __getitem__(self, k: int) -> Face:
        k = self._index(k)
        return Face(recolor(self.images[k], self.gray), int(self.labels[k]), self.names[k], None)


class AR100(_Shots, FaceDataset):
    """100 people of AR with all 26 photographs each, 42×30 gray, aligned, from ``AR_42_30.mat``.

    The file holds them person after person, in AR's own numbering. The covered photographs of person 78 seem to show
    somebody else.

    Args:
        path: the file, or a folder with it. None uses ``ar100/AR_42_30.mat`` in $OCCFAST_DATA.
        gray: False repeats the gray channel to RGB, [3, 42, 30]; True and None return gray images, [1, 42, 30].

    Attributes:
        numbers: number of each photograph, 1 to 26, int64 [N].
        pixels: uint8 [N, 1, 42, 30].

    Raises:
        DataError: if the file cannot be read or has other contents.
    """

    SIZE = (42, 30)
    #: The five landmarks of every photograph, (row, column), read off their mean.
    POINTS = ((15.5, 7.5), (15.5, 21.6), (24.7, 14.5), (29.6, 9.7), (29.6, 19.4))

    def __init__(self, path: str | Path | None = None, *, gray: bool | None = None) -> None:
        self.gray = gray
        path = Path(path) if path is not None else find_root(None, "ar100", "100 people of AR: AR_42_30.mat")
        path = path / "AR_42_30.mat" if path.is_dir() else path
        self.path, shots = path, 2 * len(_SESSION)
        self.pixels = self._read(path, shots)
        count = len(self.pixels)
        self.numbers = torch.arange(count) % shots + 1
        people = [f"{k // shots + 1:03d}" for k in range(count)]
        self.names = [f"{person}-{number:02d}" for person, number in zip(people, self.numbers.tolist(), strict=True)]
        self.people, self.labels = number_people(people, str(path))
        self.landmarks = torch.tensor(self.POINTS, dtype=torch.float64).expand(count, 5, 2)

    @classmethod
    def _read(cls, path: Path, shots: int) -> Tensor:
        content = read_mat(path)
        values, labels = content.get("DATA"), content.get("Label")
        height, width = cls.SIZE
        if (
            values is None
            or labels is None
            or values.dtype != np.uint8
            or values.shape != (height * width, labels.size)
            or labels.size == 0
        ):
            raise DataError(
                f"{path}: expected DATA, uint8 [{height * width}, N], and Label, [1, N], got "
                f"{getattr(values, 'dtype', None)} {getattr(values, 'shape', None)} and "
                f"{getattr(labels, 'shape', None)}"
            )
        expected = np.arange(labels.size) // shots + labels.ravel()[0]
        if labels.size % shots or not np.array_equal(labels.ravel(), expected):
            raise DataError(f"{path}: expected {shots} photographs a person, person after person, got another order")
        # The pixels of a column run down the columns of the photograph.
        return torch.from_numpy(values.T.reshape(-1, 1, width, height).swapaxes(2, 3).copy())

    def __getitem__(self, k: int) -> Face:
        k = self._index(k)
        return Face(recolor(self.pixels[k], self.gray), int(self.labels[k]), self.names[k], self.landmarks_of(k))


def _read_mat(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read X, uint8 [N, 2400], and Y, int64 [N], from a MATLAB 5 file."""
    content = read_mat(path)
    x, y = content.get("X"), content.get("Y")
    pixels = AR10P.SIZE[0] * AR10P.SIZE[1]
    if x is None or x.dtype != np.uint8 or x.ndim != 2 or x.shape[1] != pixels:
        raise DataError(
            f"{path}: expected X, uint8 [N, {pixels}], got {getattr(x, 'dtype', None)} {getattr(x, 'shape', '')}"
        )
    if y is None or y.size != len(x) or not np.array_equal(y, y.astype(np.int64)):
        raise DataError(f"{path}: expected Y, {len(x)} numbers, got {getattr(y, 'shape', None)}")
    return x, y.astype(np.int64).ravel()
