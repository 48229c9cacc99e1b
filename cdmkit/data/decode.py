"""Encoded pictures to pixels: what is decoded, what is refused, and how each mode becomes RGB.

The header is judged before a pixel is decoded, so that a small file that claims to be huge costs nothing. The format is told by the bytes,
never by the name. EXIF rotation and ICC profiles are ignored, as the reference pipelines of ImageNet do; of an animation, the first frame
counts. Errors are DataErrors that say what is wrong with the picture; the caller adds which picture it was.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError

from cdmkit.data import png
from cdmkit.errors import DataError

MAX_PIXELS = 1 << 26
"""64 Mpx: larger pictures are refused."""

_SMALL = 128
"""Above this many pixels a side a call costs nothing, and a stack of images much memory."""

_FORMATS = ["JPEG", "PNG", "WEBP", "BMP"]


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """The pixels of a JPEG, PNG, WebP or BMP file: uint8 [H, W, 3]."""
    if not data:
        raise DataError("the image is empty (0 bytes)")
    pixels = None
    if data.startswith(b"\xff\xd8\xff"):
        pixels = _decode_jpeg(data, max_pixels)
    elif data.startswith(png.SIGNATURE):
        pixels = _decode_png(data, max_pixels)
    return _decode_other(data, max_pixels) if pixels is None else pixels


def decode_all(files: Sequence[bytes], resolution: int, max_pixels: int = MAX_PIXELS) -> tuple[npt.NDArray[np.uint8], dict[int, DataError]]:
    """The pixels of many files whose images are all of one size, uint8 [N, R, R, 3], and what is wrong with those that cannot be used, by
    their place; the pixels of those are anything.
    """
    pixels = np.empty((len(files), resolution, resolution, 3), np.uint8)
    faults: dict[int, DataError] = {}
    rest = _decode_small(files, pixels)
    for row in rest:
        try:
            image = decode(files[row], max_pixels)
            if image.shape != pixels.shape[1:]:
                height, width, _ = image.shape
                wanted = f"but the first one is {resolution} x {resolution}: store all pictures square and of one size"
                raise DataError(f"wrong size: the image is {width} x {height}, {wanted}")
            pixels[row] = image
        except DataError as error:
            faults[row] = error
    return pixels, faults


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


def _decode_jpeg(data: bytes, max_pixels: int) -> npt.NDArray[np.uint8] | None:
    """Grey and colour JPEG, bit-equal to Pillow's but several times faster, and strict where Pillow fills damaged scans with garbage.

    None for the other colour spaces (CMYK), which libjpeg does not turn into RGB.
    """
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(width, height, max_pixels)
        if space in ("CMYK", "YCCK"):
            return None
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data)
    except ValueError as error:
        raise DataError(f"damaged or truncated JPEG: {error}") from None
    return pixels


def _decode_png(data: bytes, max_pixels: int) -> npt.NDArray[np.uint8] | None:
    """Plain RGB of 8 bits. None for every other sort and for whatever is odd, so that one place judges that."""
    size = png.plain_size(data)
    if size is None:
        return None
    _check_size(*size, max_pixels)
    lines = png.scanlines(data, *size)
    try:
        return None if lines is None else png.unfiltered([lines], *size)[0].copy()  # to be written to, as all others
    except ValueError:
        return None


def _decode_other(data: bytes, max_pixels: int) -> npt.NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_size(*image.size, max_pixels)
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


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DataError(f"too large: {width} x {height} pixels, more than {max_pixels:,}")


def _rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """RGB of any mode: 16-bit grey is scaled, transparency laid on white, palettes, grey and CMYK converted."""
    if image.mode.startswith("I"):  # Pillow's own conversion clips 16-bit grey to white
        grey = np.rint(np.asarray(image, np.float32).clip(0, 65535) / 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers)
    return np.array(image.convert("RGB"))
