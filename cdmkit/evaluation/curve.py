"""A curve as a picture: one series of positive numbers over timesteps, both on logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from cdmkit.files import written

_SIZE = (840, 460)
_MARGIN = (84, 24, 44, 56)
"""Left, right, top, bottom of the plot, in pixels."""
_DRAWN = 2
"""The picture is drawn this many times as large, then shrunk: smooth lines."""
_INK, _PALE, _LINE = "#333333", "#dddddd", "#0b6fa4"


def write_curve(path: Path, x: Sequence[float], y: Sequence[float], title: str, label: str) -> None:
    """Draw y over x into a PNG. Points that are not above 0 are left out; of none at all, only the frame is drawn."""
    kept = [(math.log10(a), math.log10(b)) for a, b in zip(x, y, strict=True) if a > 0 and b > 0]
    image = Image.new("RGB", (_SIZE[0] * _DRAWN, _SIZE[1] * _DRAWN), "white")
    across, up = ([each[axis] for each in kept] for axis in (0, 1))
    plot = _Plot(ImageDraw.Draw(image), (math.floor(min(across, default=0)), max(across, default=1)), _ends(up))
    plot.frame(title, label)
    plot.line(kept)
    with written(path) as file:
        image.resize(_SIZE, Image.Resampling.LANCZOS).save(file, "PNG")


def _ends(logs: Sequence[float]) -> tuple[int, int]:
    """Whole powers of ten around some logarithms."""
    low, high = math.floor(min(logs, default=0)), math.ceil(max(logs, default=1))
    return low, max(high, low + 1)


def _powers(ends: tuple[float, float]) -> range:
    """The whole powers of ten between two logarithms."""
    return range(math.ceil(ends[0]), math.floor(ends[1]) + 1)


class _Plot:
    def __init__(self, draw: ImageDraw.ImageDraw, across: tuple[float, float], up: tuple[float, float]) -> None:
        self.draw, self.across, self.up = draw, across, up
        left, right, top, bottom = (margin * _DRAWN for margin in _MARGIN)
        self.left, self.right = left, _SIZE[0] * _DRAWN - right
        self.top, self.bottom = top, _SIZE[1] * _DRAWN - bottom

    def place(self, a: float, b: float) -> tuple[float, float]:
        """The pixel of two logarithms."""
        share = (a - self.across[0]) / ((self.across[1] - self.across[0]) or 1), (b - self.up[0]) / (self.up[1] - self.up[0])
        return self.left + share[0] * (self.right - self.left), self.bottom - share[1] * (self.bottom - self.top)

    def frame(self, title: str, label: str) -> None:
        """Axes with a tick at each power of ten, and what they are."""
        font, heading = ImageFont.load_default(13 * _DRAWN), ImageFont.load_default(15 * _DRAWN)
        for power in _powers(self.across):
            x, _ = self.place(power, self.up[0])
            self.draw.line((x, self.top, x, self.bottom), _PALE, _DRAWN)
            self.draw.text((x, self.bottom + 6 * _DRAWN), _power(power), _INK, font, anchor="ma")
        for power in _powers(self.up):
            _, y = self.place(self.across[0], power)
            self.draw.line((self.left, y, self.right, y), _PALE, _DRAWN)
            self.draw.text((self.left - 8 * _DRAWN, y), _power(power), _INK, font, anchor="rm")
        self.draw.rectangle((self.left, self.top, self.right, self.bottom), outline=_INK, width=_DRAWN)
        self.draw.text((self.left, self.top - 10 * _DRAWN), title, _INK, heading, anchor="ls")
        self.draw.text(((self.left + self.right) / 2, self.bottom + 30 * _DRAWN), label, _INK, font, anchor="ma")

    def line(self, logs: Sequence[tuple[float, float]]) -> None:
        """The curve, with a dot at each point where there are few."""
        points = [self.place(*each) for each in logs]
        self.draw.line(points, _LINE, 2 * _DRAWN, joint="curve")
        size = 3 * _DRAWN
        for x, y in points if len(points) <= 60 else ():
            self.draw.ellipse((x - size, y - size, x + size, y + size), fill=_LINE)


def _power(power: int) -> str:
    """10 to a power, in plain digits where they are few."""
    return f"{10.0**power:g}"
