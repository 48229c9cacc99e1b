"""What training tells of itself."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from cdmkit.builtin.backends import TorchSession
from cdmkit.cascade import Stage
from cdmkit.cascade.tracing import trace
from cdmkit.component import component
from cdmkit.diffusion import Condition
from cdmkit.events import Event, Progress
from cdmkit.kinds import Backbone, Backend, NetworkSpec, Session
from cdmkit.training.learner import Learner, Update
from cdmkit.training.progress import LEVELS, Meter
from tests.training.components import CLASSES, TinyNetwork, make_stage

CPU = torch.device("cpu")


def reported(stage: Stage, *updates: Update) -> Progress:
    """What is told after some steps."""
    events: list[Event] = []
    learner = Learner(stage, classes=CLASSES, seed=0, session=stage.backend.start())
    meter = Meter(stage, learner, events.append, CLASSES)
    for update in updates:
        meter.add(update)
        learner.step += 1
    meter.report(0.1, 0)
    (progress,) = (event for event in events if isinstance(event, Progress))
    return progress


def update(t: list[int], plain: list[float], *, bad: bool = False) -> Update:
    """A step with images at timesteps t."""
    return Update(torch.tensor(1.0), torch.tensor(2.0), torch.tensor(bad), torch.tensor(t), torch.tensor(plain))


def test_losses_are_told_per_noise_level() -> None:
    """The mean in each eighth of 1..T, over all steps since the last report; NaN where no image fell."""
    stage = make_stage()  # T = 100: the eighths begin at 1, 14, 26, 39, 51, 64, 76, 89
    told = reported(stage, update([1, 13, 14, 100], [1.0, 2.0, 3.0, 4.0]), update([12, 88], [6.0, 7.0])).levels
    assert len(told) == LEVELS
    assert told[:2] == (3.0, 3.0)
    assert told[6:] == (7.0, 4.0)
    assert all(math.isnan(level) for level in told[2:6])


def test_a_bad_step_has_no_part_in_them() -> None:
    """Whatever its losses are."""
    told = reported(make_stage(), update([1, 50], [1.0, 2.0]), update([1, 50], [math.nan, math.inf], bad=True)).levels
    assert (told[0], told[3]) == (1.0, 2.0)


def test_the_speed_of_products_is_that_of_three_calls() -> None:
    """Of the network as it is traced, for each image."""
    stage = make_stage()
    told = reported(stage, update([1], [1.0]))
    assert told.gflops == pytest.approx(3 * trace(stage, CLASSES).flops * told.images_per_second / 1e9)


class Looking(TinyNetwork):
    """A network that looks at its data."""

    def forward(self, x_t: Tensor, level: Tensor, condition: Condition) -> Tensor:
        if float(level.max()) < 0:
            raise AssertionError
        return super().forward(x_t, level, condition)


@component("looking")
class LooksAtData(Backbone):
    """What no one can trace without data."""

    def build(self, spec: NetworkSpec) -> nn.Module:
        return Looking(spec, 0.0, ())


def test_a_network_that_cannot_be_traced_trains_all_the_same() -> None:
    """Its speed is told in images alone."""
    told = reported(make_stage(backbone=LooksAtData()), update([1], [1.0]))
    assert math.isnan(told.gflops)
    assert told.images_per_second > 0


class Paired(TorchSession):
    """A session beside another one, which had three images of losses 2, 3 and 4 in the noisiest eighth."""

    def total(self, value: Tensor) -> Tensor:
        theirs = torch.zeros_like(value)
        theirs[:, -1] = torch.tensor([9.0, 3.0])
        return value + theirs


@component("paired")
class PairedCpu(Backend):
    """What opens it."""

    def start(self) -> Session:
        return Paired(CPU, bf16=False, compile=False)


def test_levels_are_over_the_images_of_all_processes() -> None:
    """A mean of all, not of this process's."""
    told = reported(make_stage(backend=PairedCpu()), update([1, 100], [1.0, 7.0])).levels
    assert (told[0], told[7]) == (1.0, 4.0)
