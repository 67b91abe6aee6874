"""Conversion of data sets to a folder of people, to RecordIO or to ``.npz``.

Stored image files are copied unchanged; pixels, such as those of aligned faces, are stored as PNG without loss. Names,
landmarks and alignment are kept. A file gets its final name only when it is complete, and an interrupted conversion to
a folder or to RecordIO continues where it stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import torch

from ..errors import DataError
from ..files import Lock, locked, read_json, remove, write_atomically
from ..progress import Report
from ..progress import progress as show_progress
from .digests import image_digest
from .faces import FaceDataset
from .folder import ABOUT, Folder, find_images
from .images import encode_png, probe
from .landmarks import write_landmarks
from .npz import Npz
from .pairs import Pairs
from .record_file import Header, RecordWriter
from .recordio import RecordIO
from .verification_bin import write_verification_bin

KINDS = ("folder", "recordio", "npz")
#: File in a folder that is not converted to its end.
STATE = ".convert.json"
_MAX_NAME = 240  # bytes in a part of a path; file systems allow 255, of which a suffix takes a few
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "PPM": (".ppm", ".pgm", ".pnm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
}


def convert(
    source: FaceDataset,
    target: str | Path,
    kind: str | None = None,
    *,
    pixels: bool = False,
    progress: bool | Report = True,
) -> Path:
    """Write a data set in another format.

    Args:
        source: any data set of faces; a :class:`~occfast.data.Aligned` one is stored aligned.
        target: the folder, the ``.rec`` (``.idx``, ``.lst``, ``property``, ``.json`` and landmarks are written beside
            it) or the ``.npz``.
        kind: "folder", "recordio" or "npz". Defaults to the kind that the suffix of ``target`` implies.
        pixels: stores pixels, uint8 [N, C, H, W], in an ``.npz`` instead of image files. All images must have one size.
        progress: True for a progress bar, False for none, or a function that is called with (done, total).

    Returns:
        The folder or file. After an interruption the same call continues, and writes images again that changed
        meanwhile; an ``.npz`` starts again.

    Raises:
        DataError: if an image cannot be read, or the format cannot hold a name; names are checked first.
        ValueError: if ``target`` exists, another process writes it, or ``pixels`` is given and image sizes differ.
    """
    target = Path(target)
    if kind is None:
        kind = {".rec": "recordio", ".npz": "npz"}.get(target.suffix.lower(), "folder")
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {KINDS}, got {kind!r}")
    if pixels and kind != "npz":
        raise ValueError(f"pixels: expected kind 'npz', got {kind!r}")
    _check_names(source, kind)
    with _only_writer(target) as lock, show_progress(f"writing {target.name}", "images", progress) as report:
        # The lock goes last: one that a kill left beside a whole target is that of a conversion that had ended.
        note = f"{kind} {pixels} {_fingerprint(source)}"
        state = target / STATE if kind == "folder" else target.with_suffix(".rec.part.json")
        if lock.notes == note and target.exists() and not state.exists():
            _check_same(target, kind, source)
            return target
        if kind == "folder":
            _to_folder(source, target, report, lambda: lock.note(note))
        elif kind == "recordio":
            _to_recordio(source, target, report, lambda: lock.note(note))
        else:
            _to_npz(source, target, pixels, report, lambda: lock.note(note))
    return target


def convert_pairs(source: FaceDataset, pairs: Pairs, target: str | Path, *, progress: bool | Report = True) -> Path:
    """Write the pairs of a list as a verification ``.bin``, which insightface and :class:`VerificationBin` read.

    Image files are copied unchanged; pixels, such as those of aligned faces, are stored as PNG. The alignment is
    written beside, into ``<stem>.json``. Pairs with folds are stored fold after fold, since readers of the format take
    successive runs as folds. After an interruption the same call starts again.

    Args:
        source: any data set of faces; an :class:`~occfast.data.Aligned` one is stored aligned.
        pairs: pairs of its images.
        target: the ``.bin``.
        progress: as in :func:`convert`.

    Raises:
        DataError: if an image cannot be read.
        ValueError: if ``target`` exists or has another suffix, or another process writes it.
    """
    target = Path(target)
    if target.suffix.lower() != ".bin":
        raise ValueError(f"target: expected a name that ends in .bin, got {target}")
    order = torch.arange(len(pairs)) if pairs.folds is None else pairs.folds.argsort(stable=True)
    numbers = pairs.index[order].flatten().tolist()

    def images(report: Report) -> Iterator[bytes]:
        for done, k in enumerate(numbers, 1):
            face = source[k]  # decoded, so that a damaged image ends the writing
            stored = source.encoded(k)
            yield encode_png(face.image) if stored is None else stored
            report(done, len(numbers))

    with _only_writer(target), show_progress(f"writing {target.name}", "images", progress) as report:
        if target.exists():
            raise ValueError(f"{target}: expected a new file")
        write_verification_bin(target, images(report), pairs.same[order], alignment=source.alignment)
    return target


def _check_names(source: FaceDataset, kind: str) -> None:
    """Refuse names that the format cannot hold, before anything is written."""
    for noun, names in (("image", source.names), ("person", source.people)):
        for name in names:
            try:
                name.encode()
            except UnicodeEncodeError:
                raise DataError(f"{noun} {name!r}: expected a name that UTF-8 can hold") from None
            if kind == "npz" and name.endswith("\0"):
                raise DataError(f"{noun} {name!r}: expected a name that does not end in a null character")
    if kind == "recordio":
        for name in source.names:
            if not name or any(c in name for c in "\t\r\n\\") or name != name.strip():
                raise DataError(f"image {name!r}: expected a name without tabs, line ends and backslashes")
    elif kind == "folder":
        for name, label in zip(source.names, source.labels.tolist(), strict=True):
            _stem(name, source.people[label])


def _only_writer(target: Path) -> contextlib.AbstractContextManager[Lock]:
    """Hold a lock file beside the target; refuse to write while another process holds it."""

    def busy(holder: str) -> Exception:
        return ValueError(f"{target}: expected no other process that writes it at this moment, got {holder}")

    return locked(target.with_name(f".{target.name}.lock"), busy)


def content(source: FaceDataset, k: int) -> bytes:
    """Return image k as a file: the stored one, or a PNG of its pixels."""
    stored = source.encoded(k)
    return encode_png(source[k].image) if stored is None else stored


def _about(source: FaceDataset) -> dict[str, Any]:
    alignment = None if source.alignment is None else source.alignment.as_dict()
    return {"people": list(source.people), "alignment": alignment}


def _fingerprint(source: FaceDataset) -> str:
    """Return a digest of everything but the images. A conversion continues only for the same source."""
    parts = [list(source.names), source.labels.tolist(), _about(source)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _check_same(target: Path, kind: str, source: FaceDataset) -> None:
    """Refuse a target that was whole before an interruption, if the source has other images now."""
    kinds: dict[str, Callable[..., FaceDataset]] = {"folder": Folder, "recordio": RecordIO, "npz": Npz}
    stored = kinds[kind](target, gray=None)
    found, wanted = (sorted(hashlib.sha256(content(d, k)).digest() for k in range(len(d))) for d in (stored, source))
    if found != wanted:
        raise ValueError(
            f"{target}: expected a new target; an interrupted conversion has completed this one, and its images differ "
            "from the source's"
        )


def _has_landmarks(source: FaceDataset) -> bool:
    return source.landmarks is not None and not bool(source.landmarks.isnan().all())


# Folder


def _to_folder(source: FaceDataset, target: Path, report: Report, note: Callable[[], None]) -> None:
    state = target / STATE
    begun = {"source": _fingerprint(source)}
    if target.exists():
        # A conversion that was killed at once leaves a file of its own, or nothing.
        own = (state.name, f".{state.name}.")
        found = list(target.iterdir()) if target.is_dir() else [target]
        known = read_json(state) if state.is_file() else None
        if known != begun and not all(path.name.startswith(own) for path in found):
            raise ValueError(f"{target}: expected a new folder, or one that this conversion has begun")
        for path in found:
            if path.name.startswith(own[1]):
                path.unlink()
    target.mkdir(parents=True, exist_ok=True)
    write_atomically(state, json.dumps(begun).encode())
    note()  # after the state, without which the folder counts as whole
    stems = [
        _stem(name, source.people[label]) for name, label in zip(source.names, source.labels.tolist(), strict=True)
    ]
    names: list[str] = []
    owners: dict[str, int] = {}
    for k in range(len(source)):
        data = content(source, k)
        names.append(_with_suffix(stems[k], data, source.place(k)))
        if owners.setdefault(names[k], k) != k:
            raise DataError(f"{source.place(k)}: {names[k]} is already the name of {source.place(owners[names[k]])}")
        path = target / names[k]
        if not path.is_file() or path.read_bytes() != data:  # an image that changed meanwhile is written again
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.part")
            part.write_bytes(data)
            part.replace(path)
        report(k + 1, len(source))
    foreign = sorted(set(find_images(target)[0]) - set(names))
    if foreign:  # such as that of an image whose format changed meanwhile
        raise DataError(f"{target / foreign[0]}: not an image of this conversion; remove it and convert again")
    if _has_landmarks(source):
        assert source.landmarks is not None
        write_landmarks(target / "landmarks.csv", names, source.landmarks)
    write_atomically(target / ABOUT, json.dumps(_about(source), indent=1, ensure_ascii=False).encode())
    remove(state)


def _stem(name: str, person: str) -> str:
    """Return the path of an image in a folder of people. Raises DataError for names that would lead out of it."""
    inside = name if name.split("/")[0] == person else f"{person}/{name}"
    for part in inside.split("/"):
        too_long = len(part.encode()) > _MAX_NAME
        if part in ("", ".", "..") or any(c in part for c in "\\:\0") or part.startswith(".") or too_long:
            raise DataError(f"image {name!r} of {person!r}: expected names that make names of files")
    return inside


def _with_suffix(name: str, data: bytes, source: str) -> str:
    """Return the name with the suffix of the image's format, if it has another suffix or none."""
    suffixes = _SUFFIXES[probe(data, source)[0]]
    path = PurePosixPath(name)
    if path.suffix.lower() in suffixes:
        return name
    known = any(path.suffix.lower() in endings for endings in _SUFFIXES.values())
    return str(path.with_suffix(suffixes[0]) if known else path.with_name(path.name + suffixes[0]))


# RecordIO


def _to_recordio(source: FaceDataset, target: Path, report: Report, note: Callable[[], None]) -> None:
    """Write insightface's layout: record 0 states where the images end, and records of the identities follow them."""
    if target.suffix.lower() != ".rec":
        raise ValueError(f"target: expected a name that ends in .rec, got {target}")
    state, log = (target.with_suffix(f".rec.part.{ending}") for ending in ("json", "digests"))
    begun = {"source": _fingerprint(source)}
    resume = state.is_file() and read_json(state) == begun
    if target.exists():
        if resume and RecordWriter.finish(target):  # killed between the last two names
            _check_same(target, "recordio", source)
            note()
            log.unlink(missing_ok=True)
            remove(state)
            return
        raise ValueError(f"{target}: expected a new file")
    if len(source) + len(source.people) >= 1 << 24:
        raise ValueError(
            f"source: expected fewer than {1 << 24:,} images and people, which RecordIO's float32 labels hold"
        )
    write_atomically(state, json.dumps(begun).encode())
    note()
    order = torch.argsort(source.labels, stable=True).tolist()
    count = len(order)
    sizes: set[tuple[int, int]] = set()
    unchanged = _unchanged(source, order, log) if resume else 0
    with RecordWriter(target, resume=resume, keep=1 + unchanged) as writer, _Digests(log, unchanged) as digests:
        written = len(writer.begun)
        if written == 0:
            writer.write(0, Header((count + 1, count + 1 + len(source.people)), 0, listed=True).pack(b""))
        for key, k in enumerate(order, 1):
            if key > unchanged:
                digests.add(image_digest(source, k))
            if key >= written:
                data = content(source, k)
                writer.write(key, Header((float(source.labels[k]),), key).pack(data))
            else:
                data = writer.begun.header(key)[1]
            sizes.add(probe(data, source.place(k))[1])
            report(key, count)
        end = 1
        for person, images in enumerate(source.counts.tolist()):
            begin, end = end, end + images
            if count + 1 + person >= written:
                writer.write(count + 1 + person, Header((begin, end), count + 1 + person, listed=True).pack(b""))
        # What lies beside comes first: a .rec with its name is whole.
        lines = (f"{key}\t{int(source.labels[k])}\t{source.names[k]}\n" for key, k in enumerate(order, 1))
        write_atomically(target.with_suffix(".lst"), "".join(lines).encode())
        write_atomically(target.with_suffix(".json"), json.dumps(_about(source), indent=1, ensure_ascii=False).encode())
        if len(sizes) == 1:
            height, width = sizes.pop()
            write_atomically(target.with_name("property"), f"{len(source.people)},{height},{width}\n".encode())
        if _has_landmarks(source):
            assert source.landmarks is not None
            names = [source.names[k] for k in order]
            write_landmarks(target.with_suffix(".landmarks.csv"), names, source.landmarks[order])
    log.unlink()
    remove(state)


def _unchanged(source: FaceDataset, order: list[int], log: Path) -> int:
    """Return how many images at the beginning are those that an interrupted conversion has logged."""
    logged = log.read_bytes() if log.is_file() else b""
    known = [logged[at : at + 32] for at in range(0, len(logged) - 31, 32)]
    same = (image_digest(source, k) == digest for k, digest in zip(order, known, strict=False))
    return next((number for number, equal in enumerate(same) if not equal), min(len(order), len(known)))


class _Digests:
    """A log of the digests of the images that were written, 32 bytes each, kept for the first ``keep`` of them."""

    def __init__(self, log: Path, keep: int) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._file = log.open("r+b" if log.is_file() else "wb")
        self._file.truncate(32 * keep)
        self._file.seek(32 * keep)

    def add(self, digest: bytes) -> None:
        self._file.write(digest)
        self._file.flush()

    def __enter__(self) -> _Digests:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


# .npz


def _to_npz(source: FaceDataset, target: Path, pixels: bool, report: Report, note: Callable[[], None]) -> None:
    if target.suffix.lower() != ".npz":
        raise ValueError(f"target: expected a name that ends in .npz, got {target}")
    if target.exists():
        raise ValueError(f"{target}: expected a new file")
    note()
    # A kill leaves a part, which has one name, so that the next conversion replaces it.
    part = target.with_name(f".{target.name}.part")
    with _replacing(part, target) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        if pixels:
            first = source[0].image
            with _member(archive, "images", np.uint8, (len(source), *first.shape)) as out:
                for k in range(len(source)):
                    image = source[k].image
                    if image.shape != first.shape:
                        raise ValueError(
                            f"pixels: expected images of one size, {list(first.shape)}, got {list(image.shape)} for "
                            f"{source.place(k)}"
                        )
                    out.write(image.contiguous().numpy().tobytes())
                    report(k + 1, len(source))
        else:
            offsets = [0]
            with tempfile.TemporaryFile(dir=target.parent) as spool:
                for data in _contents(source, report):
                    spool.write(data)
                    offsets.append(offsets[-1] + len(data))
                spool.seek(0)
                with _member(archive, "encoded", np.uint8, (offsets[-1],)) as out:
                    shutil.copyfileobj(spool, out, 1 << 20)
            _array(archive, "offsets", np.array(offsets, np.int64))
        _array(archive, "labels", source.labels.numpy())
        _array(archive, "names", np.array(source.names))
        _array(archive, "people", np.array(source.people))
        if source.landmarks is not None:
            _array(archive, "landmarks", source.landmarks.double().numpy())
        alignment = _about(source)["alignment"]
        _array(archive, "about", np.array(json.dumps({"alignment": alignment})))


@contextlib.contextmanager
def _replacing(part: Path, target: Path) -> Iterator[BinaryIO]:
    """Write to ``part``, which gets its name when the ``with`` block ends well and is removed otherwise."""
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _contents(source: FaceDataset, report: Report) -> Iterator[bytes]:
    for k in range(len(source)):
        yield content(source, k)
        report(k + 1, len(source))


def _member(archive: zipfile.ZipFile, name: str, dtype: Any, shape: tuple[int, ...]) -> Any:
    """Open an array of the archive for writing its elements."""
    out: BinaryIO = archive.open(f"{name}.npy", "w", force_zip64=True)  # type: ignore[assignment]
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, header)
    return out


def _array(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    archive.writestr(f"{name}.npy", buffer.getvalue())
