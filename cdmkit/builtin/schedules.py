"""Noise schedules: alpha_bars in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cdmkit.component import Component, component, option
from cdmkit.hookspecs import hookimpl
from cdmkit.kinds import Schedule


def _alpha_bars(betas: Tensor) -> Tensor:
    """alpha_bar_t = prod_{i <= t} (1 - beta_i), with the clean entry 0 in front: [T] -> [T+1]."""
    return torch.cat((torch.ones(1, dtype=torch.float64), torch.cumprod(1 - betas, dim=0)))


@component("cosine")
class Cosine(Schedule):
    """The cosine schedule of Improved DDPM (arXiv:2102.09672, eq. 17), betas cut at 0.999."""

    timesteps: int = option(1000, help="T, the number of noising steps", ge=1)
    offset: float = option(0.008, help="s of eq. 17, which keeps the first steps from being too small", ge=0)
    max_beta: float = option(0.999, help="largest beta, against a singularity at T", gt=0, lt=1)

    def alpha_bars(self) -> Tensor:
        """alpha_bar_t = f(t) / f(0), f(t) = cos^2((t/T + s) / (1 + s) * pi/2), rebuilt from the cut betas."""
        t = torch.arange(self.timesteps + 1, dtype=torch.float64) / self.timesteps
        f = torch.cos((t + self.offset) / (1 + self.offset) * math.pi / 2) ** 2
        return _alpha_bars((1 - f[1:] / f[:-1]).clamp(max=self.max_beta))


@component("linear")
class Linear(Schedule):
    """Betas on a line: DDPM's 1e-4 to 0.02 at T = 1000 (arXiv:2006.11239, sec. 4), which scale as 1000/T unless given."""

    timesteps: int = option(1000, help="T, the number of noising steps", ge=1)
    beta_start: float | None = option(None, help="the first beta as it is; default 0.1 / T", gt=0, lt=1)
    beta_end: float | None = option(None, help="the last beta as it is; default 20 / T", gt=0, lt=1)

    def __attrs_post_init__(self) -> None:
        start, end = self._ends()
        if not 0 < start <= end < 1:
            raise ValueError(f"betas must rise within (0, 1), but go from {start:g} to {end:g}: set beta_start and beta_end")

    def _ends(self) -> tuple[float, float]:
        start = 0.1 / self.timesteps if self.beta_start is None else self.beta_start
        return start, 20 / self.timesteps if self.beta_end is None else self.beta_end

    def alpha_bars(self) -> Tensor:
        """The product of 1 - beta, beta_1 to beta_T equally spaced."""
        return _alpha_bars(torch.linspace(*self._ends(), self.timesteps, dtype=torch.float64))


@hookimpl
def cdmkit_components() -> list[type[Component]]:
    """The schedules."""
    return [Cosine, Linear]
