"""From pictures of any size to squares of one size: how published pipelines do it, bit for bit.

The filter is part of what a data set is: on ImageNet at 64 pixels two of these ways differ by 31 to 33 dB, and scores that are measured
against statistics of the other one shift with it. So each has a name, which is stored with the data.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import numpy as np
import numpy.typing as npt
from PIL import Image

from cdmkit.data.decode import MAX_PIXELS
from cdmkit.errors import DataError

Pixels = npt.NDArray[np.uint8]


class Crop(Enum):
    """A way to the square. Pictures smaller than it are enlarged."""

    ADM = "adm"
    """Halve by averaging while the short side is at least twice too long, then one bicubic step, then the centre: ImageNet of improved and
    guided diffusion (ADM), and of EDM as `center-crop-dhariwal`."""
    BIGGAN = "biggan"
    """The centre square, then one bilinear step with antialiasing: ImageNet of BigGAN's PyTorch code, and of SAGAN's line of work."""
    AREA = "area"
    """One averaging step, then the centre: LSUN of ADM."""
    LANCZOS = "lanczos"
    """The centre square, then one Lanczos step: `center-crop` of StyleGAN and EDM, the way that LSUN takes there."""

    def __call__(self, pixels: Pixels, size: int) -> Pixels:
        """The square uint8 [size, size, 3] of a picture uint8 [H, W, 3].

        Raises DataError for a picture so narrow that enlarging it would take more than 64 Mpx.
        """
        return np.asarray(_WAYS[self](Image.fromarray(pixels), size))


def _adm(image: Image.Image, size: int) -> Image.Image:
    """guided_diffusion/image_datasets.py, center_crop_arr."""
    while min(image.size) >= 2 * size:  # the short side is 2 or more here, so that no half is 0
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return _middle(_short_side(image, size, Image.Resampling.BICUBIC), size)


def _area(image: Image.Image, size: int) -> Image.Image:
    """datasets/lsun_bedroom.py of guided-diffusion."""
    return _middle(_short_side(image, size, Image.Resampling.BOX), size)


def _biggan(image: Image.Image, size: int) -> Image.Image:
    """CenterCropLongEdge, then Resize: torchvision rounds the middle half to even, where the others round it down."""
    side = min(image.size)
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    return image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BILINEAR)


def _lanczos(image: Image.Image, size: int) -> Image.Image:
    """center_crop of EDM's dataset_tool.py."""
    return _middle(image, min(image.size)).resize((size, size), Image.Resampling.LANCZOS)


def _short_side(image: Image.Image, size: int, filter: Image.Resampling) -> Image.Image:
    """The whole picture with its short side at `size`, the long one rounded half to even."""
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    if width * height > MAX_PIXELS:
        raise DataError(f"too narrow: {image.width} x {image.height} would become {width} x {height} before the centre is cut out")
    return image.resize((width, height), filter)


def _middle(image: Image.Image, size: int) -> Image.Image:
    """The centre square, with the smaller margin left and above."""
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


_WAYS: dict[Crop, Callable[[Image.Image, int], Image.Image]] = {
    Crop.ADM: _adm,
    Crop.BIGGAN: _biggan,
    Crop.AREA: _area,
    Crop.LANCZOS: _lanczos,
}
