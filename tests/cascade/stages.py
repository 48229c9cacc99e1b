"""Small stages, and networks for them, that make tests of cascades fast."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cdmkit.builtin.augmentations import GaussianNoise
from cdmkit.builtin.backends import Torch
from cdmkit.builtin.densities import Uniform
from cdmkit.builtin.losses import Simple
from cdmkit.builtin.optimizers import Adam
from cdmkit.builtin.samplers import Ancestral
from cdmkit.builtin.schedules import Cosine
from cdmkit.builtin.thresholds import Static
from cdmkit.builtin.unet import UNet
from cdmkit.cascade import Handover, Mode, Stage, Training
from cdmkit.diffusion import Condition
from cdmkit.kinds import Session

CLASSES = 4


def stage(name: str, after: str | None = None, **options: Any) -> Stage:
    """A base stage at 4x4, or one after another, twice as large, that noises its input."""
    defaults: dict[str, Any] = {
        "resolution": 4 if after is None else 8,
        "schedule": Cosine(timesteps=20),
        "density": Uniform(),
        "loss": Simple(),
        "backbone": UNet(channels=4, multipliers=(1,), blocks=1, attention=(), heads=1),
        "sampler": Ancestral(steps=5),
        "threshold": Static(),
        "augment": () if after is None else (GaussianNoise(),),
        "backend": Torch(),
        "train": Training(batch=2, steps=1, optimizer=Adam()),
    }
    return Stage(name=name, after=after, **(defaults | options))


def handover(mode: Mode, s: int) -> Handover:
    """The `condition` of a stage."""
    return Handover(mode=mode, s=s)


class Recording(nn.Module):
    """A stage's own network with random weights; keeps every (x_t, noise level, condition) it is told. Says NaN for one label."""

    def __init__(self, stage: Stage, seed: int, nan_label: int | None) -> None:
        super().__init__()
        self.network = stage.backbone.build(stage.network_spec(CLASSES))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        self.nan_label = nan_label
        self.told: list[tuple[Tensor, Tensor, Condition]] = []

    def forward(self, x_t: Tensor, noise_level: Tensor, condition: Condition) -> Tensor:
        self.told.append((x_t, noise_level, condition))
        said: Tensor = self.network(x_t, noise_level, condition)
        if self.nan_label is not None and condition.label is not None:
            said = torch.where((condition.label == self.nan_label).view(-1, 1, 1, 1), torch.nan, said)
        return said


class Counting(Session):
    """The CPU in float32; counts the ends of steps."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.boundaries = 0

    def prepare(self, module: nn.Module) -> nn.Module:
        return module

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def boundary(self) -> None:
        self.boundaries += 1


def networks(stages: Iterable[Stage], nan_label: int | None = None) -> dict[str, Recording]:
    """A network for each stage, its weights a function of the stage's place."""
    return {stage.name: Recording(stage, seed, nan_label).eval() for seed, stage in enumerate(stages)}
