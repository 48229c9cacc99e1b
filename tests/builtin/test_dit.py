"""The Diffusion Transformer: shapes, sizes of the paper's networks, its formula, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cdmkit.builtin.dit import Block, DiT, DiTModule
from cdmkit.component import evolve
from cdmkit.kinds import NetworkSpec
from tests.builtin.test_embedding import DIT as SMALL
from tests.builtin.test_embedding import FULL_SPEC, awake, told

COUNTED = {  # in millions; table 4 of the paper says 33, 130, 458 and 675
    "DiT-S/2": (DiT(patch=2), 32.9),
    "DiT-B/2": (DiT(patch=2, width=768, heads=12), 130.3),
    "DiT-L/2": (DiT(patch=2, width=1024, depth=24, heads=16), 457.8),
    "DiT-XL/2": (DiT(patch=2, width=1152, depth=28, heads=16), 674.8),
}


@pytest.mark.parametrize(("dit", "millions"), COUNTED.values(), ids=COUNTED)
def test_networks_of_the_paper_have_their_size(dit: DiT, millions: float) -> None:
    """With its inputs, 4 x 32 x 32, variance and 1000 classes or none; and layer by layer."""
    with torch.device("meta"):
        network = dit.build(NetworkSpec(32, out_channels=8, classes=1000, unlabeled=True, image_channels=4))
    width, pixels = dit.width, 2 * 2
    told_what = (256 + 1) * width + (width + 1) * width + 1001 * width
    block = (width + 1) * 6 * width + (width + 1) * 3 * width + (width + 1) * width + (width + 1) * 4 * width + (4 * width + 1) * width
    ends = (4 * pixels + 1) * width + (width + 1) * 2 * width + (width + 1) * 8 * pixels
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == told_what + dit.depth * block + ends
    assert count / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize(
    ("dit", "spec"),
    [
        (SMALL, FULL_SPEC),
        (SMALL, NetworkSpec(8, 3)),
        (DiT(patch=1, width=12, depth=1, heads=3, mlp_ratio=1.5), NetworkSpec(5, 3, classes=2)),
        (DiT(patch=6, width=8, depth=1, heads=1), NetworkSpec(6, 6, low_res=True, levels=1)),
    ],
    ids=["all conditions", "none", "pixels", "one patch"],
)
def test_a_network_starts_at_zero_in_the_shape_asked_for(dit: DiT, spec: NetworkSpec) -> None:
    """[B, out_channels, R, R], all 0 before training."""
    out = dit.build(spec)(*told(3, spec))
    assert out.shape == (3, spec.out_channels, spec.resolution, spec.resolution)
    assert not bool(out.any())


def test_blocks_start_as_the_identity() -> None:
    """Before training their gates are closed."""
    tokens, emb = torch.randn(2, 5, 16), torch.randn(2, 16)
    assert torch.equal(Block(SMALL)(tokens, emb), tokens)


@pytest.mark.parametrize(
    "option",
    [{"patch": 4}, {"width": 32}, {"depth": 3}, {"heads": 4}, {"mlp_ratio": 3}],
    ids=lambda option: next(iter(option)),
)
def test_each_option_changes_the_network(option: dict[str, Any]) -> None:
    """In its parameters, or, for the heads, in what the same parameters give."""
    first, second = (awake(dit.build(FULL_SPEC)).double() for dit in (SMALL, evolve(SMALL, **option)))
    inputs = told(dtype=torch.float64)
    with torch.no_grad():
        assert float((first(*inputs) - second(*inputs)).abs().max()) > 1e-7


@pytest.mark.parametrize(
    ("option", "resolution", "words"),
    [
        ({"patch": 4}, 10, "the resolution 10 is not a multiple of patch = 4"),
        ({"width": 18}, 8, "width = 18 is not a multiple of 4"),
        ({"heads": 3}, 8, "width = 16 cannot be split among heads = 3"),
    ],
    ids=["patch", "width", "heads"],
)
def test_options_that_do_not_suit_the_stage_are_refused_in_words(option: dict[str, Any], resolution: int, words: str) -> None:
    """What is wrong, with the numbers."""
    with pytest.raises(ValueError, match=words):
        evolve(SMALL, **option).build(NetworkSpec(resolution, 3))


def normed(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm in plain arithmetic, then scaled and shifted."""
    variance = x.var(2, unbiased=False, keepdim=True)
    return (x - x.mean(2, keepdim=True)) / (variance + 1e-6).sqrt() * (1 + scale[:, None]) + shift[:, None]


def linear(x: Tensor, layer: nn.Module) -> Tensor:
    assert isinstance(layer, nn.Linear)
    return torch.einsum("...i,oi->...o", x, layer.weight) + layer.bias


def test_a_block_is_gated_attention_and_a_gated_mlp() -> None:
    """Against the plain formula, head by head, with GELU by its tanh approximation."""
    block = awake(Block(SMALL)).double()
    assert isinstance(block, Block)
    x, emb = torch.randn(2, 5, 16, dtype=torch.float64), torch.randn(2, 16, dtype=torch.float64)
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = linear(emb, block.modulation).chunk(6, dim=1)
    q, k, v = linear(normed(x, shift, scale), block.qkv).chunk(3, dim=2)
    heads = []
    for head in (slice(0, 8), slice(8, 16)):
        weights = torch.exp(q[..., head] @ k[..., head].transpose(1, 2) / math.sqrt(8))
        heads.append(weights / weights.sum(2, keepdim=True) @ v[..., head])
    h = x + gate[:, None] * linear(torch.cat(heads, dim=2), block.proj)
    hidden = linear(normed(h, mlp_shift, mlp_scale), block.mlp[0])
    assert hidden.shape == (2, 5, 32)
    hidden = hidden * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
    torch.testing.assert_close(block(x, emb), h + mlp_gate[:, None] * linear(hidden, block.mlp[2]))


@pytest.mark.parametrize("branch", [0, 1], ids=["attention", "MLP"])
def test_dropout_acts_on_what_each_branch_adds(branch: int) -> None:
    """About half of the additions of either, the other's gate closed, are left out."""
    block = awake(Block(evolve(SMALL, dropout=0.5))).train()
    assert isinstance(block, Block)
    gates = block.modulation.bias.detach().view(2, 3, 16)[:, 2]
    nn.init.zeros_(block.modulation.weight)
    gates.fill_(0)[branch] = 1
    tokens = torch.randn(8, 50, 16)
    with torch.no_grad():
        added = block(tokens, torch.zeros(8, 16)) - tokens
    assert float((added == 0).float().mean()) == pytest.approx(0.5, abs=0.05)


def test_an_image_is_cut_into_patches_and_put_together_again() -> None:
    """Row by row, x_t and the low-resolution image together; patch by patch against the formula, around the same blocks."""
    network = awake(SMALL.build(FULL_SPEC)).double()
    assert isinstance(network, DiTModule)
    x_t, noise_level, condition = told(dtype=torch.float64)
    assert condition.low_res is not None
    image, emb = torch.cat((x_t, condition.low_res), dim=1), network.embedding(noise_level, condition)
    corners = [(row, column) for row in range(0, 8, 2) for column in range(0, 8, 2)]
    patches = torch.stack([image[:, :, row : row + 2, column : column + 2].flatten(1) for row, column in corners], dim=1)
    tokens = linear(patches, network.patches) + network.places
    for block in network.blocks:
        tokens = block(tokens, emb)
    shift, scale = linear(emb, network.modulation).chunk(2, dim=1)
    out = network(x_t, noise_level, condition)
    for (row, column), patch in zip(corners, linear(normed(tokens, shift, scale), network.out).unbind(1), strict=True):
        torch.testing.assert_close(out[:, :, row : row + 2, column : column + 2], patch.view(2, 6, 2, 2))


def test_places_are_sines_and_cosines_of_column_and_row() -> None:
    """Fixed, not saved, and different for every patch."""
    network = SMALL.build(NetworkSpec(8, 3))
    assert isinstance(network, DiTModule)
    assert "places" not in network.state_dict()
    frequencies = 10000.0 ** (-torch.arange(4) / 4)
    for index, place in enumerate(network.places):
        row, column = divmod(index, 4)
        expected = torch.cat([f(n * frequencies) for n in (column, row) for f in (torch.cos, torch.sin)])
        torch.testing.assert_close(place, expected)
    assert float(torch.pdist(network.places).min()) > 0.1


def test_linear_layers_start_as_the_authors_start_theirs() -> None:
    """Glorot's uniform distribution, and no bias."""
    qkv = Block(DiT(width=64, heads=4)).qkv.requires_grad_(False)
    limit = math.sqrt(6 / (64 + 192))
    assert limit * 0.99 < float(qkv.weight.abs().max()) <= limit
    assert float(qkv.weight.std()) == pytest.approx(limit / math.sqrt(3), rel=0.05)
    assert not bool(qkv.bias.any())
