"""The variational bound, term by term, in bits per dimension."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cdmkit.diffusion.denoiser import Noised, Output
from cdmkit.diffusion.parameterization import Parameterization
from cdmkit.diffusion.process import Process, at

_BITS = 1 / math.log(2)


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


def vlb_term(output: Output, noised: Noised, parameterization: Parameterization, process: Process) -> Tensor:
    """L_{t-1} of the bound for each example, [B], in bits per dimension (DDPM eq. 5): multiply by K for an estimate of their sum.

    KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) for t > 1, the decoder's negative log-likelihood of x_0 at t = 1.
    """
    x_t, t = noised.x_t, noised.t
    true_mean = process.posterior_mean(noised.x0, x_t, t)
    true_log_variance = at(process.posterior_log_variance, t, x_t)
    predicted_x0 = parameterization.prediction.x0(output.value, x_t, noised.alpha_bar)
    mean = process.posterior_mean(predicted_x0, x_t, t)
    log_variance = parameterization.log_variance(output.ranged, process, t, x_t)
    kl = normal_kl(true_mean, true_log_variance, mean, log_variance).flatten(1).mean(1)
    nll = -discretized_gaussian_log_likelihood(noised.x0, mean, log_variance).flatten(1).mean(1)
    return torch.where(t == 1, nll, kl) * _BITS
