"""What a network's output means: its prediction, its variance, and how it is told the noise level."""

from __future__ import annotations

from enum import Enum

import attrs
import torch
from torch import Tensor

from cdmkit.diffusion.process import Point


class Prediction(Enum):
    """What the network predicts. Each is a fixed mix of x_0 and epsilon, so each gives the other two."""

    EPSILON = "epsilon"
    X0 = "x0"
    V = "v"

    def target(self, x0: Tensor, epsilon: Tensor, point: Point) -> Tensor:
        """The value to regress on. v = sqrt(alpha_bar) epsilon - sqrt(1 - alpha_bar) x_0 (Salimans & Ho, arXiv:2202.00512, sec. 4)."""
        match self:
            case Prediction.EPSILON:
                return epsilon
            case Prediction.X0:
                return x0
            case Prediction.V:
                return point.signal * epsilon - point.noise * x0

    def x0(self, value: Tensor, x_t: Tensor, point: Point) -> Tensor:
        """The x_0 that a predicted value implies at x_t. For epsilon it divides by sqrt(alpha_bar), which must not be 0."""
        match self:
            case Prediction.EPSILON:
                return (x_t * point.per_signal).addcmul_(value, point.noise_per_signal, value=-1)
            case Prediction.X0:
                return value
            case Prediction.V:
                return (x_t * point.signal).addcmul_(value, point.noise, value=-1)

    def epsilon(self, value: Tensor, x_t: Tensor, point: Point) -> Tensor:
        """The epsilon that a predicted value implies at x_t. For x0 it divides by sqrt(1 - alpha_bar), which must not be 0."""
        match self:
            case Prediction.EPSILON:
                return value
            case Prediction.X0:
                return torch.addcmul(x_t, value, point.signal, value=-1).div_(point.noise)
            case Prediction.V:
                return (x_t * point.noise).addcmul_(value, point.signal)


class Variance(Enum):
    """The variance of the reverse step p(x_{t-1} | x_t)."""

    FIXED_SMALL = "fixed-small"
    """beta-tilde_t, the posterior's: DDPM section 3.2."""
    FIXED_LARGE = "fixed-large"
    """beta_t (and beta-tilde_2 at the last step, as DDPM's code does): DDPM section 3.2."""
    LEARNED_RANGE = "learned-range"
    """exp(v log beta_t + (1 - v) log beta-tilde_t), v from the network: Improved DDPM eq. 15."""

    @property
    def learned(self) -> bool:
        """Whether the network has output channels for it."""
        return self is Variance.LEARNED_RANGE

    def log_variance(self, ranged: Tensor | None, point: Point) -> Tensor:
        """Log of the reverse step's variance, broadcastable to images.

        ranged: the network's share v of the range, as it comes out: -1 stands for beta-tilde_t, 1 for beta_t (Improved DDPM's code).
        """
        match self:
            case Variance.FIXED_SMALL:
                return point.posterior_log_variance
            case Variance.FIXED_LARGE:
                return point.log_variance_large
            case Variance.LEARNED_RANGE:
                if ranged is None:
                    raise ValueError("learned-range variance needs the network's second half of channels")
                return torch.lerp(point.posterior_log_variance, point.log_beta, (ranged + 1) / 2)

    def deviation(self, ranged: Tensor | None, point: Point) -> Tensor:
        """The reverse step's deviation, the sigma_t of DDPM's Algorithm 2, broadcastable to images. ranged: as for `log_variance`."""
        match self:
            case Variance.FIXED_SMALL:
                return point.posterior_deviation
            case Variance.FIXED_LARGE:
                return point.deviation_large
            case Variance.LEARNED_RANGE:
                return self.log_variance(ranged, point).div_(2).exp_()


class NoiseInput(Enum):
    """How the network is told the noise level."""

    TIMESTEP = "timestep"
    """The original timestep, 1..T, as papers count it."""
    TIMESTEP_FROM_0 = "timestep-from-0"
    """One less, 0..T-1: the code of DDPM, ADM (guided-diffusion) and diffusers. Needed for their weights."""
    TIMESTEP_OF_1000 = "timestep-of-1000"
    """0..T-1 scaled by 1000 / T: Improved DDPM's code with `rescale_timesteps`."""
    ALPHA_BAR = "alpha-bar"
    """1000 sqrt(alpha_bar), alpha_bar drawn between neighbours in training (SR3, arXiv:2104.07636, sec. 2.4; WaveGrad), so that the
    schedule to sample along can be chosen after training. The factor, ours, suits the range of the sinusoidal embedding."""

    @property
    def continuous(self) -> bool:
        """Whether it knows levels between the timesteps."""
        return self is NoiseInput.ALPHA_BAR

    def level(self, point: Point) -> Tensor:
        """The number the network is given, [B] or [1] float."""
        match self:
            case NoiseInput.TIMESTEP:
                told = point.timestep
            case NoiseInput.TIMESTEP_FROM_0:
                told = point.timestep - 1
            case NoiseInput.TIMESTEP_OF_1000:
                told = (point.timestep - 1) * (1000 / point.total)
            case NoiseInput.ALPHA_BAR:
                told = 1000 * point.signal
        return told.flatten()


@attrs.frozen
class Parameterization:
    """The meaning of a network's output: one thing for loss and sampler to share."""

    prediction: Prediction = Prediction.EPSILON
    variance: Variance = Variance.FIXED_SMALL
    noise_input: NoiseInput = NoiseInput.TIMESTEP
