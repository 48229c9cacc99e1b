"""Many small pictures as one PNG that people can look at."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from cdmkit.data.pixels import to_uint8
from cdmkit.files import written

_WIDTH = 800
_GAP = 2
_GROUND = 255


def grid(images: Tensor, columns: int | None = None, scale: int | None = None) -> Image.Image:
    """Pictures in rows, each pixel `scale` x `scale` pixels, with white gaps of 2 pixels.

    images: [N, 3, R, R], uint8 or float in [-1, 1]; N >= 1. columns: by default so that the grid is about square. scale: by default such
    that it is about 800 pixels wide, and at least 1. Raises NumericsError at NaN or infinity.
    """
    pixels = (images if images.dtype == torch.uint8 else to_uint8(images)).cpu()
    count, channels, height, width = pixels.shape
    columns = min(count, columns or math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    scale = scale or max(1, round(_WIDTH / (columns * width)))
    tiles = pixels.new_full((rows * columns, channels, scale * height + _GAP, scale * width + _GAP), _GROUND)
    tiles[:count, :, :-_GAP, :-_GAP] = pixels.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    table = tiles.view(rows, columns, *tiles.shape[1:]).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    return Image.fromarray(table[:-_GAP, :-_GAP].contiguous().numpy())


def write_grid(path: Path, images: Tensor, columns: int | None = None, scale: int | None = None) -> None:
    """Write `grid(...)` as a PNG, complete or not at all. Makes the folder."""
    picture = grid(images, columns, scale)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written(path) as file:
        picture.save(file, format="PNG")
