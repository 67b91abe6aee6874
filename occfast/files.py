"""Atomic writing of files, and reading with clear errors."""

from __future__ import annotations

import contextlib
import io
import json
import os
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .errors import DataError

#: Larger files are refused where whole files are read.
MAX_BYTES = 1 << 30
MAX_JSON_BYTES = 64 << 20


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file for writing that gets its name only when the ``with`` block succeeds; else the old content stays.

    Raises:
        OSError: The disk is full or the folder can't be written; the message names the file.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            umask = os.umask(0)
            os.umask(umask)
            Path(name).chmod(0o666 & ~umask)  # mkstemp makes files private
            Path(name).replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as error:
        raise OSError(
            error.errno, f"{target} could not be written: {error.strerror}; its old content is kept"
        ) from error


def write_atomically(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write a file that holds the old content or the new one, never a part; see :func:`writing`. Return its path."""
    with writing(path) as file:
        file.write(content)
    return Path(path)


def write_npz(path: str | os.PathLike[str], **arrays: Any) -> Path:
    """Write a compressed ``.npz`` file atomically. Return its path."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return write_atomically(path, buffer.getvalue())


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return all arrays of an ``.npz`` file. Nothing in it is ever unpickled.

    Raises:
        FileNotFoundError: There is no file.
        DataError: It is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, AttributeError, NotImplementedError) as error:
        raise DataError(f"{path}: not a readable .npz file ({error})") from error
    except Exception as error:  # zlib.error and what else damaged bytes provoke
        raise DataError(f"{path}: damaged ({error})") from error


def read_bytes(path: str | os.PathLike[str], limit: int = MAX_BYTES) -> bytes:
    """Read a regular file.

    Args:
        path: the file.
        limit: largest size in bytes.

    Raises:
        DataError: if the file cannot be read, is larger than ``limit``, or is a folder, pipe, socket or device.
    """
    try:
        # A pipe without a writer would block; O_NONBLOCK has no effect on regular files.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(handle, "rb", buffering=0) as file:  # noqa: PTH123 - an open descriptor has no path
            state = os.fstat(handle)
            if not stat.S_ISREG(state.st_mode):
                raise DataError(f"{path}: expected a regular file")
            if state.st_size > limit:
                raise DataError(f"{path}: expected at most {limit:,} bytes, got {state.st_size:,}")
            return file.read()
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from error


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a text file in UTF-8, with or without a byte-order mark.

    Raises:
        DataError: The file cannot be read or is not UTF-8; the message has the offset of the byte.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected UTF-8, byte {error.object[error.start]:#04x} at offset {error.start}"
        ) from error


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the JSON object in a file. Raises DataError if it can't be read or holds something else."""
    try:
        value = json.loads(read_bytes(path, MAX_JSON_BYTES).decode("utf-8-sig"))
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected JSON ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value
