"""Plans: parameters, work and memory, beside what a real network takes."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import attrs
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from cdmkit.builtin.augmentations import GaussianNoise
from cdmkit.builtin.averages import Power
from cdmkit.builtin.backends import Device, Precision, Torch, TorchSession
from cdmkit.builtin.densities import Uniform
from cdmkit.builtin.dit import DiT
from cdmkit.builtin.losses import Simple
from cdmkit.builtin.optimizers import Adam
from cdmkit.builtin.samplers import Ancestral, Ddim
from cdmkit.builtin.schedules import Cosine
from cdmkit.builtin.thresholds import Static
from cdmkit.builtin.unet import UNet
from cdmkit.cascade import Cascade, Handover, Mode, Stage, Training
from cdmkit.component import component, evolve
from cdmkit.diffusion import Condition
from cdmkit.kinds import Backbone, Backend, NetworkSpec
from cdmkit.planning import StagePlan, plan
from tests import tiny

BASE = Stage(
    name="base",
    resolution=16,
    schedule=Cosine(timesteps=100),
    density=Uniform(),
    loss=Simple(),
    backbone=UNet(channels=16, multipliers=(1, 2), blocks=2, attention=(8,), heads=2, dropout=0.1),
    sampler=Ancestral(steps=10),
    threshold=Static(),
    backend=Torch(device=Device.CPU, precision=Precision.FP32),
    train=Training(batch=4, steps=7, optimizer=Adam()),
)
FINE = evolve(
    BASE, name="fine", after="base", resolution=32, augment=(GaussianNoise(),), backbone=evolve(BASE.backbone, multipliers=(1, 2, 2))
)


def planned(*stages: Stage, classes: int = 5) -> dict[str, StagePlan]:
    """The plan of each stage by name."""
    return {each.stage: each for each in plan(Cascade.of(stages), classes)}


def of_bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def inputs(spec: NetworkSpec, batch: int) -> tuple[Tensor, Tensor, Condition]:
    """Random arguments of a network of `spec`."""
    image = torch.randn(batch, 3, spec.resolution, spec.resolution)
    low_res = torch.randn_like(image) if spec.low_res else None
    levels = torch.rand(batch, spec.levels) if spec.levels else None
    return image, torch.rand(batch), Condition(torch.zeros(batch, dtype=torch.long), low_res, levels)


@pytest.mark.parametrize("stage", [BASE, FINE], ids=lambda stage: str(stage.name))
def test_the_state_is_what_training_holds(stage: Stage) -> None:
    """Weights, gradients, average and optimizer after one step, up to the optimizer's counters."""
    spec = stage.network_spec(5)
    network = stage.backbone.build(spec)
    average = copy.deepcopy(network)
    optimizer = stage.train.optimizer.build(network.parameters())
    network(*inputs(spec, 4)).square().mean().backward()
    optimizer.step()
    parameters = list(network.parameters())
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    state = [value for slots in optimizer.state.values() for value in slots.values()]
    real = of_bytes([*parameters, *gradients, *average.parameters(), *state])
    (told,) = (each for each in plan(Cascade.of([BASE, FINE]), 5) if each.stage == stage.name)
    assert told.parameters == sum(parameter.numel() for parameter in parameters)
    assert told.state_bytes == pytest.approx(real, rel=0.01)


def test_every_average_takes_memory() -> None:
    """That of the network in float32, each."""
    several = evolve(BASE, train=evolve(BASE.train, averages=(Power(sigma_rel=0.1), Power(sigma_rel=0.2))))
    one, more = (planned(stage)["base"] for stage in (BASE, several))
    assert more.state_bytes - one.state_bytes == 2 * 4 * one.parameters


@pytest.mark.parametrize("stage", [BASE, FINE], ids=lambda stage: str(stage.name))
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_activations_are_what_autograd_keeps(stage: Stage, precision: Precision) -> None:
    """Within a tenth, for a real batch; weights, also copied to bf16, not counted."""
    stage = evolve(stage, backend=Torch(device=Device.CPU, precision=precision))
    spec = stage.network_spec(5)
    network = stage.backbone.build(spec)
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    arguments = inputs(spec, 4)
    with saved_tensors_hooks(keep, lambda tensor: tensor), stage.backend.start().autocast():
        network(*arguments)
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    shapes = {shape for parameter in network.parameters() for shape in (parameter.shape, parameter.shape[::-1])}
    copies = {place for place, tensor in kept.items() if tensor.dtype == torch.bfloat16 and tensor.shape in shapes}
    activations = [tensor for place, tensor in kept.items() if place not in own | copies]
    real = sum(tensor.untyped_storage().nbytes() for tensor in activations)
    told = planned(BASE, stage)[stage.name] if stage.after else planned(stage)[stage.name]
    assert told.activation_bytes == pytest.approx(real, rel=0.1)
    assert told.training_bytes == told.state_bytes + told.activation_bytes


@component("far")
class Far(Backend):
    """A device that is not the CPU, in bf16."""

    def start(self) -> TorchSession:
        return TorchSession(torch.device("mps"), bf16=True, compile=False)


def test_activations_are_in_the_precision_of_any_device() -> None:
    """As much as in bf16 on the CPU, where they are traced."""
    near = planned(evolve(BASE, backend=Torch(device=Device.CPU, precision=Precision.BF16)))["base"]
    assert planned(evolve(BASE, backend=Far()))["base"] == near != planned(BASE)["base"]


def test_activations_follow_what_is_worked_on_at_once() -> None:
    """Half as much for a batch in two parts."""
    whole, halves = planned(BASE)["base"], planned(evolve(BASE, train=evolve(BASE.train, accumulate=2)))["base"]
    assert whole.activation_bytes == 2 * halves.activation_bytes
    assert whole.state_bytes == halves.state_bytes


@component("lone-conv")
class LoneConv(Backbone):
    """One convolution."""

    def build(self, spec: NetworkSpec) -> nn.Module:
        return Convolve(spec)


class Convolve(nn.Module):
    """What `LoneConv` builds."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, spec.out_channels, 5, padding=2)

    def forward(self, x_t: Tensor, noise_level: Tensor, condition: Condition) -> Tensor:
        out: Tensor = self.conv(x_t)
        return out


def test_work_is_counted_as_by_hand() -> None:
    """A 5 x 5 convolution from 3 to 3 channels; a step is three forward passes of two operations each."""
    stage = evolve(BASE, backbone=LoneConv())
    told = planned(stage)["base"]
    macs = 16 * 16 * 5 * 5 * 3 * 3
    assert told.parameters == 5 * 5 * 3 * 3 + 3
    assert told.macs_per_call == macs
    assert told.images_seen == 4 * 7
    assert told.training_flops == 2 * 3 * macs * 28


def test_attention_counts() -> None:
    """Two products of all pixels with all pixels, beside the projections."""
    plain = planned(evolve(BASE, backbone=evolve(BASE.backbone, attention=())))["base"]
    attending = planned(BASE)["base"]
    pixels, channels, places = 8 * 8, 32, 5
    assert attending.macs_per_call - plain.macs_per_call == places * (2 * pixels**2 * channels + 4 * channels**2 * pixels)


def test_attention_counts_in_transformers() -> None:
    """Of a block: two products of all tokens with all tokens, four projections, the MLP and the modulation."""
    one, two = (planned(evolve(BASE, backbone=DiT(patch=2, width=24, heads=2, depth=depth)))["base"] for depth in (1, 2))
    tokens, width = 8 * 8, 24
    assert two.macs_per_call - one.macs_per_call == 2 * tokens**2 * width + (4 + 8) * tokens * width**2 + 6 * width**2


@pytest.mark.parametrize(
    ("sampler", "handover", "calls"),
    [
        (Ancestral(steps=10), Handover(), 10),
        (Ancestral(steps=100), Handover(), 100),
        (Ancestral(steps=100), Handover(mode=Mode.TRUNCATED, s=30), 70),
        (Ddim(steps=100), Handover(mode=Mode.NON_TRUNCATED, s=30), 100),
    ],
)
def test_calls_end_where_a_truncated_child_takes_over(sampler: Ancestral | Ddim, handover: Handover, calls: int) -> None:
    """Of two children, where the one that lets it run the furthest does."""
    base, child = evolve(BASE, sampler=sampler), evolve(FINE, condition=handover)
    told = planned(base, child)
    assert (told["base"].sampling_calls, told["fine"].sampling_calls) == (calls, 10)
    further = evolve(child, name="further", condition=evolve(handover, s=20))
    assert planned(base, child, further)["base"].sampling_calls == (80 if handover.mode is Mode.TRUNCATED else calls)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_need_not_be_there() -> None:
    """It is planned in float32."""
    elsewhere = planned(evolve(BASE, backend=Torch(device=Device.CUDA, precision=Precision.BF16)))
    assert elsewhere == planned(BASE)


def test_nothing_is_computed() -> None:
    """A network that no machine could hold is planned at once."""
    huge = evolve(BASE, backbone=UNet(channels=2**15, multipliers=(1,), blocks=1, attention=(), heads=1))
    assert planned(huge)["base"].parameters > 10**11


def test_the_command_prints_the_plan(tmp_path: Path) -> None:
    """JSON and a table tell the same."""
    recipe = tiny.write(tmp_path)
    plans = json.loads(tiny.call("plan", "--json", recipe).stdout)
    fields = [field.name for field in attrs.fields(StagePlan)]
    assert [list(each) for each in plans] == [[*fields, "training_bytes"]] * 2
    assert [(each["stage"], each["after"], each["resolution"]) for each in plans] == [("base", None, 4), ("fine", "base", 8)]
