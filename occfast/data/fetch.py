"""Download of public data sets by scikit-learn's addresses and checksums, into its cache."""

from __future__ import annotations

import hashlib
import importlib
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..files import writing
from ..packages import require
from ..progress import Report
from ..progress import progress as show_progress

_CHUNK = 1 << 18
_TIMEOUT = 30.0


@dataclass(frozen=True)
class _File:
    """A file to download: name in the cache, address, SHA-256."""

    path: Path
    url: str
    checksum: str


def fetch(
    name: str, home: str | Path | None = None, *, mirror: str | None = None, progress: bool | Report = True
) -> Path:
    """Download a data set and verify it. Existing files are kept, and interrupted downloads continue.

    Args:
        name: "lfw" (funneled, 250×250, with its pairs) or "olivetti" (400 images of 40 people, 64×64 gray).
        home: scikit-learn's cache. Defaults to ``$SCIKIT_LEARN_DATA`` or ``~/scikit_learn_data``.
        mirror: address of a folder with the same files, to use instead of scikit-learn's addresses.
        progress: True for a progress bar, False for none, or a function that is called with (done, total).

    Returns:
        The folder for :class:`~occfast.data.LFW`, or the file for :class:`~occfast.data.Npz`.

    Raises:
        DataError: if there is no connection (the message says which file to put where), or a checksum differs.
    """
    if name not in FETCHERS:
        raise ValueError(f"name: expected one of {', '.join(FETCHERS)}, got {name!r}")
    require("fetching", "sklearn", extra="fetch")
    from sklearn.datasets import get_data_home

    return FETCHERS[name](Path(get_data_home(home)), mirror, progress)


def _fetch_lfw(home: Path, mirror: str | None, progress: bool | Report) -> Path:
    from sklearn.datasets import fetch_lfw_people

    sources: Any = importlib.import_module("sklearn.datasets._lfw")
    base = home / "lfw_home"
    images = base / "lfw_funneled"
    wanted = [_file(base, target, mirror) for target in sources.TARGETS]
    archive = _file(base, sources.FUNNELED_ARCHIVE, mirror)
    if not images.is_dir():
        wanted.append(archive)
    elif archive.path.is_file():  # scikit-learn removes it once it is unpacked
        raise DataError(f"{images}: not wholly unpacked from {archive.path.name}: remove the folder and fetch again")
    _download(wanted, progress, f"its people's folders in {images}")
    if not images.is_dir():
        # scikit-learn unpacks the archive; people with 500 images (one) are what it would load least of.
        fetch_lfw_people(data_home=str(home), min_faces_per_person=500, download_if_missing=False)
    return base


def _fetch_olivetti(home: Path, mirror: str | None, progress: bool | Report) -> Path:
    from sklearn.datasets import fetch_olivetti_faces

    target = home / "olivetti.npz"
    if target.is_file():
        return target
    sources: Any = importlib.import_module("sklearn.datasets._olivetti_faces")
    if not any(home.glob("olivetti*.pkz")):
        _download([_file(home, sources.FACES, mirror)], progress, "")
    faces = fetch_olivetti_faces(data_home=str(home))
    with writing(target) as file:
        np.savez(
            file,
            images=(faces.images * 255).round().astype(np.uint8),
            labels=faces.target.astype(np.int64),
            people=np.array([f"person {person + 1}" for person in range(int(faces.target.max()) + 1)]),
        )
    return target


FETCHERS: dict[str, Callable[[Path, str | None, bool | Report], Path]] = {
    "lfw": _fetch_lfw,
    "olivetti": _fetch_olivetti,
}


def _file(folder: Path, remote: Any, mirror: str | None) -> _File:
    url = remote.url if mirror is None else f"{mirror.rstrip('/')}/{remote.filename}"
    if not url.startswith(("http://", "https://", "file://")):
        raise ValueError(f"mirror: expected an address that begins with https://, http:// or file://, got {mirror!r}")
    return _File(folder / remote.filename, url, remote.checksum)


def _download(files: list[_File], progress: bool | Report, instead: str) -> None:
    for file in files:
        if file.path.is_file() and _checksum(file.path) == file.checksum:
            continue
        file.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with show_progress(file.path.name, "bytes", progress) as report:
                _get(file, report)
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            places = "; ".join(f"{each.path} (SHA-256 {each.checksum}) from {each.url}" for each in files)
            also = f"; or put {instead}" if instead else ""
            reason = getattr(error, "reason", error)
            raise DataError(f"{file.url}: no connection ({reason}). By hand, put {places}{also}") from error


def _get(file: _File, report: Report) -> None:
    """Download to ``<name>.part``, continuing an earlier download, and verify the checksum."""
    part = file.path.with_name(file.path.name + ".part")
    start = part.stat().st_size if part.is_file() else 0
    _receive(file.url, part, start, report)
    if start and _checksum(part) != file.checksum:
        _receive(file.url, part, 0, report)  # what was there was another file's beginning
    found = _checksum(part)
    if found != file.checksum:
        part.unlink()
        raise DataError(f"{file.url}: expected SHA-256 {file.checksum}, got {found}: not the same file")
    part.replace(file.path)


def _receive(url: str, part: Path, start: int, report: Report) -> None:
    """Append the bytes from ``start`` on, or write the whole file if the server does not support ranges."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            goes_on = start > 0 and answer.status == 206
            done = start if goes_on else 0
            length = answer.headers.get("Content-Length")
            total = None if length is None else int(length) + done
            with part.open("ab" if goes_on else "wb") as out:
                while chunk := answer.read(_CHUNK):
                    out.write(chunk)
                    done += len(chunk)
                    report(done, total)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing follows: the checksum decides
            return
        raise
    if total is not None and done < total:
        raise ConnectionError(f"only {done:,} of {total:,} bytes came; the same command continues")


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
