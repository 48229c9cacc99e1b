"""Encoded pictures to pixels: what is decoded, what is refused, and how each mode becomes RGB.

The header is judged before a pixel is decoded, so that a small file that claims to be huge costs nothing. The format is told by the bytes,
never by the name. EXIF rotation and ICC profiles are ignored, as the reference pipelines of ImageNet do; of an animation, the first frame
counts. Errors are DataErrors that say what is wrong with the picture; the caller adds which picture it was.
"""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError

from cdmkit.errors import DataError

MAX_PIXELS = 1 << 26
"""64 Mpx: larger pictures are refused."""

_FORMATS = ["JPEG", "PNG", "WEBP", "BMP"]


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """The pixels of a JPEG, PNG, WebP or BMP file: uint8 [H, W, 3]."""
    if not data:
        raise DataError("the image is empty (0 bytes)")
    if data.startswith(b"\xff\xd8\xff"):
        pixels = _decode_jpeg(data, max_pixels)
        if pixels is not None:
            return pixels
    return _decode_other(data, max_pixels)


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
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow raises for damaged files
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
