"""What a stage's network costs, found without computing it: it is traced with tensors that have shapes but no data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import attrs
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from cdmkit.cascade.stage import Stage
from cdmkit.diffusion import Condition
from cdmkit.errors import SetupError
from cdmkit.kinds import Backend, NetworkSpec

PASSES = 3
"""Forward passes that a training step counts for: the backward pass has two products for each of the forward one."""


@attrs.frozen
class Traced:
    """One call of a network, for one image."""

    parameters: int
    flops: int
    """Floating-point operations of the forward pass: a multiply-accumulate is two."""
    kept_bytes: int
    """What the backward pass needs of it."""


def _attention_flops(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: object, **__: object) -> int:
    """Two products, of tensors of shapes [B, heads, N, D], [B, heads, M, D] and [B, heads, M, E]."""
    return 2 * math.prod(q[:3]) * k[2] * (q[3] + v[3])


_UNCOUNTED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
"""What torch's own counter passes over. Tracing is done for a CPU."""


def trace(stage: Stage, classes: int) -> Traced:
    """What a stage's network takes on data with `classes` labels."""
    spec = stage.network_spec(classes)
    with FakeTensorMode():
        network = stage.backbone.build(spec)
        arguments = example(spec, 1)
        kept = _Kept(network)
        with (
            FlopCounterMode(display=False, custom_mapping=_UNCOUNTED) as counter,
            saved_tensors_hooks(kept, lambda t: t),
            _autocast(stage.backend),
        ):
            network(*arguments)
    return Traced(sum(p.numel() for p in network.parameters()), counter.get_total_flops(), kept.bytes)


def forward_flops(stage: Stage, classes: int) -> float:
    """Floating-point operations of one call of a stage's network for one image; NaN where it cannot be traced."""
    try:
        return trace(stage, classes).flops
    except Exception:  # a plugin's network may look at its data, and tracing has none: that is no reason not to train it
        return math.nan


def example(spec: NetworkSpec, batch: int, device: torch.device | None = None) -> tuple[Tensor, Tensor, Condition]:
    """Arguments of a network: noise in place of `batch` images and of all that goes with them."""
    image = torch.randn(batch, spec.image_channels, spec.resolution, spec.resolution, device=device)
    condition = Condition(
        label=torch.zeros(batch, dtype=torch.long, device=device) if spec.classes else None,
        low_res=torch.randn_like(image) if spec.low_res else None,
        levels=torch.ones(batch, spec.levels, device=device) if spec.levels else None,
    )
    return image, torch.ones(batch, device=device), condition


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
