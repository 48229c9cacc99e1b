"""Many small PNG files at once: plain RGB of 8 bits, the sort that data sets hold.

Pillow undoes a PNG's filters in C, but a call costs more than a small image. A filter looks no further than to the line above, so images of
one size, each below a line of zeros, make one tall image that is decoded by a single call (PNG specification, section 9).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from isal import isal_zlib
from isal.igzip_lib import IsalError
from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_PLAIN = bytes((8, 2, 0, 0, 0))
"""8 bits, RGB, deflated, filtered line by line, not interlaced."""


def plain_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a plain RGB image of 8 bits, None for any other sort of PNG and for one without pixels."""
    if data[12:16] != b"IHDR" or data[24:29] != _PLAIN:
        return None
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    return (width, height) if width and height else None


def scanlines(data: bytes, width: int, height: int) -> bytes | None:
    """The filtered lines of a plain image, unpacked and no more of them than its header tells.

    None where anything about the file is odd: a wrong checksum, a missing end, transparency, too few lines.
    """
    parts, at, kind = [], len(SIGNATURE), b""
    while kind != b"IEND":
        if at + 12 > len(data):
            return None
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big") or kind == b"tRNS":
            return None
        if kind == b"IDAT":
            parts.append(data[at + 8 : end])
        at = end + 4
    size = height * _line(width)
    try:
        lines: bytes = isal_zlib.decompressobj().decompress(b"".join(parts), size)  # twice as fast as zlib's
    except IsalError:  # type: ignore[misc]  # its types do not know it for an exception
        return None
    return lines if len(lines) == size else None


def unfiltered(images: Sequence[bytes], width: int, height: int) -> npt.NDArray[np.uint8]:
    """The pixels of images given as `scanlines`: uint8 [N, H, W, 3]. Raises ValueError where one has a filter that does not exist."""
    above = bytes(_line(width))
    stack = b"".join(part for image in images for part in (above, image))
    tall = Image.frombytes("RGB", (width, len(images) * (height + 1)), zlib.compress(stack, 0), "zip", "RGB", 0)
    return np.frombuffer(tall.tobytes(), np.uint8).reshape(len(images), height + 1, width, 3)[:, 1:]


def _line(width: int) -> int:
    """Bytes of a line: the number of its filter, and its pixels."""
    return 1 + 3 * width
