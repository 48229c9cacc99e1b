"""Densities: how often training visits each timestep."""

from __future__ import annotations

import torch
from torch import Tensor

from cdmkit.component import Component, component, option
from cdmkit.diffusion import Process
from cdmkit.draws import Draw
from cdmkit.hookspecs import hookimpl
from cdmkit.kinds import Density, Timesteps, Visit


@component("uniform")
class Uniform(Density):
    """All timesteps alike (DDPM, arXiv:2006.11239, Algorithm 1)."""

    def start(self, process: Process) -> Timesteps:
        """A drawer that learns nothing."""
        return _Alike(process.steps)


class _Alike(Timesteps):
    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def draw(self, draw: Draw) -> Visit:
        return Visit(draw.integers(1, self.steps), None)


@component("log-normal")
class LogNormal(Density):
    """Noise levels whose log sigma = log(noise / signal) is normal: most where an image is half hidden (EDM, arXiv:2206.00364, Table 1).

    Each timestep is visited as often as a normal draw is nearest to its log sigma; losses are not weighted for it.
    """

    mean: float = option(-1.2, help="P_mean: the mean of log sigma")
    deviation: float = option(1.2, help="P_std: its deviation", gt=0)

    def start(self, process: Process) -> Timesteps:
        """A drawer that learns nothing."""
        return _Tabled(torch.special.ndtr((process.between_log_sigmas() - self.mean) / self.deviation).float())


class _Tabled(Timesteps):
    """Draws along a fixed distribution. edges: [T-1], the share of draws at timesteps up to 1, 2, ..., T-1."""

    edges: Tensor

    def __init__(self, edges: Tensor) -> None:
        super().__init__()
        self.register_buffer("edges", edges.contiguous(), persistent=False)

    def draw(self, draw: Draw) -> Visit:
        uniform = draw.uniform().to(self.edges.dtype)
        return Visit(torch.searchsorted(self.edges, uniform, right=True) + 1, None)


@component("loss-aware")
class LossAware(Density):
    """Importance sampling by the root mean square of recent losses at each timestep (Improved DDPM, arXiv:2102.09672, eq. 18). For `vlb`.

    Losses are weighted so that their mean stays what it would be under uniform draws. All timesteps are alike until each has been seen
    `history` times. What an image is noised to depends on the losses of the steps before, so on the size of the batch.
    """

    history: int = option(10, help="losses remembered at each timestep", ge=1)
    uniform: float = option(0.001, help="share of draws that stay uniform", gt=0, le=1)

    def start(self, process: Process) -> Timesteps:
        """A drawer that has seen no loss."""
        return _Learned(process.steps, self.history, self.uniform)


class _Learned(Timesteps):
    """The last losses at each timestep, [T, history], as a ring; and how many there were, [T]."""

    losses: Tensor
    seen: Tensor

    def __init__(self, steps: int, history: int, uniform: float) -> None:
        super().__init__()
        self.uniform = uniform
        self.register_buffer("losses", torch.zeros(steps, history))
        self.register_buffer("seen", torch.zeros(steps, dtype=torch.int64))

    def draw(self, draw: Draw) -> Visit:
        chances = self._chances()
        shares = chances.cumsum(0)
        t = torch.searchsorted(shares, draw.uniform().to(shares.dtype) * shares[-1], right=True).clamp(max=len(chances) - 1)
        return Visit(t + 1, (1 / (len(chances) * chances[t])).to(draw.dtype))

    def _chances(self) -> Tensor:
        """The chance of each timestep, [T]."""
        steps, history = self.losses.shape
        largest = self.losses.amax().clamp(min=torch.finfo(self.losses.dtype).tiny)  # squares of large losses would overflow
        size = (self.losses / largest).square().mean(1).sqrt()
        learned = (1 - self.uniform) * size / size.sum().clamp(min=torch.finfo(size.dtype).tiny) + self.uniform / steps
        return torch.where((self.seen >= history).all(), learned, torch.full_like(size, 1 / steps))

    @torch.no_grad()
    def learn(self, t: Tensor, losses: Tensor) -> None:
        """Remember finite losses, each at its timestep; of more than `history` at one, the last."""
        finite = losses.isfinite()
        same = (t[:, None] == t) & finite
        rank = same.tril(-1).sum(1)  # how many of the batch come before at the same timestep
        kept = finite & (same.sum(1) - rank <= self.losses.shape[1])
        slot = (self.seen[t - 1] + rank) % self.losses.shape[1]
        flat = torch.where(kept, (t - 1) * self.losses.shape[1] + slot, self.losses.numel())  # one place more for what is not kept
        spare = torch.cat((self.losses.flatten(), self.losses.new_zeros(1)))
        self.losses.copy_(spare.index_put((flat,), losses.to(spare.dtype))[:-1].view_as(self.losses))
        self.seen.index_add_(0, t - 1, finite.long())


@hookimpl
def cdmkit_components() -> list[type[Component]]:
    """The densities."""
    return [Uniform, LogNormal, LossAware]
