"""The forward process and its posterior, as tables over the points of a chain.

Index 0 is clean, indices 1..K are noisy. The full chain has K = T; a respaced chain keeps some timesteps of it, and all its tables follow
from the alpha_bars that remain, so its betas are the recomputed ones (Improved DDPM, arXiv:2102.09672, eq. 19).
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor


def respaced_timesteps(timesteps: int, steps: int, through: int = 0) -> list[int]:
    """The timesteps a chain of `steps` network calls visits, ascending, from 0 (clean) to T.

    `steps` equally spaced reals in [1, T], rounded (Improved DDPM, section 4), so T is always visited. With `through` = s > 0 the
    timestep s is visited too, so that sampling can stop exactly there.
    """
    if not 1 <= steps <= timesteps:
        raise ValueError(f"cannot respace {timesteps} timesteps to {steps}: it must be 1 to {timesteps}")
    if not 0 <= through <= timesteps:
        raise ValueError(f"cannot stop at timestep {through}: the chain has timesteps 0 to {timesteps}")
    if steps == 1:
        return sorted({0, through, timesteps})
    spaced = torch.linspace(1, timesteps, steps, dtype=torch.float64).round().long().tolist()
    return sorted({0, through, *spaced})


@attrs.frozen(eq=False)
class Process:
    """A chain x_0 -> x_1 -> ... -> x_K of Gaussian noising steps.

    alpha_bars: [K+1], falling from 1 (entry 0, clean); made in float64.
    timesteps: int64 [K+1], the original timestep of each point: what the network is told.
    """

    alpha_bars: Tensor
    timesteps: Tensor
    betas: Tensor
    """[K+1]; entry 0 is 0."""
    posterior_variance: Tensor
    """beta-tilde_t of DDPM eq. 7 (arXiv:2006.11239), [K+1]; entries 0 and 1 are 0."""
    log_betas: Tensor
    posterior_log_variance: Tensor
    """log of `posterior_variance`, entry 1 replaced by entry 2, since the variance there is 0 (as Improved DDPM's code does)."""
    posterior_mean_x0: Tensor
    posterior_mean_xt: Tensor
    """The weights of x_0 and x_t in the posterior mean, DDPM eq. 7."""

    @classmethod
    def of(cls, alpha_bars: Tensor, timesteps: Tensor | None = None) -> Process:
        """Build every table, in float64 on the CPU, from alpha_bars [K+1] whose entry 0 is 1."""
        ab = alpha_bars.to("cpu", torch.float64)
        if ab.ndim != 1 or len(ab) < 2 or ab[0] != 1 or not bool((ab[1:] < ab[:-1]).all()) or not ab[-1] >= 0:
            raise ValueError("alpha_bars must be a vector that starts at 1 and falls strictly, never below 0")
        if timesteps is None:
            timesteps = torch.arange(len(ab))
        previous = torch.cat((ab[:1], ab[:-1]))
        alphas = ab / previous
        betas = 1 - alphas
        noisy = (1 - ab).clamp(min=1e-300)  # entry 0 would divide by 0; nothing reads it
        variance = betas * (1 - previous) / noisy
        log_variance = variance.clone()
        log_variance[:2] = variance[2] if len(ab) > 2 else betas[1]
        return cls(
            alpha_bars=ab,
            timesteps=timesteps,
            betas=betas,
            posterior_variance=variance,
            log_betas=betas.clamp(min=1e-300).log(),
            posterior_log_variance=log_variance.clamp(min=1e-300).log(),
            posterior_mean_x0=previous.sqrt() * betas / noisy,
            posterior_mean_xt=alphas.sqrt() * (1 - previous) / noisy,
        )

    @property
    def steps(self) -> int:
        """K, the number of noising steps."""
        return len(self.alpha_bars) - 1

    def respace(self, steps: int, through: int = 0) -> Process:
        """The chain over `respaced_timesteps(K, steps, through)` of this (full) chain."""
        kept = torch.tensor(respaced_timesteps(self.steps, steps, through))
        return Process.of(self.alpha_bars.cpu().double()[kept], self.timesteps.cpu()[kept])

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Process:
        """The same tables on a device, rounded once to `dtype`. Respace before, not after."""
        moved = {field.name: getattr(self, field.name) for field in attrs.fields(Process)}
        return Process(**{name: t.to(device) if t.dtype == torch.int64 else t.to(device, dtype) for name, t in moved.items()})

    def noise(self, x0: Tensor, epsilon: Tensor, t: Tensor) -> Tensor:
        """A draw of q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I), DDPM eq. 4. t: int64 [B], 0..K."""
        return add_noise(x0, epsilon, at(self.alpha_bars, t, x0))

    def posterior_mean(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The mean of q(x_{t-1} | x_t, x_0), DDPM eq. 7. t: int64 [B], 1..K."""
        return at(self.posterior_mean_x0, t, x_t) * x0 + at(self.posterior_mean_xt, t, x_t) * x_t


def at(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """`table[t]` shaped [B, 1, 1, ...] to broadcast against `like` [B, ...]."""
    return table[t].view(-1, *[1] * (like.ndim - 1))


def add_noise(x0: Tensor, epsilon: Tensor, alpha_bar: Tensor) -> Tensor:
    """x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) epsilon, DDPM eq. 4. alpha_bar broadcasts against x0."""
    return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * epsilon
