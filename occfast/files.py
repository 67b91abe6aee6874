"""Atomic writing of files, and reading with clear errors."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import stat
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from .errors import DataError

#: Larger files are refused where whole files are read.
MAX_BYTES = 1 << 30
MAX_JSON_BYTES = 64 << 20
#: Larger ``.npz`` files are refused; a file of megabytes can claim gigabytes.
MAX_ARRAY_BYTES = 4 << 30


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file for writing that gets its name only when the ``with`` block succeeds; else the old content stays.

    Until then the content is in a hidden file beside it, ``.<name>.part``. One that a killed process left is used again
    by the next write.

    Raises:
        OSError: The disk is full or the folder can't be written; the message names the file.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, part = _open_part(target) or _open_other(target)
        try:
            with os.fdopen(handle, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                part.replace(target)  # while the lock is held
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
        _sync_folder(target.parent)
    except OSError as error:
        raise OSError(
            error.errno, f"{target} could not be written: {error.strerror}; its old content is kept"
        ) from error


def remove(path: str | os.PathLike[str]) -> None:
    """Delete a file, and what a killed write of it left; neither need exist."""
    target = Path(path)
    target.unlink(missing_ok=True)
    if (found := _open_part(target, create=False)) is not None:
        found[1].unlink(missing_ok=True)
        os.close(found[0])


def _open_part(target: Path, *, create: bool = True) -> tuple[int, Path] | None:
    """Open and lock the file that becomes ``target``, empty.

    Returns:
        The open file and its path; None if there is none and ``create`` is False, or if another process writes it.
    """
    path = target.with_name(f".{target.name}.part")
    # Neither a link nor a pipe of somebody else is followed.
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(path, flags | (os.O_CREAT if create else 0), 0o666)
    except OSError:
        if create and not os.path.lexists(path):
            raise
        return None
    try:
        _lock(handle)
        state, there = os.fstat(handle), os.lstat(path)
        same = (state.st_dev, state.st_ino) == (there.st_dev, there.st_ino)  # not renamed by its former holder
        if same and stat.S_ISREG(state.st_mode) and state.st_nlink == 1 and state.st_uid == os.geteuid():
            os.ftruncate(handle, 0)
            return handle, path
    except OSError:
        pass
    os.close(handle)
    return None


def _open_other(target: Path) -> tuple[int, Path]:
    """Open a new file with a name of its own, where another process writes ``target`` at the same time."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    umask = os.umask(0)
    os.umask(umask)
    Path(name).chmod(0o666 & ~umask)  # mkstemp makes files private
    return handle, Path(name)


def _lock(handle: int) -> None:
    """Lock an open file or raise OSError; the system releases the lock when the file is closed or the process dies."""
    import fcntl

    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sync_folder(folder: Path) -> None:
    """Let a new name reach the disk; not every system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@dataclass
class Lock:
    """A lock file that this process holds.

    Attributes:
        notes: Lines that a process noted in it which then died; "" after a process that removed it.
    """

    file: TextIO
    notes: str

    def note(self, text: str) -> None:
        """Replace the notes, which stay in the file if this process dies. A full disk loses them."""
        began = time.strftime("%Y-%m-%d %H:%M:%S")
        with contextlib.suppress(OSError):
            self.file.truncate(0)
            self.file.write(f"process {os.getpid()} on {socket.gethostname()} (since {began})\n{text}")
            self.file.flush()
        self.notes = text


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], busy: Callable[[str], Exception]) -> Iterator[Lock]:
    """Hold a lock file, so that no second process does the same work; the system releases it if the process dies.

    Args:
        path: The lock file; its folder is created, and removed again if nothing was written into it.
        busy: Makes the error from the name of the process that holds the lock.

    Raises:
        OSError: The file can't be written.
    """
    path = Path(path)
    made = not path.parent.exists()
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+")
        except OSError as error:
            raise OSError(error.errno, f"{path.parent}: can't be written: {error.strerror}") from error
        try:
            _lock(file.fileno())
        except BlockingIOError:
            file.seek(0)
            holder = file.readline().strip() or "another process"
            file.close()
            raise busy(holder) from None
        except OSError:
            file.close()
            raise
        try:
            same = path.stat().st_ino == os.fstat(file.fileno()).st_ino
        except FileNotFoundError:
            same = False
        if same:
            break
        file.close()  # the former holder removed this file in between
    try:
        file.seek(0)
        lock = Lock(file, file.read().partition("\n")[2])
        lock.note(lock.notes)
        yield lock
    finally:
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            file.close()
        if made:
            with contextlib.suppress(OSError):
                path.parent.rmdir()


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
        DataError: It is damaged, no regular file, or larger than :data:`MAX_ARRAY_BYTES` once decompressed.
    """
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise DataError(f"{path}: expected a regular file")
        with zipfile.ZipFile(path) as members:
            size = sum(member.file_size for member in members.infolist())
        if size > MAX_ARRAY_BYTES:
            raise DataError(f"{path}: expected at most {MAX_ARRAY_BYTES:,} bytes once decompressed, got {size:,}")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray):
                raise DataError(f"{path}: {name}: expected an array of NumPy")
            check_texts(array, f"{path}: {name}")
        return arrays
    except (FileNotFoundError, DataError):
        raise
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, AttributeError, NotImplementedError) as error:
        raise DataError(f"{path}: not a readable .npz file ({error})") from error
    except Exception as error:  # zlib.error and what else damaged bytes provoke
        raise DataError(f"{path}: damaged ({error})") from error


def check_texts(array: np.ndarray, source: str) -> None:
    """Refuse texts with numbers that are no characters, which Python can't hold; other arrays pass.

    Raises:
        DataError: beginning with ``source``.
    """
    if array.dtype.kind != "U" or array.nbytes == 0:
        return
    codes = np.frombuffer(array.tobytes(), np.dtype(np.uint32).newbyteorder(array.dtype.byteorder))
    if int(codes.max()) > 0x10FFFF:
        raise DataError(f"{source}: expected texts, got the character {int(codes.max()):#x}")


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
