"""Data sets written anew: byte by byte, all that is known goes along, interrupted and gone on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from occfast import DataError
from occfast.data import Aligned, Face, FaceDataset, Folder, Npz, RecordFile, RecordIO, open_dataset
from occfast.data.convert import convert
from occfast.data.record_file import unpack
from tests.data.pictures import InMemory, encode, pixels, write_faces

TARGETS = ("folder", "out/train.rec", "out.npz")


@pytest.fixture
def source(tmp_path: Path) -> Folder:
    names = [f"{person}/{k}.jpg" for person in ("Ann", "Bob B", "Ünal") for k in range(4)]
    write_faces(tmp_path / "source", names, landmarks=True)
    (tmp_path / "source" / "Bob B" / "9.png").write_bytes(encode(pixels(99), "PNG"))
    return Folder(tmp_path / "source")


def same(got: FaceDataset, wanted: FaceDataset) -> None:
    """The same images of the same people, with their landmarks, in any order."""
    assert sorted(got.names) == sorted(wanted.names) and sorted(got.people) == sorted(wanted.people)
    for k, name in enumerate(got.names):
        other = wanted.positions[name]
        assert got.encoded(k) == wanted.encoded(other)
        assert got.people[got.labels[k]] == wanted.people[wanted.labels[other]]
        mine, theirs = got.landmarks_of(k), wanted.landmarks_of(other)
        assert (mine is None) == (theirs is None) and (mine is None or torch.equal(mine, theirs))


@pytest.mark.parametrize("target", TARGETS)
def test_round_trip(source: Folder, tmp_path: Path, target: str) -> None:
    path = convert(source, tmp_path / target, progress=False)
    same(open_dataset(path), source)
    assert not [p for p in tmp_path.rglob("*") if ".part" in p.name or p.name == ".convert.json"]


def test_round_and_round(source: Folder, tmp_path: Path) -> None:
    dataset: FaceDataset = source
    for step, target in enumerate((*TARGETS, *TARGETS[::-1])):
        dataset = open_dataset(convert(dataset, tmp_path / str(step) / target, progress=False))
    same(dataset, source)


def test_recordio_is_what_insightface_reads(source: Folder, tmp_path: Path) -> None:
    """The reading that arcface_torch's MXFaceDataset does, by the definition."""
    path = convert(source, tmp_path / "train.rec", progress=False)
    file = RecordFile(path)
    records = {int(key): unpack(file[k], "x") for k, key in enumerate(file.keys)}
    header0 = records[0][0]
    assert header0.listed and header0.labels == (14, 17) and sorted(records) == list(range(17))
    assert [records[key][0].labels[0] for key in range(1, 14)] == [0] * 4 + [1] * 5 + [2] * 4
    assert [records[key][0].labels for key in (14, 15, 16)] == [(1, 5), (5, 10), (10, 14)]
    assert records[1][1] == source.encoded(0)
    assert (tmp_path / "property").read_text() == "3,20,16\n"
    assert (tmp_path / "train.lst").read_text().splitlines()[5] == "6\t1\tBob B/1.jpg"
    assert (tmp_path / "train.idx").read_text().splitlines()[0] == "0\t0"


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("after", [1, 7, 13])
def test_interrupted_and_gone_on(source: Folder, tmp_path: Path, target: str, after: int) -> None:
    def stop(done: int, total: int | None) -> None:
        if done == after:
            raise StoppedError

    whole = convert(source, tmp_path / "whole" / target, progress=False)
    with pytest.raises(StoppedError):
        convert(source, tmp_path / "two" / target, progress=stop)
    assert target == "folder" or not (tmp_path / "two" / target).exists()
    path = convert(source, tmp_path / "two" / target, progress=False)
    files = [p for p in (whole.rglob("*") if whole.is_dir() else whole.parent.glob("*")) if p.is_file()]
    assert files
    for one in files:
        other = tmp_path / "two" / one.relative_to(tmp_path / "whole")
        if one.suffix != ".npz":  # which has times of day in it
            assert other.read_bytes() == one.read_bytes()
    same(open_dataset(path), source)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("changed", [0, 4])
@pytest.mark.parametrize("target", TARGETS[:2])
def test_images_that_changed_meanwhile_are_written_again(
    source: Folder, tmp_path: Path, target: str, changed: int, aligned: bool
) -> None:
    def stop(done: int, total: int | None) -> None:
        if done == 7:
            raise StoppedError

    faces = Aligned(source.select(people=["Ann", "Ünal"]), "arcface-112") if aligned else source
    with pytest.raises(StoppedError):
        convert(faces, tmp_path / "two" / target, progress=stop)
    source.path(changed).write_bytes(encode(pixels(55)))
    path = convert(faces, tmp_path / "two" / target, progress=False)
    whole = convert(faces, tmp_path / "whole" / target, progress=False)
    same(open_dataset(path), open_dataset(whole))
    assert sorted(p.name for p in path.parent.rglob("*")) == sorted(p.name for p in whole.parent.rglob("*"))


@pytest.mark.parametrize("target", TARGETS)
def test_a_whole_target_of_images_that_changed_is_refused(source: Folder, tmp_path: Path, target: str) -> None:
    program = (
        "import os, sys; from occfast.data import Folder; from occfast.data.convert import convert\n"
        "sys.addaudithook(lambda event, given: event == 'os.remove' and str(given[0]).endswith('.lock') and os._exit(9))\n"
        f"convert(Folder({str(source.root)!r}), {str(tmp_path / target)!r}, progress=False)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    source.path(3).write_bytes(source.path(2).read_bytes())
    with pytest.raises(ValueError, match="expected a new target; an interrupted conversion has completed this one"):
        convert(source, tmp_path / target, progress=False)


def test_another_source_is_not_mixed_in(source: Folder, tmp_path: Path) -> None:
    def stop(done: int, total: int | None) -> None:
        raise StoppedError

    for target in TARGETS[:2]:
        with pytest.raises(StoppedError):
            convert(source, tmp_path / target, progress=stop)
    other = source.select(people=["Ann"])
    with pytest.raises(ValueError, match="expected a new folder, or one that this conversion has begun"):
        convert(other, tmp_path / TARGETS[0], progress=False)
    same(open_dataset(convert(other, tmp_path / TARGETS[1], progress=False)), other)  # begun anew
    for target in (TARGETS[1], "x.npz"):
        (tmp_path / target).touch()
        with pytest.raises(ValueError, match="expected a new file"):
            convert(source, tmp_path / target, progress=False)


@pytest.mark.parametrize("target", TARGETS)
def test_aligned_faces_tell_how(source: Folder, tmp_path: Path, target: str) -> None:
    few = source.select(people=["Ann", "Ünal"])
    aligned = Aligned(few, "arcface-112", gray=False)
    got = open_dataset(convert(aligned, tmp_path / target, progress=False))
    assert got.alignment == aligned.alignment
    by_stem = {name.rsplit(".", 1)[0]: k for k, name in enumerate(aligned.names)}
    for k, name in enumerate(got.names):
        expected = aligned[by_stem[name.rsplit(".", 1)[0]]]
        assert torch.equal(got[k].image, expected.image)
        torch.testing.assert_close(got[k].landmarks, expected.landmarks)


def test_pixels(source: Folder, tmp_path: Path) -> None:
    path = convert(source, tmp_path / "a.npz", pixels=True, progress=False)
    got = Npz(path)
    assert all(torch.equal(got[k].image, source[k].image) for k in range(len(source)))
    with np.load(path) as arrays:  # what anyone reads
        assert arrays["images"].shape == (13, 3, 20, 16) and arrays["labels"].tolist() == source.labels.tolist()
    several = InMemory([torch.zeros(1, 4, 4, dtype=torch.uint8), torch.zeros(1, 4, 5, dtype=torch.uint8)], [0, 0])
    with pytest.raises(ValueError, match=r"pixels: expected images of one size, \[1, 4, 4\], got \[1, 4, 5\]"):
        convert(several, tmp_path / "b.npz", pixels=True, progress=False)
    assert not (tmp_path / "b.npz").exists()
    with pytest.raises(ValueError, match="pixels: expected kind 'npz'"):
        convert(source, tmp_path / "c", pixels=True, progress=False)


def test_names_get_the_ending_of_their_format(tmp_path: Path) -> None:
    gray = InMemory([torch.full((1, 4, 4), k, dtype=torch.uint8) for k in range(3)], [0, 1, 1])
    got = Folder(convert(gray, tmp_path / "f", progress=False), gray=True)
    assert got.names == ["person 0/000.png", "person 1/001.png", "person 1/002.png"]
    assert torch.equal(got[2].image, gray[2].image)
    rec = RecordIO(convert(got, tmp_path / "a.rec", progress=False))
    assert rec.property == (2, 4, 4)


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "a/../../evil", "a\\b", "", ".hidden/x", "a\0b", "C:evil"])
def test_names_never_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    bad = InMemory([torch.zeros(1, 4, 4, dtype=torch.uint8)], [0])
    for attribute in ("names", "people"):
        dataset = InMemory(bad.images, [0])
        setattr(dataset, attribute, [name])
        with pytest.raises(DataError, match="expected names that make names of files"):
            convert(dataset, tmp_path / "f" / attribute, progress=False)
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("a.rec", "x\ty"),
        ("a.rec", "x\ny"),
        ("a.rec", "x\\y"),
        ("a.rec", " x"),
        ("a.rec", "x\udcff"),
        ("a.npz", "x\udcff"),
        ("a.npz", "x\0"),
        ("folder", "x\udcff"),
        ("folder", "x" * 300),
    ],
)
def test_names_are_refused_before_anything_is_written(tmp_path: Path, target: str, name: str) -> None:
    class Unread(InMemory):
        def __getitem__(self, k: int) -> Face:
            raise AssertionError("no image is read")

    source = Unread([torch.zeros(1, 4, 4, dtype=torch.uint8)] * 2, [0, 1])
    source.names = ["good", name]
    with pytest.raises(DataError, match=r"expected (a name|names)"):
        convert(source, tmp_path / target, progress=False)
    assert not list(tmp_path.iterdir())


_KILLED = """
import os, sys
from occfast.data import Folder
from occfast.data.convert import convert

def stop(done, total):
    if done >= int(sys.argv[3]):
        os.kill(os.getpid(), 9)

convert(Folder(sys.argv[1]), sys.argv[2], progress=stop)
"""


@pytest.mark.parametrize("target", TARGETS)
def test_a_kill_leaves_no_litter_once_the_conversion_is_done(source: Folder, tmp_path: Path, target: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for after in (1, 5):
        arguments = [sys.executable, "-c", _KILLED, str(source.root), str(out / target), str(after)]
        assert subprocess.run(arguments, timeout=120).returncode == -9
    same(open_dataset(convert(source, out / target, progress=False)), source)
    kept = [p for p in out.rglob("*") if p.name.startswith(".") or "part" in p.name or "lock" in p.name]
    assert not kept


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("last", [".lock", ".part.json", ".convert.json"])
def test_a_kill_at_the_very_end(source: Folder, tmp_path: Path, target: str, last: str) -> None:
    """The target is whole already; the same command ends well, and a third one is refused."""
    program = (
        "import os, sys; from occfast.data import Folder; from occfast.data.convert import convert\n"
        f"sys.addaudithook(lambda event, given: event == 'os.remove' and str(given[0]).endswith({last!r}) and os._exit(9))\n"
        f"convert(Folder({str(source.root)!r}), {str(tmp_path / target)!r}, progress=False)"
    )
    code = subprocess.run([sys.executable, "-c", program], check=False).returncode
    states = {"folder": ".convert.json", "out/train.rec": ".part.json"}
    assert code == (9 if last in (".lock", states.get(target)) else 0)
    if code == 9:
        same(open_dataset(convert(source, tmp_path / target, progress=False)), source)
    with pytest.raises(ValueError, match="expected a new f"):
        convert(source, tmp_path / target, progress=False)
    assert not [path.name for path in tmp_path.rglob(".*")]


def test_a_kill_in_the_first_write_is_gone_over(source: Folder, tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "..convert.json.abcd1234").write_bytes(b"{")  # the first file, half written
    same(open_dataset(convert(source, tmp_path / "f", progress=False)), source)
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / ".convert.json").write_text("{}")
    with pytest.raises(ValueError, match="expected a new folder"):
        (tmp_path / "g" / "mine.jpg").touch()
        convert(source, tmp_path / "g", progress=False)
    assert (tmp_path / "g" / "mine.jpg").exists()


@pytest.mark.parametrize("target", TARGETS)
def test_two_writers_of_one_target(source: Folder, tmp_path: Path, target: str) -> None:
    def meanwhile(done: int, total: int | None) -> None:
        if done == 3:
            with pytest.raises(ValueError, match="expected no other process that writes it"):
                convert(source, tmp_path / target, progress=False)

    same(open_dataset(convert(source, tmp_path / target, progress=meanwhile)), source)


def test_two_images_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    write_faces(tmp_path / "s", ["a/1.jpg"])
    (tmp_path / "s" / "a" / "1.png").write_bytes(encode(pixels(1)))  # a JPEG that is named otherwise
    with pytest.raises(DataError, match=r"a/1\.jpg is already the name of"):
        convert(Folder(tmp_path / "s"), tmp_path / "f", progress=False)


def test_mistakes(source: Folder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kind: expected one of"):
        convert(source, tmp_path / "f", "zip", progress=False)
    for kind in ("recordio", "npz"):
        with pytest.raises(ValueError, match="target: expected a name that ends in"):
            convert(source, tmp_path / "f", kind, progress=False)
    (tmp_path / "source" / "Ann" / "0.jpg").write_bytes(b"broken")
    for target in TARGETS[:2]:
        with pytest.raises(DataError, match=r"Ann/0\.jpg: not an image"):
            convert(source, tmp_path / target, progress=False)
