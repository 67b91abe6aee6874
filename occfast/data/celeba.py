"""CelebA (Liu et al. 2015) and other sets of one folder of images with a table of identities."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..errors import DataError
from .folder import ImageFiles, read_lines
from .images import SUFFIXES
from .landmarks import LandmarkTable, read_landmarks, read_table
from .roots import find_root


class CelebA(ImageFiles):
    """One folder of images, and a table that says whom each shows.

    Args:
        root: folder with ``images`` (or ``img_celeba``, ``img_align_celeba``) and ``landmarks.csv`` (``image``,
            ``identity`` and the landmarks: see :mod:`occfast.data.landmarks`), or CelebA's own
            ``identity_CelebA.txt`` (image and number a line); None: the folder ``celeba`` in $OCCFAST_DATA.
        table: another such table.
        landmarks: a CSV file of landmarks by image name, where the table has none.
        min_images, people, exclude, gray: as in :class:`ImageFiles`; people are named by their identity in the table.

    Attributes:
        others: image files on the disk that the table doesn't name.

    Raises:
        DataError: no table, a bad line of it, or images that it names but which are not on the disk.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        table: str | Path | None = None,
        landmarks: LandmarkTable | str | Path | None = None,
        min_images: int = 1,
        people: Iterable[str] | None = None,
        exclude: Iterable[str] = (),
        gray: bool | None = False,
    ) -> None:
        base = find_root(
            root, "celeba", "CelebA: images/000001.jpg and so on, and landmarks.csv or identity_CelebA.txt"
        )
        folder = next(
            (base / name for name in ("images", "img_celeba", "img_align_celeba") if (base / name).is_dir()), base
        )
        if table is None:
            tables = [base / "landmarks.csv", base / "identity_CelebA.txt"]
            table = next((path for path in tables if path.is_file()), None)
            if table is None:
                raise DataError(
                    f"{base}: expected landmarks.csv or identity_CelebA.txt with the identities, found neither"
                )
        names, identities, own = read_identities(Path(table))
        present = {path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES}
        missing = [name for name in names if name not in present]
        if missing:
            raise DataError(f"{table}: {len(missing)} of {len(names)} images are not in {folder}: {missing[0]}")
        self.others = sorted(present.difference(names))
        super().__init__(
            folder,
            names,
            identities,
            landmarks=own if landmarks is None else landmarks,
            min_images=min_images,
            people=people,
            exclude=exclude,
            gray=gray,
        )


def read_identities(path: Path) -> tuple[list[str], list[str], LandmarkTable | None]:
    """Names, identities and, where it has them, landmarks of a CSV table or of a file like ``identity_CelebA.txt``."""
    if path.suffix.lower() == ".csv":
        header, rows = read_table(path, ["image", "identity"])
        if any(name.startswith("left_eye_") for name in header):
            table = read_landmarks(path)
            return table.names, table.columns["identity"], table
        image, identity = header.index("image"), header.index("identity")
        pairs = [(line, row[image], row[identity]) for line, row in rows]
    else:
        pairs = []
        for line, text in read_lines(path):
            cells = text.split()
            if len(cells) != 2:
                raise DataError(f"{path}, line {line}: expected an image and an identity, got {text!r}")
            pairs.append((line, cells[0], cells[1]))
    seen: dict[str, int] = {}
    for line, name, _ in pairs:
        if seen.setdefault(name, line) != line:
            raise DataError(f"{path}, line {line}: image {name!r} is there already, at line {seen[name]}")
    return list(seen), [person for _, _, person in pairs], None
