"""What a sampler costs beside its network: CPU microseconds per step, against a hand-written loop over tables of floats, working in place.

    python benchmarks/samplers.py [--threads 1]

The network is a tensor that lies ready, and so is the noise, so all that is timed is the sampler's own arithmetic and dispatch. It is timed
in CPU time, which other work on the machine adds little to; so more threads show as more time. Where diffusers is installed, its schedulers
run the same job beside ours, turn by turn: its DDPM, DDIM and DPM-Solver++(2M) with clipping.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cdmkit.builtin.heun import Heun
from cdmkit.builtin.samplers import Ancestral, Ddim, DpmSolverPP
from cdmkit.builtin.schedules import Linear
from cdmkit.diffusion import Condition, Denoiser, Parameterization, Process
from cdmkit.draws import Stream
from cdmkit.kinds import Sampler

STEPS = 250
SHAPES = ((1, 3, 32, 32), (16, 3, 32, 32))

Loop = Callable[[Tensor, Tensor], Tensor]
"""(x_T, what both the network and the noise are) -> x_0."""


def ancestral_floor(chain: Process) -> Loop:
    """DDPM's Algorithm 2 with fixed-small variance and clipping, every coefficient a Python float."""
    alpha_bars = chain.alpha_bars
    x_scale = alpha_bars.rsqrt().tolist()
    epsilon_scale = (1 / alpha_bars - 1).sqrt().tolist()
    from_x0, from_x_t = (chain.column(f"posterior_mean_{of}").tolist() for of in ("x0", "xt"))
    sigmas, timesteps = (0.5 * chain.column("posterior_log_variance")).exp().tolist(), chain.timesteps.tolist()

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


def ours(sampler: Sampler, process: Process) -> Loop:
    """The built-in sampler as the cascade calls it."""

    def loop(noise: Tensor, said: Tensor) -> Tensor:
        denoiser = Denoiser(lambda _x, _level, _condition: said, Parameterization())
        return sampler(denoiser.bind(Condition()), noise, process, lambda _k: said)

    return loop


def theirs() -> dict[str, Loop]:
    """The loops over diffusers' schedulers, by our samplers' names; none where it is not installed."""
    try:
        from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
        from diffusers.schedulers import scheduling_ddpm
    except ImportError:
        return {}
    options = {"num_train_timesteps": 1000, "beta_schedule": "linear", "timestep_spacing": "linspace"}
    schedulers: dict[str, Any] = {
        "ancestral": DDPMScheduler(**options, variance_type="fixed_small"),
        "ddim": DDIMScheduler(**options),
        "dpm-solver-pp": DPMSolverMultistepScheduler(**options),
    }

    def loop(scheduler: Any, noise: Tensor, said: Tensor) -> Tensor:
        scheduling_ddpm.randn_tensor = lambda *_args, **_options: said  # noise that lies ready, as for the others
        scheduler.set_timesteps(STEPS)
        x = noise
        for t in scheduler.timesteps:
            x = scheduler.step(said, t, x).prev_sample
        return x

    return {name: partial(loop, scheduler) for name, scheduler in schedulers.items()}


def microseconds(loops: Mapping[str, Callable[[], object]], repeats: int = 15) -> dict[str, float]:
    """The best of some repeats, for each of the steps in a run; the loops take turns."""
    best = dict.fromkeys(loops, float("inf"))
    for _ in range(repeats):
        for name, run in loops.items():
            start = time.process_time()
            run()
            best[name] = min(best[name], time.process_time() - start)
    return {name: seconds / STEPS * 1e6 for name, seconds in best.items()}


@torch.inference_mode()
def main() -> None:
    """Print one line per sampler and shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    torch.set_num_threads(parser.parse_args().threads)
    process = Linear(timesteps=1000).process()
    chain, peers = process.respace(STEPS), theirs()
    samplers: dict[str, Sampler] = {
        "ancestral": Ancestral(steps=STEPS),
        "ddim": Ddim(steps=STEPS),
        "dpm-solver-pp": DpmSolverPP(steps=STEPS),
        "heun": Heun(steps=(STEPS + 1) // 2),
    }
    floors = {"ancestral": ancestral_floor(chain), "ddim": ddim_floor(chain)}
    print(f"{'sampler':<14} {'shape':<11} {'cdmkit':>9} {'floor':>9} {'ratio':>6} {'diffusers':>10} {'ratio':>6}")  # noqa: T201
    for shape in SHAPES:
        index, size = torch.arange(shape[0]), "x".join(map(str, shape))
        noise, said = (Stream.of(0, word).normal(index, shape[1:]) for word in ("noise", "said"))
        for name, sampler in samplers.items():
            loops = {"cdmkit": ours(sampler, process)}
            loops |= {who: each[name] for who, each in (("floor", floors), ("diffusers", peers)) if name in each}
            if "floor" in loops:
                torch.testing.assert_close(loops["cdmkit"](noise, said), loops["floor"](noise, said), rtol=0, atol=1e-3)
            took = microseconds({who: partial(loop, noise, said) for who, loop in loops.items()})
            beside = [
                f"{took[who]:>7.1f}us {took['cdmkit'] / took[who]:>6.2f}" if who in took else " " * 16 for who in ("floor", "diffusers")
            ]
            print(f"{name:<14} {size:<11} {took['cdmkit']:>7.1f}us {' '.join(beside)}")  # noqa: T201


if __name__ == "__main__":
    main()
