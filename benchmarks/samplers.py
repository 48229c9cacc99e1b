"""What a sampler costs beside its network: microseconds per step, against a hand-written loop over tables of floats that works in place.

    python benchmarks/samplers.py [--threads 1]

The network is a tensor that lies ready, and so is the noise, so all that is timed is the sampler's own arithmetic and dispatch.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from cdmkit.builtin.samplers import Ancestral, Ddim
from cdmkit.builtin.schedules import Cosine
from cdmkit.diffusion import Condition, Denoiser, Parameterization, Process
from cdmkit.draws import Stream

STEPS = 250
SHAPES = ((1, 3, 32, 32), (16, 3, 32, 32))

Loop = Callable[[Tensor, Tensor], Tensor]
"""(x_T, what both the network and the noise are) -> x_0."""


def ancestral_floor(chain: Process) -> Loop:
    """DDPM's Algorithm 2 with fixed-small variance and clipping, every coefficient a Python float."""
    alpha_bars = chain.alpha_bars
    x_scale = alpha_bars.rsqrt().tolist()
    epsilon_scale = (1 / alpha_bars - 1).sqrt().tolist()
    from_x0, from_x_t = chain.posterior_mean_x0.tolist(), chain.posterior_mean_xt.tolist()
    sigmas, timesteps = (0.5 * chain.posterior_log_variance).exp().tolist(), chain.timesteps.tolist()

    def loop(noise: Tensor, said: Tensor) -> Tensor:
        x = noise.clone()
        for k in range(chain.steps, 0, -1):
            torch.full((len(x),), float(timesteps[k]))  # what a network is told
            x0 = (x * x_scale[k]).sub_(said, alpha=epsilon_scale[k]).clamp_(-1, 1)
            x.mul_(from_x_t[k]).add_(x0, alpha=from_x0[k])
            if k > 1:
                x.add_(said, alpha=sigmas[k])
        return x

    return loop


def ddim_floor(chain: Process) -> Loop:
    """DDIM with eta = 0 and clipping; epsilon is eliminated, so that a step is one mix of x_0 and x_t."""
    alpha_bars = chain.alpha_bars
    x_scale = alpha_bars.rsqrt().tolist()
    epsilon_scale = (1 / alpha_bars - 1).sqrt().tolist()
    previous, here = alpha_bars[:-1], alpha_bars[1:]
    mix_x_t = ((1 - previous) / (1 - here)).sqrt()
    from_x_t, from_x0 = [0.0, *mix_x_t.tolist()], [0.0, *(previous.sqrt() - mix_x_t * here.sqrt()).tolist()]
    timesteps = chain.timesteps.tolist()

    def loop(noise: Tensor, said: Tensor) -> Tensor:
        x = noise.clone()
        for k in range(chain.steps, 0, -1):
            torch.full((len(x),), float(timesteps[k]))
            x0 = (x * x_scale[k]).sub_(said, alpha=epsilon_scale[k]).clamp_(-1, 1)
            x.mul_(from_x_t[k]).add_(x0, alpha=from_x0[k])
        return x

    return loop


def ours(sampler: Ancestral | Ddim, process: Process) -> Loop:
    """The built-in sampler as the cascade calls it."""

    def loop(noise: Tensor, said: Tensor) -> Tensor:
        denoiser = Denoiser(lambda _x, _level, _condition: said, Parameterization())
        return sampler(denoiser.bind(Condition()), noise, process, lambda _k: said)

    return loop


def microseconds(run: Callable[[], object], steps: int, repeats: int = 15) -> float:
    """The best of some repeats, for each of the steps in a run."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best / steps * 1e6


@torch.inference_mode()
def main() -> None:
    """Print one line per sampler and shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    torch.set_num_threads(parser.parse_args().threads)
    process = Cosine(timesteps=4000).process()
    chain = process.respace(STEPS)
    pairs = {
        "ancestral": (ours(Ancestral(steps=STEPS), process), ancestral_floor(chain)),
        "ddim": (ours(Ddim(steps=STEPS), process), ddim_floor(chain)),
    }
    print(f"{'sampler':<10} {'shape':<14} {'cdmkit':>10} {'floor':>10} {'ratio':>6}")  # noqa: T201
    for shape in SHAPES:
        index, size = torch.arange(shape[0]), "x".join(map(str, shape))
        noise, said = (Stream.of(0, word).normal(index, shape[1:]) for word in ("noise", "said"))
        for name, loops in pairs.items():
            first, second = (loop(noise, said) for loop in loops)
            torch.testing.assert_close(first, second, rtol=0, atol=1e-3)
            mine, least = (microseconds(partial(loop, noise, said), STEPS) for loop in loops)
            print(f"{name:<10} {size:<14} {mine:>8.1f}us {least:>8.1f}us {mine / least:>6.2f}")  # noqa: T201
        draw = microseconds(partial(Stream.of(0, "draw").normal, index, shape[1:]), 1)
        print(f"{'(a draw)':<10} {size:<14} {draw:>8.1f}us")  # noqa: T201


if __name__ == "__main__":
    main()
