"""One image from its source to the bytes in a shard, or why not: what the worker processes do."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable
from typing import NamedTuple

import attrs
import numpy as np
import numpy.typing as npt
from PIL import Image

from cdmkit.data.decode import decode
from cdmkit.errors import DataError
from cdmkit.kinds import Original, Preparer
from cdmkit.preparing.settings import Exif, Settings

_ORIENTATION = 0x0112
_EXTENSIONS = ((b"\xff\xd8", "jpg"), (b"\x89PNG", "png"), (b"RIFF", "webp"), (b"BM", "bmp"))
"""By how a file begins: what kept files are called, whatever their source called them."""


class Made(NamedTuple):
    """An image fit for a shard."""

    data: bytes
    """The file."""
    extension: str
    side: int
    """Height and width."""
    enlarged: bool
    """Whether it was smaller before."""


class Refused(NamedTuple):
    """An image that is not."""

    cause: str
    passing: bool = False
    """Whether it may be read another time: the disk or memory failed, not the image."""


Outcome = Made | Refused


@attrs.frozen
class Maker:
    """Makes images as `settings` say, which must be filled in."""

    preparer: Preparer
    settings: Settings

    def make_all(self, originals: Iterable[Original]) -> list[Outcome]:
        """What becomes of each of some images."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's about odd EXIF data and palettes
            return [self.make(original) for original in originals]

    def make(self, original: Original) -> Outcome:
        """What becomes of an image. Whatever is wrong with it is told, not raised."""
        try:
            return self._made(self.preparer.read(original))
        except DataError as error:
            return Refused(_told(error), passing=isinstance(error.__cause__, OSError))
        except OSError as error:
            return Refused(f"cannot be read: {error.strerror or _told(error)}", passing=True)
        except MemoryError:
            return Refused("too little memory to decode it", passing=True)

    def _made(self, data: bytes) -> Made:
        settings = self.settings
        pixels = decode(data, settings.max_pixels)
        if settings.exif is Exif.APPLY:
            pixels = _upright(pixels, data)
        height, width, _ = pixels.shape
        short = min(height, width)
        if short < settings.min_side:
            raise DataError(f"too small: {width} x {height}, the short side below {settings.min_side}")
        if settings.resolution is None or settings.crop is None or settings.encoding is None:
            if height != width:
                raise DataError(f"not square: {width} x {height}")
            return Made(data, _extension(data), height, enlarged=False)
        square = settings.crop(pixels, settings.resolution)
        return Made(settings.encoding(square), settings.encoding.extension, settings.resolution, short < settings.resolution)


def _upright(pixels: npt.NDArray[np.uint8], data: bytes) -> npt.NDArray[np.uint8]:
    """Turned and mirrored as the EXIF orientation 2 to 8 says; any other is none (CIPA DC-008, tag 0112)."""
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG", "PNG", "WEBP"]) as image:
            orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # damaged EXIF data are no EXIF data
        return pixels
    match orientation:
        case 2 | 3 | 4:
            down, right = (1 if orientation == 2 else -1), (1 if orientation == 4 else -1)
            return pixels[::down, ::right]
        case 5 | 6 | 7 | 8:  # columns become rows
            down, right = (-1 if orientation in (7, 8) else 1), (-1 if orientation in (6, 7) else 1)
            return pixels.swapaxes(0, 1)[::down, ::right]
        case _:
            return pixels


def _extension(data: bytes) -> str:
    return next(extension for start, extension in _EXTENSIONS if data.startswith(start))


def _told(error: Exception) -> str:
    """An error's message, equal in every run: Pillow's tell where objects lie in memory."""
    return re.sub(" at 0x[0-9a-f]+", "", str(error))
