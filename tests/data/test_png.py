"""Many PNG files decoded together."""

from __future__ import annotations

import io
import itertools
import struct
import zlib

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from cdmkit.data import png


def noise(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def smooth(height: int, width: int) -> npt.NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    return np.stack((x * 3, y * 2, x + y), axis=2).astype(np.uint8)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def file(pixels: npt.NDArray[np.uint8], filter_type: int, pieces: int = 1) -> bytes:
    """A PNG whose lines all have one filter, by the formulas of the PNG specification (section 9.2)."""
    height, width, _ = pixels.shape
    values = pixels.astype(int).reshape(height, -1)
    left = np.pad(values, ((0, 0), (3, 0)))[:, :-3]
    above = np.pad(values, ((1, 0), (0, 0)))[:-1]
    corner = np.pad(values, ((1, 0), (3, 0)))[:-1, :-3]
    guess = left + above - corner
    far = [abs(guess - each) for each in (left, above, corner)]
    paeth = np.where((far[0] <= far[1]) & (far[0] <= far[2]), left, np.where(far[1] <= far[2], above, corner))
    predicted = (0 * values, left, above, (left + above) // 2, paeth)[filter_type]
    lines = b"".join(bytes([filter_type]) + line.astype(np.uint8).tobytes() for line in (values - predicted) % 256)
    data = zlib.compress(lines)
    cuts = [len(data) * n // pieces for n in range(pieces + 1)]
    body = b"".join(chunk(b"IDAT", data[a:b]) for a, b in itertools.pairwise(cuts))
    return png.SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + body + chunk(b"IEND", b"")


def decoded(files: list[bytes], width: int, height: int) -> npt.NDArray[np.uint8]:
    lines = [png.scanlines(data, width, height) for data in files]
    return png.unfiltered([line for line in lines if line is not None], width, height)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (6, 9), (32, 32)])
def test_every_filter_beside_every_other(shape: tuple[int, int]) -> None:
    """Images of all five filters in one stack come back as they were: none looks into its neighbour."""
    images = [noise(*shape, seed=n) for n in range(10)]
    files = [file(image, n % 5, pieces=1 + n % 3) for n, image in enumerate(images)]
    assert np.array_equal(decoded(files, shape[1], shape[0]), np.stack(images))


@pytest.mark.parametrize("pixels", [noise(24, 24), smooth(24, 24)])
def test_as_pillow_writes_them(pixels: npt.NDArray[np.uint8]) -> None:
    """Filters chosen line by line."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    assert png.plain_size(buffer.getvalue()) == (24, 24)
    assert np.array_equal(decoded([buffer.getvalue()] * 3, 24, 24), np.stack([pixels] * 3))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "I;16"])
def test_other_sorts_are_not_plain(mode: str) -> None:
    """Only RGB of 8 bits is."""
    buffer = io.BytesIO()
    Image.new(mode, (4, 4)).save(buffer, format="PNG")
    assert png.plain_size(buffer.getvalue()) is None


def test_transparent_colour_is_odd() -> None:
    """RGB with one colour declared transparent is left to the decoder that knows of it."""
    buffer = io.BytesIO()
    Image.fromarray(smooth(4, 4)).save(buffer, format="PNG", transparency=(0, 0, 0))
    assert png.scanlines(buffer.getvalue(), 4, 4) is None


def test_any_flipped_bit_is_odd() -> None:
    """A wrong bit anywhere behind the signature is seen."""
    good = file(noise(3, 3), 4)
    for place in range(len(png.SIGNATURE), len(good)):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        assert png.scanlines(bytes(bad), 3, 3) is None, place


def test_any_cut_is_odd() -> None:
    """A file that ends early is seen."""
    good = file(noise(3, 3), 1)
    assert all(png.scanlines(good[:size], 3, 3) is None for size in range(len(good)))


def test_too_few_lines_are_odd() -> None:
    """A header that tells more lines than there are."""
    assert png.scanlines(file(noise(3, 3), 0), 3, 4) is None


def test_no_more_is_unpacked_than_the_header_tells() -> None:
    """Data that would unpack to gigabytes costs no more than its image."""
    packer = zlib.compressobj(9)
    bomb = b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(64)), packer.flush()])
    data = png.SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0)) + chunk(b"IDAT", bomb) + chunk(b"IEND", b"")
    lines = png.scanlines(data, 2, 2)
    assert lines == bytes(14)


def test_unknown_filter() -> None:
    """A filter that does not exist is an error."""
    with pytest.raises(ValueError, match="image data"):
        png.unfiltered([bytes([9, 0, 0, 0])], 1, 1)
