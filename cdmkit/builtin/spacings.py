"""Spacings: which timesteps sampling visits."""

from __future__ import annotations

import torch
from torch import Tensor

from cdmkit.component import Component, component, option
from cdmkit.diffusion import Process, even_timesteps, sectioned_timesteps, strided_timesteps
from cdmkit.hookspecs import hookimpl
from cdmkit.kinds import Spacing


@component("even")
class Even(Spacing):
    """Equally spaced from 1 to T (Improved DDPM, arXiv:2102.09672, section 4). What samplers do by themselves."""

    def timesteps(self, process: Process, steps: int) -> list[int]:
        """Exactly `steps`, T among them."""
        return even_timesteps(process.steps, steps)


@component("stride")
class Stride(Spacing):
    """Every n-th timestep from 1 on: `ddimN` of Improved DDPM's and ADM's code, after DDIM's. T is not visited in general."""

    def timesteps(self, process: Process, steps: int) -> list[int]:
        """Exactly `steps`; only where a whole stride makes so many."""
        return strided_timesteps(process.steps, steps)


@component("sections")
class Sections(Spacing):
    """Equal sections of the chain, each with steps of its own (Improved DDPM's code: "10,15,20")."""

    counts: tuple[int, ...] = option(help="timesteps visited in each section, from the cleanest; they add up to the sampler's steps", ge=0)

    def timesteps(self, process: Process, steps: int) -> list[int]:
        """Exactly `steps`, T among them unless the last count is 0."""
        if sum(self.counts) != steps:
            raise ValueError(f"counts = {list(self.counts)} add up to {sum(self.counts)}, but the sampler has steps = {steps}")
        return sectioned_timesteps(process.steps, self.counts)


@component("power-sigma")
class PowerSigma(Spacing):
    """Equal steps of a root of sigma = noise / signal (EDM, arXiv:2206.00364, eq. 5), each at the nearest timesteps. T need not be visited.

    Where several fall on one timestep there are fewer steps.
    """

    rho: float = option(7.0, help="which root", gt=0)
    min_sigma: float = option(0.002, help="the last noise / signal before x_0", gt=0)
    max_sigma: float = option(80.0, help="the first", gt=0)

    def timesteps(self, process: Process, steps: int) -> list[int]:
        """At most `steps`."""
        low, high = self.min_sigma ** (1 / self.rho), self.max_sigma ** (1 / self.rho)
        if low >= high:
            raise ValueError(f"min_sigma = {self.min_sigma:g} is not below max_sigma = {self.max_sigma:g}")
        return _nearest(process, torch.linspace(high, low, steps, dtype=torch.float64).pow(self.rho).log())


@component("log-snr")
class LogSnr(Spacing):
    """Equal steps of log(signal / noise) (DPM-Solver, arXiv:2206.00927, section 3.3), each at the nearest timestep, 1 and T among them.

    Where several fall on one timestep there are fewer steps.
    """

    def timesteps(self, process: Process, steps: int) -> list[int]:
        """At most `steps`, T among them."""
        if process.alpha_bars[-1] == 0:
            raise ValueError("log-snr has no equal steps where the schedule ends at alpha_bar = 0: choose another spacing")
        first, last = process.sigmas[[1, -1]].log().tolist()
        return [process.steps] if steps == 1 else _nearest(process, torch.linspace(first, last, steps, dtype=torch.float64))


def _nearest(process: Process, log_sigmas: Tensor) -> list[int]:
    """The timesteps whose log sigma is nearest to each of the given ones."""
    return sorted(set(process.nearest(log_sigmas).tolist()))


@hookimpl
def cdmkit_components() -> list[type[Component]]:
    """The spacings."""
    return [Even, Stride, Sections, PowerSigma, LogSnr]
