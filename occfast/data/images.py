"""Decoding of image files."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..checks import MAX_PIXELS
from ..errors import DataError
from ..files import read_bytes

#: Suffixes of image files, in lower case.
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".pgm", ".ppm", ".pnm", ".tif", ".tiff", ".webp", ".gif")
)
#: Suffixes of image files that are not decoded, in lower case.
UNREAD = frozenset((".heic", ".heif", ".avif", ".jxl", ".jp2", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf"))
#: Formats that are decoded. Pillow's other plug-ins, some of which start programs, are never used.
FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP", "GIF")
_ORIENTATION = 0x0112


def decode(content: bytes, source: str, *, gray: bool | None = False) -> Tensor:
    """Decode an image file.

    CMYK and palettes are converted to RGB, 16-bit gray is scaled to 8 bits, transparent pixels are blended with black,
    and an EXIF orientation is applied.

    Args:
        content: the file: JPEG, PNG, BMP, PNM, TIFF (first page), WebP or GIF (first frame).
        source: Name of the file in errors.
        gray: True converts to gray (ITU-R BT.601), False to RGB, None keeps the stored colors.

    Returns:
        uint8 [1, H, W] (gray) or [3, H, W] (RGB).

    Raises:
        DataError: if the file is no such image, is truncated or damaged, or has more than ``checks.MAX_PIXELS`` pixels.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DataError(f"{source}: expected at most {MAX_PIXELS:,} pixels, got {width} × {height}")
            pixels = _upright(image)
            if gray is None:
                gray = pixels.mode in ("1", "L", "I") or pixels.mode.startswith("I;16")
            array = np.array(_to_mode(pixels, "L" if gray else "RGB", source))
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{source}: not an image (first bytes {content[:8]!r}, {len(content)} bytes)") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{source}: expected at most {MAX_PIXELS:,} pixels ({error})") from error
    except Exception as error:  # damaged files make Pillow raise about anything
        raise DataError(f"{source}: damaged or truncated image of {len(content)} bytes ({error})") from error
    return torch.from_numpy(array)[None] if gray else torch.from_numpy(array).permute(2, 0, 1)


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation, if there is one."""
    return ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, 1) != 1 else image


def _to_mode(image: Image.Image, mode: str, source: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise DataError(f"{source}: expected 8 or 16 bits a channel, got 32 (Pillow mode {image.mode})")
    elif image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        over = image.convert("RGBA")
        image = Image.new("RGB", over.size)
        image.paste(over, (0, 0), over)
    if image.mode == mode:
        image.load()
        return image
    if mode == "L" and image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")  # Pillow converts CMYK, palettes and others to gray by other rules
    return image.convert(mode)


def probe(content: bytes, source: str) -> tuple[str, tuple[int, int], str]:
    """Return the format ("JPEG"), the stored (height, width) and the Pillow mode ("RGB") of an image file.

    Raises:
        DataError: if it is not an image.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return str(image.format), (image.size[1], image.size[0]), image.mode
    except Exception as error:  # as in decode
        raise DataError(f"{source}: not an image (first bytes {content[:8]!r}, {len(content)} bytes)") from error


def read_image(path: str | Path, *, gray: bool | None = False) -> Tensor:
    """Read an image file as uint8 [3, H, W] or, with ``gray``, [1, H, W]; see :func:`decode`."""
    return decode(read_bytes(path), str(path), gray=gray)


def to_gray(images: Tensor) -> Tensor:
    """Convert uint8 [..., 3, H, W] to gray, [..., 1, H, W], with Pillow's integer weights. Gray images are returned."""
    if images.shape[-3] == 1:
        return images
    red, green, blue = images.int().unbind(-3)
    return ((red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16).to(torch.uint8).unsqueeze(-3)


def recolor(images: Tensor, gray: bool | None) -> Tensor:
    """Convert uint8 [..., C, H, W] with C = 1 or 3 to gray (True) or RGB (False), or return it (None)."""
    if gray is None:
        return images
    if images.shape[-3] not in (1, 3):
        raise ValueError(f"images: expected 1 or 3 channels to convert, got {images.shape[-3]}")
    return to_gray(images) if gray else images.expand(*images.shape[:-3], 3, -1, -1)


def encode_png(image: Tensor) -> bytes:
    """Encode an image, uint8 [C, H, W] with C = 1 or 3, as PNG."""
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"image: expected uint8 [1 or 3, H, W], got {image.dtype} {list(image.shape)}")
    array = image[0] if image.shape[0] == 1 else image.permute(1, 2, 0)
    out = io.BytesIO()
    Image.fromarray(array.cpu().contiguous().numpy()).save(out, "PNG")
    return out.getvalue()


def read_pgm(path: Path) -> Tensor:
    """Read an 8-bit binary PGM file (P5) as uint8 [H, W].

    Raises:
        DataError: if it is not such a file, or is truncated.
    """
    data = read_bytes(path)
    space = rb"(?:\s|#[^\n]*\n)+"
    header = re.match(rb"P5%b(\d{1,9})%b(\d{1,9})%b(\d{1,9})\s" % (space, space, space), data)
    if header is None:
        raise DataError(f"{path}: expected the header of a binary PGM (P5) at offset 0, got {data[:16]!r}")
    width, height, largest = map(int, header.groups())
    if not 1 <= largest <= 255:
        raise DataError(f"{path}: expected 8-bit pixels (1 to 255 at offset {header.start(3)}), got {largest}")
    start, need = header.end(), width * height
    if need == 0:
        raise DataError(f"{path}: expected pixels, got {width} × {height} at offset {header.start(1)}")
    if len(data) - start < need:
        raise DataError(f"{path}: expected {need} pixels from offset {start}, got {len(data) - start}")
    return torch.frombuffer(bytearray(data[start : start + need]), dtype=torch.uint8).reshape(height, width)
