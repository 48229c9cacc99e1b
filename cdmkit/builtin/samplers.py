"""Samplers: ways to run a stage's chain backwards.

Most are one loop over a table of coefficients: x_{k-1} = a_k x_k + b_k x_0 + c_k (x_0 of the step before) + sigma_k z, with the x_0 that
the network predicts at x_k. The coefficients are made in float64 and lie on the device before the first step: no step makes the host wait,
and none allocates more than the images it makes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from cdmkit.component import Component, component, option
from cdmkit.diffusion import Denoise, Process, posterior_mean
from cdmkit.hookspecs import hookimpl
from cdmkit.kinds import Spaced


@component("ancestral")
class Ancestral(Spaced):
    """Ancestral sampling: each step drawn from p(x_{t-1} | x_t) (DDPM, arXiv:2006.11239, Algorithm 2)."""

    def __call__(self, denoise: Denoise, noise: Tensor, process: Process, draw: Callable[[int], Tensor], stop_at: int = 0) -> Tensor:
        """The posterior's mean at the predicted x_0, plus noise of the stage's variance except in the step to x_0."""
        x = noise
        for k, point in self.chain(process, stop_at).backwards(noise, stop_at):
            denoised = denoise(x, point)
            x = posterior_mean(denoised.x0, x, point)
            if k > 1:
                x.addcmul_(draw(k), denoised.deviation)
            del denoised  # else its image lies beside the network's next call
        return x


class Coefficients(NamedTuple):
    """The steps of a multistep sampler, each float64 [K+1]; entry k is for the step that leaves index k, entry 0 means nothing."""

    xt: Tensor
    """The weight of x_k."""
    x0: Tensor
    """The weight of the x_0 predicted there."""
    previous: Tensor | None
    """The weight of the x_0 predicted in the step before; None where no step uses it."""
    noise: Tensor | None
    """The deviation of fresh noise; None where there is none."""


class Multistep(Spaced):
    """A sampler whose steps are fixed mixes of x_k, predicted images and noise."""

    @abstractmethod
    def coefficients(self, chain: Process) -> Coefficients:
        """The mixes along a chain."""

    def __call__(self, denoise: Denoise, noise: Tensor, process: Process, draw: Callable[[int], Tensor], stop_at: int = 0) -> Tensor:
        """Mix, from x_T down to `stop_at`."""
        chain = self.chain(process, stop_at)
        xt, x0, older, fresh = (_scalars(mix, noise) for mix in self.coefficients(chain))
        x, before = noise, None
        for k, point in chain.backwards(noise, stop_at):
            now = denoise(x, point).x0
            x = (x * xt[k]).addcmul_(now, x0[k])
            if older and before is not None:
                x.addcmul_(before, older[k])
            if fresh and k > 1:
                x.addcmul_(draw(k), fresh[k])
            before = now if older else None
            del now  # else it lies beside the network's next call
        return x


def _scalars(table: Tensor | None, like: Tensor) -> tuple[Tensor, ...]:
    """A float64 table [K+1] as one scalar for each index, on the device and in the dtype of `like`."""
    return () if table is None else table.to(like.device, like.dtype).unbind()


@component("ddim")
class Ddim(Multistep):
    """DDIM: non-Markovian steps along the predicted noise (arXiv:2010.02502, eq. 12)."""

    eta: float = option(0.0, help="0: deterministic; 1: as random as ancestral sampling with fixed-small variance", ge=0, le=1)

    def coefficients(self, chain: Process) -> Coefficients:
        """x_{t-1} = sqrt(alpha_bar_{t-1}) x_0 + sqrt(1 - alpha_bar_{t-1} - sigma^2) epsilon + sigma z, with sigma from eq. 16.

        epsilon is the one that x_t and x_0 imply (DDPM eq. 4), which leaves a mix of the two.
        """
        signal, noise = chain.column("signal"), chain.column("noise")
        sigma = self.eta * chain.posterior_variances.sqrt()
        xt = (noise.roll(1) ** 2 - sigma**2).clamp(min=0).sqrt() / noise
        return Coefficients(xt, signal.roll(1) - xt * signal, None, sigma if self.eta else None)

    def invert(self, denoise: Denoise, x0: Tensor, process: Process) -> Tensor:
        """From an image x0 [B, 3, R, R] to the x_T that sampling with eta = 0 leads back from, up to the size of the steps.

        Eq. 12 run upwards, epsilon taken where a step begins; the image itself stands for the chain's first noisy point (as in
        Improved DDPM's code). process: the full chain, float64 on the CPU.
        """
        chain = self.chain(process)
        signal, noise = chain.column("signal"), chain.column("noise")
        xt = noise.roll(-1) / noise
        ups, x0s = _scalars(xt, x0), _scalars(signal.roll(-1) - xt * signal, x0)
        x, point = x0, chain.points(x0)
        for k in range(1, chain.steps):
            x = (x * ups[k]).addcmul_(denoise(x, point(k)).x0, x0s[k])
        return x


@component("dpm-solver-pp")
class DpmSolverPP(Multistep):
    """DPM-Solver++(2M): second-order steps from two predicted images, for ten to thirty steps (arXiv:2211.01095, Algorithm 2)."""

    sde: bool = option(
        False, help="solve the diffusion SDE: SDE-DPM-Solver++(2M), as random as ancestral sampling with fixed-small variance"
    )

    def coefficients(self, chain: Process) -> Coefficients:
        """Exact in x_t, second-order in x_0 as a function of lambda = log(signal / noise); the first step, and one to x_0, first-order.

        With D = x_0 + (x_0 - x_0 of the step before) / (2 r) and r the ratio of the last two steps h in lambda:
        ODE: x' = (noise' / noise) x + signal' (1 - e^-h) D. SDE: x' = (noise' / noise) e^-h x + signal' (1 - e^-2h) D + noise'
        sqrt(1 - e^-2h) z (its section 5 and appendix).
        """
        signal, noise = chain.column("signal"), chain.column("noise")
        to_signal, to_noise = signal.roll(1), noise.roll(1)
        shrink = (signal * to_noise) / (to_signal * noise)  # e^-h, and 0 in the step to x_0, where h is infinite
        step = -shrink.log()
        extra = step / step.roll(-1) / 2  # 1 / (2 r)
        extra[[1, -1]] = 0.0
        power = 2 if self.sde else 1
        xt = to_noise / noise * shrink ** (power - 1)
        x0 = to_signal * (1 - shrink**power)
        fresh = to_noise * (1 - shrink**2).sqrt() if self.sde else None
        return Coefficients(xt, x0 * (1 + extra), -x0 * extra, fresh)


@hookimpl
def cdmkit_components() -> list[type[Component]]:
    """The samplers of one loop."""
    return [Ancestral, Ddim, DpmSolverPP]
