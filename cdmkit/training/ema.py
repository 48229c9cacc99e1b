"""Moving averages of weights."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Ema:
    """A moving average of a network's weights, as a module of its own: never swapped into the one that trains.

    decay_at: the share of the average that stays at an optimizer step, counted from 0.
    """

    def __init__(self, network: nn.Module, decay_at: Callable[[int], float]) -> None:
        self.module = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay_at = decay_at

    @torch.no_grad()
    def update(self, network: nn.Module, step: int, moves: Tensor) -> None:
        """Move towards `network`: average <- average + moves (1 - decay) (weights - average). Buffers are copied.

        moves: a scalar on the device, 1, or 0 to leave the average as it is without the host having to know.
        """
        mine: list[Tensor] = list(self.module.parameters())
        theirs: list[Tensor] = list(network.parameters())
        weight = (1 - self.decay_at(step)) * moves
        torch._foreach_lerp_(mine, theirs, [weight] * len(mine))
        if buffers := list(self.module.buffers()):
            torch._foreach_copy_(buffers, list(network.buffers()))
