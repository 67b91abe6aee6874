"""CelebA (Liu et al. 2015), and other data sets of one folder of images and a table of identities."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..errors import DataError
from .folder import ImageFiles, find_images
from .landmarks import LandmarkTable, read_landmarks, read_table
from .lists import is_count, read_lines
from .roots import find_root

_FOLDERS = ("images", "img_celeba", "img_align_celeba")


class CelebA(ImageFiles):
    """One folder of images and a table of the person in each.

    Args:
        root: folder with ``images`` (or ``img_celeba``, ``img_align_celeba``; also in ``Img``) and either
            ``landmarks.csv`` with the columns ``image`` and ``identity`` and optionally the landmarks (see
            :mod:`occfast.data.landmarks`), or CelebA's own ``identity_CelebA.txt`` (also in ``Anno``). None uses the
            folder ``celeba`` in $OCCFAST_DATA.
        table: the table of identities, if it lies elsewhere.
        landmarks: file with the landmarks, if the table has none. Defaults to CelebA's own
            ``list_landmarks_align_celeba.txt`` or ``list_landmarks_celeba.txt``, if present.
        min_images, people, exclude, gray: as in :class:`ImageFiles`; people are named by their identity in the table.

    Attributes:
        others: image files that the table does not list.

    Raises:
        DataError: if there is no table, a line of it is malformed, or images that it lists are missing.
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
        places = [base / part / name for name in _FOLDERS for part in ("", "Img")]
        folder = next((place for place in places if place.is_dir()), base)
        if (folder / folder.name).is_dir():  # unpacked twice
            folder /= folder.name
        if table is None:
            tables = [base / "landmarks.csv", base / "identity_CelebA.txt", base / "Anno" / "identity_CelebA.txt"]
            table = next((path for path in tables if path.is_file()), None)
            if table is None:
                raise DataError(
                    f"{base}: expected landmarks.csv or identity_CelebA.txt with the identities, found neither"
                )
        names, identities, own = read_identities(Path(table))
        present = set(find_images(folder)[0])
        missing = [name for name in names if name not in present]
        if missing:
            raise DataError(f"{table}: {len(missing)} of {len(names)} images are not in {folder}: {missing[0]}")
        self.others = sorted(present.difference(names))
        if landmarks is None and own is None:
            kind = "align_celeba" if folder.name == "img_align_celeba" else "celeba"
            lists = [
                base / part / f"list_landmarks_{kind}{suffix}" for part in ("", "Anno") for suffix in (".txt", ".csv")
            ]
            landmarks = next((path for path in lists if path.is_file()), None)
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
    """Read a CSV table or a file like ``identity_CelebA.txt``.

    Returns:
        The names of the images, the identities, and the landmarks, or None if the table has none.

    Raises:
        DataError: if a line is malformed, or an image occurs twice.
    """
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
            if not pairs and (cells == ["image_id", "identity"] or (line == 1 and len(cells) == 1 and is_count(text))):
                continue  # a header, or the number of images
            if len(cells) != 2:
                raise DataError(f"{path}, line {line}: expected an image and an identity, got {text!r}")
            pairs.append((line, cells[0], cells[1]))
    seen: dict[str, int] = {}
    for line, name, _ in pairs:
        if seen.setdefault(name, line) != line:
            raise DataError(f"{path}, line {line}: image {name!r} is there already, at line {seen[name]}")
    return list(seen), [person for _, _, person in pairs], None
