"""What a run would cost, found without computing it: networks are traced with tensors that have shapes but no data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import attrs
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from cdmkit.cascade import Cascade, Stage
from cdmkit.cascade.sampling import stop_at
from cdmkit.diffusion import Condition
from cdmkit.errors import SetupError
from cdmkit.kinds import Backend, NetworkSpec, Optimizer


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
    """Weights, gradients, moving average and optimizer state, in float32; the weights alone where nothing is trained."""
    activation_bytes: int
    """What the backward pass keeps for the images that one device works on at once, if there is one device."""

    @property
    def training_bytes(self) -> int:
        """The least memory that training on one device takes; buffers of the libraries come on top."""
        return self.state_bytes + self.activation_bytes


def plan(cascade: Cascade, classes: int) -> Iterator[StagePlan]:
    """The plan of each stage, parents first. Reads no data and needs no device."""
    for stage in cascade:
        spec = stage.network_spec(classes)
        parameters, macs, kept = _traced(stage, spec)
        images = stage.train.steps * stage.train.batch
        yield StagePlan(
            stage=stage.name,
            after=stage.after,
            resolution=stage.resolution,
            parameters=parameters,
            steps=stage.train.steps,
            images_seen=images,
            macs_per_call=macs,
            training_flops=6 * macs * images,
            sampling_calls=stage.sampler.calls(stage.sampling_process(), _stop(cascade, stage)),
            state_bytes=int(4 * parameters * (3 + _optimizer_state(stage.train.optimizer))) if images else 4 * parameters,
            activation_bytes=kept * (stage.train.batch // stage.train.accumulate) if images else 0,
        )


def _stop(cascade: Cascade, stage: Stage) -> int:
    """Where sampling the stage stops, for the child that lets it run the furthest."""
    return min((stop_at(child) for child in cascade if child.after == stage.name), default=0)


def _traced(stage: Stage, spec: NetworkSpec) -> tuple[int, int, int]:
    """Parameters, multiply-accumulates of one forward pass and bytes kept for the backward pass, both for one image."""
    with FakeTensorMode():
        network = stage.backbone.build(spec)
        image = torch.zeros(1, spec.image_channels, spec.resolution, spec.resolution)
        condition = Condition(
            label=torch.zeros(1, dtype=torch.long) if spec.classes else None,
            low_res=torch.zeros_like(image) if spec.low_res else None,
            levels=torch.zeros(1, spec.levels) if spec.levels else None,
        )
        kept = _Kept(network)
        with FlopCounterMode(display=False) as counter, saved_tensors_hooks(kept, lambda t: t), _autocast(stage.backend):
            network(image, torch.ones(1), condition)
    return sum(p.numel() for p in network.parameters()), counter.get_total_flops() // 2, kept.bytes


def _autocast(backend: Backend) -> AbstractContextManager[object]:
    """The backend's mixed precision as on this machine, for the CPU where tracing is done; float32 where its device is not here."""
    try:
        session = backend.start()
    except SetupError:
        return nullcontext()
    device = session.device.type
    with session.autocast():
        return torch.autocast("cpu", torch.get_autocast_dtype(device), enabled=torch.is_autocast_enabled(device))


class _Kept:
    """Counts the bytes of distinct tensors that autograd keeps for one image: not the network's own, nor their copies in bf16."""

    def __init__(self, network: nn.Module) -> None:
        self.bytes = 0
        own = [*network.parameters(), *network.buffers()]
        self._seen = {tensor.untyped_storage()._cdata for tensor in own}
        self._own_shapes = {shape for tensor in own for shape in (tensor.shape, tensor.shape[::-1])}

    def __call__(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen and tensor.shape not in self._own_shapes:
            self._seen.add(storage._cdata)
            self.bytes += storage.nbytes()
        return tensor


def _optimizer_state(optimizer: Optimizer) -> float:
    """Numbers that the optimizer keeps for each parameter, found by one step of it on a small one."""
    parameter = nn.Parameter(torch.zeros(1024))
    built = optimizer.build([parameter])
    parameter.grad = torch.zeros_like(parameter)
    built.step()
    kept = (value.numel() for value in built.state[parameter].values() if isinstance(value, Tensor) and value.numel() > 1)
    return sum(kept) / parameter.numel()
