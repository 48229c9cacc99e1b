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


@component("sigmoid")
class Sigmoid(Schedule):
    """alpha_bar falls along a sigmoid (Jabri et al., arXiv:2212.11972; Chen, arXiv:2301.10972, Algorithm 1)."""

    timesteps: int = option(1000, help="T, the number of noising steps", ge=1)
    start: float = option(-3.0, help="where on the sigmoid t = 0 is")
    end: float = option(3.0, help="where t = T is, above start")
    tau: float = option(1.0, help="temperature: the larger, the straighter", gt=0)
    smallest: float = option(1e-9, help="alpha_bar falls no further than this", gt=0, lt=1)

    def __attrs_post_init__(self) -> None:
        if self.start >= self.end:
            raise ValueError(f"start = {self.start:g} is not below end = {self.end:g}")

    def alpha_bars(self) -> Tensor:
        """(sigmoid(end / tau) - sigmoid(u / tau)) / (sigmoid(end / tau) - sigmoid(start / tau)), u on a line from start to end."""
        u = torch.linspace(self.start, self.end, self.timesteps + 1, dtype=torch.float64) / self.tau
        values = torch.sigmoid(-u)  # 1 - sigmoid(u), exact where that is small
        return ((values - values[-1]) / (values[0] - values[-1])).clamp(min=self.smallest)


@component("shifted-cosine")
class ShiftedCosine(Schedule):
    """The cosine schedule in log-SNR, moved to where large images lose their details (simple diffusion, arXiv:2301.11093, section 3.1)."""

    timesteps: int = option(1000, help="T, the number of noising steps", ge=1)
    resolution: int = option(help="d: height and width of the images", ge=1)
    noise_resolution: int = option(64, help="the resolution whose cosine schedule has the same noise per pixel", ge=1)
    min_log_snr: float = option(-15.0, help="log(alpha_bar / (1 - alpha_bar)) at T, before it is shifted")
    max_log_snr: float = option(15.0, help="the same towards 0, above min_log_snr")

    def __attrs_post_init__(self) -> None:
        if self.min_log_snr >= self.max_log_snr:
            raise ValueError(f"min_log_snr = {self.min_log_snr:g} is not below max_log_snr = {self.max_log_snr:g}")

    def alpha_bars(self) -> Tensor:
        """log-SNR = -2 log tan(pi t / 2) + 2 log(noise_resolution / d), with t from the largest to the smallest log-SNR."""
        first, last = (math.atan(math.exp(-0.5 * end)) for end in (self.max_log_snr, self.min_log_snr))
        angle = torch.linspace(first, last, self.timesteps + 1, dtype=torch.float64)
        shift = 2 * math.log(self.noise_resolution / self.resolution)
        alpha_bars = torch.sigmoid(shift - 2 * torch.tan(angle).log())
        alpha_bars[0] = 1.0
        return alpha_bars


@component("regression")
class Regression(Schedule):
    """One step from noise that tells nothing to the image: with `prediction = "x0"` a stage regresses, as SR3's baseline does."""

    def alpha_bars(self) -> Tensor:
        """1, then 0."""
        return torch.tensor([1.0, 0.0], dtype=torch.float64)


@hookimpl
def cdmkit_components() -> list[type[Component]]:
    """The schedules."""
    return [Cosine, Linear, Sigmoid, ShiftedCosine, Regression]
