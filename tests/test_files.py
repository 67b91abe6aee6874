"""Files are whole under their names, nothing stays beside them, and only regular ones are read."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from occfast import DataError, files
from occfast.files import locked, read_npz, remove, write_atomically, write_npz, writing

ROOT = Path(__file__).resolve().parents[1]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_a_kill_left_is_used_again_and_nothing_stays(tmp_path: Path) -> None:
    program = "import os; from occfast.files import writing\nwith writing('a.bin') as f: f.write(b'x' * 9999); f.flush(); os._exit(1)"
    for _ in range(3):
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert names(tmp_path) == [".a.bin.part"]
    write_atomically(tmp_path / "a.bin", b"new")
    assert names(tmp_path) == ["a.bin"] and (tmp_path / "a.bin").read_bytes() == b"new"
    (tmp_path / ".a.bin.part").write_bytes(b"left")
    remove(tmp_path / "a.bin")
    assert names(tmp_path) == []
    remove(tmp_path / "a.bin")


def test_two_writers_of_a_file_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with writing(path) as first:
        first.write(b"first" * 1000)
        with writing(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
        remove(path)  # leaves what the other one writes
        assert not path.exists()
    assert path.read_bytes() == b"first" * 1000 and names(tmp_path) == ["a"]


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe", "folder"])
def test_what_somebody_else_put_beside_is_not_followed(kind: str, tmp_path: Path) -> None:
    other, part = tmp_path / "other", tmp_path / ".a.part"
    other.write_bytes(b"precious")
    if kind == "link":
        part.symlink_to(other)
    elif kind == "hard link":
        part.hardlink_to(other)
    elif kind == "pipe":
        os.mkfifo(part)
    else:
        part.mkdir()
    write_atomically(tmp_path / "a", b"mine")
    remove(tmp_path / "b")
    assert other.read_bytes() == b"precious" and (tmp_path / "a").read_bytes() == b"mine"
    assert names(tmp_path) == [".a.part", "a", "other"]


def test_files_have_the_permissions_of_the_user(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_an_error_keeps_the_old_content(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"old")
    with pytest.raises(KeyboardInterrupt), writing(tmp_path / "a") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert (tmp_path / "a").read_bytes() == b"old" and names(tmp_path) == ["a"]
    with pytest.raises(OSError, match=r"a/b could not be written: .*; its old content is kept"):
        write_atomically(tmp_path / "a" / "b", b"")


def test_a_lock_has_one_holder_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new" / ".lock"
    with locked(path, ValueError):
        with pytest.raises(ValueError, match=f"process {os.getpid()} on "), locked(path, ValueError):
            pass
        assert path.exists()
    assert names(tmp_path) == []
    with locked(path, ValueError):
        (tmp_path / "new" / "result").touch()
    assert names(tmp_path / "new") == ["result"]


def test_archives_that_are_no_files_or_too_large_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(DataError, match=r"pipe.npz: expected a regular file"):
        read_npz(tmp_path / "pipe.npz")
    with pytest.raises(FileNotFoundError):
        read_npz(tmp_path / "none.npz")
    write_npz(tmp_path / "a.npz", a=np.zeros(1 << 20, np.uint8))
    assert (tmp_path / "a.npz").stat().st_size < 1 << 12 and len(read_npz(tmp_path / "a.npz")["a"]) == 1 << 20
    monkeypatch.setattr(files, "MAX_ARRAY_BYTES", 1 << 20)
    with pytest.raises(DataError, match=r"a.npz: expected at most 1,048,576 bytes once decompressed, got 1,048,704"):
        read_npz(tmp_path / "a.npz")
    # What the archive states about a member is all that is read of it.
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr(
            "a.npy",
            b"\x93NUMPY\x01\x00\x46\x00"
            + b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999,), }".ljust(69)
            + b"\n",
        )
    with pytest.raises(DataError, match=r"b\.npz"):
        read_npz(tmp_path / "b.npz")
