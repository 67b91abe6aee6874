"""Folders, lists, LFW, CelebA and AR: small ones made here, and the real ones where OCCFAST_DATA has them."""

from __future__ import annotations

import os
import pickle
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from occfast import DataError
from occfast.data import (
    AR,
    AR10P,
    AR100,
    LFW,
    Alignment,
    CelebA,
    Face,
    FaceDataset,
    Folder,
    ImageList,
    Subset,
    matlab,
    open_dataset,
    read_image,
    read_landmarks,
    write_landmarks,
)
from occfast.data.ar import Shot, shot
from occfast.data.lfw import read_people
from occfast.data.matlab import read_mat
from occfast.data.overlap import read_exclude
from tests.data.pictures import encode, pixels, write_faces


def needs(name: str) -> pytest.MarkDecorator:
    root = Path(os.environ.get("OCCFAST_DATA", "/nowhere"))
    return pytest.mark.skipif(not (root / name).is_dir(), reason=f"$OCCFAST_DATA/{name} is not there")


def contract(dataset: FaceDataset) -> None:
    """Check the interface that all data sets share."""
    count = len(dataset)
    assert len(dataset.names) == len(set(dataset.names)) == count > 0
    assert dataset.labels.dtype == torch.int64 and dataset.labels.shape == (count,)
    assert dataset.labels.unique().tolist() == list(range(len(dataset.people)))
    assert len(set(dataset.people)) == len(dataset.people)
    for k in {0, count // 2, count - 1}:
        face = dataset[k]
        assert isinstance(face, Face)
        assert face.image.dtype == torch.uint8 and face.image.ndim == 3 and face.image.shape[0] in (1, 3)
        assert (face.label, face.name) == (int(dataset.labels[k]), dataset.names[k])
        known = dataset.landmarks_of(k)
        assert (face.landmarks is None) == (known is None)
        assert known is None or torch.equal(face.landmarks, known)
        assert dataset.positions[face.name] == k
        assert torch.equal(dataset[k - count].image, face.image)
    for k in (count, -count - 1):
        with pytest.raises(IndexError, match=f"of {count}"):
            dataset[k]
    again = pickle.loads(pickle.dumps(dataset))
    assert again.names == dataset.names and torch.equal(again[0].image, dataset[0].image)


NAMES = ["Ann/Ann_0001.jpg", "Ann/Ann_0002.jpg", "Bob B/x.JPG", "Ünal/deep/er/größe.jpeg", "山田/太郎.jpg"]


def test_folder(tmp_path: Path) -> None:
    write_faces(tmp_path, NAMES, landmarks=True)
    (tmp_path / "Ann" / "Thumbs.db").write_bytes(b"no image")
    (tmp_path / "Ann" / "._Ann_0001.jpg").write_bytes(b"what macOS leaves on other systems' disks")
    (tmp_path / "stray.jpg").write_bytes(encode(pixels(0)))
    faces = Folder(tmp_path)
    contract(faces)
    assert faces.names == sorted(NAMES)
    assert faces.people == ["Ann", "Bob B", "Ünal", "山田"]
    assert faces.others == ["Ann/._Ann_0001.jpg", "Ann/Thumbs.db", "stray.jpg"]  # reported, not swallowed
    assert faces[0].landmarks.tolist()[4] == [14.0, 10.5] and faces[1].landmarks[4, 0] == 14.1
    assert torch.equal(faces[2].image, read_image(tmp_path / "Bob B/x.JPG"))
    assert faces.encoded(2) == (tmp_path / "Bob B/x.JPG").read_bytes()
    assert Folder(tmp_path, gray=True)[0].image.shape[0] == 1
    assert faces.counts.tolist() == [2, 1, 1, 1]
    assert isinstance(open_dataset(tmp_path), Folder)


def test_choosing_people(tmp_path: Path) -> None:
    write_faces(tmp_path, NAMES)
    assert Folder(tmp_path, min_images=2).names == NAMES[:2]
    assert Folder(tmp_path, people=["山田", "Ann"]).people == ["Ann", "山田"]
    assert Folder(tmp_path, exclude=["Ann"]).people == ["Bob B", "Ünal", "山田"]
    everybody = Folder(tmp_path)
    chosen = everybody.select(exclude=["Ann", "Bob B"])
    contract(chosen)
    assert chosen.people == ["Ünal", "山田"] and chosen.labels.tolist() == [0, 1]
    assert chosen.encoded(0) == everybody.encoded(3) and chosen.place(0) == everybody.place(3)
    with pytest.raises(DataError, match="people: 2 without an image here: Cid, Dan"):
        Folder(tmp_path, people=["Cid", "Dan", "Ann"])
    with pytest.raises(DataError, match="exclude: 1 without an image here: Cid"):
        everybody.select(exclude=["Cid"])
    with pytest.raises(ValueError, match="min_images = 9 leaves none of 4"):
        everybody.select(min_images=9)
    with pytest.raises(ValueError, match="min_images: expected at least 1, got 0"):
        Folder(tmp_path, min_images=0)
    with pytest.raises(ValueError, match="indices: expected each image at most once"):
        Subset(everybody, [1, 1])
    assert Subset(everybody, torch.tensor([4, 0])).people == ["Ann", "山田"]


def test_unicode_names_in_either_normal_form(tmp_path: Path) -> None:
    """A table written on another system may spell a name in another normal form than the file system."""
    write_faces(tmp_path, [unicodedata.normalize("NFD", "Ünal/größe.jpg")])
    table = tmp_path / "points.csv"
    write_landmarks(table, [unicodedata.normalize("NFC", "Ünal/größe.jpg")], torch.rand(1, 5, 2).double())
    assert Folder(tmp_path, landmarks=table)[0].landmarks is not None


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write_faces(tmp_path / "real", ["Ann/1.jpg"])
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "Bob").symlink_to(tmp_path / "real" / "Ann")
    assert Folder(tmp_path / "linked").names == ["Bob/1.jpg"]
    (tmp_path / "real" / "Ann" / "loop").symlink_to(tmp_path / "real")
    with pytest.raises(DataError, match="loop: a link to a folder that it lies in"):
        Folder(tmp_path / "real")


def test_folder_mistakes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't be listed"):
        Folder(tmp_path / "none")
    (tmp_path / "stray.jpg").write_bytes(encode(pixels(0)))
    with pytest.raises(DataError, match=r"expected folders of images, one a person, found none \(1 other files\)"):
        Folder(tmp_path)
    write_faces(tmp_path, ["a/b.jpg"])
    (tmp_path / "a" / "b.jpg").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"b\.jpg: not an image"):
        Folder(tmp_path)[0]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_lists_with_any_line_end(tmp_path: Path, end: str, mark: str) -> None:
    write_faces(tmp_path, ["one/ä b.jpg", "two.jpg", "three.jpg"])
    lines = ["# path, person", "one\\ä b.jpg,Ann", "", "two.jpg , Bob", "three.jpg,Ann"]
    path = tmp_path / "list.txt"
    path.write_bytes((mark + end.join(lines) + end).encode())
    faces = ImageList(path)
    contract(faces)
    assert faces.names == ["one/ä b.jpg", "two.jpg", "three.jpg"]
    assert [faces.people[label] for label in faces.labels] == ["Ann", "Bob", "Ann"]


def test_separators_and_lst(tmp_path: Path) -> None:
    write_faces(tmp_path, ["a.jpg", "b c.jpg"])
    (tmp_path / "spaces.txt").write_text("a.jpg   Ann\n")
    assert ImageList(tmp_path / "spaces.txt").people == ["Ann"]
    (tmp_path / "tabs.txt").write_text("b c.jpg\tAnn Other\n")
    assert ImageList(tmp_path / "tabs.txt").people == ["Ann Other"]
    (tmp_path / "train.lst").write_text("0\t7.000000\ta.jpg\n1\t12\tb c.jpg\n")
    listed = open_dataset(tmp_path / "train.lst")
    assert listed.names == ["a.jpg", "b c.jpg"] and listed.people == ["12", "7"]
    for titled in (
        'image,identity\na.jpg,Ann\nb c.jpg,"Bob, jr"\n',
        "nose_x;label;path\n3;Ann;a.jpg\n4;Bob, jr;b c.jpg\n",
        "a.jpg;Ann\nb c.jpg;Bob, jr\n".replace(", ", " "),
    ):
        (tmp_path / "titled.csv").write_text(titled)
        assert [name.replace(",", "") for name in ImageList(tmp_path / "titled.csv").people] == ["Ann", "Bob jr"]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "l.txt").write_text("a.jpg Ann\n")
    assert len(ImageList(tmp_path / "sub" / "l.txt", tmp_path)) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a.jpg\n", "line 1: expected a path and a person"),
        (b"a.jpg A\n\na.jpg A\n", "line 3: 'a.jpg' is there already, at line 1"),
        (b"a.jpg A\nnone.jpg B\n", "1 of 2 images are not under .*: none.jpg"),
        (b"a.jpg\t1\t2\n", "line 1: expected a path and a person"),
        (b"a.jpg 1\nb.jpg 01\n", "line 2: expected every person in one spelling, got '01' and '1', at line 1"),
        (b"a.jpg 1\nb.jpg 1.0\n", "line 2: expected every person in one spelling, got '1.0' and '1', at line 1"),
        (b"a.jpg A\nx/../a.jpg B\n", "line 2: 'a.jpg' is there already, at line 1"),
        (b"\xff\xfea\0", "expected UTF-8, byte 0xff at offset 0"),
        (b"", "expected images of people, found none"),
        (b"a.jpg,\n", "line 1: expected a path and a person"),
    ],
)
def test_bad_lists(tmp_path: Path, content: bytes, message: str) -> None:
    write_faces(tmp_path, ["a.jpg"])
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        ImageList(tmp_path / "list.txt")
    assert str(tmp_path) in str(caught.value)


def lfw_tree(root: Path) -> Path:
    write_faces(root / "images", ["Ann_B/Ann_B_0001.jpg", "Ann_B/Ann_B_0002.jpg", "Cid/Cid_0001.jpg", "Cid/cid.jpg"])
    (root / "peopleDevTrain.txt").write_bytes(b"1\r\nAnn_B\t2\r\n")
    (root / "peopleDevTest.txt").write_text("2\nCid\t1\nDan\t1\n")
    (root / "people.txt").write_text("2\n1\nAnn_B\t2\n1\nCid\t1\n")
    return root


def test_lfw_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lfw = LFW(lfw_tree(tmp_path / "lfw"))
    contract(lfw)
    assert len(lfw) == 3 and lfw.others == ["Cid/cid.jpg"] and lfw.missing == []
    assert lfw.find("Ann_B", 2) == 1 and lfw.find("Ann_B", 3) is None
    assert LFW(tmp_path / "lfw", people="view1-train").people == ["Ann_B"]
    assert LFW(tmp_path / "lfw", people="view2").people == ["Ann_B", "Cid"]
    with pytest.warns(UserWarning, match="1 of 2 people are not whole on the disk: Dan"):
        test = LFW(tmp_path / "lfw", people="view1-test")
    assert test.people == ["Cid"] and test.missing == ["Dan (0 of 1 images)"]
    with pytest.raises(ValueError, match="people: expected one of view1-train"):
        LFW(tmp_path / "lfw", people="view3")
    monkeypatch.setenv("OCCFAST_DATA", str(tmp_path))
    assert len(LFW()) == 3 and len(open_dataset("lfw")) == 3
    monkeypatch.delenv("OCCFAST_DATA")
    with pytest.raises(DataError, match="lfw: no folder given and OCCFAST_DATA is not set"):
        LFW()
    with pytest.raises(DataError, match="none: not a folder: expected LFW"):
        LFW(tmp_path / "none")
    with pytest.raises(DataError, match=r"expected Name/Name_0001\.jpg"):
        LFW((tmp_path / "lfw" / "images" / "Cid").rename(tmp_path / "cid"))


def test_lists_of_people(tmp_path: Path) -> None:
    root = lfw_tree(tmp_path)
    assert read_people(root / "people.txt") == [{"Ann_B": 2}, {"Cid": 1}]
    assert read_people(root / "peopleDevTrain.txt") == [{"Ann_B": 2}]
    path = tmp_path / "bad.txt"
    for text, message in (
        ("", "line 1: expected the number of folds"),
        ("Ann 2\n", "line 1: expected the number of folds"),
        ("2\nAnn 1\n", "expected 2 people after line 1, found 1"),
        ("1\nAnn 1\nBob 1\n", "line 3: expected the end of the list"),
        ("2\nAnn 1\nAnn 1\n", "line 3: expected a new name"),
        ("1\nAnn one\n", "line 2: expected a new name and a number"),
        ("3\n1\nAnn 1\n", "expected 3 folds, each with its number of people, found 1"),
        ("9" * 5000 + "\n1\n", "line 1: expected the number of folds"),
        ("2\n\x1f7\nAnn 1\n", "expected 7 people after line 2, found 1"),
        ("2\n١\nAnn 1\n", "expected 2 folds, each with its number of people"),  # a digit that is none of ASCII's
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_people(path)


def test_celeba(tmp_path: Path) -> None:
    names = write_faces(tmp_path / "images", ["000001.jpg", "000002.jpg", "000003.jpg"], landmarks=True)
    (tmp_path / "identity_CelebA.txt").write_text("000001.jpg 7\n000002.jpg 12\n")
    plain = CelebA(tmp_path)
    contract(plain)
    assert plain.people == ["12", "7"] and plain.others == ["000003.jpg"] and plain.landmarks is None
    table = (tmp_path / "images" / "landmarks.csv").read_text().splitlines()
    rows = [f"{row.replace(',', f',{number},', 1)}" for row, number in zip(table[1:], (7, 12, 7), strict=True)]
    (tmp_path / "landmarks.csv").write_text("\r\n".join([table[0].replace("image,", "image,identity,"), *rows]))
    full = CelebA(tmp_path)
    contract(full)
    assert full.names == names and full.labels.tolist() == [1, 0, 1] and full[2].landmarks is not None
    assert CelebA(tmp_path, min_images=2).people == ["7"] and CelebA(tmp_path, exclude=["7"]).people == ["12"]
    assert isinstance(open_dataset(tmp_path), CelebA)
    (tmp_path / "images" / "000002.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 3 images are not in .*: 000002\.jpg"):
        CelebA(tmp_path)
    (tmp_path / "ids.txt").write_text("000001.jpg 7\n000001.jpg 8\n")
    with pytest.raises(DataError, match=r"line 2: image '000001\.jpg' is there already"):
        CelebA(tmp_path, table=tmp_path / "ids.txt")


def test_shots_are_numbered_as_ar_does() -> None:
    assert shot(1) == Shot(1, "neutral", "even", None)
    assert shot(4) == Shot(1, "scream", "even", None)
    assert [shot(number).light for number in (5, 6, 7)] == ["left", "right", "both"]
    assert [number for number in range(1, 27) if shot(number).occlusion == "sunglasses"] == [8, 9, 10, 21, 22, 23]
    assert [number for number in range(1, 27) if shot(number).occlusion == "scarf"] == [11, 12, 13, 24, 25, 26]
    assert all(shot(number).session == 1 + (number > 13) for number in range(1, 27))
    assert shot(24) == Shot(2, "neutral", "even", "scarf")
    for number in (0, 27):
        with pytest.raises(ValueError, match="number: expected 1 to 26"):
            shot(number)


def test_ar_by_file_name(tmp_path: Path) -> None:
    write_faces(tmp_path, ["m/M-001-01.jpg", "m/m-001-08.jpg", "w/W-012-13.jpg", "w/w-012-26.jpg", "w/x-1.jpg"])
    (tmp_path / "w" / "W-012-14.bmp").write_bytes(encode(pixels(9), "BMP"))
    ar = AR(tmp_path)
    contract(ar)
    assert ar.people == ["M-001", "W-012"] and ar.others == ["w/x-1.jpg"]
    assert {name: int(number) for name, number in zip(ar.names, ar.numbers, strict=True)} == {
        "m/M-001-01.jpg": 1,
        "m/m-001-08.jpg": 8,
        "w/W-012-13.jpg": 13,
        "w/W-012-14.bmp": 14,
        "w/w-012-26.jpg": 26,
    }
    names = [ar.names[k] for k in ar.shots(occlusion=("sunglasses", "scarf"))]
    assert names == ["m/m-001-08.jpg", "w/W-012-13.jpg", "w/w-012-26.jpg"]
    assert ar.shots(occlusion=None, session=2).tolist() == [ar.positions["w/W-012-14.bmp"]]
    assert ar.shots(light="right").tolist() == [ar.positions["w/W-012-13.jpg"], ar.positions["w/w-012-26.jpg"]]
    assert AR(tmp_path, people=["M-001"]).numbers.tolist() == [1, 8]
    with pytest.raises(ValueError, match="occlusion: expected one of"):
        ar.shots(occlusion="hat")
    write_faces(tmp_path, ["again/M-1-01.jpg", "again/M-001-01.png"])
    with pytest.raises(DataError, match="photograph 1 of M-001 is there already"):
        AR(tmp_path)
    write_faces(tmp_path / "other", ["M-001-27.jpg"])
    with pytest.raises(DataError, match="number from 1 to 26, got 27"):
        AR(tmp_path / "other")


def test_ar10p_file(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (26, 60, 40), np.uint8)
    rows = pictures.transpose(0, 2, 1).reshape(26, 2400)  # down the columns
    path = tmp_path / "warpAR10P.mat"
    scipy.io.savemat(path, {"X": rows, "Y": np.repeat([1, 2], 13)[:, None].astype(np.uint8)})
    ar = AR10P(path)
    contract(ar)
    assert torch.equal(ar[17].image[0], torch.from_numpy(pictures[17]))
    assert ar.names[17] == "02-05" and ar.numbers[17] == 5
    assert ar.shots(occlusion="scarf").tolist() == [10, 11, 12, 23, 24, 25]
    assert isinstance(open_dataset(tmp_path), AR10P)
    for content, message in (
        ({"X": rows}, "expected Y"),
        ({"X": rows[:, :7], "Y": np.ones((26, 1))}, "expected X, uint8"),
        ({"X": rows, "Y": np.ones((26, 1))}, "expected 13 rows a person"),
    ):
        scipy.io.savemat(path, content)
        with pytest.raises(DataError, match=message):
            AR10P(path)
    with pytest.raises(DataError, match="can't be read"):
        AR10P(tmp_path / "none.mat")


def test_ar100_file(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (78, 42, 30), np.uint8)
    columns = pictures.transpose(0, 2, 1).reshape(78, 1260).T  # down the columns of a photograph
    path = tmp_path / "AR_42_30.mat"
    labels = np.arange(1, 4, dtype=np.uint8).repeat(26)[None]
    scipy.io.savemat(path, {"DATA": columns, "Label": labels})
    ar = AR100(path)
    contract(ar)
    assert torch.equal(ar[30].image[0], torch.from_numpy(pictures[30]))
    assert torch.equal(AR100(path, gray=False)[30].image, ar[30].image.expand(3, -1, -1))
    assert ar.names[30] == "002-05" and ar.numbers[30] == 5 and ar[30].label == 1
    assert ar.shots(occlusion="scarf").tolist() == [26 * k + n - 1 for k in range(3) for n in (11, 12, 13, 24, 25, 26)]
    assert ar.landmarks is not None and ar.landmarks.shape == (78, 5, 2)
    for source in (tmp_path, path, f"ar100:{path}"):
        assert isinstance(open_dataset(source), AR100)
    for content, message in (
        ({"DATA": columns}, "expected DATA, uint8 .1260, N., and Label"),
        ({"DATA": columns[:7], "Label": labels}, "expected DATA, uint8 .1260, N., and Label"),
        ({"DATA": columns[:, :0], "Label": labels[:, :0]}, "expected DATA, uint8 .1260, N., and Label"),
        ({"DATA": columns, "Label": np.arange(78, dtype=np.uint8)[None]}, "expected 26 photographs a person"),
        ({"DATA": columns[:, :70], "Label": labels[:, :70]}, "expected 26 photographs a person"),
    ):
        scipy.io.savemat(path, content)
        with pytest.raises(DataError, match=message):
            AR100(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_matlab_files_as_scipy_reads_them(tmp_path: Path, compressed: bool) -> None:
    random = np.random.default_rng(0)
    values = {
        "one": random.random((3, 4)),
        "small": np.arange(6.0).reshape(2, 3),
        "x": np.uint8([[7]]),
        "empty": np.zeros((0, 3)),
        "deep": random.integers(-9, 9, (2, 3, 4), np.int16),
        "wide": np.int64([[2**40]]),
        "single": np.float32([[0.5]]),
        "a_text": "not a number",
        "a_cell": np.array([[1, "x"]], object),
        "turned": np.array([[1j]]),
    }
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, values, do_compression=compressed)
    theirs, ours = scipy.io.loadmat(path), read_mat(path)
    assert set(ours) == set(values) - {"a_text", "a_cell", "turned"}
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype and np.array_equal(array, theirs[name])
    content = path.read_bytes()
    for length in range(0, len(content), 37):
        path.write_bytes(content[:length])
        try:
            assert set(read_mat(path)) < set(ours)  # cut between two variables
        except DataError as error:
            assert str(path) in str(error)


def test_damaged_matlab_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"x": np.zeros((99, 99))}, do_compression=True)
    content = path.read_bytes()
    for damaged, message in (
        (b"MATLAB 5.0 MAT-file" * 20, "expected the header of a MATLAB 5 file"),
        (content[:136] + b"xxxx" + content[140:], "offset 128: damaged"),
        (content[:-4], "truncated: the element at offset 128 needs"),
        (content + b"\0", "truncated: expected an element of 8 bytes or more at offset"),
        (content[:128] + b"\x02\0\x05\0abcd", "at most 4 bytes in the small element at offset 128, got 5"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=message):
            read_mat(path)
    path.write_bytes(content)
    scipy.io.savemat(path, {name: np.zeros(100) for name in "abcdefgh"}, do_compression=True)
    monkeypatch.setattr(matlab, "MAX_BYTES", 4000)  # each of them takes 864 bytes, together they take more
    with pytest.raises(DataError, match="expected at most 4,000 bytes once decompressed"):
        read_mat(path)
    path.write_bytes(content)
    monkeypatch.setattr(matlab, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match="expected at most 1,000 bytes once decompressed"):
        read_mat(path)


def test_tables_of_landmarks(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    points = torch.rand(3, 5, 2, dtype=torch.float64) * 100
    points[1] = torch.nan
    write_landmarks(path, ["a", "b, c", "é"], points, {"identity": [1, 2, 3]})
    table = read_landmarks(path)
    assert table.names == ["a", "b, c", "é"] and table.columns == {"identity": ["1", "2", "3"]}
    assert torch.equal(table.points.nan_to_num(-1), points.nan_to_num(-1))  # to the bit
    picked = table.of(["é", "none", "a"])
    assert torch.equal(picked[0], points[2]) and picked[1].isnan().all()
    rows = path.read_text().splitlines()
    for text, message in (
        ("", "line 1: expected one column 'image', got nothing"),
        ("image,left_eye_x\na,1\n", "line 1: expected one column 'left_eye_y'"),
        (rows[0] + "\n" + rows[1] + ",5\n", "line 2: expected 12 cells, got 13"),
        (rows[0] + "\n" + rows[1] + "\n" + rows[1] + "\n", "line 3: image 'a' is there already, at line 2"),
        (rows[0] + "\na,x" + ",1" * 10 + "\n", "line 2: expected a number in 'left_eye_x', got 'x'"),
        (rows[0] + "\na,inf" + ",1" * 10 + "\n", "line 2: expected a number"),
        (rows[0] + '\n"a' + ",1" * 11 + "\n", "line 2: "),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_landmarks(path)


def test_landmarks_by_other_spellings_of_a_name_and_of_other_images(tmp_path: Path) -> None:
    write_faces(tmp_path, ["Ann/1.jpg", "Bob/1.jpg"], landmarks=True)
    table = tmp_path / "landmarks.csv"
    content = table.read_text()
    wanted = Folder(tmp_path).landmarks
    for a, b in (("Ann/1.jpg", "./Ann/1.jpg"), ("Bob/1.jpg", "Bob\\1.jpg")):
        table.write_text(content.replace(a, b))
        assert torch.equal(Folder(tmp_path).landmarks, wanted)
    table.write_text(content + content.splitlines()[1].replace("Ann/1.jpg", "./Ann/1.jpg") + "\n")
    with pytest.raises(DataError, match=r"line 4: image './Ann/1.jpg' is there already, at line 2"):
        Folder(tmp_path)
    table.write_text(content.replace("/1.jpg", ".jpg"))
    with pytest.warns(
        UserWarning, match=r"the landmarks are of other images, such as 'Ann.jpg'; those here are named like"
    ):
        assert bool(Folder(tmp_path).landmarks.isnan().all())


def test_opening_by_name_or_path(tmp_path: Path) -> None:
    for what, error, message in (
        (tmp_path / "none", DataError, r"no such file or folder, and not a known data set \(orl, lfw"),
        ("folder", ValueError, "folder: expected a path after it"),
        (__file__, ValueError, "expected a folder or one of the suffixes"),
    ):
        with pytest.raises(error, match=message):
            open_dataset(what)
    write_faces(tmp_path, ["a/1.jpg"])
    assert isinstance(open_dataset(f"folder:{tmp_path}"), Folder)
    assert isinstance(open_dataset("folder", root=tmp_path), Folder)


def test_one_function_opens_aligns_and_selects(tmp_path: Path) -> None:
    write_faces(tmp_path / "faces", ["a/1.jpg", "a/2.jpg", "b/3.jpg"], landmarks=True)
    faces = open_dataset(tmp_path / "faces", template="arcface-112", gray=True, min_images=2)
    assert faces.people == ["a"] and faces[0].image.shape == (1, 112, 112)
    assert faces.alignment is not None and faces.alignment.color == "gray"
    sized = open_dataset("folder", root=tmp_path / "faces", template="arcface-112", size=(56, 56), border="black")
    assert sized[0].image.shape == (3, 56, 56) and sized.alignment.border == "black"
    table = tmp_path / "points.csv"
    write_landmarks(table, ["a/2.jpg"], torch.arange(10.0).reshape(1, 5, 2).double())
    listed = open_dataset(tmp_path / "faces", landmarks=table)
    assert isinstance(listed, Folder) and listed.landmarks_of(1) is not None and listed.landmarks_of(0) is None
    for source, options, error, message in (
        (tmp_path / "faces", {"wrong": 1}, TypeError, "wrong: data sets of kind 'folder' accept landmarks, min_images"),
        (tmp_path / "faces", {"size": (9, 9)}, ValueError, "size: expected together with template"),
        (tmp_path / "faces", {"root": tmp_path}, ValueError, "root: expected together with a kind"),
        (f"folder:{tmp_path}", {"root": tmp_path}, ValueError, "root: expected together with a kind"),
    ):
        with pytest.raises(error, match=message):
            open_dataset(source, **options)


def test_gray_sets_open_in_the_color_that_is_wanted() -> None:
    assert open_dataset("orl")[0].image.shape == (1, 112, 92)
    color = open_dataset("orl", gray=False)[0].image
    assert color.shape == (3, 112, 92) and torch.equal(color[:1], open_dataset("orl", gray=True)[0].image)


def test_alignments_written_by_version_0_1_0_load() -> None:
    """That version spelled the color "grey"."""
    points = [[1.0, 2.0]] * 5
    old = {"template": "t", "size": [9, 9], "points": points, "transform": "box", "border": "repeat", "color": "grey"}
    assert Alignment.from_dict(old).color == "gray"


@needs("lfw")
def test_the_real_lfw() -> None:
    lfw = LFW()
    contract(lfw)
    assert (len(lfw.people), len(lfw)) == (5748, 13232) and not lfw.landmarks.isnan().any()
    ten = LFW(min_images=10)
    assert (len(ten.people), len(ten)) == (158, 4324)
    assert LFW(people="view1-train").counts.sum() == 9525 and len(LFW(people="view1-train").people) == 4038
    with pytest.warns(UserWarning, match="1 of 1711"):
        test = LFW(people="view1-test")
    assert len(test.people) == 1710 and len(test.missing) == 1
    folds = read_people(lfw.base / "people.txt")
    assert len(folds) == 10 and sum(map(len, folds)) == 5749


@needs("celeba")
def test_the_real_celeba() -> None:
    celeba = CelebA()
    contract(celeba)
    assert (len(celeba.people), len(celeba)) == (299, 6225)
    assert [len(CelebA(min_images=n).people) for n in (10, 20)] == [253, 199]
    excluded = read_exclude(celeba.root.parent / "exclude_for_lfw.csv")
    assert len(CelebA(exclude=excluded).people) == 299 - len(excluded) == 292


@needs("ar10p")
def test_the_real_ar10p() -> None:
    ar = AR10P()
    contract(ar)
    assert (len(ar.people), len(ar)) == (10, 130)
    # Sunglasses darken the eyes.
    eyes = ar.images[:, 0, 15:27].double().mean((1, 2))
    clean, glasses = ar.shots(occlusion=None, light="even"), ar.shots(occlusion="sunglasses", light="even")
    assert eyes[glasses].mean() < eyes[clean].mean() - 10
