"""The kinds that compute: what moves the weights, and on which device."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from cdmkit.component import Component


class Optimizer(Component):
    """How weights follow gradients. Every optimizer has an option `lr`."""

    kind = "optimizer"

    lr: float

    @abstractmethod
    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """A new optimizer, its learning rate set to `lr`; the loop sets it anew where there is a warm-up."""


class Session(ABC):
    """A backend at work: the device of this process, and the way to those of the others that train the same stage.

    Every process calls the collective methods (`share`'s network, `total`, `gather`, `agree`) equally often and in the same order. As they
    stand here they are those of a process alone.
    """

    device: torch.device
    rank: int = 0
    world: int = 1
    patience: float = 1800.0
    """Seconds without a step after which one of several processes takes another for hung, and ends."""

    @abstractmethod
    def prepare(self, module: nn.Module) -> nn.Module:
        """Move a module to the device, in the layout and dtype that suits it there."""

    @abstractmethod
    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Where forward passes run: mixed precision, if chosen."""

    def put(self, tensor: Tensor) -> Tensor:
        """A tensor of the host on the device; the host need not wait until it is there."""
        return tensor.to(self.device, non_blocking=True)

    def share(self, network: nn.Module, *, learns: bool) -> nn.Module:
        """A prepared network as one of all processes. learns: its gradients are to be, after a backward pass, the mean of everyone's.

        What is returned is called in its place; the tensors of both are the same.
        """
        return network

    def more_parts(self, network: nn.Module) -> contextlib.AbstractContextManager[object]:
        """Where backward passes run that others follow before the optimizer steps: their gradients need not be shared yet."""
        return contextlib.nullcontext()

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes. The host does not wait for the device."""
        return value

    def gather(self, value: Tensor) -> Tensor:
        """[B, ...] of each process -> [world * B, ...], interleaved as a source deals images: the first of each, then the second."""
        return value

    def agree(self, flag: bool) -> bool:
        """Whether any process said True, in this call or the one before: all get the same answer."""
        return flag

    def boundary(self) -> None:  # noqa: B027  (most devices have nothing to do here)
        """Called at the end of every training or sampling step."""


class Backend(Component):
    """What computes: a device and its precision."""

    kind = "backend"

    @abstractmethod
    def start(self) -> Session:
        """Open the device. Raises SetupError, saying what is missing, where it is not there."""
