"""The kinds of sampling: which timesteps are visited, how a step is made, and what is done to the predicted image."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from cdmkit.component import Component, option, table
from cdmkit.diffusion import Condition, Denoise, Denoiser, Process


class Spacing(Component):
    """Which timesteps of the full chain sampling visits."""

    kind = "spacing"

    @abstractmethod
    def timesteps(self, process: Process, steps: int) -> list[int]:
        """About `steps` timesteps of the full chain `process` in 1..T, ascending. Raises ValueError, saying why, where there are none."""


class Sampler(Component):
    """How a stage's chain is run backwards."""

    kind = "sampler"

    @abstractmethod
    def chain(self, process: Process, stop_at: int = 0) -> Process:
        """The points of the full chain `process` that sampling visits; `stop_at` is among them."""

    @abstractmethod
    def __call__(self, denoise: Denoise, noise: Tensor, process: Process, draw: Callable[[int], Tensor], stop_at: int = 0) -> Tensor:
        """From x_T = `noise` [B, 3, R, R] to x_0, or to z_s where `stop_at` = s > 0 (original timesteps), in the dtype of `noise`.

        process: the full chain, float64 on the CPU. draw(k): standard normal noise like `noise` for the step that leaves index k of
        `chain(process, stop_at)`. What `draw` gives is not written to, nor is anything that `denoise` was given.
        """

    def calls(self, process: Process, stop_at: int = 0) -> int:
        """How many times `denoise` is called."""
        return int((self.chain(process, stop_at).timesteps > stop_at).sum())


@table
class Spaced(Sampler):
    """A sampler with two options: how many timesteps it visits, and which. What most are; others subclass `Sampler`."""

    steps: int = option(help="timesteps visited", ge=1)
    spacing: Spacing | None = option(None, help="which timesteps; default: equally spaced from 1 to T, as `even` has them")

    def chain(self, process: Process, stop_at: int = 0) -> Process:
        """`steps` timesteps, and `stop_at`."""
        if self.spacing is None:
            return process.respace(self.steps, stop_at)
        visited = self.spacing.timesteps(process, self.steps)
        if stop_at > max(visited, default=0):
            raise ValueError(f"cannot stop at timestep {stop_at}: the chain begins at {max(visited, default=0)}, below it")
        return process.keep({*visited, stop_at})


class Threshold(Component):
    """How a predicted image is kept within what images are, at every step of sampling."""

    kind = "threshold"

    @abstractmethod
    def __call__(self, x0: Tensor) -> Tensor:
        """x_0 [B, 3, R, R] -> the same, about [-1, 1]. What is given is not written to."""


class Guidance(Component):
    """How a network's prediction is pushed when sampling, by comparing it with a worse one."""

    kind = "guidance"

    needs_unlabeled: ClassVar[bool] = False
    """Whether the stage's network must know what it is to be told no label (`label_dropout`)."""

    @property
    def guide(self) -> str | None:
        """The weights file of another network that guides, None if there is none."""
        return None

    @abstractmethod
    def __call__(self, denoiser: Denoiser, condition: Condition, guide: Denoiser | None) -> Denoise:
        """The guided prediction of `denoiser` told `condition`, before any thresholding. guide: the network of the file `guide`."""
