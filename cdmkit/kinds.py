"""The kinds of component: what each must do. Every component of a recipe is a subclass of one of these.

Images inside cdmkit are [B, 3, R, R] in [-1, 1]; uint8 exists only at the borders. Values do their work themselves; a kind that needs state
(a module, a session, an open data set) makes it with one verb, so that a recipe stays frozen and comparable.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar, NamedTuple

import attrs
import torch
from torch import Tensor, nn

from cdmkit.component import Component
from cdmkit.diffusion import Noised, Output, Parameterization, Process
from cdmkit.diffusion.denoiser import Denoise
from cdmkit.draws import Draw


class Schedule(Component):
    """How fast the forward process destroys an image."""

    kind = "schedule"

    @abstractmethod
    def alpha_bars(self) -> Tensor:
        """float64 [T+1], falling strictly from 1 (entry 0, clean) and never below 0."""

    def process(self) -> Process:
        """The chain of this schedule, tables in float64."""
        return Process.of(self.alpha_bars())


class Loss(Component):
    """How wrong a network's output is."""

    kind = "loss"

    needs_learned_variance: ClassVar[bool] = False
    """Whether it makes sense only with `variance = "learned-range"`."""

    discrete: ClassVar[bool] = False
    """Whether it needs examples at whole timesteps, so that `noise_input = "alpha-bar"` cannot be trained with it."""

    @abstractmethod
    def __call__(self, output: Output, noised: Noised, parameterization: Parameterization, process: Process) -> Tensor:
        """The loss of each example, [B]: the mean over its channels and pixels."""


class Augmented(NamedTuple):
    """A low-resolution image as a super-resolution stage gets it."""

    low_res: Tensor
    """[B, 3, r, r], about [-1, 1]."""
    level: Tensor | None
    """[B] float: how strong the augmentation was, which the network is told (best within 0..some thousands); None if not told."""


class Augmentation(Component):
    """Conditioning augmentation: what is done to the low-resolution input of a super-resolution stage, at low resolution.

    Every draw is per example. `parent` is the full chain of the stage that makes the low-resolution image.
    """

    kind = "augmentation"

    tells_level: ClassVar[bool] = False
    """Whether the network is told a level."""

    noises: ClassVar[bool] = False
    """Whether it noises along the parent's chain, so that `condition = { s = ... }` sets it when sampling."""

    def noise_schedule(self, parent: Schedule) -> Schedule:
        """The schedule that s counts in, where it noises: by default the parent's."""
        return parent

    def check(self, parent: Schedule, resolution: int, s: int) -> None:
        """Raise ValueError, saying why, where its options do not suit a parent's schedule and resolution, or sampling at s.

        By default any do. Whether s is a timestep of `noise_schedule` is checked for all.
        """
        return

    @abstractmethod
    def train(self, low_res: Tensor, parent: Process, draw: Draw) -> Augmented:
        """Augment a training batch [B, 3, r, r]."""

    def sample(self, low_res: Tensor, parent: Process, draw: Draw, s: int, truncated: bool) -> Augmented:
        """What is done to the parent's output when sampling: by default nothing, told as level 0.

        s: the stage's truncation step; truncated: whether `low_res` already is the parent's z_s.
        """
        return Augmented(low_res, low_res.new_zeros(len(low_res)) if self.tells_level else None)


@attrs.frozen
class NetworkSpec:
    """The network a stage needs."""

    resolution: int
    """R: height and width of x_t."""
    out_channels: int
    """3, or 6 where the variance is learned."""
    classes: int = 0
    """Number of labels the network is told, 0 if none."""
    low_res: bool = False
    """Whether a low-resolution image is a condition."""
    levels: int = 0
    """How many augmentation levels it is told."""
    image_channels: int = 3


class Backbone(Component):
    """A network architecture."""

    kind = "backbone"

    @abstractmethod
    def build(self, spec: NetworkSpec) -> nn.Module:
        """A new module: forward(x_t [B, 3, R, R], noise level [B], Condition) -> [B, spec.out_channels, R, R].

        Raises ValueError, saying why, where its options do not suit the spec.
        """


class Sampler(Component):
    """How a stage's chain is run backwards."""

    kind = "sampler"

    @abstractmethod
    def chain(self, process: Process, stop_at: int = 0) -> Process:
        """The points of the full chain `process` that sampling visits; `stop_at` is among them."""

    @abstractmethod
    def __call__(self, denoise: Denoise, noise: Tensor, process: Process, draw: Callable[[int], Tensor], stop_at: int = 0) -> Tensor:
        """From x_T = `noise` [B, 3, R, R] to x_0, or to z_s where `stop_at` = s > 0 (original timesteps).

        process: the full chain. draw(k): standard normal noise like `noise` for the step that leaves index k of `chain(process)`.
        """

    def calls(self, process: Process, stop_at: int = 0) -> int:
        """How many times the network is called."""
        return int((self.chain(process, stop_at).timesteps > stop_at).sum())


class Batch(NamedTuple):
    """Images to train on."""

    images: Tensor
    """uint8 [B, 3, S, S] at the source's resolution S."""
    labels: Tensor
    """int64 [B], 0 where the data has no classes."""
    positions: Tensor
    """int64 [B]: the place of each image in the endless order of training, from 0. Draws are keyed by it."""


@attrs.frozen(kw_only=True)
class DataCard:
    """What a source offers, known without decoding it all."""

    resolution: int
    """S: images are S x S."""
    count: int
    """Images in an epoch."""
    classes: int
    """Number of labels, 0 where images have none."""
    fingerprint: str
    """Equal where the pictures and labels are equal: hex digest."""


class Source(Component):
    """Where training images come from."""

    kind = "source"

    @abstractmethod
    def card(self) -> DataCard:
        """Look at the data. Raises DataError, saying what was looked for and how to make it, where it is not there or not usable."""

    @abstractmethod
    def open(self, batch: int, rank: int, world: int, seed: int, position: int) -> Batches:
        """An endless stream of this rank's batches of `batch` images, the first starting at global `position`.

        The order is a function of (seed, position) alone. Global batch g holds positions [g * batch * world, (g + 1) * batch * world);
        rank r gets every world-th of them, from the r-th.
        """


class Batches(Iterator[Batch], ABC):
    """An open stream of batches: a context manager that closes itself."""

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Let go of threads and files."""


class Optimizer(Component):
    """How weights follow gradients. Every optimizer has an option `lr`."""

    kind = "optimizer"

    lr: float

    @abstractmethod
    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """A new optimizer, its learning rate set to `lr`; the loop sets it anew where there is a warm-up."""


class Session(ABC):
    """A backend at work: one device of a process."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @abstractmethod
    def prepare(self, module: nn.Module) -> nn.Module:
        """Move a module to the device, in the layout and dtype that suits it there."""

    @abstractmethod
    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Where forward passes run: mixed precision, if chosen."""

    def boundary(self) -> None:  # noqa: B027  (most devices have nothing to do here)
        """Called at the end of every training or sampling step."""


class Backend(Component):
    """What computes: a device and its precision."""

    kind = "backend"

    @abstractmethod
    def start(self) -> Session:
        """Open the device. Raises SetupError, saying what is missing, where it is not there."""


KINDS: dict[str, type[Component]] = {
    kind.kind: kind for kind in (Schedule, Loss, Augmentation, Backbone, Sampler, Source, Optimizer, Backend)
}
"""Every kind by name, in the order they are listed to people."""
