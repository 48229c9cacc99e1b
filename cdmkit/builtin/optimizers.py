"""Optimizers: torch's, with their fused kernels, about three times as fast as the loops that torch runs by default on a CPU."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from cdmkit.component import Component, component, option
from cdmkit.hookspecs import hookimpl
from cdmkit.kinds import Optimizer

_FUSED = frozenset({"cpu", "cuda", "mps"})
"""Device types for which torch has fused kernels; parameters elsewhere get the plain ones."""


def _fused(parameters: list[nn.Parameter]) -> bool:
    return all(p.device.type in _FUSED for p in parameters)


@component("adam")
class Adam(Optimizer):
    """Adam (Kingma & Ba, arXiv:1412.6980, Algorithm 1)."""

    lr: float = option(1e-4, help="learning rate", gt=0)
    beta1: float = option(0.9, help="decay of the mean of gradients", ge=0, lt=1)
    beta2: float = option(0.999, help="decay of the mean of squared gradients", ge=0, lt=1)
    eps: float = option(1e-8, help="added to the root of the mean square, against division by 0", gt=0)

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """A new Adam over the parameters."""
        chosen = list(parameters)
        return torch.optim.Adam(chosen, lr=self.lr, betas=(self.beta1, self.beta2), eps=self.eps, fused=_fused(chosen))


@component("adamw")
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter, arXiv:1711.05101, Algorithm 2)."""

    lr: float = option(1e-4, help="learning rate", gt=0)
    beta1: float = option(0.9, help="decay of the mean of gradients", ge=0, lt=1)
    beta2: float = option(0.999, help="decay of the mean of squared gradients", ge=0, lt=1)
    eps: float = option(1e-8, help="added to the root of the mean square, against division by 0", gt=0)
    weight_decay: float = option(0.01, help="share of a weight, times lr, that it loses every step", ge=0)

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """A new AdamW over the parameters."""
        chosen = list(parameters)
        betas = (self.beta1, self.beta2)
        return torch.optim.AdamW(chosen, lr=self.lr, betas=betas, eps=self.eps, weight_decay=self.weight_decay, fused=_fused(chosen))


@hookimpl
def cdmkit_components() -> list[type[Component]]:
    """The optimizers."""
    return [Adam, AdamW]
