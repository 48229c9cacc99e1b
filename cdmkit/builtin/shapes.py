"""Training images that are drawn, not stored."""

from __future__ import annotations

import hashlib
import math
from enum import Enum

import torch
from torch import Tensor

from cdmkit.component import Component, component, option
from cdmkit.data.figures import FIGURES
from cdmkit.data.loader import Loader
from cdmkit.data.order import Order
from cdmkit.data.resize import Resize
from cdmkit.draws import Stream
from cdmkit.hookspecs import hookimpl
from cdmkit.kinds import Batches, DataCard, Source

_SUPERSAMPLED = 32
"""Smaller pictures are drawn at least this large, then shrunk: outlines finer than a pixel still count by their area."""

_GROUND = (0.07, 0.08, 0.11)
_PALETTE = torch.tensor(
    [
        (0.92, 0.22, 0.21),  # red
        (0.20, 0.75, 0.35),  # green
        (0.27, 0.49, 0.96),  # blue
        (0.99, 0.82, 0.20),  # yellow
        (0.78, 0.32, 0.86),  # violet
        (0.20, 0.82, 0.86),  # cyan
        (0.98, 0.55, 0.16),  # orange
        (0.95, 0.95, 0.95),  # white
        (0.99, 0.58, 0.72),  # pink
        (0.60, 0.42, 0.28),  # brown
        (0.70, 0.88, 0.30),  # lime
        (0.56, 0.58, 0.63),  # grey
    ]
)


class Background(Enum):
    """What lies behind the figures."""

    PLAIN = "plain"
    """One dark colour for all pictures."""
    VARIED = "varied"
    """A dark colour of its own for each picture."""
    GRADIENT = "gradient"
    """A passage between two dark colours, in a direction of its own for each picture."""


@component("shapes")
class Shapes(Source):
    """Coloured figures on a ground, drawn from nothing: a class-conditional data set for tutorials, tests and trying out recipes.

    No download, any size, and easy to judge by eye: the class is the figure. With the defaults a small network learns it in minutes on a
    CPU. `rotation`, `jitter`, the sizes, `background` and `texture` make it harder. Image i depends on the options and i alone, its label
    is i modulo `classes`, and the same picture can be had at every resolution.
    """

    resolution: int = option(32, help="height and width, in pixels", ge=4, le=1024)
    count: int = option(8192, help="images in an epoch", ge=1)
    seed: int = option(0, help="another seed gives other pictures: use one for training and another to hold out", ge=0)
    classes: int = option(8, help=f"how many figures there are: the first of {', '.join(FIGURES)}", ge=2, le=len(FIGURES))
    colours: int = option(6, help="how many colours figures have", ge=1, le=len(_PALETTE))
    min_size: float = option(0.6, help="smallest radius of a figure; 1 is half the image", gt=0, le=1)
    max_size: float = option(0.75, help="largest radius of a figure; 1 is half the image", gt=0, le=1)
    jitter: float = option(0.1, help="largest shift of a figure from the centre, in each direction; 1 is half the image", ge=0, le=1)
    rotation: float = option(0.0, help="largest turn of a figure from upright to either side, in degrees", ge=0, le=180)
    background: Background = option(Background.PLAIN, help="plain: one dark colour; varied: one for each image; gradient: a passage of two")
    texture: float = option(0.0, help="strength of stripes in figure and ground", ge=0, le=1)

    def __attrs_post_init__(self) -> None:
        if self.min_size > self.max_size:
            raise ValueError(f"min_size = {self.min_size:g} is larger than max_size = {self.max_size:g}")

    def card(self) -> DataCard:
        """The fingerprint is of all options and of some pictures, so that it changes with the drawing, too."""
        some, _ = self.render(torch.arange(min(self.count, 64)))
        digest = hashlib.sha256(repr(self).encode() + some.numpy().tobytes()).hexdigest()
        return DataCard(resolution=self.resolution, count=self.count, classes=self.classes, fingerprint=digest)

    def open(self, batch: int, rank: int, world: int, seed: int, position: int) -> Batches:
        """Batches drawn ahead by one thread."""
        return Loader(self.render, Order(self.count, seed), batch=batch, rank=rank, world=world, position=position, workers=1)

    def render(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Draw images `indices` (int64 [B]): uint8 [B, 3, S, S] and their labels, int64 [B]."""
        labels = indices % self.classes
        size = self.resolution * math.ceil(_SUPERSAMPLED / self.resolution)
        axis = (torch.arange(size) + 0.5) * (2 / size) - 1
        x, y = axis.expand(1, 1, size, size), -axis[:, None].expand(1, 1, size, size)
        chance = Stream.of(self.seed, "shapes").uniform(indices, 20, dtype=torch.float64).float()[..., None, None, None].unbind(1)
        cover = self._cover(labels, x, y, chance[:5])
        colour = _PALETTE[(chance[5] * self.colours).long().flatten()][:, :, None, None]
        figure = colour + self._stripes(x, y, chance[6:9])
        ground = self._ground(x, y, chance[9:17]) + self._stripes(x, y, chance[17:20])
        images = Resize.AREA((ground + (figure - ground) * cover).clamp(0, 1), self.resolution)
        return (images * 255).round().to(torch.uint8), labels

    def _cover(self, labels: Tensor, x: Tensor, y: Tensor, chance: tuple[Tensor, ...]) -> Tensor:
        """The share of each pixel that the figure covers: [B, 1, S, S] in [0, 1]."""
        radius = self.min_size + (self.max_size - self.min_size) * chance[0]
        x = (x - self.jitter * (2 * chance[1] - 1)) / radius
        y = (y - self.jitter * (2 * chance[2] - 1)) / radius
        turn = math.radians(self.rotation) * (2 * chance[3] - 1)
        x, y = x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin()
        distance = torch.empty_like(x)
        for label, figure in zip(range(self.classes), FIGURES.values(), strict=False):
            here = labels == label
            distance[here] = figure(x[here], y[here])
        return (0.5 - distance * radius * (x.shape[-1] / 2)).clamp(0, 1)

    def _ground(self, x: Tensor, y: Tensor, chance: tuple[Tensor, ...]) -> Tensor:
        """The colours behind the figure: [B, 3, S, S] or broadcast to it."""
        first, second = (0.4 * torch.cat(chance[k : k + 3], dim=1) for k in (0, 3))
        match self.background:
            case Background.PLAIN:
                return torch.tensor(_GROUND)[:, None, None]
            case Background.VARIED:
                return first
            case Background.GRADIENT:
                return torch.lerp(first, second, 0.5 + 0.35 * _along(x, y, chance[6]))

    def _stripes(self, x: Tensor, y: Tensor, chance: tuple[Tensor, ...]) -> Tensor | float:
        """What the texture adds to a colour: a triangle wave of 2 to 4 periods, in a direction of its own."""
        if not self.texture:
            return 0.0
        phase = _along(x, y, chance[0]) * (1 + chance[1]) + chance[2]
        return self.texture * (0.25 - (phase - phase.floor() - 0.5).abs()) * 0.8


def _along(x: Tensor, y: Tensor, direction: Tensor) -> Tensor:
    """How far each pixel lies in a direction drawn from [0, 1): [B, 1, S, S]."""
    angle = 2 * math.pi * direction
    return x * angle.cos() + y * angle.sin()


@hookimpl
def cdmkit_components() -> list[type[Component]]:
    """The sources of drawn images."""
    return [Shapes]
