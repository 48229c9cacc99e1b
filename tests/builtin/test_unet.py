"""The U-Net: shapes, sizes of the papers' networks, what it is told, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdmkit.builtin.unet import Attention, Block, UNet, UNetModule, Upsample, sinusoidal
from cdmkit.diffusion import Condition
from cdmkit.kinds import NetworkSpec


def small(**options: Any) -> UNet:
    """A network that runs in a millisecond, with some options changed."""
    return UNet(**{"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "heads": 2, **options})


SMALL = small()
FULL_SPEC = NetworkSpec(resolution=8, out_channels=6, classes=5, low_res=True, levels=2)


def awake(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with its zero-initialised weights, and all others, set to small random numbers; not training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return module.eval()


def told(batch: int = 2, spec: NetworkSpec = FULL_SPEC, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Condition]:
    """x_t, noise levels and everything the spec says a network is told."""
    generator = torch.Generator().manual_seed(1)
    shape = (batch, 3, spec.resolution, spec.resolution)
    x_t, low_res = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    label = torch.arange(batch) % spec.classes if spec.classes else None
    levels = torch.full((batch, spec.levels), 10.0, dtype=dtype) if spec.levels else None
    return x_t, torch.full((batch,), 100.0, dtype=dtype), Condition(label, low_res if spec.low_res else None, levels)


COUNTED = {  # in millions, our own count but for the last, whose paper says 270
    "32x32 base": (UNet(channels=256, multipliers=(1, 2, 3, 4), blocks=6, attention=(8, 16)), NetworkSpec(32, 6, 1000), 792.3),
    "32 to 64": (UNet(channels=256, multipliers=(1, 2, 3, 4), blocks=5, attention=(8, 16)), NetworkSpec(64, 6, 1000, True, 1), 718.4),
    "64 to 128": (
        UNet(channels=128, multipliers=(1, 2, 4, 8, 8), blocks=3, attention=(16,), heads=1),
        NetworkSpec(128, 3, 1000, True),
        536.0,
    ),
    "64 to 256": (
        UNet(channels=128, multipliers=(1, 2, 4, 4, 8, 8), blocks=3, attention=(16,), heads=1),
        NetworkSpec(256, 3, 1000, True),
        589.0,
    ),
    "Improved DDPM 64x64": (UNet(channels=192, multipliers=(1, 2, 3, 4), blocks=3, attention=(8, 16)), NetworkSpec(64, 6, 1000), 273.0),
}


@pytest.mark.parametrize(("unet", "spec", "millions"), COUNTED.values(), ids=COUNTED)
def test_networks_of_the_papers_have_their_size(unet: UNet, spec: NetworkSpec, millions: float) -> None:
    """Parameters of CDM's four stages, and of Improved DDPM's class-conditional 64x64 network ("270M")."""
    with torch.device("meta"):
        network = unet.build(spec)
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize(
    ("unet", "spec"),
    [
        (SMALL, FULL_SPEC),
        (SMALL, NetworkSpec(8, 3)),
        (UNet(channels=4, multipliers=(1,), blocks=1, attention=(), heads=1), NetworkSpec(5, 3, classes=2)),
        (UNet(channels=12, multipliers=(2, 1, 3), blocks=2, attention=(3, 12), heads=3), NetworkSpec(12, 6, low_res=True, levels=1)),
    ],
    ids=["all conditions", "none", "one resolution", "uneven widths"],
)
def test_a_network_starts_at_zero_in_the_shape_asked_for(unet: UNet, spec: NetworkSpec) -> None:
    """[B, out_channels, R, R], all 0 before training."""
    out = unet.build(spec)(*told(3, spec))
    assert out.shape == (3, spec.out_channels, spec.resolution, spec.resolution)
    assert not bool(out.any())


@pytest.mark.parametrize("what", ["x_t", "noise level", "label", "low_res", "first level", "second level"])
def test_everything_a_network_is_told_changes_its_output(what: str) -> None:
    """Of the example it is told for, and of no other in the batch."""
    network = awake(SMALL.build(FULL_SPEC))
    x_t, noise_level, condition = told(3)
    assert condition.label is not None
    assert condition.low_res is not None
    assert condition.levels is not None
    parts = {"x_t": x_t, "noise level": noise_level, "label": condition.label, "low_res": condition.low_res}
    parts |= {"first level": condition.levels[:, 0], "second level": condition.levels[:, 1]}
    with torch.no_grad():
        before = network(x_t, noise_level, condition)
        parts[what][1] += 1
        after = network(x_t, noise_level, condition)
    differs = ((before - after).abs() > 1e-5).flatten(1).any(1)
    assert differs.tolist() == [False, True, False]


def test_the_two_levels_are_told_apart() -> None:
    """Exchanging them is not the same: each has an embedding of its own."""
    network = awake(SMALL.build(FULL_SPEC))
    x_t, noise_level, condition = told()
    levels = torch.tensor([[3.0, 50.0], [3.0, 50.0]])
    with torch.no_grad():
        first = network(x_t, noise_level, condition._replace(levels=levels))
        second = network(x_t, noise_level, condition._replace(levels=levels.flip(1)))
    assert float((first - second).abs().max()) > 1e-3


@pytest.mark.parametrize("levels", [None, torch.zeros(2, 1), torch.zeros(2, 3)], ids=["none", "too few", "too many"])
def test_a_wrong_number_of_levels_is_not_passed_over(levels: Tensor | None) -> None:
    """A network made for two levels is told two."""
    x_t, noise_level, condition = told()
    with pytest.raises(ValueError, match="zip"):
        SMALL.build(FULL_SPEC)(x_t, noise_level, condition._replace(levels=levels))


def test_gradients_reach_every_parameter() -> None:
    """None is built and not used."""
    network = awake(SMALL.build(FULL_SPEC))
    network(*told()).square().sum().backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not bool((p.grad != 0).any())]
    assert still == []


@pytest.mark.parametrize(
    "option",
    [{"channels": 16}, {"multipliers": (1, 1)}, {"blocks": 2}, {"attention": ()}, {"heads": 4}, {"scale_shift": False}],
    ids=lambda option: next(iter(option)),
)
def test_each_option_changes_the_network(option: dict[str, Any]) -> None:
    """In its parameters, or, for the heads, in what the same parameters give."""
    first, second = (awake(unet.build(FULL_SPEC)).double() for unet in (SMALL, small(**option)))
    inputs = told(dtype=torch.float64)
    with torch.no_grad():
        assert float((first(*inputs) - second(*inputs)).abs().max()) > 1e-7


def test_dropout_acts_in_training_only() -> None:
    """Two passes in training differ; out of training they are the same as without."""
    dropping = awake(small(dropout=0.5).build(FULL_SPEC))
    with torch.no_grad():
        torch.testing.assert_close(dropping(*told()), awake(SMALL.build(FULL_SPEC))(*told()))
        dropping.train()
        assert not torch.allclose(dropping(*told()), dropping(*told()))


@pytest.mark.parametrize(
    ("option", "resolution", "words"),
    [
        ({"multipliers": ()}, 8, "multipliers is empty"),
        ({"channels": 6, "heads": 1}, 8, "channels = 6 is not a multiple of 4"),
        ({"multipliers": (1, 2, 2)}, 10, "3 multipliers halve the resolution 2 times, but 10 is not a multiple of 4"),
        ({"attention": (4, 16)}, 8, r"attention = \[16\] names no resolution of this network, which has \[8, 4\]"),
        ({"heads": 3}, 8, r"8 \* 2 channels cannot be split among heads = 3"),
    ],
    ids=["no multipliers", "channels", "resolution", "attention", "heads"],
)
def test_options_that_do_not_suit_the_stage_are_refused_in_words(option: dict[str, Any], resolution: int, words: str) -> None:
    """What is wrong, with the numbers."""
    with pytest.raises(ValueError, match=words):
        small(**option).build(NetworkSpec(resolution, 3))


def test_heads_need_divide_only_where_there_is_attention() -> None:
    """Here at the lowest resolution alone: 24 channels among 3 heads, 8 above it."""
    UNet(channels=8, multipliers=(1, 3), blocks=1, attention=(), heads=3).build(NetworkSpec(8, 3))


def test_blocks_and_attention_start_as_the_identity() -> None:
    """Before training they add nothing to their input."""
    x, emb = torch.randn(2, 8, 4, 4), torch.randn(2, 32)
    assert torch.equal(Block(SMALL, 8, 8, 32)(x, emb), x)
    assert torch.equal(Attention(8, 2)(x), x)


@pytest.mark.parametrize("scale_shift", [True, False])
def test_a_block_takes_in_the_embedding_at_its_second_norm(scale_shift: bool) -> None:
    """As norm(h) (1 + w) + b, or norm(h + v), between two convolutions, beside a skip; against the formula."""
    block = awake(Block(small(scale_shift=scale_shift), 8, 12, 16)).double()
    assert isinstance(block, Block)
    x, emb = torch.randn(2, 8, 4, 4, dtype=torch.float64), torch.randn(2, 16, dtype=torch.float64)

    def norm(h: Tensor, weights: nn.GroupNorm) -> Tensor:
        groups = h.reshape(2, weights.num_groups, -1)
        normed = (groups - groups.mean(2, keepdim=True)) / (groups.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return normed.view_as(h) * weights.weight.view(1, -1, 1, 1) + weights.bias.view(1, -1, 1, 1)

    def silu(h: Tensor) -> Tensor:
        return h / (1 + torch.exp(-h))

    h = block.conv1(silu(norm(x, block.norm1)))
    taken = (emb @ block.emb_proj.weight.T + block.emb_proj.bias)[:, :, None, None]
    h = norm(h, block.norm2) * (1 + taken[:, :12]) + taken[:, 12:] if scale_shift else norm(h + taken, block.norm2)
    torch.testing.assert_close(block(x, emb), block.skip(x) + block.conv2(silu(h)))


@pytest.mark.parametrize("heads", [1, 4])
def test_attention_is_a_softmax_over_all_pixels(heads: int) -> None:
    """Against the plain formula, head by head."""
    attention = awake(Attention(8, heads)).double()
    assert isinstance(attention, Attention)
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    qkv = attention.qkv(attention.norm(x)).flatten(2)
    mixed = torch.empty(2, 8, 15, dtype=torch.float64)
    width = 8 // heads
    for head in range(heads):
        q, k, v = (qkv[:, 8 * part + width * head : 8 * part + width * (head + 1)] for part in range(3))
        weights = torch.softmax(torch.einsum("bcq,bck->bqk", q, k) / width**0.5, dim=-1)
        mixed[:, width * head : width * (head + 1)] = torch.einsum("bqk,bck->bcq", weights, v)
    torch.testing.assert_close(attention(x), x + attention.out(mixed.view(2, 8, 3, 5)))


def test_the_embedding_of_a_number_is_cosines_and_sines() -> None:
    """Frequencies 10000^(-i / half), in the precision of the number."""
    value = torch.tensor([0.0, 1.0, 3999.0], dtype=torch.float64)
    angles = value[:, None] * 10000.0 ** (-torch.arange(8, dtype=torch.float64) / 8)
    torch.testing.assert_close(sinusoidal(value, 16), torch.cat((angles.cos(), angles.sin()), dim=1), rtol=1e-9, atol=1e-9)
    assert sinusoidal(value.float(), 16).dtype == torch.float32


def test_the_network_runs_in_float64() -> None:
    """For parity checks; float32 agrees to its precision."""
    network = awake(SMALL.build(FULL_SPEC))
    with torch.no_grad():
        single = network(*told())
        double = network.double()(*told(dtype=torch.float64))
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_network_runs_under_bf16_autocast(layout: torch.memory_format) -> None:
    """In either memory layout, close to float32."""
    network = awake(SMALL.build(FULL_SPEC))
    x_t, noise_level, condition = told()
    with torch.no_grad():
        exact = network(x_t, noise_level, condition)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = network(x_t.to(memory_format=layout), noise_level, condition)
    assert mixed.shape == exact.shape
    assert float((mixed.float() - exact).norm() / exact.norm()) < 0.05


def test_resolution_halves_and_doubles_as_the_multipliers_say() -> None:
    """Attention sits at the resolutions named and once in the middle: here two on the way down, three up, one between."""
    network = UNet(channels=8, multipliers=(1, 2), blocks=2, attention=(4,), heads=1).build(NetworkSpec(8, 3))
    assert isinstance(network, UNetModule)
    counts = [sum(isinstance(m, Attention) for m in part.modules()) for part in (network.down, network.middle, network.up)]
    assert counts == [2, 1, 3]


def test_enlarging_inside_the_network_repeats_pixels() -> None:
    """Up-sampling is by nearest neighbour before its convolution: a shift by one coarse pixel moves the output by two."""
    network = awake(UNet(channels=4, multipliers=(1, 1), blocks=1, attention=(), heads=1).build(NetworkSpec(16, 3)))
    assert isinstance(network, UNetModule)
    upsample = next(m for m in network.up.modules() if isinstance(m, Upsample))
    x = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(upsample(x), upsample.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3)))
        moved = upsample(F.pad(x, (1, 0))[..., :6])
        torch.testing.assert_close(moved[..., 4:-2], upsample(x)[..., 2:-4])
