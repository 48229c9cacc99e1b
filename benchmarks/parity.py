"""cdmkit beside OpenAI's guided-diffusion and improved-diffusion and beside diffusers: the same weights, noise and steps, in one process.

    PYTHONPATH=.:path/to/guided-diffusion:path/to/improved-diffusion python benchmarks/parity.py [--golden tests/importing/golden.json]

Needs openai/guided-diffusion on PYTHONPATH and diffusers installed; networks of openai/improved-diffusion are left out where that is not
there. Small networks of each kind are given weights that follow from a formula, saved as their projects save them, brought in by
`cdmkit import`, and compared: networks, losses, gradients, bounds, whole chains. It ends with 1 where a difference is beyond its limit.
--golden writes what the tests of the import compare with.

Both codes compute in float32 here and there whatever they are given. To compare in float64 these are patched while they run:
`torch.float32` is `torch.float64`, and `Tensor.float` is `Tensor.double`. Their noise comes from a list, in place of `torch.randn_like` and
diffusers' `randn_tensor`. Where a bound is compared, guided-diffusion's approximation of the normal CDF gives way to the exact one, except
in the row that says so. Timesteps are those that both visit: `leading` of diffusers is our `stride`, `trailing` our `sections` of one
timestep each, `linspace` our default (its DDIM is left out: it steps to t - T/n, which is not the next timestep that it visits). DDIM of
diffusers is told `use_clipped_model_output`, as the noise of ours always follows from the clipped image.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs
import torch
from peers import STEPS, Pair, diffusers_pair, doubled, exact_cdf, noises, openai_pair, package
from torch import Tensor

from cdmkit.builtin.samplers import Ancestral, Ddim
from cdmkit.builtin.spacings import Sections, Stride
from cdmkit.diffusion import Noised, Prediction, full_bound, vlb_term
from cdmkit.importing import openai
from cdmkit.importing.flags import GUIDED, IMPROVED
from cdmkit.importing.published import translate
from cdmkit.kinds import Sampler
from tests.importing.cases import DIFFUSERS, INDEX, OPENAI, filled, sampled

EXACT, IMPORTED, APPROXIMATE = 1e-6, 1e-5, 1e-2

Row = tuple[str, float, float]
"""What, the largest difference, its limit."""


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference of two tensors."""
    return float((one.detach().double() - other.detach().double()).abs().max())


def noise(key: object, like: Tensor) -> Tensor:
    """Something like a draw from N(0, 1)."""
    return 1.7 * filled(f"noise {key}", like.shape)


def networks(pair: Pair) -> Iterator[Row]:
    """What the networks say."""
    x, levels = pair.given["x"], pair.given["levels"]
    with torch.no_grad():
        with doubled():
            theirs = pair.ask(pair.theirs, x, levels)
        yield f"{pair.name}: network, float64", apart(theirs, pair.network(x, levels, pair.condition)), EXACT
        single = attrs.evolve(pair, given={key: value if key == "labels" else value.float() for key, value in pair.given.items()})
        theirs = single.ask(pair.theirs32, x.float(), levels.float())
        ours = copy.deepcopy(pair.network).float()(x.float(), levels.float(), single.condition)
        yield f"{pair.name}: network, imported, float32", apart(theirs, ours), IMPORTED


def losses(pair: Pair) -> Iterator[Row]:
    """The training loss, its gradients, and terms of the bound, at two timesteps of which one is the decoder's.

    A network that predicts x_0 is asked about images without the outermost levels. It is so far off with random weights that at those
    their code floors the probability, which ours does not.
    """
    edge = 0.99 if pair.stage.prediction is Prediction.X0 else 1.0
    x0, t = pair.given["x"].clamp(-edge, edge), torch.tensor([0, 6 * pair.stage.process().steps // 10])
    epsilon = noise("loss", x0)
    with doubled():
        chain = pair.chain("")
        x_t = chain.q_sample(x0, t, noise=epsilon)
        with exact_cdf(pair.package):
            told = chain.training_losses(pair.theirs, x0, t, model_kwargs=pair.told, noise=epsilon)["loss"]
            torch.autograd.backward(told.sum())
            term = their_terms(pair, chain, x0, x_t, t)
        approximate = their_terms(pair, chain, x0, x_t, t)
    denoiser = pair.stage.denoiser(pair.network)
    noised = Noised.of(x0, epsilon, pair.stage.process().point(t + 1))
    ours = pair.stage.loss(denoiser.output(noised.x_t, noised.point, pair.condition), noised, pair.stage.parameterization)
    torch.autograd.backward(ours.sum())
    yield f"{pair.name}: loss ({pair.stage.loss.type_name})", apart(told, ours), EXACT
    published = openai.read(*pair.files, IMPROVED if "improved" in pair.package else GUIDED)
    gradients = {name: parameter.grad for name, parameter in pair.theirs.named_parameters() if parameter.grad is not None}
    translated = translate(attrs.evolve(published, tensors=gradients), pair.network, torch.float64)
    mine = {name: parameter.grad for name, parameter in pair.network.named_parameters() if parameter.grad is not None}
    yield f"{pair.name}: gradients of it", max(apart(mine[name], gradient) for name, gradient in translated.items()), EXACT
    with torch.no_grad():
        terms = vlb_term(denoiser.denoise(noised.x_t, noised.point, pair.condition), noised)
    yield f"{pair.name}: terms of the bound", apart(term, terms), EXACT
    if pair.name == "Improved DDPM":
        yield f"{pair.name}: the same, their CDF approximate", apart(approximate, terms), APPROXIMATE


@torch.no_grad()
def their_terms(pair: Pair, chain: Any, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Terms of the bound, bits/dim."""
    network = chain._wrap_model(pair.theirs)
    return chain._vb_terms_bpd(network, x0, x_t, t, clip_denoised=True, model_kwargs=pair.told)["output"]  # type: ignore[no-any-return]


@torch.no_grad()
def bound(pair: Pair) -> Iterator[Row]:
    """All of the bound, T network calls."""
    x0, process = pair.given["x"].clamp(-1, 1), pair.stage.process()
    drawn = [noise(k, x0) for k in range(process.steps, 0, -1)]
    ours = full_bound(pair.stage.denoiser(pair.network).bind(pair.condition), x0, process, lambda k: drawn[process.steps - k])
    with doubled(), exact_cdf(pair.package), noises(*drawn):
        told = pair.chain("").calc_bpd_loop(pair.theirs, x0, clip_denoised=True, model_kwargs=pair.told)
    yield f"{pair.name}: bound, bits/dim, T = {process.steps}", apart(told["total_bpd"], ours.total), EXACT
    yield f"{pair.name}: each term of it", apart(told["vb"].flip(1), ours.terms), EXACT
    yield f"{pair.name}: L_T of it", apart(told["prior_bpd"], ours.prior), EXACT
    yield f"{pair.name}: errors of x_0 along it", apart(told["xstart_mse"].flip(1), ours.x0_error), EXACT
    yield f"{pair.name}: errors of epsilon along it", apart(told["mse"].flip(1), ours.epsilon_error), EXACT


@torch.no_grad()
def sampled_by_us(pair: Pair, sampler: Sampler) -> Tensor:
    """The end of a chain of ours."""
    x = pair.given["x"]
    denoise = pair.stage.denoiser(pair.network).bind(pair.condition)
    return sampler(denoise, x, pair.stage.sampling_process(), lambda k: noise(k, x))


@torch.no_grad()
def openai_chains(pair: Pair) -> Iterator[Row]:
    """Respaced chains of guided-diffusion; all kinds of one network, two kinds of the others."""
    x = pair.given["x"]
    drawn = [noise(k, x) for k in range(STEPS, 0, -1)]
    chains: list[tuple[str, str, dict[str, float], Sampler]] = [
        (f"ancestral, {STEPS} steps", "p_sample_loop", {}, Ancestral(steps=STEPS)),
        (f"DDIM, ddim{STEPS} spacing", "ddim_sample_loop", {}, Ddim(steps=STEPS, spacing=Stride())),
        (f"ancestral, ddim{STEPS} spacing", "p_sample_loop", {}, Ancestral(steps=STEPS, spacing=Stride())),
        (f"DDIM, {STEPS} steps", "ddim_sample_loop", {}, Ddim(steps=STEPS)),
        (f"DDIM, eta = 0.5, {STEPS} steps", "ddim_sample_loop", {"eta": 0.5}, Ddim(steps=STEPS, eta=0.5)),
        ("ancestral, sections of 10, 15 and 25", "p_sample_loop", {}, Ancestral(steps=STEPS, spacing=Sections(counts=(10, 15, 25)))),
    ]
    for title, loop, more, sampler in chains if pair.name == "Improved DDPM" else chains[:2]:
        spacing = f"ddim{STEPS}" if "spacing" in title else "10,15,25" if "sections" in title else str(STEPS)
        with doubled(), noises(*drawn):
            told = getattr(pair.chain(spacing), loop)(pair.theirs, x.shape, noise=x, model_kwargs=pair.told, **more)
        yield f"{pair.name}: {title}", apart(told, sampled_by_us(pair, sampler)), EXACT


@torch.no_grad()
def diffusers_chains(pair: Pair) -> Iterator[Row]:
    """Chains of diffusers' schedulers. In the step to x_0 their noise is zeros: theirs draws some where that begins above timestep 0."""
    chains: list[tuple[str, dict[str, Any], Sampler]] = [
        ("DDPMScheduler", {}, Ancestral(steps=STEPS, spacing=Stride())),
        ("DDPMScheduler trailing", {}, Ancestral(steps=STEPS, spacing=Sections(counts=(1,) * STEPS))),
        ("DDPMScheduler linspace", {}, Ancestral(steps=STEPS)),
    ]
    if not pair.stage.variance.learned:
        chains += [
            ("DDIMScheduler", {"use_clipped_model_output": True}, Ddim(steps=STEPS, spacing=Stride())),
            ("DDIMScheduler trailing", {"use_clipped_model_output": True}, Ddim(steps=STEPS, spacing=Sections(counts=(1,) * STEPS))),
        ]
    for kind, options, sampler in chains:
        x, scheduler = pair.given["x"], pair.chain(kind)
        with doubled(), noises(*(noise(k, x) for k in range(STEPS, 1, -1)), torch.zeros_like(x)):
            for t in scheduler.timesteps:
                x = scheduler.step(pair.ask(pair.theirs, x, t), t, x, **options).prev_sample
        yield f"{pair.name}: {kind if ' ' in kind else f'{kind} leading'}, {STEPS} steps", apart(x, sampled_by_us(pair, sampler)), EXACT


@torch.no_grad()
def golden(pair: Pair) -> dict[str, Any]:
    """What a test can compare with: the state dict's shapes, the network's output, and a step at `INDEX` of a chain of 50."""
    x, levels = pair.given["x"], pair.given["levels"]
    with doubled():
        made: dict[str, Any] = {"tensors": dict(pair.shapes), "output": sampled(pair.ask(pair.theirs, x, levels))}
        if pair.openai:
            chain, index = pair.chain(str(STEPS)), torch.full((len(x),), INDEX - 1)
            step = chain.p_mean_variance(pair.theirs, x, index, clip_denoised=True, model_kwargs=pair.told)
            return {**made, "mean": sampled(step["mean"]), "log_variance": sampled(step["log_variance"])}
        scheduler = pair.chain("DDPMScheduler")
        t = scheduler.timesteps[STEPS - INDEX]
        with noises(torch.zeros_like(x)):
            return {**made, "mean": sampled(scheduler.step(pair.ask(pair.theirs, x, t), t, x).prev_sample)}


def rows(pair: Pair) -> Iterator[Row]:
    """All that is compared of a network."""
    yield from networks(pair)
    if not pair.openai:
        yield from diffusers_chains(pair)
        return
    yield from losses(pair)
    yield from openai_chains(pair)
    if pair.name in ("DDPM", "Improved DDPM"):
        yield from bound(pair)


def main() -> None:
    """Print the table; end with 1 where something is beyond its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=Path, metavar="FILE", help="write what the tests of the import compare with")
    golden_file = parser.parse_args().golden
    if not (find_spec("guided_diffusion") and find_spec("diffusers")):
        sys.exit("needs openai/guided-diffusion on PYTHONPATH and diffusers installed")
    torch.manual_seed(0)
    made: dict[str, Any] = {}
    failed = False
    print(f"Python {platform.python_version()}, torch {torch.__version__}, diffusers {version('diffusers')}\n")  # noqa: T201
    print("| what | largest difference | limit | |\n|---|---|---|---|")  # noqa: T201
    for name in (name for name in (*OPENAI, *DIFFUSERS) if find_spec(package(name)) or package(name) != "improved_diffusion"):
        with tempfile.TemporaryDirectory() as folder:
            pair = (openai_pair if name in OPENAI else diffusers_pair)(name, Path(folder))
            made[name] = golden(pair)
            for what, difference, limit in rows(pair):
                within = difference <= limit
                failed |= not within
                print(f"| {what} | {difference:.1e} | {limit:.0e} | {'ok' if within else 'NO'} |", flush=True)  # noqa: T201
    if golden_file:
        golden_file.write_text(json.dumps(made, separators=(",", ":")).replace('},"', '},\n"') + "\n", encoding="utf-8")
    sys.exit(failed)


if __name__ == "__main__":
    main()
