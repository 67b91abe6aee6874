"""Lists of pairs: every format, Windows line ends, missing images, and nothing but DataError for anything else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from occfast import DataError
from occfast.data import Face, FaceDataset
from occfast.data.faces import number_people
from occfast.data.pairs import ListedPair, read_pairs
from tests.data.pictures import InMemory


class Named(FaceDataset):
    """A data set of names alone."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.people, self.labels = number_people([name.split("/")[0] for name in names], "names")

    def __getitem__(self, k: int) -> Face:
        raise AssertionError("a list is resolved without opening an image")


def lfw_like(folds: int = 2, each: int = 2, divider: str = "\t", end: str = "\n") -> str:
    lines = [divider.join(map(str, (folds, each)))]
    for fold in range(folds):
        lines += [divider.join((f"P{fold}", "1", str(k + 2))) for k in range(each)]
        lines += [divider.join((f"P{fold}", "1", f"Q{fold}", str(k + 1))) for k in range(each)]
    return end.join(lines) + end


FACES = Named(*(f"{person}/{person}_{k:04d}.jpg" for person in ("P0", "P1", "Q0", "Q1") for k in (1, 2, 3)))


def written(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "pairs.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("divider", ["\t", " ", ","])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_folds_of_the_official_list(tmp_path: Path, divider: str, end: str, mark: bytes) -> None:
    listed = read_pairs(written(tmp_path, mark + lfw_like(divider=divider, end=end).encode()))
    assert len(listed) == 8
    assert listed.pairs[0] == ListedPair("P0/P0_0001", "P0/P0_0002", True, 0, 2)
    assert listed.pairs[6] == ListedPair("P1/P1_0001", "Q1/Q1_0001", False, 1, 8)
    pairs = listed.resolve(FACES)
    assert pairs.same.tolist() == [True, True, False, False] * 2
    assert pairs.folds is not None and pairs.folds.tolist() == [0] * 4 + [1] * 4
    assert [(FACES.names[a], FACES.names[b]) for a, b in pairs.index.tolist()][2] == (
        "P0/P0_0001.jpg",
        "Q0/Q0_0001.jpg",
    )
    assert pairs.missing == [] and len(pairs) == 8


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Ann 1 4", ("Ann/Ann_0001", "Ann/Ann_0004", True, None)),
        ("Ann, 1, Ben, 12", ("Ann/Ann_0001", "Ben/Ben_0012", False, None)),
        ("7399 1 7256 2", ("7399/7399_0001", "7256/7256_0002", False, None)),
        ("Zoë_Łaz\t1\t2", ("Zoë_Łaz/Zoë_Łaz_0001", "Zoë_Łaz/Zoë_Łaz_0002", True, None)),
        ("a/x.png b/y.png 1", ("a/x.png", "b/y.png", True, None)),
        ("a/x y.png\tb/y.png\t0", ("a/x y.png", "b/y.png", False, None)),
        ("1 a/x.png b/y.png", ("a/x.png", "b/y.png", True, None)),
        ("a.png,b.png,0,3", ("a.png", "b.png", False, 3)),
    ],
)
def test_lines(tmp_path: Path, line: str, expected: tuple) -> None:
    assert read_pairs(written(tmp_path, line)).pairs == [ListedPair(*expected, 1)]


def test_pairs_of_a_missing_image_are_told_of(tmp_path: Path) -> None:
    listed = read_pairs(written(tmp_path, lfw_like()))
    fewer = Named(*(name for name in FACES.names if name != "Q0/Q0_0002.jpg"))
    with pytest.warns(
        UserWarning, match="1 of 8 pairs name an image that is not there, the first is line 5: Q0/Q0_0002"
    ):
        pairs = listed.resolve(fewer)
    assert len(pairs) == 7 and pairs.missing == [ListedPair("P0/P0_0001", "Q0/Q0_0002", False, 0, 5)]
    with pytest.raises(DataError, match="1 of 8 pairs name an image that is not there"):
        listed.resolve(fewer, missing="error")
    with pytest.raises(DataError, match="8 of 8 pairs"):
        listed.resolve(Named("other/other_0001.jpg"))


def test_images_are_found_by_the_end_of_their_names_unless_that_is_ambiguous(tmp_path: Path) -> None:
    listed = read_pairs(written(tmp_path, "x.png b/y 1"))
    assert listed.resolve(Named("some/x.png", "b/y.jpeg")).index.tolist() == [[0, 1]]
    assert read_pairs(written(tmp_path, "some\\x.png b\\y 1")).resolve(
        Named("b/y.jpg", "some/x.png")
    ).index.tolist() == [[1, 0]]
    with pytest.raises(DataError, match=r"x\.png may be any of 2 images"):
        listed.resolve(Named("some/x.png", "other/x.png", "b/y.jpg"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "P0 1 2\nP0/P0_0002 P0/P0_0001 0",
            "line 2: P0/P0_0002 and P0/P0_0001 are two people here, but line 1 says the",
        ),
        ("P0/P0_0001 P0/P0_0001.jpg 0", "line 1: .* are two people here, but it is one image"),
    ],
)
def test_lines_that_contradict_each_other(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_pairs(written(tmp_path, content)).resolve(FACES)


def test_pairs_that_contradict_the_data_set_are_told_of(tmp_path: Path) -> None:
    faces = InMemory([torch.zeros(3, 4, 4)] * 3, [0, 0, 1])
    listed = read_pairs(written(tmp_path, "000 001 1\n000 002 1\n001 002 0"))
    with pytest.warns(UserWarning, match="1 of 3 pairs are one person in the list and two in the data set, .* line 2"):
        assert len(listed.resolve(faces)) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected a list of pairs, it is empty"),
        ("\n \r\n", "it is empty"),
        ("Ann 1", "line 1: expected 'name 1 4'"),
        ("Ann 1 2\n\nAnn 1 2 3 4", "line 3: expected 'name 1 4'"),
        ("a b 2", "line 1: expected"),
        ("Ann\t\t2", "line 1: expected"),
        ("10\t300\nAnn\t1\t2", "line 1: expected 10 × 2 × 300 pairs after it, got 1 lines"),
        ("0", "line 1: expected 1 × 2 × 0 pairs after it, got 0 lines"),
        ("1\nAnn 1 2\nBen 1 2", "line 3: expected a pair of two people here by the counts of line 1"),
        ("a b 1 0\na b 1", "expected the fold on all lines or none, 1 of 2 have it"),
        (b"Ann 1 \xff", "expected UTF-8, byte 0xff at offset 6"),
    ],
)
def test_one_clear_error(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_pairs(written(tmp_path, content))
    with pytest.raises(DataError, match="can't be read"):
        read_pairs(tmp_path / "none.txt")


@given(
    st.one_of(
        st.binary(max_size=200),
        st.lists(st.sampled_from(["a", "1", "0", "2\n", "\t", ",", "/", "..", "é", "\r\n", " ", "\\"])).map(
            lambda p: " ".join(p).encode()
        ),
    )
)
def test_any_bytes_are_pairs_or_a_data_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz", numbered=True) / "list.txt"
    path.write_bytes(content)
    try:
        listed = read_pairs(path)
    except DataError:
        return
    assert all(pair.first and pair.second for pair in listed.pairs)
    try:
        listed.resolve(FACES)
    except DataError as error:
        assert "not there" in str(error) or " here, but " in str(error)


def test_all_official_pairs_are_resolved() -> None:
    from occfast.data import LFW

    root = Path(os.environ.get("OCCFAST_DATA", "")) / "lfw"
    if not (root / "pairs.txt").is_file():
        pytest.skip("no lfw in $OCCFAST_DATA")
    faces = LFW(root)
    view2 = read_pairs(root / "pairs.txt").resolve(faces, missing="error")
    assert len(view2) == 6000 and int(view2.same.sum()) == 3000
    assert view2.folds is not None and view2.folds.bincount().tolist() == [600] * 10
    assert torch.equal(view2.same, faces.labels[view2.index[:, 0]] == faces.labels[view2.index[:, 1]])
    train = read_pairs(root / "pairsDevTrain.txt").resolve(faces, missing="error")
    assert (len(train), int(train.same.sum())) == (2200, 1100)
    with pytest.warns(UserWarning, match="of 1000 pairs name an image that is not there"):
        test = read_pairs(root / "pairsDevTest.txt").resolve(faces)
    assert len(test) + len(test.missing) == 1000 and 1 <= len(test.missing) <= 5


def test_an_image_of_that_name_in_another_folder_is_another_image(tmp_path: Path) -> None:
    """``D/0.png`` is not ``A/0.png``, not even where no other image is called ``0.png``."""
    (tmp_path / "pairs.txt").write_text("A/0.png A/1.png 1\nD/0.png B/2.png 0\nfaces/A/1.png 2.png 0\n")
    with pytest.warns(UserWarning, match=r"1 of 3 pairs name an image that is not there, the first is line 2: D/0.png"):
        found = read_pairs(tmp_path / "pairs.txt").resolve(Named("A/0.png", "A/1.png", "B/2.png"))
    assert found.index.tolist() == [[0, 1], [1, 2]]
