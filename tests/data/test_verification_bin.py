"""Verification sets: read without executing anything, written so that pickle reads them."""

from __future__ import annotations

import os
import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest

from occfast import DataError
from occfast.data import VerificationBin, open_dataset, write_verification_bin
from occfast.data.pickled_pairs import Slice, read_pairs
from tests.data.pictures import encode, pixels

IMAGES = [encode(pixels(k)) for k in range(8)]
SAME = [True, False, False, True]


def check(path: Path) -> None:
    faces = VerificationBin(path)
    assert len(faces) == 8 and faces.same.tolist() == SAME and faces.pairs.tolist()[1] == [2, 3]
    assert [faces.encoded(k) for k in range(8)] == IMAGES
    assert faces[3].image.shape == (3, 20, 16) and faces[3].name == "pair-00001-b"
    assert faces.labels.tolist() == [0, 0, 1, 2, 3, 4, 5, 5] and len(faces.people) == 6


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("container", [tuple, list])
def test_what_python_3_pickles(tmp_path: Path, protocol: int, container: type) -> None:
    path = tmp_path / "lfw.bin"
    path.write_bytes(pickle.dumps(container((IMAGES, SAME)), protocol))
    check(path)
    assert isinstance(open_dataset(path), VerificationBin)
    path.write_bytes(pickle.dumps((IMAGES, [int(value) for value in SAME]), protocol))  # 0 and 1
    check(path)


def test_what_python_2_pickled(tmp_path: Path) -> None:
    """Its protocols 1 and 2 have byte strings (U, T), booleans as I01 and marks; insightface's older sets are such."""
    memo = iter(range(1000))

    def put() -> bytes:
        return b"r" + next(memo).to_bytes(4, "little")

    strings = b"".join(b"T" + len(image).to_bytes(4, "little") + image + put() for image in IMAGES)
    flags = {2: (b"\x88", b"\x89"), 1: (b"I01\n", b"I00\n")}
    for protocol, (yes, no) in flags.items():
        head = b"\x80\x02" if protocol == 2 else b""
        same = b"".join(yes if value else no for value in SAME)
        tail = b"\x86" if protocol == 2 else b"t"
        mark = b"" if protocol == 2 else b"("
        content = head + mark + b"]" + put() + b"(" + strings + b"e]" + put() + b"(" + same + b"e" + tail + put() + b"."
        assert pickle.loads(content, encoding="bytes") == (IMAGES, SAME)  # the hand-made bytes are a real pickle
        path = tmp_path / f"{protocol}.bin"
        path.write_bytes(content)
        check(path)


def test_written_files(tmp_path: Path) -> None:
    path = write_verification_bin(tmp_path / "a.bin", iter(IMAGES), SAME)
    check(path)
    assert pickle.loads(path.read_bytes()) == (IMAGES, SAME)
    allowed = {"PROTO", "EMPTY_LIST", "MARK", "BINBYTES", "APPENDS", "NEWTRUE", "NEWFALSE", "TUPLE2", "STOP"}
    assert {code.name for code, _, _ in pickletools.genops(path.read_bytes())} == allowed
    with pytest.raises(ValueError, match="images: expected 8, two a pair, got 7"):
        write_verification_bin(tmp_path / "b.bin", IMAGES[:7], SAME)
    assert not (tmp_path / "b.bin").exists() and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(DataError, match="expected pairs, found none"):
        VerificationBin(write_verification_bin(tmp_path / "c.bin", [], []))


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_executed(tmp_path: Path, protocol: int) -> None:
    path, mark = tmp_path / "evil.bin", tmp_path / "executed"
    for value in (Evil(mark), (IMAGES, [Evil(mark)]), ([Evil(mark)], SAME), (IMAGES, SAME, Evil(mark))):
        path.write_bytes(pickle.dumps(value, protocol))
        with pytest.raises(DataError, match=r"refused: .* instruction \w+ at offset \d+, which is not executed"):
            VerificationBin(path)
        assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists()  # the attack is real


def test_every_other_instruction_is_refused() -> None:
    known = set("().0") | set("]()tlaeIpgqrhjJKMUTCB.") | set("\x80\x85\x86\x87\x88\x89\x8e\x94\x95\x96")
    known |= set("XNcRb\x8c\x93")  # of NumPy's arrays; what they name is checked
    for code in pickletools.opcodes:
        if code.code not in known:
            content = code.code.encode("latin-1") + b"\0" * 16
            with pytest.raises(DataError, match=f"instruction {code.name} at offset 0"):
                read_pairs(content, len(content), "x")
    with pytest.raises(DataError, match="instruction POP at offset 0"):
        read_pairs(b"0", 1, "x")
    with pytest.raises(DataError, match=r"instruction b'\\xff' at offset 0"):
        read_pairs(b"\xff", 1, "x")


def test_truncated_anywhere(tmp_path: Path) -> None:
    content = pickle.dumps((IMAGES[:2], SAME[:1]), 4)
    for length in range(len(content)):
        with pytest.raises(DataError, match=f"x: truncated: .*ends at {length}"):
            read_pairs(content, length, "x")
    assert read_pairs(content, len(content), "x")[1] == [True]
    empty = tmp_path / "empty.bin"
    empty.write_bytes(b"")
    with pytest.raises(DataError, match=r"truncated: .* the file is empty"):
        VerificationBin(empty)
    with pytest.raises(DataError, match="can't be read"):
        VerificationBin(tmp_path / "none.bin")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((IMAGES, SAME[:3]), "expected two images a pair, got 8 images and 3 pairs"),
        ((IMAGES, [7] * 4), "expected True or False for pair 0, got 7"),
        ((IMAGES, np.array([1, 0, 256, 1])), "expected True or False for pair 2, got 256"),
        ((IMAGES, [np.int8(-1)] * 4), "expected True or False for pair 0, got -1"),
        ((IMAGES, np.ones((2, 2), int)), "expected booleans .pairs., got a NumPy array"),
        ((IMAGES, np.ones(4)), "expected a pair of lists"),
        ((IMAGES, [b"1"] * 4), "expected True or False for pair 0, got Slice"),
        (([1, 2], [True]), "expected bytes for image 0, got int"),
        (([IMAGES], [True]), "expected bytes for image 0, got list"),
        ((IMAGES,), "expected a pair of lists"),
        (IMAGES, "expected a pair of lists"),
        (True, "expected a pair of lists"),
    ],
)
def test_other_structures(value: object, message: str) -> None:
    content = pickle.dumps(value, 4)
    with pytest.raises(DataError, match=message):
        read_pairs(content, len(content), "x")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "flags",
    [
        SAME,
        tuple(map(int, SAME)),
        [np.bool_(value) for value in SAME],
        [np.int64(value) for value in SAME],
        np.array(SAME),
        np.array(SAME, np.int32),
        np.array(SAME, ">i8"),
    ],
    ids=["bool", "int", "bool_", "int_", "array", "int32", "big-endian"],
)
def test_arrays_of_numpy(tmp_path: Path, protocol: int, flags: object) -> None:
    """uint8 arrays of encoded images, as cv2.imencode gives them, and NumPy's booleans are plain data."""
    path = tmp_path / "arrays.bin"
    content = pickle.dumps(([np.frombuffer(image, np.uint8).copy() for image in IMAGES], flags), protocol)
    path.write_bytes(content)
    if protocol == 2:  # Python 3 writes bytes in protocols 0 to 2 by a call
        with pytest.raises(DataError, match=r"refused: .* which is not executed, _codecs\.encode"):
            VerificationBin(path)
        return
    check(path)
    path.write_bytes(content.replace(b"numpy._core", b"numpy.core.") if protocol < 4 else content)
    for length in range(0, len(content), 101):
        with pytest.raises(DataError, match="truncated"):
            read_pairs(content, length, "x")


def test_arrays_that_numpy_2_names_as_numpy_1_did(tmp_path: Path) -> None:
    content = pickle.dumps(([np.frombuffer(image, np.uint8).copy() for image in IMAGES], SAME), 3)
    old = content.replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n")
    path = tmp_path / "old.bin"
    path.write_bytes(old)
    check(path)
    many = [np.frombuffer(IMAGES[0], np.uint8).copy() for _ in range(400)]
    path.write_bytes(pickle.dumps((many, [True] * 200), 4))
    assert len(VerificationBin(path)) == 400


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((2, 3), np.uint8), r"expected bytes for image 0, got a NumPy array, u1 \[2, 3\]"),
        (np.zeros(4, np.float32), r"expected bytes for image 0, got a NumPy array, f4 \[4\]"),
        (np.array([None]), "refused"),
        (np.float64(3), "expected bytes for image 0, got Scalar"),
        (np.dtype("u1"), "expected bytes for image 0, got Dtype"),
    ],
)
def test_other_arrays_of_numpy_are_refused(image: object, message: str) -> None:
    content = pickle.dumps(([image] * 2, [True]), 4)
    with pytest.raises(DataError, match=message):
        read_pairs(content, len(content), "x")


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(U\2lstR.",
        b"cnumpy\nndarray\n(tR.",
        b"cnumpy\ndtype\n(tR.",
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\ndtype\n\x85R.",
        b"\x8c\5numpy\x8c\7fromfile\x93.",
        b"cnumpy\ndtype\n(U\2u1tR(K\1tb]b.",
        b"]N\x86b.",
        b"cnumpy.core.multiarray\nscalar\n(NNtR.",
        b"cnumpy\n" + b"x" * 99 + b"\n.",
        b"X\xff\xff\xff\x7f" + b"a" * 99,
    ],
)
def test_calls_of_anything_else_are_refused(content: bytes) -> None:
    with pytest.raises(DataError, match=r"refused|expected"):
        read_pairs(content, len(content), "x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"]" * 1000 + b".", "expected at most 64 lists and tuples"),
        (b"(" * 5_000_000, "expected at most 4,000,000 items"),
        (b"e.", "expected a mark on the stack"),
        (b"(e.", "expected a list on the stack"),
        (b"a.", "expected a value on the stack"),
        (b"h\0.", "expected a value remembered as 0"),
        (b"q\0.", "expected a value to remember"),
        (b"\x80\x09.", "expected a pickle of protocol 5 or less at offset 1"),
        (b"I12x\n.", "expected a decimal number"),
        (b"I--1\n.", "expected a decimal number"),
        (b"]p--1\n.", "expected a decimal number"),
        (b"I" + b"9" * 99 + b"\n.", "expected a short line"),
        (b"\x88\x89.", "expected one result"),
        (b"\x8e" + b"\xff" * 8, "truncated: expected 18446744073709551615 bytes at offset 9"),
        (b"T\xff\xff\xff\xff", "truncated: expected -1 bytes"),
        (b"B\xff\xff\xff\x7f", "truncated: expected 2147483647 bytes"),
    ],
)
def test_bombs_and_broken_machines(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_pairs(content, len(content), "x")


def test_a_list_within_itself_is_refused() -> None:
    content = b"]\x94h\x00a]\x86."  # l = []; l.append(l); (l, [])
    inner: list = []
    inner.append(inner)
    with pytest.raises(DataError, match="expected bytes for image 0, got list"):
        read_pairs(content, len(content), "x")


def test_images_are_not_copied() -> None:
    content = pickle.dumps((IMAGES, SAME), 4)
    slices, _ = read_pairs(content, len(content), "x")
    assert all(isinstance(part, Slice) and content[part.start : part.start + part.length] in IMAGES for part in slices)
