"""The backend that plain torch is: one CPU, CUDA or MPS device for each process, joined by torch.distributed."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from enum import Enum
from functools import cache
from typing import Any

import attrs
import torch
import torch.distributed as dist
from torch import Tensor, nn

from cdmkit.component import Binds, Component, component, option
from cdmkit.errors import SetupError
from cdmkit.hookspecs import hookimpl
from cdmkit.kinds import Backend, Session

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of malloc.h."""


class Device(Enum):
    """Where tensors live."""

    AUTO = "auto"
    """CUDA if there is one, then MPS, then the CPU."""
    CPU = "cpu"
    CUDA = "cuda"
    MPS = "mps"


class Precision(Enum):
    """The dtype of the network's products. Weights, optimizer, losses and all of the diffusion algebra stay float32."""

    AUTO = "auto"
    """bf16 where the hardware multiplies in it (CUDA from Ampere on, CPUs with AMX), else fp32."""
    FP32 = "fp32"
    """On CUDA without TF32, which has 10 bits of mantissa."""
    BF16 = "bf16"


class Parallel(Enum):
    """How several devices share the training of a stage."""

    DDP = "ddp"
    """Each holds the whole network and takes a share of the batch; gradients are averaged while they are computed."""
    FSDP = "fsdp"
    """As before, but weights, gradients, averages and the optimizer's state are split among them, too: for networks too large for one."""


@component("torch")
class Torch(Backend):
    """One device of this process."""

    device: Device = option(Device.AUTO, help="auto: CUDA if there is one, then MPS, then the CPU", binds=Binds.NOTHING)
    precision: Precision = option(Precision.AUTO, help="auto: bf16 where the hardware multiplies in it, else fp32; fp32 is without TF32")
    compile: bool = option(
        False, help="compile networks with torch.compile: a minute or more at the start, faster steps on a GPU", binds=Binds.NOTHING
    )
    parallel: Parallel = option(
        Parallel.DDP, help="several devices each hold the whole network (ddp), or share it out among them (fsdp)", binds=Binds.NOTHING
    )
    patience: float = option(
        1800.0,
        help="seconds without a step after which one of several processes prints where it stands, and ends",
        gt=0,
        binds=Binds.NOTHING,
    )

    def start(self) -> Session:
        """Choose the device. Raises SetupError, saying which devices there are, where it is not there."""
        there = _devices()
        if self.device is Device.AUTO:
            chosen = there[0]
        elif self.device in there:
            chosen = self.device
        else:
            names = ", ".join(device.value for device in there)
            raise SetupError(
                f'backend device = "{self.device.value}": torch sees no such device here; there is: {names}. Choose one or "auto".'
            )
        if self.precision is Precision.FP32:
            torch.backends.cudnn.allow_tf32 = False  # of the whole process; on by default for convolutions
        bf16 = _multiplies_bf16(chosen) if self.precision is Precision.AUTO else self.precision is Precision.BF16
        world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        device = _own_device(chosen, world)
        return TorchSession(device, bf16, self.compile, rank, world, self.parallel, self.patience)


def _devices() -> list[Device]:
    """The devices of this machine, best first."""
    there = []
    if torch.cuda.is_available():
        there.append(Device.CUDA)
    if torch.backends.mps.is_available():
        there.append(Device.MPS)
    return [*there, Device.CPU]


def _own_device(chosen: Device, world: int) -> torch.device:
    """That of this process: of several CUDA devices each process of a machine has its own."""
    if world == 1 or chosen is not Device.CUDA:
        return torch.device(chosen.value)
    number, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if number >= count:
        raise SetupError(f"process {number} of this machine has no CUDA device of its own, there are {count}: start {count} processes")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def _multiplies_bf16(device: Device) -> bool:
    """Whether bf16 pays: with AMX, training steps of small convolutional networks took 0.37 to 0.75 of the time they take in fp32."""
    match device:
        case Device.CUDA:
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        case Device.CPU:
            return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
        case _:
            return False


@attrs.define(eq=False)
class TorchSession(Session):
    """A device and its precision."""

    device: torch.device
    bf16: bool
    compile: bool
    rank: int = 0
    world: int = 1
    parallel: Parallel = Parallel.DDP
    patience: float = 1800.0
    _asked: tuple[Any, Tensor] | None = None
    """What `agree` asked in the call before: a pending reduction, and where its result will be."""

    def prepare(self, module: nn.Module) -> nn.Module:
        """Move a module here, channels-last: on a CPU convolutions of 64 x 64 pixels take up to 1.4 times as long in torch's own order."""
        if self.device.type == "cpu":
            _keep_memory()
        module.to(self.device)
        nn.utils.convert_conv2d_weight_memory_format(module, torch.channels_last)
        if self.compile:
            module.compile()
        return module

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Products in bf16 where that was chosen. On CUDA torch keeps norms, softmax and losses in float32 by itself."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def put(self, tensor: Tensor) -> Tensor:
        """Copied while the host goes on: CUDA reads host memory by itself where that is pinned."""
        pins = self.device.type == "cuda" and tensor.device.type == "cpu"
        return (tensor.pin_memory() if pins else tensor).to(self.device, non_blocking=True)

    def share(self, network: nn.Module, *, learns: bool) -> nn.Module:
        """Split the network among the processes, or have its gradients averaged, as `parallel` says."""
        if self.world == 1:
            return network
        if self.parallel is Parallel.FSDP:
            return _split(network, self.device, learns)
        if not learns:
            return network
        devices = None if self.device.type == "cpu" else [self.device]
        return nn.parallel.DistributedDataParallel(
            network,
            device_ids=devices,
            gradient_as_bucket_view=True,
            static_graph=True,  # finds at the first pass which parameters have no part in the loss: their gradients are waited for by none
        )

    @contextlib.contextmanager
    def more_parts(self, network: nn.Module) -> Iterator[None]:
        """Gradients stay where they are until the last part's backward pass, where each process holds the whole network."""
        if isinstance(network, nn.parallel.DistributedDataParallel):
            with network.no_sync():
                yield
        else:
            yield

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.world > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def gather(self, value: Tensor) -> Tensor:
        """Everyone's, interleaved."""
        if self.world == 1:
            return value
        found = [torch.empty_like(value) for _ in range(self.world)]
        dist.all_gather(found, value.contiguous())
        return torch.stack(found, 1).flatten(0, 1)

    def agree(self, flag: bool) -> bool:
        """Whether any process said True: here and now if alone, else in the call before, so that nobody waits for an answer on its way."""
        if self.world == 1:
            return flag
        asked, votes = self._asked, torch.tensor([flag], dtype=torch.uint8)
        self._asked = (dist.all_reduce(votes, dist.ReduceOp.MAX, async_op=True), votes)
        if asked is None:
            return False
        asked[0].wait()
        return bool(asked[1])


@cache
def _keep_memory() -> None:
    """Have glibc keep what is freed, of up to 32 MB each: to take it from the kernel again was 4 to 5 % of a training step in bf16."""
    with contextlib.suppress(AttributeError, OSError):  # other C libraries have no such switch
        change = ctypes.CDLL(None).mallopt
        change(_M_TRIM_THRESHOLD, 2**31 - 1)
        change(_M_MMAP_THRESHOLD, 2**25)


def _split(network: nn.Module, device: torch.device, learns: bool) -> nn.Module:
    """Share out a network's tensors, block by block: no process holds more than one block whole (FSDP2, arXiv:2304.11277).

    What is in no block stays whole from a forward pass to its backward pass; where none follows, it is split again at once.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    nn.utils.convert_conv2d_weight_memory_format(network, torch.contiguous_format)  # what it can split
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    blocks = [each for row in lists for each in row if not isinstance(each, nn.ModuleList) and any(True for _ in each.parameters())]
    for module in reversed(blocks):  # those inside others first
        fully_shard(module, mesh=mesh)
    fully_shard(network, mesh=mesh, reshard_after_forward=not learns)
    return network


@hookimpl
def cdmkit_components() -> list[type[Component]]:
    """The backend."""
    return [Torch]
