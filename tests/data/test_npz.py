"""Faces in .npz: pixels in any order, image files, mapped or compressed; objects are refused."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from occfast import DataError
from occfast.data import Npz, npz, open_dataset
from tests.data.pictures import encode, pixels

PIXELS = np.stack([pixels(k) for k in range(5)])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("planes", [True, False])
def test_pixels(tmp_path: Path, save, planes: bool) -> None:
    images = PIXELS.transpose(0, 3, 1, 2) if planes else PIXELS
    save(tmp_path / "a.npz", images=images, labels=[3, 3, 0, 1, 1])
    faces = open_dataset(tmp_path / "a.npz")
    assert isinstance(faces, Npz) and faces.encoded(0) is None
    assert isinstance(faces._arrays["images"], np.memmap) == (save is np.savez)
    assert faces.people == ["0", "1", "3"] and faces.labels.tolist() == [2, 2, 0, 1, 1]
    for k in range(5):
        assert torch.equal(faces[k].image, torch.from_numpy(PIXELS[k]).permute(2, 0, 1))
    again = pickle.loads(pickle.dumps(faces))
    assert torch.equal(again[4].image, faces[4].image)
    assert Npz(tmp_path / "a.npz", gray=True)[0].image.shape == (1, 20, 16)


def test_gray_pixels_texts_and_all_the_rest(tmp_path: Path) -> None:
    points = np.random.default_rng(0).random((5, 5, 2))
    points[2] = np.nan
    np.savez(
        tmp_path / "a.npz",
        images=PIXELS[..., 0],
        labels=np.array(list("bbaca")),
        names=np.array(list("vwxyz")),
        landmarks=points,
        about=json.dumps({"alignment": None}),
    )
    faces = Npz(tmp_path / "a.npz", gray=None)
    assert faces[0].image.shape == (1, 20, 16) and faces.people == ["a", "b", "c"] and faces.names == list("vwxyz")
    assert faces[2].landmarks is None and faces[1].landmarks.tolist() == points[1].tolist()
    assert Npz(tmp_path / "a.npz")[0].image.shape == (3, 20, 16)
    assert faces.alignment is None


def test_image_files(tmp_path: Path) -> None:
    files = [encode(array) for array in PIXELS]
    ends = np.cumsum([0, *map(len, files)])
    np.savez(
        tmp_path / "a.npz",
        encoded=np.frombuffer(b"".join(files), np.uint8),
        offsets=ends,
        labels=[0, 0, 1, 1, 2],
        people=np.array(["Ann", "Bob", "Cid"]),
    )
    faces = Npz(tmp_path / "a.npz")
    assert [faces.encoded(k) for k in range(5)] == files and faces.people == ["Ann", "Bob", "Cid"]
    assert faces[1].image.shape == (3, 20, 16)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": [0]}, "expected 'encoded', .* got none"),
        ({"images": PIXELS}, "expected 'labels', integers or texts"),
        ({"images": PIXELS, "labels": [0, 1]}, r"expected 'labels', .* \[5\], .* got int64 \[2\]"),
        ({"images": PIXELS, "labels": [0.0] * 5}, "expected 'labels', .* got float64"),
        ({"images": PIXELS, "labels": [-1] * 5}, "'labels' that are not negative, got -1"),
        ({"images": PIXELS.astype(float), "labels": [0] * 5}, "expected 'images', uint8 .* got float64"),
        ({"images": PIXELS[0, 0], "labels": [0] * 16}, "expected 'images', uint8"),
        ({"images": np.zeros((5, 4, 4, 2), np.uint8), "labels": [0] * 5}, "expected 'images'"),
        ({"images": PIXELS, "labels": [0] * 5, "names": np.array(["a"] * 5)}, "expected every name once"),
        ({"images": PIXELS, "labels": [0] * 5, "names": np.arange(5)}, "expected 'names', texts"),
        ({"images": PIXELS, "labels": [2] * 5, "people": np.array(["a", "b"])}, r"expected 'people', texts \[3\]"),
        (
            {"images": PIXELS, "labels": [0, 0, 1, 1, 1], "people": np.array(["a", "a"])},
            "'people': expected a name of its own",
        ),
        ({"images": PIXELS, "labels": [0] * 5, "landmarks": np.zeros((5, 4, 2))}, "expected 'landmarks', floating"),
        ({"images": PIXELS, "labels": [0] * 5, "about": np.array("{")}, "expected JSON in 'about'"),
        ({"images": PIXELS, "labels": [0] * 5, "about": np.array("[]")}, "expected the record of an alignment"),
        ({"encoded": np.zeros(9, np.uint8), "offsets": [0, 5], "labels": [0]}, "'offsets' rising from 0 to 9"),
        ({"encoded": np.zeros(9, np.uint8), "offsets": [0, 9, 5, 9], "labels": [0] * 3}, "'offsets' rising"),
        ({"encoded": np.zeros(9, np.uint8), "labels": [0]}, "expected 'offsets', integers"),
        ({"images": np.array([None]), "labels": [0]}, r"got object \[1\]; objects are never unpickled"),
    ],
)
def test_mistakes(tmp_path: Path, arrays: dict, message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message) as caught:
        Npz(tmp_path / "a.npz")
    assert str(tmp_path) in str(caught.value)


def member(
    header: str, data: bytes = b"", version: bytes = b"\x01\x00", compression: int = zipfile.ZIP_STORED
) -> bytes:
    """An archive whose images have this header."""
    length = len(header).to_bytes(2 if version[0] == 1 else 4, "little")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        archive.writestr("images.npy", b"\x93NUMPY" + version + length + header.encode() + data)
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable .npz file"),
        (b"PK\x05\x06" + b"\0" * 30, "expected 'encoded'|not a readable"),
        (member("{'descr': '|u1', 'fortran_order': False, 'shape': (999999999999,)}"), "expected 999999999999 bytes"),
        (member("{'descr': '|u1', 'fortran_order': False, 'shape': (-1,)}"), "expected numbers or texts"),
        (member("{'descr': '|O', 'fortran_order': False, 'shape': ()}", bytes(8)), "never unpickled"),
        (member("{'descr': '|u1'}"), "expected the header of an array"),
        (member("__import__('os').mkdir('x')"), "expected the header of an array"),
        (member("(" * 60000, version=b"\x02\x00"), "expected the header of an array"),
        (member(" " * 70000, version=b"\x02\x00"), "header of at most 65536 bytes"),
        (member("", version=b"\x09\x00"), "expected an array of NumPy"),
    ],
)
def test_damaged_archives(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=message):
        Npz(tmp_path / "a.npz")


def test_a_zip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "MAX_COMPRESSED", 1000)
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((1, 40, 40), np.uint8), labels=[0])
    with pytest.raises(DataError, match="expected at most 1,000 bytes once decompressed, got 1,600"):
        Npz(tmp_path / "a.npz")
    parts = {
        "images": np.zeros((1, 20, 20), np.uint8),
        "labels": [0],
        "landmarks": np.zeros((1, 5, 2)),
        "names": ["n" * 200],
    }
    np.savez_compressed(tmp_path / "a.npz", **parts)  # each array is small enough, but not all together
    with pytest.raises(DataError, match="expected at most 1,000 bytes once decompressed, got 1,208"):
        Npz(tmp_path / "a.npz")


def test_truncated_and_flipped(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=[0] * 5)
    content = (tmp_path / "a.npz").read_bytes()
    for length in range(0, len(content), 211):
        (tmp_path / "b.npz").write_bytes(content[:length])
        with pytest.raises(DataError, match=r"b\.npz"):
            Npz(tmp_path / "b.npz")
    with pytest.raises(DataError, match="can't be read: No such file"):
        Npz(tmp_path / "none.npz")
