"""Training losses, each per example."""

from __future__ import annotations

from enum import Enum

from torch import Tensor

from cdmkit.component import Component, component, option, table
from cdmkit.diffusion import Noised, Output, Parameterization, Prediction, Process, Units, vlb_term
from cdmkit.diffusion.denoiser import Denoised
from cdmkit.hookspecs import hookimpl
from cdmkit.kinds import Loss, Weighting


class Norm(Enum):
    """How a difference is measured."""

    L2 = "l2"
    """Squared: DDPM."""
    L1 = "l1"
    """Absolute: SR3 found it better at 256 pixels."""

    def __call__(self, difference: Tensor) -> Tensor:
        """The mean over all but the batch: [B, ...] -> [B]."""
        return (difference.square() if self is Norm.L2 else difference.abs()).flatten(1).mean(1)


@table
class Direct(Loss):
    """A loss with a part that is the error of the prediction itself."""

    norm: Norm = option(Norm.L2, help="squared (l2) or absolute (l1) error")
    weighting: Weighting | None = option(None, help="how much each noise level counts; default: all predictions' errors alike")

    def __attrs_post_init__(self) -> None:
        if self.weighting is not None and self.norm is not Norm.L2:
            raise ValueError('weighting is for squared errors: it needs norm = "l2"')

    def check(self, process: Process) -> None:
        """Weights count epsilon's error, which says nothing of the image where no signal is left."""
        if self.weighting is not None and not process.alpha_bars[1:].any():
            raise ValueError("weighting gives every timestep of this schedule a weight of 0: remove it")

    def error(self, output: Output, noised: Noised, parameterization: Parameterization) -> Tensor:
        """L_simple, DDPM eq. 14, of whatever the network predicts, weighted: [B]."""
        prediction = parameterization.prediction
        error = self.norm(output.value - prediction.target(noised.x0, noised.epsilon, noised.point))
        return error if self.weighting is None else error * _weight(self.weighting, prediction, noised)


def _weight(weighting: Weighting, prediction: Prediction, noised: Noised) -> Tensor:
    """A weighting of epsilon's squared error, for the error of what is predicted, [B].

    epsilon's error is SNR times that of x_0, and v's error is 1 + SNR times that of x_0 (Salimans & Ho, arXiv:2202.00512, appendix D).
    """
    signal, noise = noised.point.signal.flatten(), noised.point.noise.flatten()
    snr = (signal / noise).square()
    match prediction:
        case Prediction.EPSILON:
            return weighting(snr)
        case Prediction.X0:
            return weighting(snr) * snr
        case Prediction.V:
            return weighting(snr) * noised.point.alpha_bar.flatten()


def _bound(output: Output, noised: Noised, parameterization: Parameterization, units: Units) -> Tensor:
    """T times a term of the variational bound: an unbiased estimate of the sum of its terms t = 1..T, [B]."""
    x0 = parameterization.prediction.x0(output.value, noised.x_t, noised.point)
    return noised.point.total * vlb_term(Denoised(x0, output.ranged, parameterization.variance, noised.point), noised, units)


@component("simple")
class Simple(Direct):
    """L_simple: the distance of the prediction from its target (DDPM, arXiv:2006.11239, eq. 14)."""

    def __call__(self, output: Output, noised: Noised, parameterization: Parameterization) -> Tensor:
        """[B]: mean error of each example."""
        return self.error(output, noised, parameterization)


@component("vlb")
class Vlb(Loss):
    """The variational bound: T times one of its terms (DDPM eq. 5)."""

    discrete = True

    units: Units = option(Units.BITS, help="bits or nats per dimension; Improved DDPM's code has bits")

    def __call__(self, output: Output, noised: Noised, parameterization: Parameterization) -> Tensor:
        """[B]: an unbiased estimate of the sum of the bound's terms t = 1..T."""
        return _bound(output, noised, parameterization, self.units)


@component("hybrid")
class Hybrid(Direct):
    """L_simple + weight * L_vlb, which trains the learned variance (Improved DDPM, arXiv:2102.09672, eq. 16).

    L_vlb is the sum over T with the predicted mean frozen: it only teaches the variance.
    """

    needs_learned_variance = True
    discrete = True

    vlb_weight: float = option(
        0.001, help="lambda of eq. 16, for the sum over T; guided-diffusion without `rescale_learned_sigmas` has 1 / T", ge=0
    )
    units: Units = option(Units.BITS, help="bits or nats per dimension of L_vlb; Improved DDPM's code has bits")

    def __call__(self, output: Output, noised: Noised, parameterization: Parameterization) -> Tensor:
        """[B]: the sum of both parts."""
        frozen = Output(output.value.detach(), output.ranged)
        bound = _bound(frozen, noised, parameterization, self.units)
        return self.error(output, noised, parameterization) + self.vlb_weight * bound


@hookimpl
def cdmkit_components() -> list[type[Component]]:
    """The losses."""
    return [Simple, Vlb, Hybrid]
