"""The moving average of weights that is sampled from."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Ema:
    """An exponential moving average of a network's weights, as a module of its own: never swapped into the one that trains.

    decay: the share of the average that stays at each step. ramp: let it grow as (1 + step) / (10 + step) until it reaches `decay`, so that
    short training forgets its first weights.
    """

    def __init__(self, network: nn.Module, decay: float, ramp: bool = False) -> None:
        self.module = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        self.ramp = ramp

    def decay_at(self, step: int) -> float:
        """The decay at optimizer step `step`, counted from 0."""
        return min(self.decay, (1 + step) / (10 + step)) if self.ramp else self.decay

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
