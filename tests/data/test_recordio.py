"""RecordIO by its definition, byte by byte; headers, damage, workers, writing and going on."""

from __future__ import annotations

import multiprocessing
import pickle
import struct
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from occfast import DataError
from occfast.data import RecordFile, RecordIO, RecordWriter
from occfast.data.record_file import MAGIC, Header, encode_record, unpack
from occfast.data.recordio import find_rec, read_property
from tests.data.pictures import encode, pixels

WORD = bytes.fromhex("0a23d7ce")  # 0xced7230a, little-endian


def part(flag: int, data: bytes) -> bytes:
    """A part of a record, by the definition in dmlc-core's recordio.h."""
    return WORD + ((flag << 29) | len(data)).to_bytes(4, "little") + data + b"\0" * (-len(data) % 4)


def test_the_definition_byte_by_byte(tmp_path: Path) -> None:
    assert struct.pack("<I", MAGIC) == WORD
    assert encode_record(b"hello") == bytes.fromhex("0a23d7ce 05000000 68656c6c 6f000000")
    assert encode_record(b"") == bytes.fromhex("0a23d7ce 00000000")
    # The magic word inside, at a multiple of 4: it is left out between two parts.
    assert encode_record(b"abcd" + WORD + b"xy") == part(1, b"abcd") + part(3, b"xy")
    assert encode_record(WORD) == part(1, b"") + part(3, b"")
    assert encode_record(WORD + WORD + b"z") == part(1, b"") + part(2, b"") + part(3, b"z")
    assert encode_record(b"ab" + WORD) == part(0, b"ab" + WORD)  # not at a multiple of 4: data like any other
    path = tmp_path / "a.rec"
    path.write_bytes(part(0, b"one") + part(1, b"abcd") + part(2, b"") + part(3, b"xy") + part(0, b""))
    file = RecordFile(path)
    assert [file[k] for k in range(3)] == [b"one", b"abcd" + WORD + WORD + b"xy", b""]
    assert file.offsets.tolist() == [0, 12, 44]


@given(st.lists(st.lists(st.sampled_from([WORD, b"a", b"bc", WORD[:2], WORD[2:], b"\0" * 4]), max_size=12), max_size=5))
def test_any_data_come_back(tmp_path_factory: pytest.TempPathFactory, records: list[list[bytes]]) -> None:
    wanted = [b"".join(pieces) for pieces in records]
    path = tmp_path_factory.mktemp("rec") / "a.rec"
    path.write_bytes(b"".join(map(encode_record, wanted)))
    file = RecordFile(path)
    assert [file[k] for k in range(len(file))] == wanted


def test_headers_by_the_definition() -> None:
    """struct IRHeader { uint32 flag; float label; uint64 id, id2 }, then flag labels."""
    plain = struct.pack("<IfQQ", 0, 7.0, 3, 4)
    assert Header((7.0,), 3, 4).pack(b"jpg") == plain + b"jpg"
    assert unpack(plain + b"jpg", "x") == (Header((7.0,), 3, 4), b"jpg")
    several = struct.pack("<IfQQ", 2, 0.0, 3, 4) + struct.pack("<2f", 5.0, 0.5)
    assert Header((5.0, 0.5), 3, 4, listed=True).pack(b"jpg") == several + b"jpg"
    assert unpack(several, "x") == (Header((5.0, 0.5), 3, 4, True), b"")
    one = struct.pack("<IfQQf", 1, 0.0, 3, 0, 9.0)
    assert unpack(one, "x")[0].labels == (9.0,) and Header((9.0,), 3, listed=True).pack(b"") == one
    for data, message in (
        (plain[:23], "x: expected a header of 24 bytes, got 23"),
        (several[:-1], "x: expected 2 labels, 8 bytes, got 7"),
        (struct.pack("<IfQQ", 0xFFFFFFFF, 0, 0, 0), "expected 4294967295 labels"),
    ):
        with pytest.raises(DataError, match=message):
            unpack(data, "x")


def write(path: Path, records: list[tuple[int, bytes]]) -> None:
    with RecordWriter(path) as writer:
        for key, data in records:
            writer.write(key, data)


@pytest.fixture
def rec(tmp_path: Path) -> Path:
    """Nine images of three people with labels 2, 5 and 40, as mxnet's im2rec writes."""
    path = tmp_path / "train.rec"
    write(path, [(k, Header((float((2, 5, 40)[k // 3]),), k).pack(encode(pixels(k)))) for k in range(9)])
    return path


def insightface(path: Path, images: int = 6, ranges: tuple[tuple[int, int], ...] = ((1, 4), (4, 7))) -> Path:
    """Record 0 tells keys of images and identities; labels of the images listed, as some of its sets have them."""
    end = images + 1
    records = [(0, Header((end, end + len(ranges)), 0, listed=True).pack(b""))]
    for key in range(1, end):
        person = next(k for k, (begin, stop) in enumerate(ranges) if begin <= key < stop)
        records.append((key, Header((float(person + 10), 0.0), key, listed=True).pack(encode(pixels(key)))))
    for person, (begin, stop) in enumerate(ranges):
        records.append((end + person, Header((begin, stop), end + person, listed=True).pack(b"")))
    write(path, records)
    path.with_name("property").write_text("2,20,16\n")
    return path


def test_plain_files(rec: Path) -> None:
    faces = RecordIO(rec)
    assert len(faces) == 9 and faces.people == ["2", "5", "40"] and faces.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert faces.names[4] == "4" and faces[4].label == 1 and faces[4].name == "4"
    assert faces.encoded(4) == encode(pixels(4)) and faces[4].image.shape == (3, 20, 16)
    assert faces.header(4) == Header((5.0,), 4, 0)
    assert RecordIO(rec, gray=True)[0].image.shape[0] == 1
    assert len(RecordIO(rec.parent)) == 9  # the folder


def test_insightface_files(tmp_path: Path) -> None:
    faces = RecordIO(insightface(tmp_path / "train.rec"))
    assert len(faces) == 6 and faces.keys.tolist() == [1, 2, 3, 4, 5, 6]
    assert faces.people == ["10", "11"] and faces.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert faces.property == (2, 20, 16)
    assert faces.encoded(5) == encode(pixels(6)) and faces.header(5).labels == (11.0, 0.0)
    # Without identities' ranges (or with ranges that leave gaps) every image is asked.
    gap = RecordIO(insightface(tmp_path / "gap" / "train.rec", ranges=((1, 3), (3, 4), (4, 7))))
    assert gap.counts.tolist() == [2, 1, 3]
    assert not list(tmp_path.glob("**/*.part"))


@pytest.mark.parametrize("end", [float("nan"), float("inf"), 3.5, 1.0, -2.0])
def test_ranges_that_are_none_are_not_used(tmp_path: Path, end: float) -> None:
    records = [(0, Header((4.0, 5.0), 0, listed=True).pack(b""))]
    records += [(key, Header((7.0,), key).pack(encode(pixels(key)))) for key in (1, 2, 3)]
    records.append((4, Header((1.0, end), 4, listed=True).pack(b"")))
    write(tmp_path / "a.rec", records)
    assert RecordIO(tmp_path / "a.rec").people == ["7"]


def test_a_label_that_the_ranges_deny(tmp_path: Path) -> None:
    path = insightface(tmp_path / "train.rec")
    data = bytearray(path.read_bytes())
    file = RecordFile(path)
    offset = int(file.offsets[2]) + 8 + 24  # the second image's first label
    data[offset : offset + 4] = struct.pack("<f", 3.0)
    path.write_bytes(data)
    faces = RecordIO(path)
    with pytest.raises(DataError, match=r"expected label 10, as the identities' ranges say, got 3\.0"):
        faces[1]


def test_without_an_index_the_file_is_walked(rec: Path) -> None:
    with_index = RecordIO(rec)
    rec.with_suffix(".idx").unlink()
    walked = RecordIO(rec)
    assert [walked.encoded(k) for k in range(9)] == [with_index.encoded(k) for k in range(9)]


def test_index_in_another_order_and_line_ends(rec: Path) -> None:
    index = rec.with_suffix(".idx")
    lines = index.read_text().splitlines()
    index.write_bytes("\r\n".join(lines[::-1]).encode() + b"\r\n")
    faces = RecordIO(rec)
    assert faces.names[0] == "8" and faces.encoded(0) == encode(pixels(8)) and faces.labels[0] == 2


def test_a_file_truncated_anywhere_is_found(rec: Path) -> None:
    whole = rec.read_bytes()
    file = RecordFile(rec)
    last = int(file.offsets[-1])
    boundaries = {*file.offsets.tolist(), len(whole)}
    for length in sorted({*range(last - 10, len(whole), 7), *range(0, last, 97), len(whole) - 1}):
        rec.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"truncated|offset") as caught:
            RecordIO(rec)
        assert "train." in str(caught.value)
    index = rec.with_suffix(".idx").read_bytes()
    rec.with_suffix(".idx").unlink()
    for length in (*range(1, len(whole), 131), len(whole) - 1):
        rec.write_bytes(whole[:length])
        if length not in boundaries:
            with pytest.raises(DataError, match=r"truncated: .*offset \d+"):
                RecordIO(rec)
    # An index that ends early is found out too.
    rec.write_bytes(whole)
    rec.with_suffix(".idx").write_bytes(b"\n".join(index.split(b"\n")[:5]) + b"\n")
    with pytest.raises(DataError, match=r"expected its end at offset \d+, after the last record of the index"):
        RecordIO(rec)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"0\t0\n1\tx\n", "line 2: expected a key and an offset, got b'1"),
        (b"0 0 0\n", "line 1: expected a key and an offset"),
        (b"0\n0\n", "line 1: expected a key and an offset"),
        (b"0\t2\n", "record 0: expected an offset that is a multiple of 4"),
        (b"0\t-4\n", "record 0: expected an offset"),
        (b"0\t99999999999\n", "record 0: expected an offset .* in a file of"),
        (b"0\t999999999999999999999999\n", "line 1: expected a key"),
        (b"0\t0\n0\t12\n", "expected every key once, got 0 2 times"),
        (b"0\t0\n1\t0\n", "expected every offset once, got 0 2 times"),
        (b"0\t4\n", "expected a record .* at offset 4"),
        (b"", "expected no bytes, since the index is empty"),
    ],
)
def test_bad_indices(rec: Path, index: bytes, message: str) -> None:
    rec.with_suffix(".idx").write_bytes(index)
    with pytest.raises(DataError, match=message):
        RecordIO(rec)


def test_damage_inside(rec: Path) -> None:
    whole, offset = rec.read_bytes(), int(RecordFile(rec).offsets[4])
    for position, value, message in (
        (offset, b"\xff", rf"expected a record \(magic 0xced7230a\) at offset {offset}, got"),
        (offset + 7, b"\x60", f"expected the start of a record at offset {offset}, got part 3"),
        (offset + 7, b"\xe0", f"expected a flag of at most 3 at offset {offset + 4}"),
        (offset + 6, b"\xff", f"truncated: the record at offset {offset} needs"),
        (offset + 7, b"\x20", "expected the next part of a record at offset"),
    ):
        rec.write_bytes(whole[:position] + value + whole[position + 1 :])
        with pytest.raises(DataError, match=message):
            RecordIO(rec)[4]
    rec.write_bytes(whole[: offset + 40] + bytes(100) + whole[offset + 140 :])  # the image, not the record
    with pytest.raises(DataError, match=rf"train\.rec, offset {offset}: "):
        RecordIO(rec)[4]
    assert RecordIO(rec)[5].image.shape == (3, 20, 16)


def test_labels_must_be_whole_numbers(tmp_path: Path) -> None:
    for label in (0.5, -1.0, float("nan"), float("inf"), 2.0**24):
        path = tmp_path / f"{label}.rec"
        write(path, [(0, Header((label,), 0).pack(encode(pixels(0))))])
        with pytest.raises(DataError, match="expected a label that is a whole number"):
            RecordIO(path)
    for name, records, message in (
        ("short", [(0, b"tiny")], "expected a header of 24 bytes, got 4"),
        ("empty", [], "expected records, found none"),
        ("header", [(0, Header((1.0, 1.0), 0, listed=True).pack(b""))], "expected images, found none before key 1"),
        ("odd", [(0, Header((-5.0, 1.0), 0, listed=True).pack(b""))], "expected keys where identities begin"),
        ("nan", [(0, Header((1.0, float("nan")), 0, listed=True).pack(b""))], "expected keys where identities begin"),
        ("inf", [(0, Header((1.0, float("inf")), 0, listed=True).pack(b""))], "expected keys where identities begin"),
    ):
        write(tmp_path / f"{name}.rec", records)
        with pytest.raises(DataError, match=message):
            RecordIO(tmp_path / f"{name}.rec")


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.rec: can't be read: No such file"):
        RecordIO(tmp_path / "none.rec")
    with pytest.raises(DataError, match=r"expected one \.rec file or train\.rec, found 0"):
        find_rec(tmp_path)
    (tmp_path / "property").write_text("many\n")
    with pytest.raises(DataError, match="expected identities,height,width, got 'many'"):
        read_property(tmp_path / "property")


def test_long_files_are_labeled_in_chunks(tmp_path: Path) -> None:
    path = tmp_path / "a.rec"
    write(path, [(k, Header((float(k % 7),), k, listed=k % 3 == 0).pack(WORD * (k % 2))) for k in range(50)])
    file = RecordFile(path)
    for chunk in (1, 7, 64):
        assert file.labels(np.arange(50), chunk).tolist() == [k % 7 for k in range(50)]
    assert file.labels(np.array([49, 3])).tolist() == [0, 3]


def _read(task: tuple[RecordIO, int]) -> bytes | None:
    faces, k = task
    return faces.encoded(k)


def test_pickled_in_other_processes(rec: Path) -> None:
    faces = RecordIO(rec)
    faces[0]  # the map is open, and is not what travels
    assert pickle.loads(pickle.dumps(faces)).encoded(3) == faces.encoded(3)
    for method in ("fork", "spawn"):
        with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
            assert list(pool.map(_read, [(faces, k) for k in range(9)])) == [encode(pixels(k)) for k in range(9)]


def test_workers_of_a_loader(rec: Path) -> None:
    faces = RecordIO(rec)
    faces[0]  # opened before the fork
    loader = torch.utils.data.DataLoader(faces, batch_size=3, num_workers=2, collate_fn=list)
    got = [face for batch in loader for face in batch]
    assert [face.name for face in got] == faces.names
    assert all(torch.equal(face.image, faces[k].image) for k, face in enumerate(got))


def test_a_file_that_is_truncated_while_it_is_mapped(rec: Path) -> None:
    faces = RecordIO(rec)
    assert faces[8].image.shape == (3, 20, 16)
    with rec.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(DataError, match=r"expected \d+ bytes as when it was opened first"):
        faces[8]  # not a bus error


def test_a_file_that_changed_since(rec: Path) -> None:
    faces = pickle.loads(pickle.dumps(RecordIO(rec)))
    rec.write_bytes(rec.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"expected \d+ bytes as when it was opened first"):
        faces[0]


def test_writing_is_whole_or_resumed(tmp_path: Path) -> None:
    path = tmp_path / "a.rec"
    data = [bytes([k]) * (50 * k) + WORD * (k % 3) for k in range(20)]

    class StoppedError(Exception):
        pass

    with pytest.raises(StoppedError), RecordWriter(path) as writer:
        for k in range(12):
            writer.write(k, data[k])
        raise StoppedError
    assert not path.exists()
    # The disk keeps any part of what was written: cut in the last record, and an index line that is not whole.
    part_rec, part_idx = tmp_path / "a.rec.part", tmp_path / "a.idx.part"
    part_rec.write_bytes(part_rec.read_bytes()[:-33])
    part_idx.write_bytes(part_idx.read_bytes()[:-1])
    with RecordWriter(path, resume=True) as writer:
        begun = writer.keys[-1] + 1
        assert 0 < begun < 12 and len(writer.begun) == begun
        for k in range(begun, 20):
            writer.write(k, data[k])
        with pytest.raises(ValueError, match="key: expected one that is not there yet, got 3"):
            writer.write(3, b"")
    assert path.read_bytes() == b"".join(map(encode_record, data))
    file = RecordFile(path)
    assert file.keys.tolist() == list(range(20)) and file[19] == data[19]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.idx", "a.rec"]
    with pytest.raises(ValueError, match="data: expected fewer than 536,870,912 bytes"):
        encode_record(_Long())


class _Long(bytes):
    def __len__(self) -> int:
        return 1 << 29
