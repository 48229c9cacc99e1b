"""The ways to the square, against the published procedures written down a second time."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from cdmkit.data.crop import Crop
from cdmkit.data.decode import decode
from cdmkit.errors import DataError

SHARED = Path(os.environ.get("CDMKIT_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "imagenet-like"

Pixels = npt.NDArray[np.uint8]


def scaled(pixels: Pixels, width: int, height: int, filter: Image.Resampling) -> Pixels:
    return np.array(Image.fromarray(pixels).resize((width, height), resample=filter))


def cut(pixels: Pixels, top: int, left: int, side: int) -> Pixels:
    return pixels[top : top + side, left : left + side]


def published(crop: Crop, pixels: Pixels, size: int) -> Pixels:
    """What the reference pipelines do, in arrays."""
    height, width = pixels.shape[:2]
    short = min(height, width)
    match crop:
        case Crop.ADM:
            while min(pixels.shape[:2]) >= 2 * size:
                pixels = scaled(pixels, pixels.shape[1] // 2, pixels.shape[0] // 2, Image.Resampling.BOX)
            scale = size / min(pixels.shape[:2])
            pixels = scaled(pixels, round(pixels.shape[1] * scale), round(pixels.shape[0] * scale), Image.Resampling.BICUBIC)
            return cut(pixels, (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2, size)
        case Crop.AREA:
            scale = size / short
            pixels = scaled(pixels, round(scale * width), round(scale * height), Image.Resampling.BOX)
            return cut(pixels, (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2, size)
        case Crop.BIGGAN:  # torchvision's center_crop
            square = cut(pixels, round((height - short) / 2.0), round((width - short) / 2.0), short)
            return scaled(square, size, size, Image.Resampling.BILINEAR)
        case Crop.LANCZOS:
            square = pixels[(height - short) // 2 : (height + short) // 2, (width - short) // 2 : (width + short) // 2]
            return scaled(square, size, size, Image.Resampling.LANCZOS)


def random(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("crop", Crop)
def test_as_published(crop: Crop) -> None:
    """Bit for bit, on sizes below and above the square's, odd and even, flat and tall."""
    generator = np.random.default_rng(1)
    for seed in range(60):
        height, width, size = (int(number) for number in generator.integers((5, 5, 3), (200, 200, 70)))
        pixels = random(height, width, seed)
        made = crop(pixels, size)
        assert made.shape == (size, size, 3)
        assert made.dtype == np.uint8
        assert np.array_equal(made, published(crop, pixels, size)), (height, width, size)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real images of shared/data/imagenet-like are not here")
@pytest.mark.parametrize("crop", Crop)
def test_real_images_as_published(crop: Crop) -> None:
    """Photographs of many sizes, for 64 and 256 pixels."""
    paths = sorted(SHARED.rglob("*.JPEG"))[::15]
    assert paths
    for path in paths:
        pixels = decode(path.read_bytes())
        for size in (64, 256):
            assert np.array_equal(crop(pixels, size), published(crop, pixels, size)), path.name


@pytest.mark.parametrize("crop", Crop)
@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (500, 3), (2, 3), (127, 128)])
@pytest.mark.parametrize("size", [1, 2, 64])
def test_odd_shapes(crop: Crop, shape: tuple[int, int], size: int) -> None:
    """No shape is halved to nothing, and one colour stays that colour."""
    colour = np.array([10, 200, 255], np.uint8)
    assert (crop(np.broadcast_to(colour, (*shape, 3)).copy(), size) == colour).all()


@pytest.mark.parametrize("crop", Crop)
def test_the_right_size_stays(crop: Crop) -> None:
    """A square of the size that is wanted is left alone."""
    pixels = random(32, 32)
    assert np.array_equal(crop(pixels, 32), pixels)


@pytest.mark.parametrize("crop", Crop)
def test_mirrored_images_are_mirrored(crop: Crop) -> None:
    """Where the margins are even, left and right are treated alike, and so are rows and columns."""
    pixels = random(96, 160)
    made = crop(pixels, 24).astype(int)
    assert abs(crop(pixels[:, ::-1], 24)[:, ::-1] - made).max() <= 1
    assert abs(crop(pixels[::-1], 24)[::-1] - made).max() <= 1
    assert abs(crop(pixels.swapaxes(0, 1), 24).swapaxes(0, 1) - made).max() <= 3  # columns are resized and rounded first


def test_the_ways_differ() -> None:
    """A name that did what another one does would be no choice."""
    pixels = random(100, 130)
    assert len({crop(pixels, 24).tobytes() for crop in Crop}) == len(Crop)


def test_halving_averages() -> None:
    """ADM's squares of half the size, and all of AREA's, are means of blocks."""
    pixels = random(64, 64)
    means = pixels.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    for crop in (Crop.ADM, Crop.AREA):
        assert abs(crop(pixels, 32) - means).max() <= 1


def test_a_thread_is_not_blown_up() -> None:
    """An image of 1 x 100,000 pixels would be enlarged to gigabytes before its centre is cut out."""
    with pytest.raises(DataError, match="too narrow: 100000 x 1 would become 25600000 x 256"):
        Crop.ADM(np.zeros((1, 100_000, 3), np.uint8), 256)
