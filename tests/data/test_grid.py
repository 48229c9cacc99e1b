"""Grids of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cdmkit.data.grid import grid, write_grid
from cdmkit.errors import NumericsError


def flat(*shades: int) -> torch.Tensor:
    """Grey 4 x 4 pictures."""
    return torch.tensor(shades, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)


def test_places() -> None:
    """Pictures stand in reading order, with white between and after them."""
    pixels = np.asarray(grid(flat(10, 20, 30, 40, 50), columns=3, scale=2))
    assert pixels.shape == (2 * 8 + 2, 3 * 8 + 2 * 2, 3)
    for number, shade in enumerate((10, 20, 30, 40, 50, 255)):
        row, column = divmod(number, 3)
        assert (pixels[row * 10 : row * 10 + 8, column * 10 : column * 10 + 8] == shade).all()
    assert (pixels[:, 8:10] == 255).all()
    assert (pixels[8:10] == 255).all()


def test_pixels_are_repeated() -> None:
    """Enlarging invents no shade."""
    image = torch.randint(0, 256, (1, 3, 4, 4), dtype=torch.uint8)
    pixels = np.asarray(grid(image, scale=5))
    assert np.array_equal(pixels[2::5, 2::5], image[0].permute(1, 2, 0).numpy())
    assert np.array_equal(pixels, pixels[2::5, 2::5].repeat(5, axis=0).repeat(5, axis=1))


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (9, 3), (10, 4)])
def test_default_is_about_square(count: int, columns: int) -> None:
    """By default there are as many columns as rows, or one more."""
    assert grid(flat(*range(count)), scale=1).width == columns * 6 - 2


@pytest.mark.parametrize(("resolution", "columns"), [(8, 8), (32, 8), (64, 4), (256, 10)])
def test_default_scale(resolution: int, columns: int) -> None:
    """Small pictures are enlarged to about 800 pixels of width, large ones are left."""
    width = grid(torch.zeros(columns, 3, resolution, resolution), columns).width
    assert 600 <= width <= 1000 or width == columns * (resolution + 2) - 2 > 1000


def test_float_pictures() -> None:
    """[-1, 1] is shown as bytes are, and NaN is refused."""
    assert np.asarray(grid(torch.full((1, 3, 4, 4), 1.0), scale=1)).min() == 255
    assert np.asarray(grid(torch.full((1, 3, 4, 4), -1.0), scale=1)).max() == 0
    with pytest.raises(NumericsError):
        grid(torch.full((1, 3, 4, 4), float("nan")))


def test_written_as_png(tmp_path: Path) -> None:
    """The file holds the grid."""
    path = tmp_path / "new" / "grid.png"
    write_grid(path, flat(1, 2), columns=2, scale=3)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), np.asarray(grid(flat(1, 2), columns=2, scale=3)))
