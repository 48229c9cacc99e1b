"""EDM's sampler: second-order steps of the probability-flow ODE, with optional churn (Karras et al., arXiv:2206.00364, Algorithm 2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cdmkit.component import Component, component, option
from cdmkit.diffusion import Denoise, Process
from cdmkit.hookspecs import hookimpl
from cdmkit.kinds import Spaced


class Steps(NamedTuple):
    """Heun's steps along a chain, each [K+1], entry k for the step that leaves index k; entry 0 means nothing."""

    high: Tensor
    """int64: the timestep that churn raises x_k to; its own where there is none."""
    raise_x: Tensor
    raise_noise: Tensor
    """The weights of x_k and fresh noise in the raised image."""
    xt: Tensor
    euler: Tensor
    """The weights of the raised image and of the x_0 predicted there in Euler's step."""
    first: Tensor
    second: Tensor
    """The weights of the x_0 predicted there and at the end of Euler's step, in Heun's."""


@component("heun")
class Heun(Spaced):
    """Heun's method in sigma = noise / signal: two network calls a step, one in a step to x_0. Spaced best by `power-sigma`.

    With `churn` each step first adds noise, up to a higher timestep of the full chain: the one whose sigma is nearest to that of the
    algorithm, since a network may know whole timesteps only.
    """

    churn: float = option(0.0, help="S_churn: how much noise is added, over all steps; 0: none", ge=0)
    churn_min_sigma: float = option(0.0, help="S_min: below this noise / signal none is added", ge=0)
    churn_max_sigma: float | None = option(None, help="S_max: above it none is added; default: no bound", gt=0)
    churn_noise: float = option(1.0, help="S_noise: deviation of the noise that is added", gt=0)

    def chain(self, process: Process, stop_at: int = 0) -> Process:
        """`steps` timesteps, and `stop_at`."""
        chain = super().chain(process, stop_at)
        if chain.alpha_bars[-1] == 0:
            raise ValueError("heun steps in noise / signal, which is infinite where this chain begins: choose another spacing or schedule")
        return chain

    def calls(self, process: Process, stop_at: int = 0) -> int:
        """Two for each step, but one for that to x_0."""
        return max(0, 2 * super().calls(process, stop_at) - (stop_at == 0))

    def __call__(self, denoise: Denoise, noise: Tensor, process: Process, draw: Callable[[int], Tensor], stop_at: int = 0) -> Tensor:
        """Algorithm 2 in terms of x_t = signal (x_0 + sigma epsilon), whose size stays about 1 at any sigma."""
        chain = self.chain(process, stop_at)
        steps = self._steps(chain, process)
        high, low = steps.high.tolist(), chain.timesteps.tolist()
        raise_x, raise_noise, xt, euler, first, second = (mix.to(noise.device, noise.dtype).unbind() for mix in steps[1:])
        raised, reached, x = process.points(noise, steps.high), chain.points(noise), noise
        for k in range(chain.steps, chain.index_of(stop_at), -1):
            if high[k] > low[k]:
                x = (x * raise_x[k]).addcmul_(draw(k), raise_noise[k])
            here = denoise(x, raised(k)).x0
            ahead = (x * xt[k]).addcmul_(here, euler[k])
            if low[k - 1] > 0:
                there = denoise(ahead, reached(k - 1)).x0
                ahead = (x * xt[k]).addcmul_(here, first[k]).addcmul_(there, second[k])
            x = ahead
        return x

    def _steps(self, chain: Process, process: Process) -> Steps:
        """The mixes, from sigma and the shares of signal and noise where each step begins, is raised to, and ends."""
        high = self._raised(chain, process)
        signal, noise, sigma = (column[high] for column in (process.column("signal"), process.column("noise"), process.sigmas))
        to_signal, to_noise, to_sigma = (column.roll(1) for column in (chain.column("signal"), chain.column("noise"), chain.sigmas))
        added = (sigma**2 - chain.sigmas**2).clamp(min=0).sqrt()
        second = to_signal * (sigma - to_sigma) / (2 * to_sigma)
        return Steps(
            high=high,
            raise_x=signal / chain.column("signal"),
            raise_noise=signal * added * self.churn_noise,
            xt=to_noise / noise,
            euler=to_signal * (1 - to_sigma / sigma),
            first=to_signal * (1 - to_sigma / sigma) - second,
            second=second,
        )

    def _raised(self, chain: Process, process: Process) -> Tensor:
        """The timestep nearest to sigma (1 + gamma) at each point, with gamma = min(churn / steps, sqrt(2) - 1) within the bounds."""
        sigmas = chain.sigmas
        upper = math.inf if self.churn_max_sigma is None else self.churn_max_sigma
        inside = (sigmas >= self.churn_min_sigma) & (sigmas <= upper)
        gamma = torch.where(inside, min(self.churn / chain.steps, math.sqrt(2) - 1), 0.0)
        nearest = process.nearest((sigmas * (1 + gamma)).log())
        return torch.where(gamma > 0, torch.maximum(nearest, chain.timesteps), chain.timesteps)


@hookimpl
def cdmkit_components() -> list[type[Component]]:
    """EDM's sampler."""
    return [Heun]
