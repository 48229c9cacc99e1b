"""The algebra of diffusion: pure functions of tensors, each with the equation it implements. Knows no recipe, no plugin, no file."""

from cdmkit.diffusion.denoiser import Condition, Denoised, Denoiser, Noised, Output
from cdmkit.diffusion.parameterization import NoiseInput, Parameterization, Prediction, Variance
from cdmkit.diffusion.process import Process, respaced_timesteps

__all__ = [
    "Condition",
    "Denoised",
    "Denoiser",
    "NoiseInput",
    "Noised",
    "Output",
    "Parameterization",
    "Prediction",
    "Process",
    "Variance",
    "respaced_timesteps",
]
