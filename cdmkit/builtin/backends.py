"""The backend that plain torch is: one CPU, CUDA or MPS device."""

from __future__ import annotations

import contextlib
from enum import Enum

import attrs
import torch
from torch import nn

from cdmkit.component import Component, component, option
from cdmkit.errors import SetupError
from cdmkit.hookspecs import hookimpl
from cdmkit.kinds import Backend, Session


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


@component("torch")
class Torch(Backend):
    """One device of this process."""

    device: Device = option(Device.AUTO, help="auto: CUDA if there is one, then MPS, then the CPU")
    precision: Precision = option(Precision.AUTO, help="auto: bf16 where the hardware multiplies in it, else fp32; fp32 is without TF32")
    compile: bool = option(False, help="compile networks with torch.compile: a minute or more at the start, faster steps on a GPU")

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
        return TorchSession(torch.device(chosen.value), bf16, self.compile)


def _devices() -> list[Device]:
    """The devices of this machine, best first."""
    there = []
    if torch.cuda.is_available():
        there.append(Device.CUDA)
    if torch.backends.mps.is_available():
        there.append(Device.MPS)
    return [*there, Device.CPU]


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

    def prepare(self, module: nn.Module) -> nn.Module:
        """Move a module here. Channels last suits convolutions, but not bf16 on a CPU, where GroupNorm is up to 8 times slower in it."""
        module.to(self.device)
        if not (self.bf16 and self.device.type == "cpu"):
            nn.utils.convert_conv2d_weight_memory_format(module, torch.channels_last)
        if self.compile:
            module.compile()
        return module

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Products in bf16 where that was chosen. On CUDA torch keeps norms, softmax and losses in float32 by itself."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


@hookimpl
def cdmkit_components() -> list[type[Component]]:
    """The backend."""
    return [Torch]
