"""The two ranges of a pixel."""

from __future__ import annotations

import pytest
import torch

from cdmkit.data.pixels import to_float, to_uint8
from cdmkit.errors import NumericsError


def test_round_trip() -> None:
    """Every byte comes back from [-1, 1]."""
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(pixels)), pixels)


def test_ends_of_the_range() -> None:
    """0 is -1 and 255 is 1, in the asked type."""
    ends = to_float(torch.tensor([0, 255], dtype=torch.uint8), torch.float64)
    assert ends.dtype == torch.float64
    assert ends.tolist() == [-1, 1]


def test_rounds_and_clamps() -> None:
    """The nearest byte is taken; what lies outside the range is its end."""
    assert to_uint8(torch.tensor([-3.0, -1.0, 0.003, 1.0, 9.0])).tolist() == [0, 0, 128, 255, 255]
    near = (torch.tensor([10.4, 10.6]) / 127.5) - 1
    assert to_uint8(near).tolist() == [10, 11]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_picture_of_nan(value: float) -> None:
    """NaN and infinity are errors, never black pixels."""
    with pytest.raises(NumericsError, match="1 of 4 pixel values"):
        to_uint8(torch.tensor([0.0, value, 0.5, 1.0]))
