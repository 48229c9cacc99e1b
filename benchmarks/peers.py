"""The networks and chains of openai/guided-diffusion, openai/improved-diffusion and diffusers, each beside what cdmkit imports of it."""

from __future__ import annotations

import argparse
import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import attrs
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from cdmkit.cascade import Stage
from cdmkit.cli.importing import import_
from cdmkit.diffusion import Condition
from cdmkit.plugins import load_plugins
from cdmkit.recipe import read
from cdmkit.training import fit, read_weights
from tests.importing.cases import DIFFUSERS, OPENAI, inputs, save_folder, weights

STEPS = 50


@contextlib.contextmanager
def doubled() -> Iterator[None]:
    """Have their code compute in float64 throughout."""
    with mock.patch.object(torch, "float32", torch.float64), mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        yield


@contextlib.contextmanager
def noises(*values: Tensor) -> Iterator[None]:
    """Have their code draw these, in this order."""
    rest = iter(values)

    def draw(*_: object, **__: object) -> Tensor:
        return next(rest)

    ddpm = import_module("diffusers.schedulers.scheduling_ddpm")
    with mock.patch.object(torch, "randn_like", draw), mock.patch.object(ddpm, "randn_tensor", draw):
        yield


@contextlib.contextmanager
def exact_cdf(package: str) -> Iterator[None]:
    """Have OpenAI's code compute the normal CDF, which it approximates by a tanh."""
    with mock.patch.object(import_module(f"{package}.losses"), "approx_standard_normal_cdf", torch.special.ndtr):
        yield


@attrs.frozen(eq=False, kw_only=True)
class Pair:
    """A network as its origin runs it and as it is imported, with the same weights."""

    name: str
    shapes: Mapping[str, Sequence[int]]
    given: Mapping[str, Tensor]
    theirs: nn.Module
    theirs32: nn.Module
    stage: Stage
    network: nn.Module
    """Imported, float64."""
    chain: Callable[[str], Any]
    """Their chain, by how it is spaced; for diffusers the scheduler of that name."""
    files: tuple[Path, str]
    """What was imported, and the flags."""

    @property
    def condition(self) -> Condition:
        """What our network is told."""
        low_res = self.given.get("low_res")
        return Condition(self.given.get("labels"), None if low_res is None else self.stage.upsample(low_res, self.stage.resolution))

    @property
    def told(self) -> dict[str, Tensor]:
        """The same for theirs."""
        return {name: self.given[key] for key, name in (("labels", "y"), ("low_res", "low_res")) if key in self.given}

    @property
    def openai(self) -> bool:
        """Whether it is of OpenAI's code."""
        return self.name in OPENAI

    @property
    def package(self) -> str:
        """The Python package of its origin."""
        return package(self.name)

    def ask(self, network: nn.Module, x: Tensor, levels: Tensor) -> Tensor:
        """The output of one of their networks."""
        if self.openai:
            return network(x, levels, **self.told)  # type: ignore[no-any-return]
        labels = {"class_labels": self.given["labels"]} if "labels" in self.given else {}
        return network(x, levels, **labels).sample  # type: ignore[no-any-return]


def imported(origin: str, path: Path, *options: str) -> tuple[Stage, nn.Module, int]:
    """What `cdmkit import` makes of files: the stage, its network in float32, and the classes it is told."""
    result = CliRunner().invoke(import_, [origin, str(path), "--name", "found", "--out", str(path.parent / "out"), *options])
    if result.exception:
        raise result.exception
    recipe = read(path.parent / "out" / "found.toml", load_plugins())
    (stage,) = recipe.stage.values()
    network = stage.backbone.build(stage.network_spec(recipe.data.classes)).eval()
    fit(network, read_weights(Path(str(stage.weights)))[0], str(path))
    return stage, network, recipe.data.classes


def filled_in(network: nn.Module) -> dict[str, Sequence[int]]:
    """Give a network the weights that follow from the formula; the shapes of them."""
    shapes: dict[str, Sequence[int]] = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    network.load_state_dict(weights(shapes))
    network.eval().requires_grad_(True)
    return shapes


def package(name: str) -> str:
    """The Python package that a case is of."""
    return OPENAI.get(name, ("diffusers", ""))[0].replace("-", "_")


def openai_pair(name: str, folder: Path) -> Pair:
    """A network of OpenAI's code."""
    origin, flags = OPENAI[name]
    scripts = import_module(f"{package(name)}.script_util")
    kind = "sr_" if "--large_size" in flags else ""
    parser = argparse.ArgumentParser()
    scripts.add_dict_to_argparser(parser, getattr(scripts, f"{kind}model_and_diffusion_defaults")())
    values = vars(parser.parse_args(flags.split()))
    make = getattr(scripts, f"{kind}create_model_and_diffusion")
    theirs32, _ = make(**values)
    shapes = filled_in(theirs32)
    with doubled():
        theirs = make(**values)[0].double()
    filled_in(theirs)
    torch.save(theirs32.state_dict(), folder / "model.pt")
    stage, network, classes = imported(origin, folder / "model.pt", "--flags", flags)
    return Pair(
        name=name,
        shapes=shapes,
        given=inputs(stage.resolution, classes, stage.low_res),
        theirs=theirs,
        theirs32=theirs32,
        stage=stage,
        network=network.double(),
        chain=lambda spacing: make(**{**values, "timestep_respacing": spacing})[1],
        files=(folder / "model.pt", flags),
    )


def diffusers_pair(name: str, folder: Path) -> Pair:
    """A network of diffusers."""
    config, scheduler = DIFFUSERS[name]
    package = import_module("diffusers")
    plain = {key: value for key, value in scheduler.items() if key != "_class_name"}
    theirs32 = package.UNet2DModel.from_config(config)
    shapes = filled_in(theirs32)
    theirs = copy.deepcopy(theirs32).double()
    save_folder(folder / "model", config, scheduler, theirs32.state_dict())
    stage, network, classes = imported("diffusers", folder / "model")

    def chain(kind: str) -> Any:
        """A scheduler of the same settings, all but those it does not know."""
        cls, *spacing = kind.split()
        with doubled():
            made = getattr(package, cls).from_config({**plain, **({"timestep_spacing": spacing[0]} if spacing else {})})
            made.set_timesteps(STEPS)
        return made

    return Pair(
        name=name,
        shapes=shapes,
        given=inputs(stage.resolution, classes, None),
        theirs=theirs,
        theirs32=theirs32,
        stage=stage,
        network=network.double(),
        chain=chain,
        files=(folder, ""),
    )
