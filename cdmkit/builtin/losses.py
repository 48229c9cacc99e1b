"""Training losses, each per example."""

from __future__ import annotations

from enum import Enum

from torch import Tensor

from cdmkit.component import Component, component, option
from cdmkit.diffusion import Noised, Output, Parameterization, Process
from cdmkit.diffusion.bound import vlb_term
from cdmkit.hookspecs import hookimpl
from cdmkit.kinds import Loss


class Norm(Enum):
    """How a difference is measured."""

    L2 = "l2"
    """Squared: DDPM."""
    L1 = "l1"
    """Absolute: SR3 found it better at 256 pixels."""

    def __call__(self, difference: Tensor) -> Tensor:
        """The mean over all but the batch: [B, ...] -> [B]."""
        return (difference.square() if self is Norm.L2 else difference.abs()).flatten(1).mean(1)


def _simple(norm: Norm, output: Output, noised: Noised, parameterization: Parameterization) -> Tensor:
    """L_simple, DDPM eq. 14, for whatever the network predicts."""
    target = parameterization.prediction.target(noised.x0, noised.epsilon, noised.alpha_bar)
    return norm(output.value - target)


@component("simple")
class Simple(Loss):
    """L_simple: the distance of the prediction from its target (DDPM, arXiv:2006.11239, eq. 14)."""

    norm: Norm = option(Norm.L2, help="squared (l2) or absolute (l1) error")

    def __call__(self, output: Output, noised: Noised, parameterization: Parameterization, process: Process) -> Tensor:
        """[B]: mean error of each example."""
        return _simple(self.norm, output, noised, parameterization)


@component("vlb")
class Vlb(Loss):
    """The variational bound: T times one of its terms, in bits per dimension (DDPM eq. 5)."""

    discrete = True

    def __call__(self, output: Output, noised: Noised, parameterization: Parameterization, process: Process) -> Tensor:
        """[B]: an unbiased estimate of the sum of the bound's terms t = 1..T."""
        return process.steps * vlb_term(output, noised, parameterization, process)


@component("hybrid")
class Hybrid(Loss):
    """L_simple + weight * L_vlb, which trains the learned variance (Improved DDPM, arXiv:2102.09672, eq. 16).

    L_vlb is the sum over T, in bits per dimension, with the predicted mean frozen: it only teaches the variance.
    """

    needs_learned_variance = True
    discrete = True

    norm: Norm = option(Norm.L2, help="norm of the simple part: l2 or l1")
    vlb_weight: float = option(0.001, help="lambda of eq. 16", ge=0)

    def __call__(self, output: Output, noised: Noised, parameterization: Parameterization, process: Process) -> Tensor:
        """[B]: the sum of both parts."""
        frozen = Output(output.value.detach(), output.ranged)
        bound = process.steps * vlb_term(frozen, noised, parameterization, process)
        return _simple(self.norm, output, noised, parameterization) + self.vlb_weight * bound


@hookimpl
def cdmkit_components() -> list[type[Component]]:
    """The losses."""
    return [Simple, Vlb, Hybrid]
