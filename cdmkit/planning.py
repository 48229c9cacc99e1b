"""What a run would cost, found without computing it."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import torch
from torch import Tensor, nn

from cdmkit.cascade import Cascade, Stage, Training
from cdmkit.cascade.sampling import stop_at
from cdmkit.cascade.tracing import PASSES, trace
from cdmkit.kinds import Optimizer


@attrs.frozen(kw_only=True)
class StagePlan:
    """What training and sampling one stage takes."""

    stage: str
    after: str | None
    resolution: int
    parameters: int
    steps: int
    images_seen: int
    """Training images over all steps, repeats counted."""
    macs_per_call: int
    """Multiply-accumulates of the network for one image."""
    training_flops: int
    """Of all of training: a backward pass counts as two forward passes, a multiply-accumulate as two."""
    sampling_calls: int
    """Calls to sample one image of this stage, its parents' not included; guidance asks the network more than once in some."""
    state_bytes: int
    """Weights, gradients, moving averages and optimizer state, in float32; the weights alone where nothing is trained."""
    activation_bytes: int
    """What the backward pass keeps for the images that one device works on at once, if there is one device."""

    @property
    def training_bytes(self) -> int:
        """The least memory that training on one device takes; buffers of the libraries come on top."""
        return self.state_bytes + self.activation_bytes


def plan(cascade: Cascade, classes: int) -> Iterator[StagePlan]:
    """The plan of each stage, parents first. Reads no data and needs no device."""
    for stage in cascade:
        traced = trace(stage, classes)
        images = stage.train.steps * stage.train.batch
        yield StagePlan(
            stage=stage.name,
            after=stage.after,
            resolution=stage.resolution,
            parameters=traced.parameters,
            steps=stage.train.steps,
            images_seen=images,
            macs_per_call=traced.flops // 2,
            training_flops=PASSES * traced.flops * images,
            sampling_calls=sampling_calls(cascade, stage),
            state_bytes=int(4 * traced.parameters * (_copies(stage.train) if images else 1)),
            activation_bytes=traced.kept_bytes * (stage.train.batch // stage.train.accumulate) if images else 0,
        )


def sampling_calls(cascade: Cascade, stage: Stage) -> int:
    """How often a sampler calls the stage's network for a batch, for the child that lets it run the furthest."""
    stop = min((stop_at(child) for child in cascade if child.after == stage.name), default=0)
    return stage.sampler.calls(stage.sampling_process(), stop)


def _copies(train: Training) -> float:
    """Numbers that training keeps for each parameter: itself, its gradient, its averages, and what the optimizer has of it."""
    return 2 + len(train.decays) + _optimizer_state(train.optimizer)


def _optimizer_state(optimizer: Optimizer) -> float:
    """Numbers that the optimizer keeps for each parameter, found by one step of it on a small one."""
    parameter = nn.Parameter(torch.zeros(1024))
    built = optimizer.build([parameter])
    parameter.grad = torch.zeros_like(parameter)
    built.step()
    kept = (value.numel() for value in built.state[parameter].values() if isinstance(value, Tensor) and value.numel() > 1)
    return sum(kept) / parameter.numel()
