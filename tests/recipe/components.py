"""A plugin with one small component of every kind, for recipes to name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from cdmkit.component import Component, component, option
from cdmkit.diffusion import Noised, Output, Parameterization, Process
from cdmkit.diffusion.denoiser import Denoise
from cdmkit.draws import Draw
from cdmkit.hookspecs import hookimpl
from cdmkit.kinds import Augmentation, Augmented, Backbone, Backend, Loss, NetworkSpec, Optimizer, Sampler, Schedule, Session, Source


@component("line")
class Line(Schedule):
    """alpha_bars on a line."""

    timesteps: int = option(100, help="T", ge=1)
    end: float = option(0.01, help="the last alpha_bar", lt=1)

    def alpha_bars(self) -> Tensor:
        """From 1 to `end`; a negative end makes no process."""
        return torch.linspace(1, self.end, self.timesteps + 1, dtype=torch.float64)


@component("curve")
class Curve(Schedule):
    """alpha_bars on a parabola."""

    timesteps: int = option(100, help="T", ge=1)

    def alpha_bars(self) -> Tensor:
        """From 1 to almost 0."""
        return torch.linspace(1, 0.01, self.timesteps + 1, dtype=torch.float64) ** 2


class Norm(Enum):
    """How errors count."""

    ABSOLUTE = "absolute"
    SQUARED = "squared"


@component("distance")
class Distance(Loss):
    """The distance from the prediction's target."""

    norm: Norm = option(Norm.SQUARED, help="how errors count")
    weights: tuple[float, ...] = option((), help="factors", ge=0)

    def __call__(self, output: Output, noised: Noised, parameterization: Parameterization) -> Tensor:
        """Distance from x_0."""
        return (output.value - noised.x0).flatten(1).square().mean(1)


@component("noise")
class Noise(Augmentation):
    """Noise the low-resolution image."""

    tells_level = True
    noises = True

    schedule: Schedule | None = option(None, help="the schedule to noise along")
    low: float = option(0.0, help="least strength", ge=0, le=1)
    high: float = option(1.0, help="greatest strength", ge=0, le=1)

    def __attrs_post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low = {self.low:g} is above high = {self.high:g}")

    def noise_schedule(self, parent: Schedule) -> Schedule:
        """Its own, where it has one."""
        return self.schedule or parent

    def train(self, low_res: Tensor, parent: Process, draw: Draw) -> Augmented:
        """Leave it as it is."""
        return Augmented(low_res, low_res.new_zeros(len(low_res)))


@component("tiny")
class Tiny(Backbone):
    """One convolution with an embedding of labels."""

    width: int = option(3, help="width of the kernel, odd", ge=1)

    def build(self, spec: NetworkSpec) -> nn.Module:
        """A module; its forward is not used."""
        if self.width % 2 == 0:
            raise ValueError(f"width = {self.width} must be odd")
        return nn.ModuleList((nn.Conv2d(spec.image_channels, spec.out_channels, self.width), nn.Embedding(spec.classes + 1, 4)))


@component("walk")
class Walk(Sampler):
    """Walk back along some timesteps."""

    steps: int = option(help="network calls", ge=1)

    def chain(self, process: Process, stop_at: int = 0) -> Process:
        """The respaced chain."""
        return process.respace(self.steps, stop_at)

    def __call__(self, denoise: Denoise, noise: Tensor, process: Process, draw: Callable[[int], Tensor], stop_at: int = 0) -> Tensor:
        """The noise."""
        return noise


@component("nothing")
class Nothing(Source):
    """Images that are not there."""

    path: str = option("nowhere", help="where they would be")

    def card(self) -> Any:
        """Never asked for."""

    def open(self, batch: int, rank: int, world: int, seed: int, position: int) -> Any:
        """Never asked for."""


@component("descent")
class Descent(Optimizer):
    """Gradient descent."""

    lr: float = option(0.1, help="learning rate", gt=0)

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """SGD."""
        return torch.optim.SGD(parameters, lr=self.lr)


@component("here")
class Here(Backend):
    """This process."""

    quick: bool = option(False, help="hurry")

    def start(self) -> Session:
        """Never started."""
        raise RuntimeError("not for computing")


@hookimpl
def cdmkit_components() -> list[type[Component]]:
    """All of them."""
    return [Line, Curve, Distance, Noise, Tiny, Walk, Nothing, Descent, Here]
