"""The picture of a curve."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from cdmkit.evaluation.curve import write_curve

LINE = (11, 111, 164)


def blue(path: Path) -> npt.NDArray[np.bool_]:
    """Where the line is: [height, width]."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"), np.int64)
    near: npt.NDArray[np.bool_] = np.abs(pixels - LINE).sum(2) < 40
    return near


@pytest.mark.parametrize("count", [2, 30, 4000])
def test_a_falling_power_is_a_straight_falling_line(tmp_path: Path, count: int) -> None:
    """Both axes are logarithmic: y = 1 / x goes from the top left to the bottom right."""
    x = np.geomspace(1, 1000, count)
    write_curve(tmp_path / "c.png", x.tolist(), (1 / x).tolist(), "title", "x")
    rows, columns = np.nonzero(blue(tmp_path / "c.png"))
    slope, at_zero = np.polyfit(columns, rows, 1)
    assert slope > 0.3
    assert float(np.abs(rows - (slope * columns + at_zero)).max()) < 8
    assert columns.max() - columns.min() > 600


@pytest.mark.parametrize("y", [[0.0, 0.0], [], [5.0], [0.0, 5.0]])
def test_what_cannot_be_drawn_is_left_out(tmp_path: Path, y: list[float]) -> None:
    """Zeros have no logarithm; of nothing, only the frame is drawn."""
    write_curve(tmp_path / "c.png", list(range(1, len(y) + 1)), y, "title", "x")
    assert blue(tmp_path / "c.png").any() == any(y)
    with Image.open(tmp_path / "c.png") as image:
        assert image.size == (840, 460)
