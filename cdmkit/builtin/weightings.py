"""Weightings of the squared error by noise level, each as the weight of epsilon's error at a signal-to-noise ratio."""

from __future__ import annotations

import math

from torch import Tensor

from cdmkit.component import Component, component, option
from cdmkit.hookspecs import hookimpl
from cdmkit.kinds import Weighting


@component("min-snr")
class MinSnr(Weighting):
    """Min-SNR-gamma: x_0's error counts min(SNR, gamma) (Hang et al., arXiv:2303.09556, section 3.4)."""

    gamma: float = option(5.0, help="the largest weight of x_0's error", gt=0)

    def __call__(self, snr: Tensor) -> Tensor:
        """min(SNR, gamma) / SNR."""
        return (self.gamma / snr).clamp(max=1)


@component("p2")
class P2(Weighting):
    """Perception prioritised: less weight where little noise hides only details (Choi et al., arXiv:2204.00227, eq. 8)."""

    gamma: float = option(1.0, help="how strongly; 0: not at all", ge=0)
    k: float = option(1.0, help="added to the SNR, so that clean images keep some weight", gt=0)

    def __call__(self, snr: Tensor) -> Tensor:
        """1 / (k + SNR)^gamma."""
        return (self.k + snr) ** -self.gamma


@component("sigmoid")
class Sigmoid(Weighting):
    """A sigmoid of the log-SNR (Kingma & Gao, arXiv:2303.00848; Hoogeboom et al., arXiv:2410.19324), as a weight of epsilon's error.

    Those papers weigh an integral over log-SNR. Under timesteps drawn uniformly that has a further factor, the speed of log-SNR over t,
    which is left out here: how often a noise level counts is for the schedule and the `density` to say. Their biases need not suit.
    """

    bias: float = option(0.0, help="b: the log-SNR at which the weight is one half")

    def __call__(self, snr: Tensor) -> Tensor:
        """sigmoid(b - log SNR)."""
        return 1 / (1 + snr * math.exp(-self.bias))


@hookimpl
def cdmkit_components() -> list[type[Component]]:
    """The weightings."""
    return [MinSnr, P2, Sigmoid]
