"""Image files: a folder with a folder for each person, or a list."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import DataError
from ..files import read_bytes, read_json
from .faces import Alignment, EncodedFaces, keep, number_people
from .images import SUFFIXES, UNREAD
from .landmarks import LandmarkTable, read_landmarks
from .lists import read_list

#: File of a folder that records the alignment of its images.
ABOUT = "about.json"


class ImageFiles(EncodedFaces):
    """Base class of folders, lists and public data sets of image files.

    Args:
        root: folder that the names are relative to.
        names: names of the image files, unique, with "/" between folders.
        identities: the person in each image.
        landmarks: table of landmarks by name, or its file; None if there are none.
        min_images: leaves out people with fewer images.
        people: keeps only these people.
        exclude: leaves out these people.
        gray: as in :class:`EncodedFaces`.
    """

    def __init__(
        self,
        root: str | Path,
        names: Sequence[str],
        identities: Sequence[str],
        *,
        landmarks: LandmarkTable | str | Path | None = None,
        min_images: int = 1,
        people: Iterable[str] | None = None,
        exclude: Iterable[str] = (),
        gray: bool | None = False,
    ) -> None:
        super().__init__(gray=gray)
        self.root = Path(root)
        kept = keep(identities, str(self.root), min_images, people, exclude)
        self.names = [names[k] for k in kept]
        self.people, self.labels = number_people([identities[k] for k in kept], str(self.root))
        if isinstance(landmarks, (str, Path)):
            landmarks = read_landmarks(landmarks)
        self.landmarks = None if landmarks is None else landmarks.of(self.names)
        if landmarks is not None and landmarks.names and not any(landmarks.has(name) for name in self.names):
            warnings.warn(
                f"{self.root}: the landmarks are of other images, such as {landmarks.names[0]!r}; those here are named "
                f"like {self.names[0]!r}",
                stacklevel=3,
            )

    def path(self, k: int) -> Path:
        """Return the file of image k."""
        return self.root / self.names[k]

    def encoded(self, k: int) -> bytes | None:
        """Read the file of image k."""
        return read_bytes(self.place(k))

    def place(self, k: int) -> str:
        """Return the path of image k."""
        return f"{self.root}/{self.names[k]}"


def find_images(root: Path, suffixes: frozenset[str] = SUFFIXES) -> tuple[list[str], list[str]]:
    """List the files under a folder.

    Links to folders are followed. Files whose names begin with "." do not count as images.

    Args:
        root: the folder.
        suffixes: suffixes of image files, in lower case.

    Returns:
        The image files and the other files, as sorted paths relative to ``root`` with "/" between folders.

    Raises:
        DataError: if a folder cannot be listed, a link leads back to a folder that contains it, or links lead to one
            folder twice.
    """
    images: list[str] = []
    others: list[str] = []
    waiting = [("", str(root))]
    seen: dict[tuple[int, int], str] = {}
    while waiting:
        prefix, folder = waiting.pop()
        try:
            state = os.stat(folder)  # noqa: PTH116 - this loop runs once for each folder of a data set
            first = seen.setdefault((state.st_dev, state.st_ino), prefix) if state.st_ino else prefix
            if first != prefix:
                raise DataError(
                    f"{folder}: a link to a folder that it lies in"
                    if prefix.startswith(first)
                    else f"{folder}: the same folder as {root / first}; its images would count twice"
                )
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir():
                        waiting.append((f"{prefix}{entry.name}/", entry.path))
                    else:
                        is_image = os.path.splitext(entry.name)[1].lower() in suffixes  # noqa: PTH122
                        listed = images if is_image and not entry.name.startswith(".") else others
                        listed.append(prefix + entry.name)
        except OSError as error:
            raise DataError(f"{folder if len(folder) < 500 else root}: can't be listed: {error.strerror}") from error
    return sorted(images), sorted(others)


def _warn_of_unread(root: Path, others: list[str]) -> None:
    """Warn of photographs among the other files of a folder; that they are left out would go unnoticed."""
    suffixes = [suffix for name in others if (suffix := Path(name).suffix.lower()) in UNREAD]
    if suffixes:
        kinds = ", ".join(f"{suffixes.count(suffix):,} {suffix}" for suffix in sorted(set(suffixes)))
        warnings.warn(
            f"{root}: images of formats that occfast does not read are left out ({kinds}); convert them to JPEG or PNG",
            stacklevel=3,
        )


def _repeated_folder(images: list[str], others: list[str]) -> str | None:
    """Return the only folder at the top, if the folders of the people lie in it: a set that was unpacked twice."""
    tops = {name.split("/")[0] for name in images}
    people = {name.split("/")[1] for name in images if name.count("/") > 1}
    whole = all(name.count("/") > 1 for name in images) and all("/" in name for name in others)
    return next(iter(tops)) if len(tops) == 1 and len(people) > 1 and whole else None


class Folder(ImageFiles):
    """A folder with a folder of images for each person: ``root/<person>/<image>``, at any depth below the person.

    A folder whose only content is such a folder (a set that was unpacked twice) is read with a warning. ``about.json``,
    which ``occfast data convert`` writes, records the alignment of the images.

    Attributes:
        others: files that are not images of people, because of their suffix or since they lie outside the folders.

    Args:
        root: the folder.
        landmarks: CSV file with the landmarks of the images, by their names relative to ``root``. Defaults to
            ``landmarks.csv`` in ``root``, if present.
        min_images, people, exclude, gray: as in :class:`ImageFiles`.

    Raises:
        DataError: if the folder cannot be listed or has no images in folders.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        landmarks: LandmarkTable | str | Path | None = None,
        min_images: int = 1,
        people: Iterable[str] | None = None,
        exclude: Iterable[str] = (),
        gray: bool | None = False,
    ) -> None:
        root = Path(root)
        images, others = find_images(root)
        inner = _repeated_folder(images, others)
        if inner is not None:
            warnings.warn(f"{root}: read from the only folder in it, {inner}", stacklevel=2)
            root /= inner
            images, others = ([name[len(inner) + 1 :] for name in part] for part in (images, others))
        _warn_of_unread(root, others)
        names = [name for name in images if "/" in name]
        self.others = sorted([*others, *(name for name in images if "/" not in name)])
        if landmarks is None and "landmarks.csv" in others:
            landmarks = root / "landmarks.csv"
            self.others.remove("landmarks.csv")
        if not names:
            raise DataError(
                f"{root}: expected folders of images, one a person, found none ({len(self.others)} other files)"
            )
        super().__init__(
            root,
            names,
            [name.split("/")[0] for name in names],
            landmarks=landmarks,
            min_images=min_images,
            people=people,
            exclude=exclude,
            gray=gray,
        )
        if ABOUT in self.others:
            self.alignment = Alignment.read(read_json(root / ABOUT).get("alignment"), str(root / ABOUT))
            self.others.remove(ABOUT)


class Photographs(ImageFiles):
    """Photographs of anybody: all image files of a folder, at any depth, or one file. Each counts as its own person.

    Args:
        root: the folder, or an image file.
        landmarks: as in :class:`Folder`.
        gray: as in :class:`ImageFiles`.

    Raises:
        DataError: if there is no such folder or file, it cannot be listed, or has no images.
    """

    def __init__(
        self, root: str | Path, *, landmarks: LandmarkTable | str | Path | None = None, gray: bool | None = False
    ) -> None:
        root = Path(root)
        if root.is_file():
            root, names, others = root.parent, [root.name], list[str]()
        elif root.is_dir():
            names, others = find_images(root)
        else:
            raise DataError(f"{root}: no such file or folder")
        _warn_of_unread(root, others)
        if not names:
            raise DataError(f"{root}: expected images, found none ({len(others)} other files)")
        if landmarks is None and "landmarks.csv" in others:
            landmarks = root / "landmarks.csv"
        super().__init__(root, names, names, landmarks=landmarks, gray=gray)
        if ABOUT in others:
            self.alignment = Alignment.read(read_json(root / ABOUT).get("alignment"), str(root / ABOUT))


class ImageList(ImageFiles):
    """Images listed in a text file: a path and a person on each line, between them a tab, comma, semicolon or spaces.

    A first line with titles, such as ``image,identity``, says which columns hold them; other columns are ignored. The
    ``.lst`` files of mxnet (key, label, path) and of insightface (flag, path, label) are read as well. Empty lines and
    lines that begin with ``#`` are skipped. Windows line ends, a byte-order mark, quoted cells and backslashes between
    folders are accepted. A path with spaces needs another separator after it.

    Args:
        path: the list.
        root: folder that the paths are relative to. Defaults to the folder of the list.
        landmarks, min_images, people, exclude, gray: as in :class:`ImageFiles`.

    Raises:
        DataError: if a line is malformed, an image is listed twice, a person's number is written in two ways (1 and
            01), or image files are missing.
    """

    def __init__(
        self,
        path: str | Path,
        root: str | Path | None = None,
        *,
        landmarks: LandmarkTable | str | Path | None = None,
        min_images: int = 1,
        people: Iterable[str] | None = None,
        exclude: Iterable[str] = (),
        gray: bool | None = False,
    ) -> None:
        path = Path(path)
        root = path.parent if root is None else Path(root)
        names, identities = read_list(path)
        missing = [name for name in names if not (root / name).is_file()]
        if missing:
            raise DataError(f"{path}: {len(missing)} of {len(names)} images are not under {root}: {missing[0]}")
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
