"""The variational bound (DDPM, arXiv:2006.11239, eq. 5), term by term. Every term is a mean over channels and pixels."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from cdmkit.diffusion.denoiser import Denoise, Denoised, Noised
from cdmkit.diffusion.parameterization import Prediction
from cdmkit.diffusion.process import Process, posterior_mean


class Units(Enum):
    """What a bound is measured in."""

    BITS = "bits"
    """Bits per dimension: Improved DDPM's code, and what papers report."""
    NATS = "nats"
    """Nats per dimension: the equations as they are written."""

    @property
    def per_nat(self) -> float:
        """How many of them make a nat."""
        return 1 / math.log(2) if self is Units.BITS else 1.0


def normal_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N(mean1, var1) || N(mean2, var2)) of each element, in nats."""
    return 0.5 * (
        log_variance2 - log_variance1 - 1 + torch.exp(log_variance1 - log_variance2) + (mean1 - mean2) ** 2 * torch.exp(-log_variance2)
    )


def discretized_gaussian_log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log of the probability that N(mean, var) falls into x's bin of the 256 levels in [-1, 1], DDPM eq. 13, in nats.

    The outermost bins reach to infinity; probabilities inside are kept above 1e-12. x: [B, ...] in [-1, 1].
    It is exact where x is made of 8-bit levels. For values between them, as shrinking to a stage makes, we take the bin of that
    width around x: our choice, so that images need not be rounded first.
    """
    scale = torch.exp(-0.5 * log_variance)
    # float32 gradients of log_ndtr turn into NaN far out, and would through `where` even for pixels that do not use it
    upper, lower = ((scale * (x - mean + half_bin)).clamp(-1000, 1000) for half_bin in (1 / 255, -1 / 255))
    cdf_upper, cdf_lower = torch.special.ndtr(upper), torch.special.ndtr(lower)
    inside = torch.log((cdf_upper - cdf_lower).clamp(min=1e-12))
    lowest = torch.special.log_ndtr(upper)
    highest = torch.special.log_ndtr(-lower)
    return torch.where(x < -0.999, lowest, torch.where(x > 0.999, highest, inside))


def vlb_term(denoised: Denoised, noised: Noised, units: Units = Units.BITS) -> Tensor:
    """L_{t-1} of the bound for each example, [B] (DDPM eq. 5): multiply by K for an estimate of their sum.

    KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) for t > 1, the decoder's negative log-likelihood of x_0 at t = 1.
    """
    x_t, point = noised.x_t, noised.point
    true_mean = posterior_mean(noised.x0, x_t, point)
    mean = posterior_mean(denoised.x0, x_t, point)
    log_variance = denoised.log_variance
    kl = normal_kl(true_mean, point.posterior_log_variance, mean, log_variance).flatten(1).mean(1)
    nll = -discretized_gaussian_log_likelihood(noised.x0, mean, log_variance).flatten(1).mean(1)
    return torch.where(point.k.flatten() == 1, nll, kl) * units.per_nat


def prior_term(x0: Tensor, process: Process, units: Units = Units.BITS) -> Tensor:
    """L_T = KL(q(x_T | x_0) || N(0, I)) of each example, [B] (DDPM eq. 5): what no network can change."""
    end = process.point(torch.tensor([process.steps], device=x0.device))
    zero = torch.zeros_like(x0)
    return normal_kl(end.signal * x0, 2 * end.noise.log(), zero, zero).flatten(1).mean(1) * units.per_nat


class Bound(NamedTuple):
    """The variational bound of each example, and where on the chain it comes from."""

    terms: Tensor
    """[B, K]: L_{k-1} for k = 1..K, the first of them the decoder's."""
    prior: Tensor
    """[B]: L_T."""
    x0_error: Tensor
    """[B, K]: mean squared error of the predicted x_0."""
    epsilon_error: Tensor
    """[B, K]: mean squared error of the epsilon that the predicted x_0 implies."""

    @property
    def total(self) -> Tensor:
        """[B]: an upper bound of the negative log-likelihood."""
        return self.terms.sum(1) + self.prior


def full_bound(denoise: Denoise, x0: Tensor, chain: Process, draw: Callable[[int], Tensor], units: Units = Units.BITS) -> Bound:
    """The whole bound of x0 [B, 3, R, R] along a chain: K network calls. draw(k): standard normal noise like `x0` for x_k."""
    tables = chain.to(x0.device, x0.dtype)
    terms, x0_errors, epsilon_errors = [], [], []
    for k, point in chain.backwards(x0):
        noised = Noised.of(x0, draw(k), point)
        denoised = denoise(noised.x_t, point)
        epsilon = Prediction.X0.epsilon(denoised.x0, noised.x_t, point)
        terms.append(vlb_term(denoised, noised, units))
        x0_errors.append((denoised.x0 - x0).square().flatten(1).mean(1))
        epsilon_errors.append((epsilon - noised.epsilon).square().flatten(1).mean(1))
    stacked = (torch.stack(values[::-1], 1) for values in (terms, x0_errors, epsilon_errors))
    by_step, x0_error, epsilon_error = stacked
    return Bound(by_step, prior_term(x0, tables, units), x0_error, epsilon_error)
