"""The torch backend."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from cdmkit.builtin.backends import Device, Parallel, Precision, Torch, TorchSession
from cdmkit.errors import SetupError


def convolution() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4))


def test_missing_device_is_said() -> None:
    """A device that is not there is a SetupError that says what is."""
    missing = Device.MPS if torch.cuda.is_available() else Device.CUDA
    with pytest.raises(SetupError, match=rf'device = "{missing.value}".*there is: .*cpu') as caught:
        Torch(device=missing).start()
    assert caught.value.exit_code == 4


def test_auto_takes_what_is_there() -> None:
    """The automatic choice always starts, on the best device of the machine."""
    session = Torch().start()
    assert session.device.type == ("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    assert (session.rank, session.world) == (0, 1)


def test_auto_precision_follows_the_hardware() -> None:
    """On a CPU the automatic precision is bf16 with AMX and fp32 without."""
    session = Torch(device=Device.CPU).start()
    with session.autocast():
        product = convolution()(torch.randn(1, 3, 8, 8))
    assert (product.dtype == torch.bfloat16) == torch.cpu.get_capabilities().get("amx_bf16", False)


@pytest.mark.parametrize(("precision", "dtype"), [(Precision.FP32, torch.float32), (Precision.BF16, torch.bfloat16)])
def test_precision_is_that_of_products(precision: Precision, dtype: torch.dtype) -> None:
    """Convolutions compute in the chosen precision; weights and their gradients stay float32."""
    session = Torch(device=Device.CPU, precision=precision).start()
    network = session.prepare(convolution())
    with session.autocast():
        product = network(torch.randn(1, 3, 8, 8))
    product.float().sum().backward()
    assert product.dtype == dtype
    assert all(p.dtype == torch.float32 and p.grad is not None and p.grad.dtype == torch.float32 for p in network.parameters())


def test_fp32_is_not_tf32() -> None:
    """Convolutions on CUDA may be in TF32 until fp32 is asked for."""
    with torch.backends.cudnn.flags(allow_tf32=True):
        Torch(device=Device.CPU, precision=Precision.BF16).start()
        assert torch.backends.cudnn.allow_tf32
        Torch(device=Device.CPU, precision=Precision.FP32).start()
        assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_convolutions_lie_channels_last(precision: Precision) -> None:
    """In each precision; what they give does, too."""
    session = Torch(device=Device.CPU, precision=precision).start()
    network = session.prepare(convolution())
    assert network.get_parameter("0.weight").is_contiguous(memory_format=torch.channels_last)
    with session.autocast():
        assert network[0](torch.randn(2, 3, 8, 8)).is_contiguous(memory_format=torch.channels_last)  # type: ignore[index]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler imports what torch deprecates
def test_compiled_network_computes_the_same() -> None:
    """`compile` keeps names and results, and serves other batch sizes."""
    network = convolution()
    images = torch.randn(4, 3, 8, 8)
    expected = network(images)
    names = list(network.state_dict())
    compiled = Torch(device=Device.CPU, precision=Precision.FP32, compile=True).start().prepare(network)
    torch.testing.assert_close(compiled(images), expected)
    torch.testing.assert_close(compiled(images[:2]), expected[:2])
    assert list(compiled.state_dict()) == names


class Row(nn.Module):
    """Blocks, one after another."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_blocks_may_hold_blocks(tmp_path: Path) -> None:
    """A network is split whatever holds what; a pass gives what it gave before."""
    network = Row(Row(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 2))
    images = torch.randn(4, 2)
    expected = network(images)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        session = TorchSession(torch.device("cpu"), bf16=False, compile=False, world=2, parallel=Parallel.FSDP)
        torch.testing.assert_close(session.share(network, learns=False)(images), expected)
        assert all(hasattr(parameter, "full_tensor") for parameter in network.parameters())
    finally:
        dist.destroy_process_group()
