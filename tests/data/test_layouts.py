"""Layouts that the field's sets and tools have on the disk; each file is made here by its documented format."""

from __future__ import annotations

import os
import socket
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from occfast import DataError
from occfast.data import (
    AR,
    LFW,
    CelebA,
    Folder,
    ImageList,
    Photographs,
    RecordIO,
    open_dataset,
    read_image,
    read_landmarks,
    read_pairs,
)
from occfast.data.record_file import Header, encode_record
from tests.data.pictures import encode, pixels, write_faces


def test_photographs_of_formats_that_are_not_read_are_said(tmp_path: Path) -> None:
    write_faces(tmp_path, ["a/1.JFIF", "a/2.jpg", "b/1.png"])
    first = tmp_path / "a" / "1.JFIF"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names = Folder(tmp_path).names
        (first.parent / "notes.txt").write_text("")
        assert Folder(tmp_path).names == Photographs(tmp_path).names == names
    assert names == ["a/1.JFIF", "a/2.jpg", "b/1.png"]
    for name in ("a.heic", "b.HEIC", "c.avif"):
        (first.parent / name).write_bytes(b"")
    for kind in (Folder, Photographs):
        with pytest.warns(
            UserWarning, match=r"does not read are left out \(1 \.avif, 2 \.heic\); convert them to JPEG"
        ):
            assert kind(tmp_path).names == names


def packed(path: Path, labels: dict[int, float], listed: bool = False) -> Path:
    """A ``.rec`` with an image for each key, as im2rec or (``listed``, with record 0) RecBuilder writes it."""
    records = {key: Header((label,), key).pack(encode(pixels(key))) for key, label in labels.items()}
    if listed:
        end = max(labels) + 1
        people = sorted(set(labels.values()))
        records[0] = Header((end, end + len(people)), 0, listed=True).pack(b"")
        for k, person in enumerate(people):
            keys = [key for key, label in labels.items() if label == person]
            records[end + k] = Header((min(keys), max(keys) + 1), end + k, listed=True).pack(b"")
    offset, lines, out = 0, [], []
    for key, data in sorted(records.items()):
        out.append(encode_record(data))
        lines.append(f"{key}\t{offset}\n")
        offset += len(out[-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(out))
    path.with_suffix(".idx").write_text("".join(lines))
    return path


LABELS = {0: 7.0, 1: 7.0, 2: 3.0, 3: 3.0}
LIST = {
    0: "0\t7.000000\tb/1.jpg\n",
    1: "1\t7.000000\tb/2.jpg\n",
    2: "2\t3.000000\ta/1.jpg\n",
    3: "3\t3.000000\ta/2.jpg\n",
}


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 0, 2, 1)])
@pytest.mark.parametrize("index", ["plain", "reversed"])
def test_a_list_is_matched_by_key(tmp_path: Path, order: tuple[int, ...], index: str) -> None:
    path = packed(tmp_path / "train.rec", LABELS)
    if index == "reversed":
        lines = path.with_suffix(".idx").read_text().splitlines(keepends=True)
        path.with_suffix(".idx").write_text("".join(lines[::-1]))
    path.with_suffix(".lst").write_text("".join(LIST[key] for key in order))
    faces = RecordIO(path)
    assert {int(key): name for key, name in zip(faces.keys, faces.names, strict=True)} == {
        0: "b/1.jpg",
        1: "b/2.jpg",
        2: "a/1.jpg",
        3: "a/2.jpg",
    }
    assert faces.encoded(faces.positions["a/1.jpg"]) == encode(pixels(2))


def test_a_list_that_contradicts_the_records_names_the_key(tmp_path: Path) -> None:
    path = packed(tmp_path / "train.rec", LABELS)
    table = path.with_suffix(".lst")
    table.write_text("".join(LIST.values()).replace("2\t3.0", "2\t7.0"))
    with pytest.raises(DataError, match=r"train\.lst, line 3: key 2 has label 7 here and 3 in train\.rec"):
        RecordIO(path)
    table.write_text(LIST[0] + LIST[1] + LIST[3])
    with pytest.raises(DataError, match=r"train\.lst: expected a line for key 2, which is in train\.rec"):
        RecordIO(path)


def test_im2rec_leaves_out_a_broken_image(tmp_path: Path) -> None:
    path = packed(tmp_path / "train.rec", {key: label for key, label in LABELS.items() if key != 1})
    path.with_suffix(".lst").write_text("".join(LIST.values()))
    with pytest.warns(UserWarning, match=r"1 of 4 lines have no record in train\.rec"):
        faces = RecordIO(path)
    assert faces.names == ["b/1.jpg", "a/1.jpg", "a/2.jpg"]


def test_the_list_of_insightface(tmp_path: Path) -> None:
    """A flag, a path and a label on each line, read by face2rec2, which numbers the records from 1."""
    path = packed(tmp_path / "train.rec", {1: 0.0, 2: 0.0, 3: 1.0}, listed=True)
    path.with_suffix(".lst").write_text("1\t/x/a/1.jpg\t0\n1\t/x/a/2.jpg\t0\n1\t/x/b/1.jpg\t1\n")
    path.with_name("property").write_text("2,20,16\n3\n")  # RecBuilder adds the number of images
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        faces = RecordIO(path)
    assert faces.names == ["/x/a/1.jpg", "/x/a/2.jpg", "/x/b/1.jpg"] and faces.labels.tolist() == [0, 0, 1]
    assert faces.property == (2, 20, 16)
    path.with_suffix(".lst").write_text("1\t/x/a/1.jpg\t0\n1\t/x/b/1.jpg\t1\n")
    with pytest.warns(UserWarning, match="it states no keys and its labels differ"):
        assert RecordIO(path).names == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.lst", b"some\tother\tthing\n"),
        ("train.lst", b"\xff\xfe"),
        ("train.lst", b"0\t7\ta.jpg\n1\t7\ta.jpg\n"),
        ("train.json", b"[1, 2"),
        ("train.json", b'{"people": ["one"]}'),
        ("train.json", b'{"alignment": 3}'),
        ("train.json", b'{"people": ["A", "A", "A", "B", "A", "A", "A", "B"]}'),
        ("train.landmarks.csv", b"image,x\n"),
        ("property", b"many\n"),
    ],
)
def test_unneeded_files_never_make_records_unusable(tmp_path: Path, name: str, content: bytes) -> None:
    path = packed(tmp_path / "train.rec", LABELS)
    (tmp_path / name).write_bytes(content)
    with pytest.warns(UserWarning, match=f"{name} is not used: "):
        faces = RecordIO(path)
    assert list(faces.names) == ["0", "1", "2", "3"] and faces.people == ["3", "7"] and faces[3].image.shape[0] == 3


@pytest.mark.parametrize("names", [(), ("b/1.jpg",)])
def test_lists_of_both_tools_open_as_images(tmp_path: Path, names: tuple[str, ...]) -> None:
    write_faces(tmp_path, ["a/1.jpg", "a/2.jpg", "b/1.jpg"])
    (tmp_path / "im2rec.lst").write_text("5\t1.000000\ta/1.jpg\n9\t0.000000\tb/1.jpg\n")
    assert ImageList(tmp_path / "im2rec.lst").people == ["0", "1"]
    (tmp_path / "several.lst").write_text("5\t1.000000\t0.25\ta/1.jpg\n9\t0.000000\t0.5\tb/1.jpg\n")  # --pack-label
    assert ImageList(tmp_path / "several.lst").people == ["0", "1"]
    (tmp_path / "face2rec.lst").write_text("1\ta/1.jpg\t4\t0\t0\t9\t9\n1\tb/1.jpg\t5\t0\t0\t9\t9\n")
    assert ImageList(tmp_path / "face2rec.lst").people == ["4", "5"]
    (tmp_path / "trailing.txt").write_text("a/1.jpg\tAnn\t\t\nb/1.jpg\tBob\t\n")
    assert ImageList(tmp_path / "trailing.txt").people == ["Ann", "Bob"]


def test_a_folder_that_was_unpacked_twice(tmp_path: Path) -> None:
    write_faces(tmp_path / "faces", [f"faces/{person}/{k}.jpg" for person in ("Ann", "Bob") for k in (1, 2)])
    with pytest.warns(UserWarning, match="read from the only folder in it, faces"):
        faces = Folder(tmp_path / "faces")
    assert faces.people == ["Ann", "Bob"] and faces.names[0] == "Ann/1.jpg" and faces[0].image.shape[0] == 3
    write_faces(tmp_path / "one", ["Ann/2020/1.jpg", "Ann/2.jpg", "Ann/2021/3.jpg"])  # one person, sorted by year
    assert Folder(tmp_path / "one").people == ["Ann"]


@pytest.mark.parametrize(
    "inside", ["lfw-py/lfw_funneled", "lfw-py/lfw", "lfw/lfw", "lfw-deepfunneled/lfw-deepfunneled"]
)
def test_places_of_lfw(tmp_path: Path, inside: str) -> None:
    write_faces(tmp_path / inside, ["Ann_B/Ann_B_0001.jpg", "Cid/Cid_0001.jpg"])
    base = tmp_path / "lfw-py" if inside.startswith("lfw-py") else tmp_path
    (base / "pairs.txt").write_text("1\t1\nAnn_B\t1\t1\nAnn_B\t1\tCid\t1\n")
    faces = open_dataset(tmp_path)
    assert isinstance(faces, LFW) and faces.names == ["Ann_B/Ann_B_0001.jpg", "Cid/Cid_0001.jpg"]
    assert faces.base == base


@pytest.mark.parametrize("layout", ["flat", "official", "twice"])
@pytest.mark.parametrize("header", ["", "image_id identity\n", "3\nimage_id identity\n"])
def test_places_of_celeba(tmp_path: Path, layout: str, header: str) -> None:
    images = {
        "flat": "img_align_celeba",
        "official": "Img/img_align_celeba",
        "twice": "img_align_celeba/img_align_celeba",
    }
    notes = tmp_path / ("Anno" if layout == "official" else ".")
    notes.mkdir(exist_ok=True)
    write_faces(tmp_path / images[layout], ["000001.jpg", "000002.jpg", "000003.jpg"])
    (notes / "identity_CelebA.txt").write_text(header + "000001.jpg 2880\n000002.jpg 2937\n000003.jpg 2880\n")
    columns = (
        "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x rightmouth_y"
    )
    rows = [f"{k:06d}.jpg    69  109  106  113   77  142   73  152  108  15{k}" for k in (1, 2, 3)]
    (notes / "list_landmarks_align_celeba.txt").write_text("\n".join(["3", columns, *rows]) + "\n")
    faces = open_dataset(tmp_path)
    assert isinstance(faces, CelebA) and faces.people == ["2880", "2937"] and faces.labels.tolist() == [0, 1, 0]
    assert faces.landmarks_of(1).tolist() == [[109, 69], [113, 106], [142, 77], [152, 73], [152, 108]]


def test_the_list_of_landmarks_as_csv_and_damaged(tmp_path: Path) -> None:
    columns = "image_id,lefteye_x,lefteye_y,righteye_x,righteye_y,nose_x,nose_y,leftmouth_x,leftmouth_y,rightmouth_x,rightmouth_y"
    path = tmp_path / "list_landmarks_align_celeba.csv"
    path.write_text(columns + "\n000001.jpg,69,109,106,113,77,142,73,152,108,154\n")
    assert read_landmarks(path).points[0, 2].tolist() == [142, 77]
    path = path.with_suffix(".txt")
    for content, message in (
        (columns.replace(",", " ") + "\n", "line 1: expected the number of images"),
        (
            "2\n" + columns.replace("image_id,", "").replace(",", " ") + "\na.jpg" + " 1" * 10,
            "expected 2 images by line 1, got 1",
        ),
        (
            "1\n" + columns.replace("image_id,", "").replace(",", " ") + "\na.jpg 1 2\n",
            "line 3: expected 11 cells, got 3",
        ),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=message):
            read_landmarks(path)


def test_ar_numbers_and_raw_files(tmp_path: Path) -> None:
    """AR's own files are the planes of red, green and blue, 576 rows of 768 pixels each."""
    image = np.random.default_rng(0).integers(0, 256, (3, 576, 768), np.uint8)
    (tmp_path / "m-001-8.raw").write_bytes(image.tobytes())
    write_faces(tmp_path, ["M-01-09.jpg", "W-1-01.jpg", "M-10-01.jpg"])
    faces = AR(tmp_path)
    assert faces.people == ["M-001", "M-010", "W-001"] and faces.counts.tolist() == [2, 1, 1]
    k = faces.positions["m-001-8.raw"]
    assert torch.equal(faces[k].image, torch.from_numpy(image)) and faces.encoded(k) is None and faces.numbers[k] == 8
    assert AR(tmp_path, gray=True)[k].image.shape == (1, 576, 768)
    (tmp_path / "m-001-8.raw").write_bytes(bytes(100))
    with pytest.raises(DataError, match=r"expected 1,327,104 bytes, 768×576 RGB, got 100"):
        AR(tmp_path)[k]
    write_faces(tmp_path, ["again/M-001-09.png"])
    with pytest.raises(DataError, match="photograph 9 of M-001 is there already"):
        AR(tmp_path)


def listed(tmp_path: Path, content: str) -> list[tuple[str, str, bool, int | None]]:
    path = tmp_path / "pairs.txt"
    path.write_text(content)
    return [(pair.first, pair.second, pair.same, pair.fold) for pair in read_pairs(path).pairs]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # Kaggle's pairs.csv, with and without its header.
        (
            "name,imagenum1,imagenum2,\nAnn,1,4,\nAnn,1,Ben,2\n",
            [("Ann/Ann_0001", "Ann/Ann_0004", True, None), ("Ann/Ann_0001", "Ben/Ben_0002", False, None)],
        ),
        (
            "Ann,1,4,\nAnn,1,Ben,2\n",
            [("Ann/Ann_0001", "Ann/Ann_0004", True, None), ("Ann/Ann_0001", "Ben/Ben_0002", False, None)],
        ),
        ("img1,img2,label\na.jpg,b.jpg,1\n", [("a.jpg", "b.jpg", True, None)]),
        # Flags.
        ("a.jpg b.jpg -1\na.jpg c.jpg 1\n", [("a.jpg", "b.jpg", False, None), ("a.jpg", "c.jpg", True, None)]),
        ("a.jpg,b.jpg,True\na.jpg,c.jpg,False\n", [("a.jpg", "b.jpg", True, None), ("a.jpg", "c.jpg", False, None)]),
        ("-1\ta.jpg\tb.jpg\n", [("a.jpg", "b.jpg", False, None)]),
        # Two lines a pair.
        ("a.jpg 1\nb.jpg 1\nc.jpg 0\nd.jpg 0\n", [("a.jpg", "b.jpg", True, None), ("c.jpg", "d.jpg", False, None)]),
        ("a.jpg b.jpg 1.0\na.jpg c.jpg 0.0\n", [("a.jpg", "b.jpg", True, None), ("a.jpg", "c.jpg", False, None)]),
        ("600 601 False\n600 602 -1\n", [("600", "601", False, None), ("600", "602", False, None)]),
        # Titles say which column is which.
        (
            "fold,first,second,same\n3,a.jpg,b.jpg,1\n4,a.jpg,c.jpg,0\n",
            [("a.jpg", "b.jpg", True, 3), ("a.jpg", "c.jpg", False, 4)],
        ),
        (
            ",image1,image2,label\n0,a.jpg,b.jpg,True\n1,a.jpg,c.jpg,False\n",
            [("a.jpg", "b.jpg", True, None), ("a.jpg", "c.jpg", False, None)],
        ),
        ("label image1 image2\n1 600 601\n0 600 700\n", [("600", "601", True, None), ("600", "700", False, None)]),
        ("image1,image2,same\n600,601,0\n", [("600", "601", False, None)]),
        ("name,imagenum1,imagenum2\n1,2,3\n", [("1/1_0002", "1/1_0003", True, None)]),
        ("path,flag\na.jpg,1\nb.jpg,1\n", [("a.jpg", "b.jpg", True, None)]),
        # Quoted cells, semicolons, comments.
        ('"a, 1.jpg","b.jpg",1\n', [("a, 1.jpg", "b.jpg", True, None)]),
        ("a.jpg;b.jpg;0\n", [("a.jpg", "b.jpg", False, None)]),
        ("# pairs\na.jpg b.jpg 1\n", [("a.jpg", "b.jpg", True, None)]),
        # LFW's header with a space, and tabs at the ends of lines.
        (
            "2 1\nA\t1\t2\t\nA\t1\tB\t1\t\nC\t1\t2\nC\t1\tD\t1\t\t\n",
            [
                ("A/A_0001", "A/A_0002", True, 0),
                ("A/A_0001", "B/B_0001", False, 0),
                ("C/C_0001", "C/C_0002", True, 1),
                ("C/C_0001", "D/D_0001", False, 1),
            ],
        ),
        # Names of images that are numbers, as of a .rec without a list, and people whose names are numbers.
        ("600 601 0\n600 602 1\n", [("600", "601", False, None), ("600", "602", True, None)]),
        ("600 601 0 1\n600 602 1 2\n", [("600", "601", False, 1), ("600", "602", True, 2)]),
        (
            "600 1 2\n600 1 601 2\n",
            [("600/600_0001", "600/600_0002", True, None), ("600/600_0001", "601/601_0002", False, None)],
        ),
        (
            "1\n600\t1\t2\n600\t1\t601\t1\n",
            [("600/600_0001", "600/600_0002", True, None), ("600/600_0001", "601/601_0001", False, None)],
        ),
    ],
)
def test_lists_of_pairs(tmp_path: Path, content: str, expected: list[tuple]) -> None:
    assert listed(tmp_path, content) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1 600 601\n0 600 700\n", "line 1: expected titles above, since '1 600 601' may be 'flag name name'"),
        (
            "fold,first,second,same\n0,a.jpg,b.jpg,2\n",
            "line 2: expected two images, a flag such as 1 or False and a fold",
        ),
        ("a.jpg 1\nb.jpg 0\n", "line 2: expected the flag of the line before, 1, got 0"),
        ("a.jpg 1\nb.jpg 1\nc.jpg 0\n", "line 3: expected two lines for each pair"),
        ("Ann 0 1\n", "line 1: expected numbers of images from 1, got 0 of 'Ann'"),
        ("a.jpg b.jpg\na.jpg c.jpg 1\n", "line 1: expected 'name 1 4'"),  # no header, but a line without a flag
    ],
)
def test_wrong_lists_of_pairs(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        listed(tmp_path, content)


def test_pipes_sockets_devices_and_huge_files_are_refused_at_once(tmp_path: Path) -> None:
    write_faces(tmp_path, ["Ann/1.jpg"])
    os.mkfifo(tmp_path / "Ann" / "2.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        (tmp_path / "s").rename(tmp_path / "Ann" / "3.jpg")
        (tmp_path / "Ann" / "4.jpg").symlink_to("/dev/zero")
        with (tmp_path / "Ann" / "5.jpg").open("wb") as file:
            file.truncate(50 << 30)
        faces = Folder(tmp_path)
        assert len(faces) == 5 and faces[0].image.shape[0] == 3
        for k, message in (
            (1, "2.jpg: expected a regular file"),
            (2, "3.jpg: "),
            (3, "4.jpg: expected a regular file"),
            (4, "5.jpg: expected at most 1,073,741,824 bytes, got 53,687,091,200"),
        ):
            with pytest.raises(DataError, match=message):
                faces[k]
    for name in ("list.txt", "pairs.txt", "points.csv", "x.mat"):
        os.mkfifo(tmp_path / name)
    for read in (lambda: ImageList(tmp_path / "list.txt"), lambda: read_pairs(tmp_path / "pairs.txt")):
        with pytest.raises(DataError, match="expected a regular file"):
            read()
    with pytest.raises(DataError, match="expected a regular file"):
        read_landmarks(tmp_path / "points.csv")
    with pytest.raises(DataError, match="expected a regular file"):
        open_dataset(tmp_path / "x.mat")
    with pytest.raises(DataError, match=r"expected a regular file|can't be read"):
        read_image(tmp_path)


def test_links_between_folders_are_not_walked_for_ever(tmp_path: Path) -> None:
    write_faces(tmp_path, ["a/1.jpg", "b/1.jpg"])
    (tmp_path / "a" / "to_b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "to_a").symlink_to(tmp_path / "a")
    with pytest.raises(DataError, match=r"a link to a folder that it lies in|its images would count twice"):
        Folder(tmp_path)
    for k in range(1, 12):  # each links twice to the next: 2^12 ways to the last
        folder = tmp_path / "chain" / f"{k:02d}"
        folder.mkdir(parents=True)
        for side in "xy":
            (folder / side).symlink_to(tmp_path / "chain" / f"{k + 1:02d}")
    write_faces(tmp_path / "chain", ["12/p/1.jpg"])
    with pytest.raises(DataError, match="its images would count twice"):
        Folder(tmp_path / "chain" / "01")


def test_deep_folders_are_one_clear_error(tmp_path: Path) -> None:
    start, depth = Path.cwd(), 1500
    os.chdir(tmp_path)
    try:
        for _ in range(depth):
            os.mkdir("deeper")  # noqa: PTH102
            os.chdir("deeper")
        os.chdir(start)
        with pytest.raises(DataError, match="can't be listed: File name too long"):
            Folder(tmp_path)
    finally:  # pytest would not get so deep to clean up
        os.chdir(tmp_path)
        for _ in range(depth):
            os.chdir("deeper")
        for _ in range(depth):
            os.chdir("..")
            os.rmdir("deeper")  # noqa: PTH106
        os.chdir(start)


def test_struct_of_a_header() -> None:
    """A header has the layout of mxnet's definition."""
    assert Header((7.0,), 3).pack(b"x") == struct.pack("<IfQQ", 0, 7.0, 3, 0) + b"x"
