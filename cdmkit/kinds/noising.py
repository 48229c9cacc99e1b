"""The kinds of training: how noise is added, where on the chain, and how wrong a network's answer is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from cdmkit.component import Component
from cdmkit.diffusion import Noised, Output, Parameterization, Process
from cdmkit.draws import Draw


class Schedule(Component):
    """How fast the forward process destroys an image."""

    kind = "schedule"

    @abstractmethod
    def alpha_bars(self) -> Tensor:
        """float64 [T+1], falling strictly from 1 (entry 0, clean) and never below 0."""

    def process(self, variance_floor: float | None = None) -> Process:
        """The chain of this schedule, tables in float64. variance_floor: as in `Process.of`."""
        return Process.of(self.alpha_bars(), variance_floor=variance_floor)


class Density(Component):
    """How often training visits each timestep."""

    kind = "density"

    @abstractmethod
    def start(self, process: Process) -> Timesteps:
        """A new drawer of timesteps of the (full) chain, on the CPU."""


class Visit(NamedTuple):
    """The timesteps that a batch is noised to."""

    t: Tensor
    """int64 [B], 1..T."""
    weight: Tensor | None
    """[B]: what each image's loss is multiplied by; None for 1."""


class Timesteps(nn.Module, ABC):
    """A density at work. What it learns from losses it keeps in buffers, which are saved with the training state."""

    @abstractmethod
    def draw(self, draw: Draw) -> Visit:
        """A timestep for each image, a function of `draw` and of what was learned. Never makes the host wait."""

    def learn(self, t: Tensor, losses: Tensor) -> None:
        """Told, at the end of a step, of its unweighted losses [B] at timesteps t [B]: NaN where nothing is to be learned."""


class Weighting(Component):
    """How much each noise level counts in a squared error."""

    kind = "weighting"

    @abstractmethod
    def __call__(self, snr: Tensor) -> Tensor:
        """The weight of the squared error of epsilon at each signal-to-noise ratio alpha_bar / (1 - alpha_bar), both [B], ratio >= 0.

        What a network predicts plays no part: the same error of x_0 or v counts as the error of epsilon that it implies.
        """


class Loss(Component):
    """How wrong a network's output is."""

    kind = "loss"

    needs_learned_variance: ClassVar[bool] = False
    """Whether it makes sense only with `variance = "learned-range"`."""

    discrete: ClassVar[bool] = False
    """Whether it needs examples at whole timesteps, so that `noise_input = "alpha-bar"` cannot be trained with it."""

    def check(self, process: Process) -> None:
        """Raise ValueError, saying why, where nothing can be learned by it along a chain."""

    @abstractmethod
    def __call__(self, output: Output, noised: Noised, parameterization: Parameterization) -> Tensor:
        """The loss of each example, [B]: the mean over its channels and pixels."""
