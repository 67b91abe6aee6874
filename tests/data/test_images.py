"""Every kind of image file, and what is said of files that are none."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from occfast import DataError
from occfast.data import images, read_image
from occfast.data.images import decode, encode_png, probe, recolor, to_gray
from tests.data.pictures import encode, pixels


def chw(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy()).permute(2, 0, 1)


@pytest.mark.parametrize("form", ["PNG", "BMP", "PPM", "TIFF", "WEBP"])
def test_lossless_formats_give_their_pixels(form: str) -> None:
    array = pixels(1)
    data = encode(array, form, **({"lossless": True} if form == "WEBP" else {}))
    assert torch.equal(decode(data, "x"), chw(array))
    assert probe(data, "x") == (form, (20, 16), "RGB")


def test_jpeg_and_gif() -> None:
    array = pixels(1)
    error = (decode(encode(array, quality=98, subsampling=0), "x").int() - chw(array).int()).abs()
    assert error.float().mean() < 1.5
    assert decode(encode(array[:, :, :1], "GIF"), "x").shape == (3, 20, 16)


def test_gray_files() -> None:
    array = pixels(2, channels=1)
    data = encode(array, "PNG")
    assert torch.equal(decode(data, "x", gray=True), chw(array))
    assert torch.equal(decode(data, "x"), chw(array).expand(3, -1, -1))
    assert decode(data, "x", gray=None).shape[0] == 1
    assert decode(encode(pixels(2), "PNG"), "x", gray=None).shape[0] == 3
    bilevel = Image.fromarray(array[:, :, 0] > 128)
    out = io.BytesIO()
    bilevel.save(out, "PNG")
    assert decode(out.getvalue(), "x", gray=True).unique().tolist() == [0, 255]


def test_gray_from_color_is_pillows() -> None:
    array = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    expected = torch.from_numpy(np.array(Image.fromarray(array).convert("L")))[None]
    assert torch.equal(decode(encode(array, "PNG"), "x", gray=True), expected)
    assert torch.equal(to_gray(chw(array)), expected)
    assert torch.equal(recolor(expected, False), expected.expand(3, -1, -1))
    assert recolor(expected, True) is expected and recolor(expected, None) is expected


def test_cmyk_is_close_to_its_rgb() -> None:
    out = io.BytesIO()
    Image.fromarray(pixels(3)).convert("CMYK").save(out, "JPEG", quality=100)
    assert probe(out.getvalue(), "x")[2] == "CMYK"
    image = decode(out.getvalue(), "x")
    assert image.shape == (3, 20, 16)
    assert (image.int() - chw(pixels(3)).int()).abs().float().mean() < 6
    # Gray by way of RGB, not by Pillow's own rule for CMYK.
    assert torch.equal(decode(out.getvalue(), "x", gray=True), to_gray(image))


def test_transparent_pixels_are_laid_over_black() -> None:
    array = np.concatenate([pixels(4), np.full((20, 16, 1), 255, np.uint8)], 2)
    array[:5, :, 3] = 0
    array[5:10, :, 3] = 128
    image = decode(encode(array, "PNG"), "x")
    assert (image[:, :5] == 0).all()
    assert torch.equal(image[:, 10:], chw(array[10:, :, :3]))
    halved = chw(array[5:10, :, :3]).float() * 128 / 255
    assert (image[:, 5:10].float() - halved).abs().max() <= 1
    gray_alpha = np.concatenate([pixels(5, channels=1), np.full((20, 16, 1), 255, np.uint8)], 2)
    assert torch.equal(decode(encode(gray_alpha, "PNG"), "x", gray=True), chw(gray_alpha[:, :, :1]))


def test_palette_with_a_transparent_color() -> None:
    image = Image.fromarray((pixels(6, channels=1)[:, :, 0] > 128).astype(np.uint8), "P")
    image.putpalette([200, 10, 20, 30, 240, 50])
    out = io.BytesIO()
    image.save(out, "PNG", transparency=0)
    got = decode(out.getvalue(), "x")
    mask = pixels(6, channels=1)[:, :, 0] > 128
    assert (got.permute(1, 2, 0)[mask] == torch.tensor([30, 240, 50])).all()
    assert (got.permute(1, 2, 0)[~mask] == 0).all()


def test_sixteen_bits_become_eight() -> None:
    wide = np.linspace(0, 65535, 320).astype(np.uint16).reshape(20, 16)
    for form in ("PNG", "TIFF"):
        got = decode(encode(wide, form), "x", gray=True)
        assert torch.equal(got[0], torch.from_numpy(np.round(wide / 257).astype(np.uint8)))


def test_floats_are_refused() -> None:
    with pytest.raises(DataError, match="x: expected 8 or 16 bits a channel, got 32"):
        decode(encode(np.zeros((4, 4), np.float32), "TIFF"), "x")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    array = pixels(7)
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = decode(encode(array, "PNG", exif=exif), "x")
    upright = chw(array)
    expected = {
        1: upright,
        2: upright.flip(2),
        3: upright.flip(1, 2),
        4: upright.flip(1),
        5: upright.mT,
        6: upright.mT.flip(2),
        7: upright.mT.flip(1, 2),
        8: upright.mT.flip(1),
    }[orientation]
    assert torch.equal(got, expected)


@pytest.mark.parametrize("content", [b"", b"GIF", b"hello, this is text", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\0" * 4000])
def test_what_is_no_image(content: bytes, tmp_path) -> None:
    path = tmp_path / "face.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"face\.jpg: (not an image|damaged)") as caught:
        read_image(path)
    assert f"{len(content)} bytes" in str(caught.value)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP"])
def test_truncated_files(form: str) -> None:
    data = encode(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8), form)
    for length in (len(data) // 2, len(data) * 9 // 10):
        with pytest.raises(DataError, match="x: "):
            decode(data[:length], "x")


def test_bombs_are_refused_before_memory_is_taken() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side in (8_950, 60_000):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(DataError, match="expected at most 80,000,000 pixels"):
                decode(bomb, "x")
    assert images.MAX_PIXELS == 80_000_000


def test_photographs_of_telephones_are_read() -> None:
    content = encode_png(torch.zeros(1, 6_000, 8_000, dtype=torch.uint8))
    assert decode(content, "x", gray=None).shape == (1, 6_000, 8_000)


def test_missing_file(tmp_path) -> None:
    with pytest.raises(DataError, match=r"none\.jpg: can't be read: No such file"):
        read_image(tmp_path / "none.jpg")


def test_encode_png_round_trip() -> None:
    for channels in (1, 3):
        image = chw(pixels(8, channels=channels))
        assert torch.equal(decode(encode_png(image), "x", gray=channels == 1), image)
    with pytest.raises(ValueError, match="image: expected uint8"):
        encode_png(torch.zeros(3, 4, 4))
