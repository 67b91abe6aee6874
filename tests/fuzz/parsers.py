"""Every parser of files, with small files that it reads: what fuzzing starts from."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import scipy.io
import torch
from PIL import Image

from occfast import DataError
from occfast.data import AR10P, Npz, RecordIO, VerificationBin, read_landmarks
from occfast.data.celeba import read_identities
from occfast.data.images import decode, probe, read_pgm
from occfast.data.lfw import read_people
from occfast.data.lists import read_list
from occfast.data.overlap import read_exclude
from occfast.data.pairs import read_pairs
from occfast.data.record_file import Header, encode_record
from occfast.data.recordio import read_property
from occfast.evaluate.scores import read_scores
from occfast.files import read_json
from occfast.occlude.face_masks import MaskTemplate
from tests.data.pictures import encode, pixels
from tests.fuzz.containers import Mutate, mutate_json, mutate_onnx, mutate_safetensors, mutate_zip
from tests.fuzz.saved import saved


@dataclass(frozen=True)
class Target:
    """A parser: files that it reads, and how it is called with a folder to put one in.

    Attributes:
        seeds: The files.
        parse: Reads a file's content, or raises one of ``errors``.
        container: Kind of file whose inside is mutated too: "zip", "json", "onnx", "safetensors" or none.
        errors: Errors that the documentation names.
    """

    seeds: list[bytes]
    parse: Callable[[bytes, Path], object]
    container: str = ""
    errors: tuple[type[Exception], ...] = (DataError,)

    def mutate(self, chance: random.Random, data: bytes, others: list[bytes], plain: Mutate) -> bytes:
        """Change a file: its bytes by ``plain``, or mostly what lies in the container."""
        if not self.container or chance.random() < 0.2:
            return plain(chance, data, others)
        if self.container == "zip":
            return mutate_zip(chance, data, others, plain)
        if self.container == "json":
            return mutate_json(chance, data, plain)
        if self.container == "onnx":
            return mutate_onnx(chance, data, plain)
        return mutate_safetensors(chance, data, plain)


def _at(name: str, read: Callable[[Path], object]) -> Callable[[bytes, Path], object]:
    """``read`` of a file of this name with the content."""

    def parse(content: bytes, folder: Path) -> object:
        path = folder / name
        path.write_bytes(content)
        return read(path)

    return parse


def _images() -> list[bytes]:
    color, gray = pixels(1, 9, 7), pixels(2, 9, 7, 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    cmyk = io.BytesIO()
    Image.fromarray(color).convert("CMYK").save(cmyk, "JPEG")
    wide = (np.arange(63, dtype=np.uint16) * 999).reshape(9, 7)
    palette = io.BytesIO()
    Image.fromarray(color).quantize(4).save(palette, "PNG", transparency=0)
    return [
        encode(color),
        encode(color, exif=exif),
        encode(color, progressive=True),
        encode(gray),
        cmyk.getvalue(),
        encode(color, "PNG"),
        encode(gray, "PNG"),
        encode(wide, "PNG"),
        palette.getvalue(),
        encode(color, "BMP"),
        encode(color, "PPM"),
        encode(gray, "PPM"),
        encode(color, "TIFF"),
        encode(color, "TIFF", compression="tiff_lzw"),
        encode(wide, "TIFF"),
        encode(color, "WEBP"),
        encode(gray, "GIF"),
    ]


def _decode(content: bytes, folder: Path) -> object:
    probe(content, "x")
    return decode(content, "x", gray=None)


def _use(dataset: object) -> object:
    """Everything that a reader of a data set may touch; images that are damaged say so."""
    for k in range(min(len(dataset), 50)):  # type: ignore[arg-type]
        dataset[k]  # type: ignore[index]
    return dataset


def _records(listed: bool) -> bytes:
    images = [encode(pixels(k, 6, 5)) for k in range(3)]
    if listed:  # insightface's
        data = [Header((4, 6), 0, listed=True).pack(b"")]
        data += [Header((float(k // 2),), k + 1).pack(image) for k, image in enumerate(images)]
        data += [Header((1, 3), 4, listed=True).pack(b""), Header((3, 4), 5, listed=True).pack(b"")]
    else:
        data = [Header((float(k),), k, listed=k == 1).pack(image) for k, image in enumerate(images)]
        data.append(Header((1.0,), 3).pack(struct.pack("<I", 0xCED7230A) * 3))
    return b"".join(map(encode_record, data))


def _index(content: bytes, folder: Path) -> object:
    (folder / "b.rec").write_bytes(_records(True))
    (folder / "b.idx").write_bytes(content)
    return _use(RecordIO(folder / "b.rec"))


def _index_of(records: bytes) -> bytes:
    lines, offset, key = [], 0, 0
    while offset < len(records):
        lines.append(f"{key}\t{offset}\n")
        length = struct.unpack_from("<I", records, offset + 4)[0] & (1 << 29) - 1
        offset, key = offset + 8 + length + -length % 4, key + 1
    return "".join(lines).encode()


def _npz(save: Callable[..., None]) -> bytes:
    out = io.BytesIO()
    images = np.stack([pixels(k, 5, 4) for k in range(3)])
    about = json.dumps({"alignment": None})
    save(out, images=images, labels=[0, 1, 1], names=np.array(list("abc")), landmarks=np.ones((3, 5, 2)), about=about)
    return out.getvalue()


def _mat(compressed: bool) -> bytes:
    out = io.BytesIO()
    rows = np.zeros((13, 2400), np.uint8)
    scipy.io.savemat(out, {"X": rows, "Y": np.ones((13, 1))}, do_compression=compressed)
    return out.getvalue()


def _anchors() -> bytes:
    return json.dumps({"m": {key: [k, 2 * k] for k, key in enumerate("abcdef")}}).encode()


def _anchor_file(content: bytes, folder: Path) -> object:
    (folder / "anchors.json").write_bytes(content)
    (folder / "m.png").write_bytes(encode(np.zeros((3, 2, 4), np.uint8), "PNG"))
    return MaskTemplate.read_all(folder)


def _template(content: bytes, folder: Path) -> object:
    (folder / "anchors.json").write_bytes(_anchors())
    (folder / "m.png").write_bytes(content)
    return MaskTemplate.read(folder, "m")


_POINTS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
_TABLE = ",".join(["image", "identity", *(f"{p}_{a}" for p in _POINTS for a in "xy")]) + "\n"
_CELEBA = (
    b"2\nlefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x rightmouth_y\n"
)
_CELEBA += b"1.jpg 1 2 3 4 5 6 7 8 9 10\n2.jpg 1 2 3 4 5 6 7 8 9 10\n"
_PAIR = ([encode(pixels(k, 5, 4)) for k in range(4)], [True, False])


def _onnx() -> dict[str, Target]:
    """Return the reader of ONNX files, where the package is installed."""
    if find_spec("onnx") is None or find_spec("onnxruntime") is None:
        return {}
    from tests.fuzz.onnx_files import networks, read_network

    return {"onnx": Target(networks(), _at("a.onnx", read_network), "onnx", (DataError, ValueError))}


def targets() -> dict[str, Target]:
    """Every parser by name."""
    torch.set_num_threads(1)
    return {
        "image": Target(_images(), _decode),
        "pgm": Target([b"P5\n# x\n3 2\n255\nabcdef"], _at("a.pgm", read_pgm)),
        "rec": Target([_records(True), _records(False)], _at("a.rec", lambda path: _use(RecordIO(path)))),
        "idx": Target([_index_of(_records(True))], _index),
        "property": Target([b"85742,112,112\n"], _at("property", read_property)),
        "bin": Target(
            [
                pickle.dumps(_PAIR, 4),
                pickle.dumps(_PAIR, 3),
                pickle.dumps(_PAIR, 2),
                *(
                    pickle.dumps(([np.frombuffer(image, np.uint8).copy() for image in _PAIR[0]], np.array(_PAIR[1])), p)
                    for p in (3, 4, 5)
                ),
                pickle.dumps((_PAIR[0], [np.bool_(value) for value in _PAIR[1]]), 4),
                b"(]q\0(U\2abq\1e]q\2(I01\netq\3.",
            ],
            _at("a.bin", lambda path: _use(VerificationBin(path))),
        ),
        "npz": Target([_npz(np.savez), _npz(np.savez_compressed)], _at("a.npz", lambda path: _use(Npz(path))), "zip"),
        "mat": Target([_mat(True), _mat(False)], _at("a.mat", AR10P)),
        "landmarks": Target(
            [(_TABLE + "a.jpg,7" + ",1.5" * 10 + "\r\n" + '"b,c",8' + "," * 10 + "\n").encode()],
            _at("a.csv", read_landmarks),
        ),
        "identities": Target([b"a.jpg 7\nb.jpg 8\n"], _at("a.txt", read_identities)),
        "list": Target([b"a/b.jpg\tAnn\r\nc d.jpg\tBob\n", b"a.jpg,Ann\n#\n", b"a.jpg Ann\n"], _at("a.txt", read_list)),
        "lst": Target([b"0\t1.000000\ta.jpg\n1\t2\tb.jpg\n"], _at("a.lst", read_list)),
        "people": Target([b"2\n1\nAnn_B\t4\n2\nCid\t1\nDan 2\n", b"2\nAnn\t1\nBob\t2\n"], _at("a.txt", read_people)),
        "pairs": Target(
            [
                b"2\t1\nAnn\t1\t2\nAnn\t1\tBob\t2\nCid\t3\t4\nCid\t1\tDan\t1\n",
                b"a.jpg,b.jpg,1\nb.jpg,c.jpg,0\n",
                b"1 a.jpg b.jpg\n",
            ],
            _at("pairs.txt", read_pairs),
        ),
        "exclude": Target([b'person,similarity\n"Ann, B",0.9\n', b"identity\n7\n"], _at("a.csv", read_exclude)),
        "template": Target([encode(np.concatenate([pixels(1), pixels(2, channels=1)], 2), "PNG")], _template),
        "anchors": Target([_anchors()], _anchor_file, "json"),
        "json": Target([b'{"people": ["a"], "alignment": null}'], _at("a.json", read_json)),
        "celeba landmarks": Target([_CELEBA], _at("a.txt", read_landmarks)),
        "identity table": Target(
            [b"image,identity\na.jpg,7\n", (_TABLE + "a.jpg,7" + ",1.5" * 10).encode()], _at("a.csv", read_identities)
        ),
        "scores": Target(
            [b"score,same,fold\n0.5,1,0\n0.25,0,1\n", b"same;score\ntrue;1e-3\n"], _at("a.csv", read_scores)
        ),
        **_onnx(),
        **{
            name: Target(seeds, _at(file, read), container, errors)
            for name, file, seeds, read, container, errors in saved()
        },
    }
