"""Samplers: ways to run a stage's chain backwards.

Each step is x_{t-1} = a_t x_0 + b_t x_t + sigma_t z, with the x_0 that the network predicts at x_t. The coefficients are made in float64
and lie on the device as scalars before the first step: no step makes the host wait, and a compiler sees the same step every time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from cdmkit.component import Component, component, option
from cdmkit.diffusion import Process
from cdmkit.diffusion.denoiser import Denoise
from cdmkit.hookspecs import hookimpl
from cdmkit.kinds import Sampler


def _backwards(chain: Process, like: Tensor, stop_at: int) -> Iterator[tuple[int, Tensor]]:
    """The indices k that are left, from K down to the one after `stop_at`, each also as int64 [B] on `like`'s device."""
    indices = torch.arange(chain.steps + 1, device=like.device).unsqueeze(1).expand(-1, len(like)).unbind()
    last = int(torch.searchsorted(chain.timesteps, stop_at))
    for k in range(chain.steps, last, -1):
        yield k, indices[k]


def _scalars(table: Tensor, like: Tensor) -> tuple[Tensor, ...]:
    """A float64 table [K+1] as one scalar for each index, on the device and in the dtype of `like`."""
    return table.to(like.device, like.dtype).unbind()


@component("ancestral")
class Ancestral(Sampler):
    """Ancestral sampling: each step drawn from p(x_{t-1} | x_t) (DDPM, arXiv:2006.11239, Algorithm 2)."""

    steps: int = option(help="network calls, equally spaced over the timesteps (Improved DDPM section 4)", ge=1)

    def chain(self, process: Process, stop_at: int = 0) -> Process:
        """`steps` timesteps, and `stop_at`."""
        return process.respace(self.steps, stop_at)

    def __call__(self, denoise: Denoise, noise: Tensor, process: Process, draw: Callable[[int], Tensor], stop_at: int = 0) -> Tensor:
        """The posterior's mean at the predicted x_0, plus noise of the stage's variance except in the step to x_0."""
        chain = self.chain(process, stop_at)
        from_x0, from_xt = _scalars(chain.posterior_mean_x0, noise), _scalars(chain.posterior_mean_xt, noise)
        tables, x = chain.to(noise.device, noise.dtype), noise
        for k, t in _backwards(chain, noise, stop_at):
            denoised = denoise(x, t, tables)
            x = torch.addcmul(from_xt[k] * x, from_x0[k], denoised.x0)
            if k > 1:
                x = torch.addcmul(x, torch.exp(0.5 * denoised.log_variance), draw(k))
        return x


@component("ddim")
class Ddim(Sampler):
    """DDIM: non-Markovian steps along the predicted noise (arXiv:2010.02502, eq. 12)."""

    steps: int = option(help="network calls, equally spaced over the timesteps", ge=1)
    eta: float = option(0.0, help="0: deterministic; 1: as random as ancestral sampling with fixed-small variance", ge=0, le=1)

    def chain(self, process: Process, stop_at: int = 0) -> Process:
        """`steps` timesteps, and `stop_at`."""
        return process.respace(self.steps, stop_at)

    def __call__(self, denoise: Denoise, noise: Tensor, process: Process, draw: Callable[[int], Tensor], stop_at: int = 0) -> Tensor:
        """x_{t-1} = sqrt(alpha_bar_{t-1}) x_0 + sqrt(1 - alpha_bar_{t-1} - sigma^2) epsilon + sigma z, with sigma from eq. 16.

        epsilon is the one that x_t and x_0 imply (DDPM eq. 4), which leaves a mix of the two.
        """
        chain = self.chain(process, stop_at)
        here, before = chain.alpha_bars, chain.alpha_bars.roll(1)  # entry 0 of what follows means nothing; no step reads it
        sigma = self.eta * chain.posterior_variance.sqrt()
        xt_weight = ((1 - before - sigma**2).clamp(min=0) / (1 - here)).sqrt()
        x0_weight = before.sqrt() - xt_weight * here.sqrt()
        from_x0, from_xt, sigmas = (_scalars(table, noise) for table in (x0_weight, xt_weight, sigma))
        tables, x = chain.to(noise.device, noise.dtype), noise
        for k, t in _backwards(chain, noise, stop_at):
            x = torch.addcmul(from_xt[k] * x, from_x0[k], denoise(x, t, tables).x0)
            if self.eta and k > 1:
                x = torch.addcmul(x, sigmas[k], draw(k))
        return x


@hookimpl
def cdmkit_components() -> list[type[Component]]:
    """The samplers."""
    return [Ancestral, Ddim]
