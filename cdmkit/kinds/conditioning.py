"""The kind that makes a cascade work: what is done to the low-resolution image a stage is conditioned on."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, NamedTuple

from torch import Tensor

from cdmkit.component import Component
from cdmkit.diffusion import Process
from cdmkit.draws import Draw
from cdmkit.kinds.noising import Schedule


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
