"""Files of pictures: what is kept of the pixels, and that equal pixels make equal files."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from cdmkit.data.decode import decode
from cdmkit.data.encode import Encoding


def picture(height: int = 40, width: int = 56) -> npt.NDArray[np.uint8]:
    """Colours that run into each other, with an edge."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    pixels = np.stack((x, y, 1 - x), axis=2) * 255
    pixels[height // 2 :, : width // 3] = (250, 20, 20)
    return pixels.round().astype(np.uint8)


def test_png_keeps_every_pixel() -> None:
    """It is lossless."""
    assert np.array_equal(decode(Encoding.PNG(picture())), picture())


def test_jpeg_is_fine_and_in_full_colour() -> None:
    """Above 35 dB, and no channel is stored at half the resolution."""
    data = Encoding.JPEG(picture())
    error = decode(data).astype(float) - picture()
    assert 10 * np.log10(255**2 / (error**2).mean()) > 35
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "JPEG"
        assert [component[1:3] for component in image.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("encoding", Encoding)
def test_equal_pixels_make_equal_files(encoding: Encoding) -> None:
    """However they lie in memory."""
    wide = np.repeat(picture(), 2, axis=1)
    assert encoding(picture()) == encoding(wide[:, ::2]) == encoding(picture().copy())


def test_extensions() -> None:
    """As other tools call such files."""
    assert [encoding.extension for encoding in Encoding] == ["png", "jpg"]
