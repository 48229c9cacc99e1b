"""Encoded pictures to pixels: what is decoded, what is refused, and how each mode becomes RGB.

The header is judged before a pixel is decoded, so that a small file that claims to be huge costs nothing. The format is told by the bytes,
never by the name. EXIF rotation and ICC profiles are ignored, as the reference pipelines of ImageNet do; of an animation, the first frame
counts. Errors are DataErrors that say what is wrong with the picture; the caller adds which picture it was.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError

from cdmkit.data import png
from cdmkit.errors import DataError

MAX_PIXELS = 1 << 26
"""64 Mpx: larger pictures are refused."""

_ALIKE = "but the first one is {} x {}: store all pictures square and of one size"

_SCAN, _MOST_SCANS, _HARD_WORK = b"\xff\xda", 200, 1 << 34
"""A JPEG of many scans costs as many images, so they are counted where that could take seconds. Encoders make a dozen."""

_STRAY = re.compile(r"extraneous bytes before marker 0x(e.|fe|db|c[012])")
"""Before a segment that stands ahead of the scans. Within them the same words tell of damage."""

_SMALL = 128
"""Above this many pixels a side a call costs nothing, and a stack of images much memory."""

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # what is too large is refused by us, at a limit of our own

_FORMATS = ["JPEG", "PNG", "WEBP", "BMP"]


def decode(data: bytes, max_pixels: int = MAX_PIXELS, size: tuple[int, int] | None = None) -> npt.NDArray[np.uint8]:
    """The pixels of a JPEG, PNG, WebP or BMP file: uint8 [H, W, 3]. size: width and height that it must have."""
    if not data:
        raise DataError("the image is empty (0 bytes)")
    try:
        return _decoded(data, _Allowed(max_pixels, size))
    except (DataError, MemoryError):
        raise
    except Exception as error:  # a decoder that stumbles over damaged data, in whatever way
        raise DataError(f"damaged image: {type(error).__name__}: {error}") from None


def _decoded(data: bytes, allowed: _Allowed) -> npt.NDArray[np.uint8]:
    pixels = None
    if data.startswith(b"\xff\xd8\xff"):
        pixels = _decode_jpeg(data, allowed)
    elif data.startswith(png.SIGNATURE):
        pixels = _decode_png(data, allowed)
    return _decode_other(data, allowed) if pixels is None else pixels


class _Allowed(NamedTuple):
    """What a header may tell."""

    max_pixels: int
    size: tuple[int, int] | None

    def check(self, width: int, height: int) -> None:
        """Raise DataError before anything is decoded."""
        if width * height > self.max_pixels:
            raise DataError(f"too large: {width} x {height} pixels, more than {self.max_pixels:,}")
        if self.size not in (None, (width, height)):
            raise DataError(f"wrong size: the image is {width} x {height}, {_ALIKE.format(*(self.size or ()))}")


def decode_all(files: Sequence[bytes], pixels: npt.NDArray[np.uint8], max_pixels: int = MAX_PIXELS) -> dict[int, DataError]:
    """Fill in the pixels, uint8 [N, R, R, 3], of files whose images are all of that size. What is wrong with those that cannot be used is
    returned by their place; their pixels are anything.
    """
    faults: dict[int, DataError] = {}
    size = (pixels.shape[2], pixels.shape[1])
    for row in _decode_small(files, pixels):
        try:
            pixels[row] = decode(files[row], max_pixels, size)
        except DataError as error:
            faults[row] = error
    return faults


def _decode_small(files: Sequence[bytes], pixels: npt.NDArray[np.uint8]) -> list[int]:
    """Fill in the plain PNG files among many, together where they are small; which are left."""
    if pixels.shape[1] > _SMALL:
        return list(range(len(files)))
    size = (pixels.shape[2], pixels.shape[1])
    plain = [row for row, data in enumerate(files) if data.startswith(png.SIGNATURE) and png.plain_size(data) == size]
    lines = {row: found for row in plain if (found := png.scanlines(files[row], *size)) is not None}
    if lines:
        try:
            pixels[list(lines)] = png.unfiltered(list(lines.values()), *size)
        except ValueError:
            lines = {}
    return [row for row in range(len(files)) if row not in lines]


def _decode_jpeg(data: bytes, allowed: _Allowed) -> npt.NDArray[np.uint8] | None:
    """Grey and colour JPEG, bit-equal to Pillow's but several times faster, and strict where Pillow fills damaged scans with garbage.

    None for CMYK, which libjpeg does not turn into RGB: of that only the scans are judged here. And for stray bytes between segments, which
    spoil nothing.
    """
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        allowed.check(width, height)
        if width * height * len(data) > _HARD_WORK and data.count(_SCAN) > _MOST_SCANS:
            raise DataError(f"too many scans: {data.count(_SCAN)}, each of which costs as much as a whole image")
        cmyk = space in ("CMYK", "YCCK")
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colorspace="CMYK" if cmyk else "RGB")
    except ValueError as error:
        if _STRAY.search(str(error)):  # Pillow passes over them
            return None
        raise DataError(f"damaged or truncated JPEG: {error}") from None
    return None if cmyk else pixels


def _decode_png(data: bytes, allowed: _Allowed) -> npt.NDArray[np.uint8] | None:
    """Plain RGB of 8 bits. None for every other sort and for whatever is odd, so that one place judges that."""
    size = png.plain_size(data)
    if size is None:
        return None
    allowed.check(*size)
    lines = png.scanlines(data, *size)
    try:
        return None if lines is None else png.unfiltered([lines], *size)[0].copy()  # to be written to, as all others
    except ValueError:
        return None


def _decode_other(data: bytes, allowed: _Allowed) -> npt.NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            allowed.check(*image.size)
            image.load()
            return _rgb(image)
    except UnidentifiedImageError:
        raise DataError(f"not a JPEG, PNG, WebP or BMP image: it begins with {data[:16]!r}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"too large: {error}") from None
    except (DataError, MemoryError):
        raise
    except Exception as error:  # Pillow stumbles over damaged files in many ways
        raise DataError(f"damaged or truncated image: {error}") from None


def _rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """RGB of any mode: 16-bit grey is scaled, transparency laid on white, palettes, grey and CMYK converted."""
    if image.mode.startswith("I"):  # Pillow's own conversion clips 16-bit grey to white
        grey = np.rint(np.asarray(image, np.float32).clip(0, 65535) / 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        image = Image.new("RGB", layers.size, "white")
        image.paste(layers, mask=layers.getchannel("A"))
    return np.array(image.convert("RGB"))
