"""Imported networks against numbers of their origins, which benchmarks/parity.py wrote down."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cdmkit.cascade import Stage
from cdmkit.diffusion import Condition, posterior_mean, strided_timesteps
from cdmkit.importing import import_weights
from cdmkit.plugins import load_plugins
from cdmkit.recipe import read
from cdmkit.training import fit, read_weights
from tests.importing.cases import DIFFUSERS, INDEX, OPENAI, golden, inputs, options, sampled, save

CASES = [*OPENAI, *DIFFUSERS]
STEPS = 50


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    """Each network."""
    name: str = request.param
    return name


@pytest.fixture
def imported(case: str, tmp_path: Path) -> tuple[Stage, nn.Module, dict[str, Tensor]]:
    """A case's stage, its network in float32, and what networks are given in float64."""
    plugins = load_plugins()
    origin, flags = options(case)
    made = import_weights(origin, save(tmp_path, case), flags, "found", tmp_path / "out", plugins)
    recipe = read(made.recipe, plugins)
    (stage,) = recipe.stage.values()
    network = stage.backbone.build(stage.network_spec(recipe.data.classes)).eval()
    fit(network, read_weights(Path(str(stage.weights)))[0], case)
    return stage, network, inputs(stage.resolution, recipe.data.classes, stage.low_res)


def condition(stage: Stage, given: dict[str, Tensor]) -> Condition:
    """What our network is told."""
    low_res = given.get("low_res")
    return Condition(given.get("labels"), None if low_res is None else stage.upsample(low_res, stage.resolution))


def far(found: Tensor, wanted: list[float]) -> float:
    """The largest difference, at the places that are written down."""
    return float((torch.tensor(sampled(found), dtype=torch.float64) - torch.tensor(wanted, dtype=torch.float64)).abs().max())


@torch.no_grad()
def test_networks_say_what_they_say_there(case: str, imported: tuple[Stage, nn.Module, dict[str, Tensor]]) -> None:
    """In float64 and in float32, as far as each goes."""
    stage, network, given = imported
    wanted = golden(case)["output"]
    assert max(map(abs, wanted)) > 0.5
    single = {key: value if key == "labels" else value.float() for key, value in given.items()}
    assert far(network(single["x"], single["levels"], condition(stage, single)), wanted) < 1e-5
    assert far(network.double()(given["x"], given["levels"], condition(stage, given)), wanted) < 1e-10


@torch.no_grad()
def test_steps_of_a_chain_are_theirs(case: str, imported: tuple[Stage, nn.Module, dict[str, Tensor]]) -> None:
    """Schedule, noise input, prediction, variance and threshold: the mean and variance of a reverse step, among 50 timesteps."""
    stage, network, given = imported
    process = stage.sampling_process()
    chain = process.respace(STEPS) if case in OPENAI else process.keep(strided_timesteps(process.steps, STEPS))
    denoiser, point = stage.denoiser(network.double()), chain.point(torch.tensor([INDEX]))
    denoised = denoiser.denoise(given["x"], point, condition(stage, given))
    wanted = golden(case)
    assert far(posterior_mean(denoised.x0, given["x"], point), wanted["mean"]) < 1e-10
    if "log_variance" in wanted:
        assert far(denoised.log_variance.expand(given["x"].shape), wanted["log_variance"]) < 1e-10
