"""What a network's output means: its prediction, its variance, and how it is told the noise level."""

from __future__ import annotations

from enum import Enum

import attrs
import torch
from torch import Tensor

from cdmkit.diffusion.process import Process, at


class Prediction(Enum):
    """What the network predicts. Each is a fixed mix of x_0 and epsilon, so each gives the other two."""

    EPSILON = "epsilon"
    X0 = "x0"
    V = "v"

    def target(self, x0: Tensor, epsilon: Tensor, alpha_bar: Tensor) -> Tensor:
        """The value to regress on. v = sqrt(alpha_bar) epsilon - sqrt(1 - alpha_bar) x_0 (Salimans & Ho, arXiv:2202.00512, sec. 4)."""
        match self:
            case Prediction.EPSILON:
                return epsilon
            case Prediction.X0:
                return x0
            case Prediction.V:
                return alpha_bar.sqrt() * epsilon - (1 - alpha_bar).sqrt() * x0

    def x0(self, value: Tensor, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
        """The x_0 that a predicted value implies at x_t. For epsilon it divides by sqrt(alpha_bar), which must not be 0."""
        match self:
            case Prediction.EPSILON:
                return (x_t - (1 - alpha_bar).sqrt() * value) / alpha_bar.sqrt()
            case Prediction.X0:
                return value
            case Prediction.V:
                return alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * value


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


class NoiseInput(Enum):
    """How the network is told the noise level."""

    TIMESTEP = "timestep"
    """The original timestep, 1..T."""
    ALPHA_BAR = "alpha-bar"
    """1000 sqrt(alpha_bar), alpha_bar drawn between neighbours in training (SR3, arXiv:2104.07636, sec. 2.4; WaveGrad), so that the
    schedule to sample along can be chosen after training. The factor, ours, suits the range of the sinusoidal embedding."""

    def level(self, timestep: Tensor, alpha_bar: Tensor) -> Tensor:
        """The number the network is given, [B] float, of timesteps int64 [B] and alpha_bars [B]."""
        match self:
            case NoiseInput.TIMESTEP:
                return timestep.to(alpha_bar.dtype)
            case NoiseInput.ALPHA_BAR:
                return 1000 * alpha_bar.sqrt()


@attrs.frozen
class Parameterization:
    """The meaning of a network's output: one thing for loss and sampler to share."""

    prediction: Prediction = Prediction.EPSILON
    variance: Variance = Variance.FIXED_SMALL
    noise_input: NoiseInput = NoiseInput.TIMESTEP

    def log_variance(self, ranged: Tensor | None, process: Process, t: Tensor, like: Tensor) -> Tensor:
        """Log of the reverse step's variance at indices t (int64 [B], 1..K), broadcastable to `like` [B, C, H, W].

        ranged: the network's share v of the range, as it comes out: -1 stands for beta-tilde_t, 1 for beta_t (Improved DDPM's code).
        """
        match self.variance:
            case Variance.FIXED_SMALL:
                return at(process.posterior_log_variance, t, like)
            case Variance.FIXED_LARGE:
                low, high = at(process.posterior_log_variance, t, like), at(process.log_betas, t, like)
                return torch.where(t.view(low.shape) == 1, low, high)
            case Variance.LEARNED_RANGE:
                if ranged is None:
                    raise ValueError("learned-range variance needs the network's second half of channels")
                low, high = at(process.posterior_log_variance, t, like), at(process.log_betas, t, like)
                return low + (ranged + 1) / 2 * (high - low)
