"""One wrapper of network + meaning of its output, shared by the losses and the samplers."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import attrs
import torch
from torch import Tensor

from cdmkit.diffusion.parameterization import Parameterization
from cdmkit.diffusion.process import Process, at


class Condition(NamedTuple):
    """What a network is told beside x_t and the noise level; None where the stage has no such input."""

    label: Tensor | None = None
    """int64 [B], the class."""
    low_res: Tensor | None = None
    """[B, 3, R, R] in about [-1, 1]: the low-resolution image, augmented, then resized to the stage's resolution."""
    levels: Tensor | None = None
    """[B, L] float: the level of each augmentation that tells one, in the stage's order."""


Network = Callable[[Tensor, Tensor, Condition], Tensor]
"""(x_t [B, 3, R, R], noise level [B], condition) -> [B, 3 or 6, R, R]; 6 channels where the variance is learned."""


@attrs.frozen(eq=False)
class Noised:
    """A noised training batch: x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) epsilon."""

    x0: Tensor
    """[B, 3, R, R] in [-1, 1]."""
    epsilon: Tensor
    x_t: Tensor
    t: Tensor
    """int64 [B], the index of each example in its process, 1..K."""
    alpha_bar: Tensor
    """[B, 1, 1, 1]; between those of t-1 and t where the noise input is continuous."""


class Output(NamedTuple):
    """What the network said."""

    value: Tensor
    """[B, 3, R, R]: epsilon, x0 or v."""
    ranged: Tensor | None
    """[B, 3, R, R]: the share of the variance range, about [-1, 1]; None where the variance is fixed."""


class Denoised(NamedTuple):
    """What a network's output at x_t means. Epsilon is whatever x_t and this x0 imply, so the two agree after clipping too."""

    x0: Tensor
    """The predicted clean image, clipped if the denoiser clips."""
    log_variance: Tensor
    """log of the reverse step's variance, broadcastable to x_t."""


@attrs.frozen(eq=False)
class Denoiser:
    """A network and the meaning of its output. `clip`: keep predicted x0 in [-1, 1] when sampling (DDPM's code)."""

    network: Network
    parameterization: Parameterization
    clip: bool = True

    def output(self, x_t: Tensor, timestep: Tensor, alpha_bar: Tensor, condition: Condition) -> Output:
        """Ask the network; what it says in half precision is taken on in x_t's. timestep: int64 [B], original; alpha_bar: [B]."""
        said = self.network(x_t, self.parameterization.noise_input.level(timestep, alpha_bar), condition).to(x_t.dtype)
        if not self.parameterization.variance.learned:
            return Output(said, None)
        value, ranged = said.chunk(2, dim=1)
        return Output(value, ranged)

    def denoise(self, x_t: Tensor, t: Tensor, process: Process, condition: Condition) -> Denoised:
        """Denoise x_t at indices t (int64 [B], 1..K) of a chain."""
        alpha_bar = at(process.alpha_bars, t, x_t)
        output = self.output(x_t, process.timesteps[t], alpha_bar.flatten(), condition)
        x0 = self.parameterization.prediction.x0(output.value, x_t, alpha_bar)
        if self.clip:
            x0 = x0.clamp(-1, 1)
        return Denoised(x0, self.parameterization.log_variance(output.ranged, process, t, x_t))

    def bind(self, condition: Condition) -> Denoise:
        """`denoise` with the condition filled in: what a sampler calls."""

        def denoise(x_t: Tensor, t: Tensor, process: Process) -> Denoised:
            return self.denoise(x_t, t, process, condition)

        return denoise


Denoise = Callable[[Tensor, Tensor, Process], Denoised]
"""(x_t [B, 3, R, R], t int64 [B], chain) -> Denoised."""


def drawn_alpha_bar(process: Process, t: Tensor, uniform: Tensor) -> Tensor:
    """alpha_bar [B] drawn uniformly between those of t-1 and t (SR3, sec. 2.4). uniform: [B] in [0, 1)."""
    high, low = process.alpha_bars[t - 1], process.alpha_bars[t]
    return torch.lerp(low, high, uniform.to(low.dtype))
