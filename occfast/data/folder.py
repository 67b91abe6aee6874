"""Images in files: a folder of identities, or a list."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath, PurePosixPath

from ..errors import DataError
from ..files import read_json
from .faces import Alignment, EncodedFaces, keep, number_people
from .images import SUFFIXES, read_bytes
from .landmarks import LandmarkTable, read_landmarks

#: What a folder's images are: how they were aligned and from what they were made.
ABOUT = "about.json"


class ImageFiles(EncodedFaces):
    """Image files under a root, with whom each shows: what folders, lists and the public sets have in common.

    Args:
        root: folder that the names are relative to.
        names: of the image files, unique, with "/" between folders.
        identities: whom each shows.
        landmarks: table with landmarks by name, or the CSV file of one; None: none are known.
        min_images: leave out people with fewer images.
        people: leave out all but these people; DataError names those of them who have no image.
        exclude: leave out these people.
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

    def path(self, k: int) -> Path:
        """File of image k."""
        return self.root / self.names[k]

    def encoded(self, k: int) -> bytes:
        return read_bytes(self.place(k))

    def place(self, k: int) -> str:
        return f"{self.root}/{self.names[k]}"


def find_images(root: Path) -> tuple[list[str], list[str]]:
    """Image files under a folder, by the endings of their names, and the other files; relative, "/" between, sorted.

    Files whose names begin with "." are none of images, whatever their ending.  Links to folders are followed.
    DataError where a folder can't be listed or a link leads back to a folder that it lies in.
    """

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename}: can't be listed: {error.strerror}") from error

    images: list[str] = []
    others: list[str] = []
    for folder, inside, files in os.walk(root, onerror=fail, followlinks=True):
        for name in inside:
            path = os.path.join(folder, name)  # noqa: PTH118 - a Path a file would take most of the time
            if os.path.islink(path) and f"{os.path.realpath(folder)}/".startswith(f"{os.path.realpath(path)}/"):  # noqa: PTH114
                raise DataError(f"{path}: a link to a folder that it lies in")
        base = PurePath(folder).relative_to(root).as_posix()
        prefix = "" if base == "." else f"{base}/"
        for name in files:
            is_image = os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")  # noqa: PTH122
            (images if is_image else others).append(prefix + name)
    return sorted(images), sorted(others)


class Folder(ImageFiles):
    """A folder with a folder of images for each identity: ``root/<identity>/<image>``, at any depth below it.

    ``about.json`` in it, as ``occfast data convert`` writes it, tells how the images were aligned.

    Attributes:
        others: files that are not taken for images of people: other endings, or not in an identity's folder.

    Args:
        root: the folder.
        landmarks: CSV file with the landmarks of the images, by their names relative to ``root``; None: the file
            ``landmarks.csv`` in ``root`` if there is one.
        min_images, people, exclude, gray: as in :class:`ImageFiles`.

    Raises:
        DataError: the folder can't be listed or has no images in folders.
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


class ImageList(ImageFiles):
    """Images named in a text file, one a line: the path and whom it shows, separated by a tab, a comma or spaces.

    mxnet's ``.lst`` files (number, label, path, separated by tabs) are read as well.  Lines that are empty or begin
    with ``#`` are none; Windows line ends and a byte-order mark are accepted; backslashes separate folders where the
    file has Windows paths.  A path with spaces needs a tab or a comma after it.

    Args:
        path: the list.
        root: folder that its paths are relative to; None: the folder of the list.
        landmarks, min_images, people, exclude, gray: as in :class:`ImageFiles`.

    Raises:
        DataError: with the line, where a line names no person or an image for the second time; missing image files are
            counted when the list is read.
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


def read_lines(path: Path) -> list[tuple[int, str]]:
    """(number, text) of the lines of a UTF-8 file that are not empty, without line ends of any system."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected UTF-8, byte {error.object[error.start]:#04x} at offset {error.start}"
        ) from error
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def is_count(cell: str) -> bool:
    """Whether a cell is a whole number of at most nine digits."""
    return cell.isascii() and cell.isdecimal() and len(cell) < 10


def read_list(path: Path) -> tuple[list[str], list[str]]:
    """Names and identities of a list file or ``.lst``: see :class:`ImageList`."""
    seen: dict[str, int] = {}
    identities = []
    for number, line in read_lines(path):
        if line.lstrip().startswith("#"):
            continue
        separator = next((s for s in ("\t", ",") if s in line), None)
        cells = [cell.strip() for cell in (line.split(separator) if separator else line.rsplit(None, 1))]
        if path.suffix == ".lst":
            if separator != "\t" or len(cells) != 3:
                raise DataError(f"{path}, line {number}: expected number, label, path with tabs between, got {line!r}")
            name, identity = cells[2], _label(cells[1])
        elif len(cells) != 2:
            raise DataError(f"{path}, line {number}: expected a path and a person, got {line!r}")
        else:
            name, identity = cells
        name = PurePosixPath(name.replace("\\", "/")).as_posix()
        if not name or not identity:
            raise DataError(f"{path}, line {number}: expected a path and a person, got {line!r}")
        if seen.setdefault(name, number) != number:
            raise DataError(f"{path}, line {number}: {name!r} is there already, at line {seen[name]}")
        identities.append(identity)
    return list(seen), identities


def _label(cell: str) -> str:
    """mxnet writes whole labels as "7.000000"."""
    try:
        return str(int(float(cell))) if float(cell).is_integer() else cell
    except (ValueError, OverflowError):
        return cell
