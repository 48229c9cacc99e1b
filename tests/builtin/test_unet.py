"""The U-Net: shapes, sizes of the papers' networks, what it is told, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdmkit.builtin.unet import Attention, Block, Downsample, Padding, Resample, UNet, UNetModule, Upsample
from cdmkit.component import evolve
from cdmkit.kinds import NetworkSpec
from tests.builtin.test_embedding import FULL_SPEC, awake, told
from tests.builtin.test_embedding import UNET as SMALL


def small(**options: Any) -> UNet:
    """A network that runs in a millisecond, with some options changed."""
    return evolve(SMALL, **options)


ADM = UNet(multipliers=(1, 1, 2, 2, 4, 4), attention=(8, 16, 32), resample=Resample.RESIDUAL)
SR3 = UNet(channels=128, blocks=3, attention=(16,), heads=1, scale_shift=False, skip_rescale=True, resample=Resample.RESIDUAL)

COUNTED = {  # in millions; papers and model cards give rounded figures, in quotes
    # CDM gives none: our own count
    "CDM 32x32 base": (UNet(channels=256, multipliers=(1, 2, 3, 4), blocks=6, attention=(8, 16)), NetworkSpec(32, 6, 1000), 792.3),
    "CDM 32 to 64": (
        UNet(channels=256, multipliers=(1, 2, 3, 4), blocks=5, attention=(8, 16)),
        NetworkSpec(64, 6, 1000, low_res=True, levels=1),
        718.4,
    ),
    "CDM 64 to 128": (
        UNet(channels=128, multipliers=(1, 2, 4, 8, 8), blocks=3, attention=(16,), heads=1),
        NetworkSpec(128, 3, 1000, low_res=True),
        536.0,
    ),
    "CDM 64 to 256": (
        UNet(channels=128, multipliers=(1, 2, 4, 4, 8, 8), blocks=3, attention=(16,), heads=1),
        NetworkSpec(256, 3, 1000, low_res=True),
        589.0,
    ),
    # "270M"
    "Improved DDPM 64x64": (UNet(channels=192, multipliers=(1, 2, 3, 4), blocks=3, attention=(8, 16)), NetworkSpec(64, 6, 1000), 273.0),
    # "296M", "422M" and "554M"; guided-diffusion's own code makes these, and the upsampler, of exactly as many parameters
    "ADM 64x64": (evolve(ADM, channels=192, multipliers=(1, 2, 3, 4), blocks=3, head_channels=64), NetworkSpec(64, 6, 1000), 295.904),
    "ADM 128x128": (evolve(ADM, channels=256, multipliers=(1, 1, 2, 3, 4), heads=4), NetworkSpec(128, 6, 1000), 421.530),
    "ADM 256x256": (evolve(ADM, channels=256, head_channels=64), NetworkSpec(256, 6, 1000), 553.838),
    "ADM 64 to 256": (evolve(ADM, channels=192, heads=4), NetworkSpec(256, 6, 1000, low_res=True), 311.796),
    # "550M" and "625M", so not all of SR3's network is known: our own count
    "SR3 16 to 128": (evolve(SR3, multipliers=(1, 2, 4, 8, 8)), NetworkSpec(128, 3, low_res=True), 560.7),
    "SR3 64 to 256": (evolve(SR3, multipliers=(1, 2, 4, 4, 8, 8)), NetworkSpec(256, 3, low_res=True), 617.1),
}


@pytest.mark.parametrize(("unet", "spec", "millions"), COUNTED.values(), ids=COUNTED)
def test_networks_of_the_papers_have_their_size(unet: UNet, spec: NetworkSpec, millions: float) -> None:
    """Parameters of the networks of CDM, Improved DDPM, ADM and SR3."""
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
        (small(resample=Resample.RESIDUAL, multipliers=(1, 2, 1), head_channels=4, attention=(4, 8)), FULL_SPEC),
        (small(downsample_padding=Padding.END, middle_attention=False, attention=()), FULL_SPEC),
    ],
    ids=["all conditions", "none", "one resolution", "uneven widths", "residual", "padded at the end"],
)
def test_a_network_starts_at_zero_in_the_shape_asked_for(unet: UNet, spec: NetworkSpec) -> None:
    """[B, out_channels, R, R], all 0 before training."""
    out = unet.build(spec)(*told(3, spec))
    assert out.shape == (3, spec.out_channels, spec.resolution, spec.resolution)
    assert not bool(out.any())


@pytest.mark.parametrize(
    "option",
    [
        {"channels": 16},
        {"multipliers": (1, 1)},
        {"blocks": 2},
        {"attention": ()},
        {"middle_attention": False},
        {"heads": 2},
        {"head_channels": 8},
        {"scale_shift": False},
        {"skip_rescale": True},
        {"resample": Resample.RESIDUAL},
        {"downsample_padding": Padding.END},
        {"frequency_shift": 1},
        {"norm_groups": 2},
        {"norm_eps": 1e-2},
    ],
    ids=lambda option: next(iter(option)),
)
def test_each_option_changes_the_network(option: dict[str, Any]) -> None:
    """In its parameters, or in what the same parameters give."""
    first, second = (awake(unet.build(FULL_SPEC)).double() for unet in (SMALL, small(**option)))
    inputs = told(dtype=torch.float64)
    with torch.no_grad():
        assert float((first(*inputs) - second(*inputs)).abs().max()) > 1e-7


@pytest.mark.parametrize(
    ("option", "resolution", "words"),
    [
        ({"multipliers": ()}, 8, "multipliers is empty"),
        ({"channels": 6, "heads": 1}, 8, "channels = 6 is not a multiple of 4"),
        ({"multipliers": (1, 2, 2)}, 10, "3 multipliers halve the resolution 2 times, but 10 is not a multiple of 4"),
        ({"attention": (4, 16)}, 8, r"attention = \[16\] names no resolution of this network, which has \[8, 4\]"),
        ({"heads": 3}, 8, r"8 \* 2 channels cannot be split among heads = 3"),
        ({"head_channels": 5}, 8, r"8 \* 2 channels cannot be split among heads of head_channels = 5"),
        ({"heads": 2, "head_channels": 8}, 8, "heads = 2 changes nothing beside head_channels = 8: leave one of them out"),
        (
            {"resample": Resample.RESIDUAL, "downsample_padding": Padding.END},
            8,
            'downsample_padding = "end" changes nothing with resample = "residual", .*: leave it out, or set resample = "conv"',
        ),
    ],
    ids=["no multipliers", "channels", "resolution", "attention", "heads", "head channels", "both", "padding"],
)
def test_options_that_do_not_suit_the_stage_are_refused_in_words(option: dict[str, Any], resolution: int, words: str) -> None:
    """What is wrong, with the numbers."""
    with pytest.raises(ValueError, match=words):
        small(**option).build(NetworkSpec(resolution, 3))


def test_heads_need_divide_only_where_there_is_attention() -> None:
    """Here at the lowest resolution alone: 24 channels among 3 heads, 8 above it; and nowhere without attention between the ways."""
    UNet(channels=8, multipliers=(1, 3), blocks=1, attention=(), heads=3).build(NetworkSpec(8, 3))
    UNet(channels=8, multipliers=(1, 2), blocks=1, attention=(), heads=3, middle_attention=False).build(NetworkSpec(8, 3))


@pytest.mark.parametrize("bf16", [False, True])
def test_all_images_within_lie_channels_last(bf16: bool) -> None:
    """Even where neither inputs nor weights do: what every block gives."""
    network, seen = awake(SMALL.build(FULL_SPEC)), []
    for module in network.modules():
        if isinstance(module, (Block, Attention, Downsample, Upsample)):
            module.register_forward_hook(lambda _module, _inputs, out: seen.append(out.is_contiguous(memory_format=torch.channels_last)))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        network(*told())
    assert len(seen) > 8
    assert all(seen)


def test_blocks_and_attention_start_as_the_identity() -> None:
    """Before training they add nothing to their input, or to their input resized."""
    x, emb = torch.randn(2, 8, 4, 4), torch.randn(2, 32)
    assert torch.equal(Block(SMALL, 8, 8, 32)(x, emb), x)
    assert torch.equal(Attention(SMALL, 8)(x), x)
    torch.testing.assert_close(Block(SMALL, 8, 8, 32, nn.AvgPool2d(2))(x, emb), averaged(x))
    assert torch.equal(Block(SMALL, 8, 8, 32, nn.Upsample(scale_factor=2))(x, emb), repeated(x))


def averaged(x: Tensor) -> Tensor:
    """The mean of each 2x2 pixels."""
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def repeated(x: Tensor) -> Tensor:
    """Each pixel as 2x2."""
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def as_they_are(x: Tensor) -> Tensor:
    return x


def norm(h: Tensor, weights: nn.GroupNorm, groups: int = 8, eps: float = 1e-5) -> Tensor:
    """Group norm in plain arithmetic."""
    grouped = h.reshape(len(h), groups, -1)
    normed = (grouped - grouped.mean(2, keepdim=True)) / (grouped.var(2, unbiased=False, keepdim=True) + eps).sqrt()
    return normed.view_as(h) * weights.weight.view(1, -1, 1, 1) + weights.bias.view(1, -1, 1, 1)


def silu(h: Tensor) -> Tensor:
    return h / (1 + torch.exp(-h))


@pytest.mark.parametrize("scale_shift", [True, False])
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize(
    ("resize", "formula"),
    [(None, as_they_are), (nn.AvgPool2d(2), averaged), (nn.Upsample(scale_factor=2), repeated)],
    ids=["same", "down", "up"],
)
def test_a_block_takes_in_the_embedding_at_its_second_norm(
    scale_shift: bool, rescale: bool, resize: nn.Module | None, formula: Any
) -> None:
    """As norm(h) (1 + w) + b, or norm(h + v), between two convolutions, beside a skip; resized before both; against the formula."""
    block = awake(Block(small(scale_shift=scale_shift, skip_rescale=rescale, norm_groups=4), 8, 12, 16, resize)).double()
    assert isinstance(block, Block)
    x, emb = torch.randn(2, 8, 4, 4, dtype=torch.float64), torch.randn(2, 16, dtype=torch.float64)
    h = block.conv1(formula(silu(norm(x, block.norm1, 4))))
    taken = (emb @ block.emb_proj.weight.T + block.emb_proj.bias)[:, :, None, None]
    h = norm(h, block.norm2, 4) * (1 + taken[:, :12]) + taken[:, 12:] if scale_shift else norm(h + taken, block.norm2, 4)
    expected = block.skip(formula(x)) + block.conv2(silu(h))
    torch.testing.assert_close(block(x, emb), expected * math.sqrt(0.5) if rescale else expected)


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("by_channels", [False, True])
@pytest.mark.parametrize("rescale", [False, True])
def test_attention_is_a_softmax_over_all_pixels(heads: int, by_channels: bool, rescale: bool) -> None:
    """Against the plain formula, head by head; the rows of queries, keys and values are [3, heads, channels of a head]."""
    width = 8 // heads
    told_how: dict[str, int] = {"head_channels": width} if by_channels else {"heads": heads}
    attention = awake(Attention(small(skip_rescale=rescale, norm_eps=1e-3, **told_how), 8)).double()
    assert isinstance(attention, Attention)
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    qkv = attention.qkv(norm(x, attention.norm, 8, 1e-3)).flatten(2)
    mixed = torch.empty(2, 8, 15, dtype=torch.float64)
    for head in range(heads):
        q, k, v = (qkv[:, 8 * part + width * head : 8 * part + width * (head + 1)] for part in range(3))
        weights = torch.softmax(torch.einsum("bcq,bck->bqk", q, k) / width**0.5, dim=-1)
        mixed[:, width * head : width * (head + 1)] = torch.einsum("bqk,bck->bcq", weights, v)
    expected = x + attention.out(mixed.view(2, 8, 3, 5))
    torch.testing.assert_close(attention(x), expected * math.sqrt(0.5) if rescale else expected)


@pytest.mark.parametrize(("groups", "channels", "used"), [(32, 64, 32), (32, 48, 16), (8, 48, 8), (8, 12, 4)])
def test_groups_of_a_norm_divide_its_channels(groups: int, channels: int, used: int) -> None:
    """As many as asked for, or the greatest common divisor."""
    block = Block(small(norm_groups=groups, norm_eps=1e-3), channels, channels, 16)
    assert [(layer.num_groups, layer.eps) for layer in (block.norm1, block.norm2)] == [(used, 1e-3)] * 2


@pytest.mark.parametrize("middle", [True, False])
@pytest.mark.parametrize("resample", Resample)
def test_resolution_halves_and_doubles_as_the_multipliers_say(middle: bool, resample: Resample) -> None:
    """Attention sits at the resolutions named, two on the way down and three up, and in the middle unless that is without."""
    unet = UNet(channels=8, multipliers=(1, 2), blocks=2, attention=(4,), heads=1, middle_attention=middle, resample=resample)
    network = unet.build(NetworkSpec(8, 3))
    assert isinstance(network, UNetModule)
    counts = [sum(isinstance(m, Attention) for m in part.modules()) for part in (network.down, network.middle, network.up)]
    assert counts == [2, int(middle), 3]


@pytest.mark.parametrize(("padding", "before"), [(Padding.BOTH, 1), (Padding.END, 0)])
def test_a_convolution_that_halves_looks_to_both_sides_or_to_the_end(padding: Padding, before: int) -> None:
    """Output pixel i sees the input's from 2i - `before` on, and zeros outside."""
    downsample = awake(Downsample(4, padding)).double()
    assert isinstance(downsample, Downsample)
    assert downsample.bias is not None
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    out = downsample(x)
    assert out.shape == (1, 4, 4, 4)
    padded = torch.zeros(1, 4, 10, 10, dtype=torch.float64)
    padded[..., before : 8 + before, before : 8 + before] = x
    for i, j in ((0, 0), (0, 3), (2, 1), (3, 3)):
        seen = padded[0, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        torch.testing.assert_close(out[0, :, i, j], (downsample.weight * seen).sum((1, 2, 3)) + downsample.bias)


def test_residual_blocks_halve_by_averaging_and_double_by_repeating() -> None:
    """Here one on each way, and no other module changes the resolution."""
    network = small(resample=Resample.RESIDUAL).build(FULL_SPEC)
    assert isinstance(network, UNetModule)
    assert not any(isinstance(module, (Downsample, Upsample)) for module in network.modules())
    x = torch.randn(1, 8, 4, 4)
    for part, formula in ((network.down, averaged), (network.up, repeated)):
        (resize,) = (m.resize for m in part.modules() if isinstance(m, Block) and not isinstance(m.resize, nn.Identity))
        torch.testing.assert_close(resize(x), formula(x))


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
