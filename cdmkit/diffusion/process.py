"""The forward process and its posterior, as tables over the points of a chain.

Index 0 is clean, indices 1..K are noisy. The full chain has K = T; a respaced chain keeps some timesteps of it, and all its tables follow
from the alpha_bars that remain, so its betas are the recomputed ones (Improved DDPM, arXiv:2102.09672, eq. 19).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from functools import cache

import attrs
import torch
from torch import Tensor

from cdmkit.diffusion.respacing import even_timesteps

_TINY = 1e-300
"""Stands for 0 where a table's entry that nothing reads would be the log of 0, or divided by 0."""


class Point:
    """All that formulas need to know of a place on a chain: one number for each image, [B, 1, 1, 1], or one for all, [1].

    Each is read when a formula asks for it, so that a step of a sampler pays for those it uses.
    """

    total: int
    """T of the full chain."""
    sigma: float
    """noise / signal, known to the host where the place is one for all images (else NaN): what samplers and guidance may branch on."""
    k: Tensor
    """The index in 0..K, as a float."""
    timestep: Tensor
    """The original timestep in 0..T, as a float."""
    alpha_bar: Tensor
    signal: Tensor
    """sqrt(alpha_bar): the share of x_0 in x_t."""
    noise: Tensor
    """sqrt(1 - alpha_bar): the share of epsilon, exact also where alpha_bar is all but 1."""
    per_signal: Tensor
    """1 / sqrt(alpha_bar)."""
    noise_per_signal: Tensor
    """sqrt(1 - alpha_bar) / sqrt(alpha_bar)."""
    log_beta: Tensor
    posterior_log_variance: Tensor
    """log of beta-tilde, DDPM eq. 7."""
    log_variance_large: Tensor
    """log beta, but that of the posterior at k = 1 (fixed-large)."""
    posterior_mean_x0: Tensor
    posterior_mean_xt: Tensor
    """The weights of x_0 and x_t in the posterior mean, DDPM eq. 7."""
    posterior_deviation: Tensor
    """sqrt(beta-tilde), as its log is taken."""
    deviation_large: Tensor
    """sqrt(beta), but that of the posterior at k = 1 (fixed-large)."""

    def __init__(self, total: int, sigma: float, read: Callable[[str], Tensor]) -> None:
        """A place of which `read` gives the numbers above by name."""
        self.total, self.sigma, self.read = total, sigma, read

    @property
    def log_snr(self) -> Tensor:
        """log(alpha_bar / (1 - alpha_bar))."""
        return 2 * (self.signal.log() - self.noise.log())


def _reader(name: str) -> property:
    """An attribute of `Point`; one `__getattr__` for all would take several times as long."""
    return property(lambda point: point.read(name))


_COLUMNS = tuple(Point.__annotations__)[2:]
for _column in _COLUMNS:
    setattr(Point, _column, _reader(_column))


@attrs.frozen(eq=False)
class Process:
    """A chain x_0 -> x_1 -> ... -> x_K of Gaussian noising steps. Make one with `of`; respace it, then move it with `to`."""

    table: Tensor
    """[K+1, columns]: a row for each point, a column for each number of `Point`; float64 until it is moved."""
    total: int
    """T of the full chain, which networks count timesteps in."""
    variance_floor: float | None = None
    """What stands for the posterior's variance of 0 at k = 1 where its log is taken: see `of`."""

    @classmethod
    def of(
        cls, alpha_bars: Tensor, timesteps: Tensor | None = None, total: int | None = None, variance_floor: float | None = None
    ) -> Process:
        """Build every table, in float64 on the CPU, from alpha_bars [K+1] whose entry 0 is 1.

        timesteps: int64 [K+1], the original ones, if this is a part of a longer chain with `total` timesteps. variance_floor: the variance
        of the posterior at k = 1 is 0, and its log is taken to be that of k = 2 (Improved DDPM's code); with a floor such as 1e-20 it is
        log(floor) instead (diffusers). Raises ValueError where the alpha_bars make no chain.
        """
        ab = alpha_bars.to("cpu", torch.float64)
        if ab.ndim != 1 or len(ab) < 2 or ab[0] != 1 or not bool((ab[1:] < ab[:-1]).all()) or not ab[-1] >= 0:
            raise ValueError("alpha_bars must be a vector that starts at 1 and falls strictly, never below 0")
        previous = torch.cat((ab[:1], ab[:-1]))
        alphas = ab / previous
        betas = 1 - alphas
        noisy = (1 - ab).clamp(min=_TINY)  # entry 0 would divide by 0; nothing reads it
        variance = betas * (1 - previous) / noisy
        small = variance.clamp(min=variance_floor or _TINY).log()
        if variance_floor is None:
            small[:2] = (variance[2] if len(ab) > 2 else betas[1]).log()
        log_betas = betas.clamp(min=_TINY).log()
        large = log_betas.clone()
        large[1] = small[1]
        index = torch.arange(len(ab), dtype=torch.float64)
        columns = {
            "k": index,
            "timestep": index if timesteps is None else timesteps.cpu().double(),
            "alpha_bar": ab,
            "signal": ab.sqrt(),
            "noise": (1 - ab).sqrt(),
            "per_signal": ab.rsqrt(),
            "noise_per_signal": (1 - ab).sqrt() / ab.sqrt(),
            "log_beta": log_betas,
            "posterior_log_variance": small,
            "log_variance_large": large,
            "posterior_mean_x0": previous.sqrt() * betas / noisy,
            "posterior_mean_xt": alphas.sqrt() * (1 - previous) / noisy,
            "posterior_deviation": (small / 2).exp(),
            "deviation_large": (large / 2).exp(),
        }
        return cls(torch.stack([columns[name] for name in _COLUMNS], dim=1), total or len(ab) - 1, variance_floor)

    def column(self, name: str) -> Tensor:
        """[K+1]: one number of `Point`, by its name, at every point."""
        return self.table[:, _COLUMNS.index(name)]

    @property
    def alpha_bars(self) -> Tensor:
        """[K+1], falling from 1 (entry 0, clean)."""
        return self.column("alpha_bar")

    @property
    def timesteps(self) -> Tensor:
        """int64 [K+1], the original timestep of each point."""
        return self.column("timestep").long()

    @property
    def sigmas(self) -> Tensor:
        """[K+1]: noise / signal, from 0 up; infinite where alpha_bar is 0."""
        return self.column("noise_per_signal")

    @property
    def betas(self) -> Tensor:
        """[K+1]: the variance of each noising step, DDPM eq. 2; entry 0 is 0."""
        return self.column("log_beta").exp()

    @property
    def posterior_variances(self) -> Tensor:
        """[K+1]: beta-tilde of DDPM eq. 7; entries 0 and 1 are 0."""
        return self.column("posterior_log_variance").exp().where(self.column("k") > 1, 0.0)

    @property
    def steps(self) -> int:
        """K, the number of noising steps."""
        return len(self.table) - 1

    def keep(self, timesteps: Collection[int]) -> Process:
        """The chain over some points of this one: those of the given original timesteps, and 0. On the CPU, tables from float64.

        Raises ValueError, naming them, where there are no such timesteps.
        """
        here, wanted = self.timesteps.cpu(), torch.tensor(sorted({0, *timesteps}))
        kept = torch.searchsorted(here, wanted).clamp(max=self.steps)
        if strange := wanted[here[kept] != wanted].tolist():
            raise ValueError(f"the chain has no timestep {', '.join(map(str, strange))}: it has {self.steps}, up to {int(here[-1])}")
        return Process.of(self.alpha_bars.cpu()[kept], wanted, self.total, self.variance_floor)

    def respace(self, steps: int, through: int = 0) -> Process:
        """The chain over `even_timesteps(K, steps)` of this (full) chain, and the timestep `through`."""
        return self.keep({*even_timesteps(self.steps, steps), through})

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Process:
        """The same tables on a device, rounded once to `dtype`. Respace before, not after."""
        return attrs.evolve(self, table=self.table.to(device, dtype))

    def point(self, index: Tensor) -> Point:
        """The points at indices int64 [B] (or [1], for all images of a batch), on the tables' device."""
        rows = self.table.index_select(0, index).view(len(index), 1, 1, 1, -1)
        return Point(self.total, math.nan, dict(zip(_COLUMNS, rows.unbind(-1), strict=True)).__getitem__)

    def points(self, like: Tensor, index: Tensor | None = None) -> Callable[[int], Point]:
        """The points by index, on the device and in the dtype of `like`. index: int64 [N], which points those are; by default all.

        Reading one makes no step wait, copy or compute: its numbers are views of the tables.
        """
        chosen = self if index is None else attrs.evolve(self, table=self.table[index])
        tables, sigmas = chosen.to(like.device, like.dtype), chosen.sigmas.tolist()

        @cache
        def column(name: str) -> tuple[Tensor, ...]:
            return tables.column(name).unsqueeze(1).unbind()

        return lambda k: Point(self.total, sigmas[k], lambda name: column(name)[k])

    def backwards(self, like: Tensor, stop_at: int = 0) -> Iterator[tuple[int, Point]]:
        """The indices from K down to the one after timestep `stop_at`, each with its point."""
        point = self.points(like)
        return ((k, point(k)) for k in range(self.steps, self.index_of(stop_at), -1))

    def index_of(self, timestep: int) -> int:
        """The index of an original timestep, or of the first one after it."""
        return int(torch.searchsorted(self.timesteps.contiguous(), timestep))

    def between_log_sigmas(self) -> Tensor:
        """[K-1]: log sigma half-way between each two neighbouring points from 1 on."""
        logs = self.sigmas[1:].log()
        return (logs[:-1] + logs[1:]) / 2

    def nearest(self, log_sigmas: Tensor) -> Tensor:
        """The indices, 1..K, of the points whose log sigma is nearest to each of the given ones."""
        return torch.searchsorted(self.between_log_sigmas(), log_sigmas) + 1

    def noise(self, x0: Tensor, epsilon: Tensor, t: Tensor) -> Tensor:
        """A draw of q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I), DDPM eq. 4. t: int64 [B], 0..K."""
        return add_noise(x0, epsilon, self.point(t))

    def posterior(self, x0: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and clipped log-variance of q(x_{t-1} | x_t, x_0), DDPM eq. 6 and 7. t: int64 [B], 1..K."""
        point = self.point(t)
        variance = point.posterior_log_variance.exp().where(point.k > 1, 0.0)
        return posterior_mean(x0, x_t, point), variance, point.posterior_log_variance


def add_noise(x0: Tensor, epsilon: Tensor, point: Point) -> Tensor:
    """x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) epsilon, DDPM eq. 4. x0, epsilon: [B, 3, R, R]."""
    return point.signal * x0 + point.noise * epsilon


def posterior_mean(x0: Tensor, x_t: Tensor, point: Point) -> Tensor:
    """The mean of q(x_{t-1} | x_t, x_0), DDPM eq. 7. x0, x_t: [B, 3, R, R]."""
    return (x_t * point.posterior_mean_xt).addcmul_(x0, point.posterior_mean_x0)


def between(process: Process, t: Tensor, uniform: Tensor) -> Point:
    """The points at alpha_bars drawn uniformly between those of t-1 and t (SR3, arXiv:2104.07636, sec. 2.4).

    t: int64 [B], 1..K; uniform: [B] in [0, 1). All that follows from alpha_bar is that of the place between; k, timestep, and what is of
    the step from t to t - 1 is that of t.
    """
    point, before = process.point(t), process.point(t - 1)
    share = uniform.to(point.alpha_bar.dtype).view(-1, 1, 1, 1)
    alpha_bar = torch.lerp(point.alpha_bar, before.alpha_bar, share)
    noise = torch.lerp(point.noise.square(), before.noise.square(), share).sqrt()
    per_signal = alpha_bar.rsqrt()
    moved = {
        "alpha_bar": alpha_bar,
        "signal": alpha_bar.sqrt(),
        "noise": noise,
        "per_signal": per_signal,
        "noise_per_signal": noise * per_signal,
    }
    return Point(point.total, math.nan, lambda name: moved[name] if name in moved else point.read(name))
