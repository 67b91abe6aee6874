"""``occfast data``: what it prints, its exit status, and downloads from a server in the test."""

from __future__ import annotations

import functools
import hashlib
import http.server
import importlib
import io
import json
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import scipy.io
from PIL import Image

from occfast import DataError, cli
from occfast.data import LFW, Folder, Npz, contents, open_dataset
from occfast.data.fetch import fetch
from tests.data.pictures import InMemory, encode, pixels, write_faces


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs ``occfast data ...``: exit status, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["occfast", "data", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        text = capsys.readouterr()
        return int(ended.value.code or 0), text.out, text.err

    return call


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_faces(tmp_path / "faces", [f"{person}/{k}.jpg" for person in "ABC" for k in range(3)], landmarks=True)
    return tmp_path / "faces"


def test_show(run, root: Path, tmp_path: Path) -> None:
    (root / "A" / "copy.jpg").write_bytes((root / "B" / "0.jpg").read_bytes())
    (root / "A" / "tall.png").write_bytes(encode(pixels(3, 30, 10, 1), "PNG"))
    (root / "C" / "notes.txt").write_text("hello")
    status, out, _ = run("show", root, "--sheet", tmp_path / "sheet.png", "--rows", 2, "--columns", 4)
    assert status == 0
    for line in (
        "Folder: 11 images of 3 people",
        "images of a person: 3 to 5, median 3",
        "sizes: 10 20×16, 1 30×10",
        "formats: 10 JPEG RGB, 1 PNG L",
        "landmarks: on 9 images",
        "the same file: A/copy.jpg, B/0.jpg",
        "not taken for images: 1 files, C/notes.txt",
        "corrupt: none",
    ):
        assert line in out
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (4 * 96, 2 * 96)


def test_show_corrupt_files(run, root: Path) -> None:
    (root / "B" / "1.jpg").write_bytes(b"broken")
    status, out, _ = run("show", root, "--json", "--quiet")
    report = json.loads(out)
    assert status == 1 and list(report["corrupt"]) == ["B/1.jpg"] and report["images"] == 9 and report["examined"] == 9
    assert report["sizes"] == {"20x16": 8} and report["per_person"] == [3, 3.0, 3]
    assert run("show", root, "--sample", 3)[0] == 0  # A/0, B/0, C/0


def test_mistakes_are_one_line(run, root: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (("show", tmp_path / "none"), "no such file or folder, and not a known data set"),
        (("convert", root, tmp_path / "x.rec", "--template", "mine"), "template: expected one of"),
        (("convert", root, tmp_path / "x.rec", "--gray"), "--gray: expected together with --template"),
        (("fetch", "casia"), "name: expected one of lfw, olivetti"),
        (("landmarks", root, tmp_path / "x.csv", "--choose", "any"), "choose: expected one of"),
    ):
        status, out, error = run(*arguments)
        assert status == 2 and out == "" and message in error and error.count("\n") == 1 and "Traceback" not in error


def test_convert(run, root: Path, tmp_path: Path) -> None:
    status, out, _ = run("convert", root, tmp_path / "a" / "train.rec", "--quiet")
    assert status == 0 and "9 images of 3 people" in out
    (root / "B" / "1.jpg").write_bytes(b"broken")
    (root / "C" / "new.jpg").write_bytes(encode(pixels(50)))
    arguments = ("convert", root, tmp_path / "b.npz", "--template", "paper-100", "--gray", "--quiet", "--json")
    status, _, error = run(*arguments)
    assert status == 2 and "1 of 10 have none: C/new.jpg" in error
    status, out, _ = run(*arguments, "--skip", "--min-images", 3)
    report = json.loads(out)
    assert status == 0 and report["images"] == 6 and report["people"] == 2
    assert sorted(report["left_out"]) == ["B/1.jpg", "C/new.jpg"] and report["left_out"]["C/new.jpg"] == "no landmarks"
    got = open_dataset(tmp_path / "b.npz")
    assert got.people == ["A", "C"] and got.alignment is not None and got.alignment.color == "gray"
    table = tmp_path / "points.csv"
    table.write_text((root / "landmarks.csv").read_text() + "C/new.jpg,5,6,11,6,8,10,5,14,10,14\n")
    (root / "B" / "1.jpg").write_bytes(encode(pixels(51)))
    status, out, _ = run(
        "convert", root, tmp_path / "c", "--landmarks", table, "--template", "arcface-112", "--border", "black", "-q"
    )
    (tmp_path / "shared.csv").write_text("person,similarity\nB,0.9\n")
    status, out, _ = run("convert", root, tmp_path / "d", "--exclude", tmp_path / "shared.csv", "-q")
    assert status == 0 and Folder(tmp_path / "d").people == ["A", "C"]
    made = Folder(tmp_path / "c")
    assert status == 0 and len(made) == 10 and made.alignment is not None and made.alignment.border == "black"


def test_sheet_shows_every_person_first(root: Path) -> None:
    faces = Folder(root)
    assert contents._spread(faces, 3) == [0, 3, 6]
    assert contents._spread(faces, 2) == [0, 3]
    assert contents._spread(faces, 5) == [0, 1, 3, 4, 6]
    assert contents._spread(faces, 100) == list(range(9))
    (root / "A" / "0.jpg").write_bytes(b"broken")
    sheet = contents.contact_sheet(faces, 1, 3, 32)
    assert sheet.shape == (3, 32, 96) and (sheet[:, 0, 0] == sheet[:, 31, 31]).all() and sheet[0, 0, 0] == 140
    marked = contents.contact_sheet(faces, 1, 3, 96)
    assert not (marked == contents.contact_sheet(faces, 1, 3, 96, landmarks=False)).all()
    with pytest.raises(ValueError, match="cell: expected 1 to 4096"):
        contents.contact_sheet(faces, cell=0)
    wide = InMemory([faces[1].image], [0])
    assert contents.contact_sheet(wide, 5, 1, 16).shape == (3, 16, 16)


class Server(http.server.SimpleHTTPRequestHandler):
    """Files with ranges; ``stop_after`` ends answers early, as a broken connection does."""

    stop_after: int | None = None
    asked: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        span = self.headers.get("Range")
        Server.asked.append((self.path, span))
        content = (Path(self.directory) / self.path.lstrip("/")).read_bytes()
        start = int(span.removeprefix("bytes=").rstrip("-")) if span else 0
        if start >= len(content) > 0:
            self.send_error(416)
            return
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: Server.stop_after])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve a small LFW and Olivetti, with their checksums set in scikit-learn."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    face = encode(np.full((250, 250, 3), 90, np.uint8))
    with tarfile.open(folder / "lfw-funneled.tgz", "w:gz", compresslevel=1) as archive:
        for k in range(500):
            member = tarfile.TarInfo(f"lfw_funneled/Ann_B/Ann_B_{k + 1:04d}.jpg")
            member.size = len(face)
            archive.addfile(member, io.BytesIO(face))
    for name in ("pairs.txt", "pairsDevTrain.txt", "pairsDevTest.txt"):
        (folder / name).write_text("1\t0\n")
    random = np.random.default_rng(0).integers(0, 256, (4096, 400), np.uint8)
    scipy.io.savemat(folder / "olivettifaces.mat", {"faces": random})

    def remote(name: str) -> SimpleNamespace:
        checksum = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        return SimpleNamespace(filename=name, url=f"http://127.0.0.1:9/{name}", checksum=checksum)

    lfw = importlib.import_module("sklearn.datasets._lfw")
    olivetti = importlib.import_module("sklearn.datasets._olivetti_faces")
    monkeypatch.setattr(lfw, "FUNNELED_ARCHIVE", remote("lfw-funneled.tgz"))
    names = ("pairsDevTrain.txt", "pairsDevTest.txt", "pairs.txt")
    monkeypatch.setattr(lfw, "TARGETS", tuple(remote(name) for name in names))
    monkeypatch.setattr(olivetti, "FACES", remote("olivettifaces.mat"))
    monkeypatch.setattr(Server, "stop_after", None)
    monkeypatch.setattr(Server, "asked", [])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_fetch_lfw_from_a_mirror_interrupted(run, mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "cache"
    monkeypatch.setattr(Server, "stop_after", 100)
    status, _, error = run("fetch", "lfw", "--home", home, "--mirror", mirror, "--quiet")
    assert status == 2 and "only 100 of" in error and "By hand, put" in error and "lfw_funneled" in error
    part = home / "lfw_home" / "lfw-funneled.tgz.part"
    assert part.stat().st_size == 100
    monkeypatch.setattr(Server, "stop_after", None)
    status, out, _ = run("fetch", "lfw", "--home", home, "--mirror", mirror, "--quiet", "--json")
    assert status == 0 and json.loads(out)["images"] == 500
    assert ("/lfw-funneled.tgz", "bytes=100-") in Server.asked and not part.exists()
    lfw = LFW(home / "lfw_home")
    assert lfw.people == ["Ann_B"] and (home / "lfw_home" / "pairs.txt").is_file()
    asked = len(Server.asked)
    assert fetch("lfw", home, mirror=mirror, progress=False) == home / "lfw_home" and len(Server.asked) == asked


def test_fetch_olivetti_and_wrong_files(run, mirror: str, tmp_path: Path) -> None:
    status, out, _ = run("fetch", "olivetti", "--home", tmp_path / "cache", "--mirror", mirror, "--quiet")
    assert status == 0 and "400 images of 40 people" in out
    faces = Npz(tmp_path / "cache" / "olivetti.npz", gray=True)
    assert faces[0].image.shape == (1, 64, 64) and faces.counts.tolist() == [10] * 40
    stored = scipy.io.loadmat(tmp_path / "mirror" / "olivettifaces.mat")["faces"][:, 7]
    assert np.array_equal(faces[7].image[0].numpy(), stored.reshape(64, 64).T)
    # A wrong beginning is replaced, a wrong file refused.
    other = tmp_path / "other"
    other.mkdir()
    (other / "olivettifaces.mat.part").write_bytes(b"something else")
    fetch("olivetti", other, mirror=mirror, progress=False)
    (tmp_path / "mirror" / "olivettifaces.mat").write_bytes(b"wrong")
    with pytest.raises(DataError, match=r"expected SHA-256 .*: not the same file"):
        fetch("olivetti", tmp_path / "third", mirror=mirror, progress=False)
    assert not list((tmp_path / "third").iterdir())
    with pytest.raises(ValueError, match="mirror: expected an address that begins with"):
        fetch("olivetti", tmp_path / "third", mirror="ftp.example.org", progress=False)


def test_fetch_offline_says_what_to_put_where(run, mirror: str, tmp_path: Path) -> None:
    """Port 9 of this machine stands for an address that can't be reached."""
    status, out, error = run("fetch", "olivetti", "--home", tmp_path / "cache")
    assert status == 2 and out == ""
    assert "no connection" in error and f"By hand, put {tmp_path / 'cache' / 'olivettifaces.mat'} (SHA-256 " in error


def test_an_archive_that_was_not_wholly_unpacked(mirror: str, tmp_path: Path) -> None:
    home = tmp_path / "cache" / "lfw_home"
    (home / "lfw_funneled").mkdir(parents=True)
    (home / "lfw-funneled.tgz").write_bytes(b"x")
    with pytest.raises(DataError, match="not wholly unpacked"):
        fetch("lfw", tmp_path / "cache", mirror=mirror, progress=False)
