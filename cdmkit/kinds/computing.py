"""The kinds that compute: what moves the weights, and on which device."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import nn

from cdmkit.component import Component


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
