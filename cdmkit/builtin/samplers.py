"""Samplers: ways to run a stage's chain backwards. Tables lie on the device; no step makes the host wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from cdmkit.component import Component, component, option
from cdmkit.diffusion import Process
from cdmkit.diffusion.denoiser import Denoise
from cdmkit.hookspecs import hookimpl
from cdmkit.kinds import Sampler


def _backwards(chain: Process, batch: int, stop_at: int) -> Iterator[tuple[int, Tensor]]:
    """The indices k that are left, from K down to the one after `stop_at`, each also as int64 [batch] on the chain's device."""
    indices = torch.arange(chain.steps + 1, device=chain.alpha_bars.device).unsqueeze(1).expand(-1, batch)
    last = int(torch.searchsorted(chain.timesteps, stop_at))
    for k in range(chain.steps, last, -1):
        yield k, indices[k]


@component("ancestral")
class Ancestral(Sampler):
    """Ancestral sampling: each step drawn from p(x_{t-1} | x_t) (DDPM, arXiv:2006.11239, Algorithm 2)."""

    steps: int = option(help="network calls, equally spaced over the timesteps (Improved DDPM section 4)", ge=1)

    def chain(self, process: Process, stop_at: int = 0) -> Process:
        """`steps` timesteps, and `stop_at`."""
        return process.respace(self.steps, stop_at)

    def __call__(
        self, denoise: Denoise, noise: Tensor, process: Process, draw: Callable[[int], Tensor], stop_at: int = 0
    ) -> Tensor:
        """The posterior's mean at the predicted x_0, plus noise of the stage's variance except in the step to x_0."""
        chain = self.chain(process, stop_at).to(noise.device, noise.dtype)
        x = noise
        for k, t in _backwards(chain, len(x), stop_at):
            denoised = denoise(x, t, chain)
            x = chain.posterior_mean(denoised.x0, x, t)
            if k > 1:
                x = x + torch.exp(0.5 * denoised.log_variance) * draw(k)
        return x


@component("ddim")
class Ddim(Sampler):
    """DDIM: non-Markovian steps along the predicted noise (arXiv:2010.02502, eq. 12)."""

    steps: int = option(help="network calls, equally spaced over the timesteps", ge=1)
    eta: float = option(0.0, help="0: deterministic; 1: as random as ancestral sampling with fixed-small variance", ge=0, le=1)

    def chain(self, process: Process, stop_at: int = 0) -> Process:
        """`steps` timesteps, and `stop_at`."""
        return process.respace(self.steps, stop_at)

    def __call__(
        self, denoise: Denoise, noise: Tensor, process: Process, draw: Callable[[int], Tensor], stop_at: int = 0
    ) -> Tensor:
        """x_{t-1} = sqrt(alpha_bar_{t-1}) x_0 + sqrt(1 - alpha_bar_{t-1} - sigma^2) epsilon + sigma z, with sigma from eq. 16."""
        chain = self.chain(process, stop_at).to(noise.device, noise.dtype)
        sigmas = self.eta * chain.posterior_variance.sqrt()
        keep, direction = chain.alpha_bars.sqrt(), (1 - chain.alpha_bars[:-1] - sigmas[1:] ** 2).clamp(min=0).sqrt()
        x = noise
        for k, t in _backwards(chain, len(x), stop_at):
            denoised = denoise(x, t, chain)
            x = keep[k - 1] * denoised.x0 + direction[k - 1] * denoised.epsilon
            if self.eta and k > 1:
                x = x + sigmas[k] * draw(k)
        return x


@hookimpl
def cdmkit_components() -> list[type[Component]]:
    """The samplers."""
    return [Ancestral, Ddim]
