"""Plane figures as signed distance fields: negative inside, zero on the outline, positive outside.

Each figure lies about within the unit disc around the origin, upright, y pointing up. Distances near an outline are exact, so that
`0.5 - distance in pixels`, clamped to [0, 1], is the share of a pixel that it covers. Only operations with one right result (IEEE 754) are
used on pixels, so a picture does not depend on the batch it is drawn in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Figure = Callable[[Tensor, Tensor], Tensor]
"""(x, y), float of any one shape -> signed distance of the same shape."""

Point = tuple[float, float]


def circle(x: Tensor, y: Tensor) -> Tensor:
    """A disc."""
    return _disc(x, y, 0, 0, 0.9)


def square(x: Tensor, y: Tensor) -> Tensor:
    """A filled square."""
    return _box(x, y, 0.75, 0.75)


def cross(x: Tensor, y: Tensor) -> Tensor:
    """Two crossed bars."""
    return torch.minimum(_box(x, y, 0.95, 0.3), _box(x, y, 0.3, 0.95))


def ring(x: Tensor, y: Tensor) -> Tensor:
    """A disc with a hole."""
    return (_disc(x, y, 0, 0, 0.68)).abs() - 0.24


def crescent(x: Tensor, y: Tensor) -> Tensor:
    """A disc without another, to the right of it."""
    return torch.maximum(_disc(x, y, 0.1, 0, 0.95), -_disc(x, y, 0.6, 0, 0.75))


def heart(x: Tensor, y: Tensor) -> Tensor:
    """A square on its corner, and a disc on each of its upper sides."""
    side = 1.08
    lean = math.sqrt(0.5)
    y = y + 0.12
    rotated = _box((x + y) * lean, (y - x) * lean, side / 2, side / 2)
    lift = side * lean / 2
    return torch.minimum(rotated, _disc(x.abs(), y, lift, lift, side / 2))


def polygon(corners: Sequence[Point]) -> Figure:
    """The figure of a closed outline: the distance to the nearest edge, negative where a ray crosses the outline an odd number of times."""

    def distance(x: Tensor, y: Tensor) -> Tensor:
        squared = torch.full_like(x, math.inf)
        inside = torch.zeros_like(x, dtype=torch.bool)
        for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
            ex, ey = bx - ax, by - ay
            px, py = x - ax, y - ay
            along = ((px * ex + py * ey) / (ex * ex + ey * ey)).clamp(0, 1)
            squared = torch.minimum(squared, (px - along * ex) ** 2 + (py - along * ey) ** 2)
            if ey:
                inside ^= ((y < ay) != (y < by)) & (px < py * (ex / ey))
        return torch.where(inside, -1.0, 1.0) * squared.sqrt()

    return distance


def star(points: int, inner: float) -> list[Point]:
    """The corners of a star, one of its points up; `inner` is the radius of the notches."""
    radii = [1.0, inner] * points
    turns = [math.pi * (0.5 + k / points) for k in range(2 * points)]
    return [(radius * math.cos(turn), radius * math.sin(turn)) for radius, turn in zip(radii, turns, strict=True)]


FIGURES: dict[str, Figure] = {
    "circle": circle,
    "square": square,
    "triangle": polygon([(0.0, 0.95), (-0.9, -0.65), (0.9, -0.65)]),
    "cross": cross,
    "ring": ring,
    "heart": heart,
    "star": polygon(star(5, 0.42)),
    "crescent": crescent,
    "diamond": polygon([(0.0, 1.0), (-0.55, 0.0), (0.0, -1.0), (0.55, 0.0)]),
    "arrow": polygon([(1.0, 0.0), (0.15, 0.85), (0.15, 0.32), (-0.95, 0.32), (-0.95, -0.32), (0.15, -0.32), (0.15, -0.85)]),
}
"""Every figure by name; the order is that of the labels."""


def _disc(x: Tensor, y: Tensor, centre_x: float, centre_y: float, radius: float) -> Tensor:
    return ((x - centre_x) ** 2 + (y - centre_y) ** 2).sqrt() - radius


def _box(x: Tensor, y: Tensor, half_width: float, half_height: float) -> Tensor:
    """A rectangle around the origin."""
    dx, dy = x.abs() - half_width, y.abs() - half_height
    outside = (dx.clamp(min=0) ** 2 + dy.clamp(min=0) ** 2).sqrt()
    return outside + torch.maximum(dx, dy).clamp(max=0)
