"""Resizing: antialiased when shrinking, centres never move, against numpy and PIL."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor

from cdmkit.data.resize import Resize, _shares

Pixels = npt.NDArray[np.float64]


def images(size: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size)) * 2 - 1


def by_filter(image: Pixels, size: int, filter_: Literal["box", "triangle"]) -> Pixels:
    """Each target pixel is the mean of source pixels, weighted by a filter that is as wide as the larger of both pixels."""
    source = image.shape[-1]
    scale = source / size
    matrix = np.zeros((size, source))
    for target in range(size):
        centre = (target + 0.5) * scale
        for pixel in range(source):
            if filter_ == "box":
                matrix[target, pixel] = max(0.0, min(pixel + 1, centre + scale / 2) - max(pixel, centre - scale / 2))
            else:
                matrix[target, pixel] = max(0.0, 1 - abs(pixel + 0.5 - centre) / max(scale, 1.0))
    matrix /= matrix.sum(1, keepdims=True)
    return np.asarray(matrix @ image @ matrix.T)


@pytest.mark.parametrize(("source", "target"), [(16, 4), (12, 8), (15, 4), (7, 6), (5, 10)])
def test_area_is_the_mean_over_each_target_pixel(source: int, target: int) -> None:
    """Also where source pixels are divided among targets."""
    np.testing.assert_allclose(Resize.AREA(images(source), target).numpy(), by_filter(images(source).numpy(), target, "box"), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_area_answers_in_the_dtype_it_is_given(dtype: torch.dtype) -> None:
    """However often, and whatever it was given before."""
    x = images(15)
    for each in (torch.float64, torch.float32, dtype):
        assert Resize.AREA(x.to(each), 4).dtype == each
    assert _shares(15, 4, x.device, dtype) is _shares(15, 4, x.device, dtype)


def test_area_by_a_whole_factor_is_the_block_mean() -> None:
    """The plain case."""
    x = images(12)
    torch.testing.assert_close(Resize.AREA(x, 4), x.view(2, 3, 4, 3, 4, 3).mean((3, 5)))


@pytest.mark.parametrize(("source", "target"), [(16, 4), (12, 8), (4, 16), (6, 9)])
def test_bilinear_is_a_triangle_filter(source: int, target: int) -> None:
    """As wide as the target's pixels when shrinking, as the source's when enlarging."""
    expected = by_filter(images(source).numpy(), target, "triangle")
    np.testing.assert_allclose(Resize.BILINEAR(images(source), target).numpy(), expected, atol=1e-9)


BOTH_WAYS = [(16, 4), (12, 8), (4, 16), (6, 9)]


@pytest.mark.parametrize(
    ("resize", "pil", "source", "target"),
    [
        *((Resize.BILINEAR, Image.Resampling.BILINEAR, *sizes) for sizes in BOTH_WAYS),
        *((Resize.BICUBIC, Image.Resampling.BICUBIC, *sizes) for sizes in BOTH_WAYS),
        (Resize.AREA, Image.Resampling.BOX, 16, 4),
        (Resize.AREA, Image.Resampling.BOX, 4, 16),
    ],
)
def test_filters_are_those_of_pil(resize: Resize, pil: Image.Resampling, source: int, target: int) -> None:
    """On floating-point images; of box filters by whole factors only, since PIL's does not divide pixels."""
    x = images(source, count=1).float()
    expected = np.asarray(Image.fromarray(x[0, 0].numpy()).resize((target, target), pil))
    np.testing.assert_allclose(resize(x, target)[0, 0].numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("resize", [Resize.AREA, Resize.BILINEAR, Resize.BICUBIC])
def test_shrinking_does_not_alias(resize: Resize) -> None:
    """A board of single black and white pixels becomes grey, not a coarser pattern."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    board = ((x + y) % 2 * 2.0 - 1).expand(1, 3, 64, 64)
    shrunk = resize(board, 16)
    assert float(shrunk[..., 1:-1, 1:-1].abs().max()) < 0.01
    assert float(shrunk.abs().max()) < 0.1


@pytest.mark.parametrize("resize", Resize)
def test_flat_images_stay_flat(resize: Resize) -> None:
    """No filter changes the brightness, at the borders either."""
    for target in (8, 12, 24) if resize is Resize.NEAREST else (4, 6, 8, 12, 24):
        torch.testing.assert_close(resize(torch.full((1, 3, 8, 8), 0.3), target), torch.full((1, 3, target, target), 0.3))


@pytest.mark.parametrize("resize", Resize)
def test_centres_do_not_move(resize: Resize) -> None:
    """Mirroring before or after is the same, when enlarging and, where allowed, when shrinking."""
    x = images(12)
    for target in (24,) if resize is Resize.NEAREST else (24, 18, 8, 6):
        torch.testing.assert_close(resize(x.flip(-1, -2), target), resize(x, target).flip(-1, -2))


@pytest.mark.parametrize("resize", [Resize.NEAREST, Resize.AREA])
def test_enlarging_by_repetition_repeats(resize: Resize) -> None:
    """Each pixel becomes a block."""
    x = images(3)
    torch.testing.assert_close(resize(x, 9), x.repeat_interleave(3, 2).repeat_interleave(3, 3))


def test_nearest_refuses_to_shrink() -> None:
    """It would alias."""
    with pytest.raises(ValueError, match="nearest enlarges only"):
        Resize.NEAREST(images(8), 4)


@pytest.mark.parametrize("resize", Resize)
def test_the_same_size_is_left_alone(resize: Resize) -> None:
    """Bit for bit."""
    x = images(8)
    assert resize(x, 8) is x


@pytest.mark.parametrize("resize", [Resize.AREA, Resize.BILINEAR, Resize.BICUBIC])
def test_an_oblong_image_becomes_square(resize: Resize) -> None:
    """Each axis by its own factor."""
    assert resize(torch.zeros(1, 3, 12, 10), 8).shape == (1, 3, 8, 8)
