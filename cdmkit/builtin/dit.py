"""The Diffusion Transformer (Peebles and Xie, arXiv:2212.09748) on patches of pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdmkit.builtin.embedding import Embedding, run, sinusoidal, zero
from cdmkit.builtin.layers import attend
from cdmkit.component import Binds, Component, component, option
from cdmkit.diffusion import Condition
from cdmkit.hookspecs import hookimpl
from cdmkit.kinds import Backbone, Dropout, NetworkSpec

FREQUENCIES = 256
"""Width of the sinusoidal embedding of each number a network is told (the authors' code)."""


@component("dit")
class DiT(Backbone):
    """A Diffusion Transformer: adaLN-Zero blocks on patches of pixels, a fixed embedding of their places, and a zero-initialised output.

    Class, noise level and augmentation levels are embedded, summed, and scale, shift and gate every block; the low-resolution image is
    concatenated to x_t before both are cut into patches.
    """

    patch: int = option(4, help="side of a patch, in pixels; must divide the resolution", ge=1)
    width: int = option(384, help="width of a token; a multiple of 4 and of `heads`", ge=4)
    depth: int = option(12, help="blocks", ge=1)
    heads: int = option(6, help="attention heads", ge=1)
    mlp_ratio: float = option(4.0, help="width of the hidden layer of each block's MLP, as a multiple of `width`", ge=1)
    dropout: float = option(0.0, help="dropout rate of what attention and MLP add to the tokens", ge=0, lt=1, binds=Binds.TRAINING)
    checkpoint: bool = option(False, help="compute blocks again in the backward pass: less memory, more time", binds=Binds.NOTHING)

    def build(self, spec: NetworkSpec) -> nn.Module:
        """The network; ValueError where patches, heads or the embedding of places do not come out even."""
        if spec.resolution % self.patch:
            raise ValueError(f"the resolution {spec.resolution} is not a multiple of patch = {self.patch}")
        if self.width % 4:
            raise ValueError(f"width = {self.width} is not a multiple of 4")
        if self.width % self.heads:
            raise ValueError(f"width = {self.width} cannot be split among heads = {self.heads}")
        return DiTModule(self, spec)


class DiTModule(nn.Module):
    """The module that `DiT.build` makes: (x_t [B, 3, R, R], noise level [B], Condition) -> [B, out_channels, R, R]."""

    places: Tensor

    def __init__(self, options: DiT, spec: NetworkSpec) -> None:
        super().__init__()
        self.patch, self.checkpoint = options.patch, options.checkpoint
        width, pixels = options.width, options.patch**2
        self.embedding = Embedding(FREQUENCIES, width, spec)
        self.patches = _linear(spec.image_channels * (2 if spec.low_res else 1) * pixels, width)
        self.register_buffer("places", _places(spec.resolution // options.patch, width), persistent=False)
        self.blocks = nn.ModuleList(Block(options) for _ in range(options.depth))
        self.modulation = zero(nn.Linear(width, 2 * width))
        self.out = zero(nn.Linear(width, spec.out_channels * pixels))

    def forward(self, x_t: Tensor, noise_level: Tensor, condition: Condition) -> Tensor:
        """Cut into patches, transform, and put together again."""
        emb = self.embedding(noise_level, condition)
        image = x_t if condition.low_res is None else torch.cat((x_t, condition.low_res), dim=1)
        cut = F.pixel_unshuffle(image, self.patch)
        tokens = self.patches(cut.flatten(2).transpose(1, 2)) + self.places
        for block in self.blocks:
            tokens = run(block, tokens, emb, checkpoint=self.checkpoint)
        shift, scale = self.modulation(emb).unsqueeze(1).chunk(2, dim=2)
        out = self.out(_modulated(tokens, shift, scale))
        return F.pixel_shuffle(out.transpose(1, 2).unflatten(2, cut.shape[2:]), self.patch)


class Block(nn.Module):
    """Attention, then an MLP, each normed, scaled and shifted before and gated after by the embedding; the identity at first.

    This is adaLN-Zero (section 3.2).
    """

    def __init__(self, options: DiT) -> None:
        super().__init__()
        width, hidden = options.width, int(options.width * options.mlp_ratio)
        self.heads = options.heads
        self.modulation = zero(nn.Linear(width, 6 * width))
        self.qkv = _linear(width, 3 * width)
        self.proj = _linear(width, width)
        self.mlp = nn.Sequential(_linear(width, hidden), nn.GELU(approximate="tanh"), _linear(hidden, width))
        self.dropout, self.mlp_dropout = Dropout(options.dropout), Dropout(options.dropout)

    def forward(self, tokens: Tensor, emb: Tensor) -> Tensor:
        """[B, N, D], [B, D] -> [B, N, D]."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(emb).unsqueeze(1).chunk(6, dim=2)
        tokens = tokens + gate * self.dropout(self._attention(_modulated(tokens, shift, scale)))
        out: Tensor = tokens + mlp_gate * self.mlp_dropout(self.mlp(_modulated(tokens, mlp_shift, mlp_scale)))
        return out

    def _attention(self, tokens: Tensor) -> Tensor:
        qkv = self.qkv(tokens).unflatten(2, (3, self.heads, -1))
        q, k, v = qkv.transpose(1, 3).unbind(2)  # each [B, heads, N, D / heads]
        out: Tensor = self.proj(attend(q, k, v).transpose(1, 2).flatten(2))
        return out


def _modulated(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm, whose scale and shift come from the embedding."""
    return torch.addcmul(shift, F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6), 1 + scale)


def _places(side: int, width: int) -> Tensor:
    """The place of each of side x side patches, [side * side, width]: half the numbers for its column, half for its row."""
    each = sinusoidal(torch.arange(side, dtype=torch.get_default_dtype()), width // 2)
    return torch.cat((each.repeat(side, 1), each.repeat_interleave(side, 0)), dim=1)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer with Glorot's initialisation, as the authors start theirs."""
    linear = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


@hookimpl
def cdmkit_components() -> list[type[Component]]:
    """The Diffusion Transformer."""
    return [DiT]
