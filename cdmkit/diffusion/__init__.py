"""The algebra of diffusion: pure functions of tensors, each with the equation it implements. Knows no recipe, no plugin, no file.

Everything runs in float64 as well as in float32, with any callable as the network. Timesteps count from 1 (noisy) to T; 0 is clean.
"""

from cdmkit.diffusion.bound import (
    Bound,
    Units,
    discretized_gaussian_log_likelihood,
    full_bound,
    normal_kl,
    prior_term,
    vlb_term,
)
from cdmkit.diffusion.denoiser import Condition, Denoise, Denoised, Denoiser, Network, Noised, Output, clip
from cdmkit.diffusion.parameterization import NoiseInput, Parameterization, Prediction, Variance
from cdmkit.diffusion.process import Point, Process, add_noise, between, posterior_mean
from cdmkit.diffusion.respacing import even_timesteps, sectioned_timesteps, strided_timesteps

__all__ = [
    "Bound",
    "Condition",
    "Denoise",
    "Denoised",
    "Denoiser",
    "Network",
    "NoiseInput",
    "Noised",
    "Output",
    "Parameterization",
    "Point",
    "Prediction",
    "Process",
    "Units",
    "Variance",
    "add_noise",
    "between",
    "clip",
    "discretized_gaussian_log_likelihood",
    "even_timesteps",
    "full_bound",
    "normal_kl",
    "posterior_mean",
    "prior_term",
    "sectioned_timesteps",
    "strided_timesteps",
    "vlb_term",
]
