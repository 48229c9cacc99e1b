"""The U-Net of the DDPM and Improved DDPM family (arXiv:2006.11239, arXiv:2102.09672), as CDM's stages use it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdmkit.component import Component, component, option
from cdmkit.diffusion import Condition
from cdmkit.hookspecs import hookimpl
from cdmkit.kinds import Backbone, NetworkSpec


@component("unet")
class UNet(Backbone):
    """A U-Net of residual blocks with scale-shift group norm, attention at named resolutions, and zero-initialised outputs.

    Class, noise level and augmentation levels are embedded, summed and given to every block; the low-resolution image is concatenated
    to x_t.
    """

    channels: int = option(128, help="channels at full resolution; a multiple of 4", ge=4)
    multipliers: tuple[int, ...] = option(
        (1, 2, 2, 2), help="channels at each resolution, full to lowest, as multiples of `channels`", ge=1
    )
    blocks: int = option(2, help="residual blocks per resolution (one more on the way up)", ge=1)
    attention: tuple[int, ...] = option(
        (16,), help="resolutions, in pixels, with self-attention (the lowest has it between the two ways)", ge=1
    )
    heads: int = option(4, help="attention heads", ge=1)
    dropout: float = option(0.0, help="dropout rate in each residual block", ge=0, lt=1)
    scale_shift: bool = option(True, help="the embedding scales and shifts each block's second norm; otherwise it is added before it")

    def build(self, spec: NetworkSpec) -> nn.Module:
        """The network; ValueError where its resolutions do not come out even."""
        self._check(spec)
        return UNetModule(self, spec)

    def _check(self, spec: NetworkSpec) -> None:
        if not self.multipliers:
            raise ValueError("multipliers is empty: name at least one resolution's")
        if self.channels % 4:
            raise ValueError(f"channels = {self.channels} is not a multiple of 4")
        halvings = len(self.multipliers) - 1
        if spec.resolution % 2**halvings:
            raise ValueError(
                f"{len(self.multipliers)} multipliers halve the resolution {halvings} times, "
                f"but {spec.resolution} is not a multiple of {2**halvings}"
            )
        resolutions = [spec.resolution >> level for level in range(halvings + 1)]
        if strange := [r for r in self.attention if r not in resolutions]:
            raise ValueError(f"attention = {strange} names no resolution of this network, which has {resolutions}")
        for multiplier, resolution in zip(self.multipliers, resolutions, strict=True):
            if resolution in (*self.attention, resolutions[-1]) and self.channels * multiplier % self.heads:
                raise ValueError(f"{self.channels} * {multiplier} channels cannot be split among heads = {self.heads}")


class UNetModule(nn.Module):
    """The module that `UNet.build` makes: (x_t [B, 3, R, R], noise level [B], Condition) -> [B, out_channels, R, R]."""

    def __init__(self, options: UNet, spec: NetworkSpec) -> None:
        super().__init__()
        width, embedding = options.channels, 4 * options.channels
        self.embedding = Embedding(width, embedding, spec)
        first = options.multipliers[0] * width
        self.conv_in = nn.Conv2d(spec.image_channels * (2 if spec.low_res else 1), first, 3, padding=1)
        channels, resolution, skips = first, spec.resolution, [first]
        self.down = nn.ModuleList()
        for level, multiplier in enumerate(options.multipliers):
            if level:
                self.down.append(Layer([Downsample(channels)]))
                skips.append(channels)
                resolution //= 2
            for _ in range(options.blocks):
                self.down.append(_layer(options, channels, multiplier * width, embedding, resolution))
                channels = multiplier * width
                skips.append(channels)
        self.middle = nn.ModuleList(
            (
                Layer([Block(options, channels, channels, embedding), Attention(channels, options.heads)]),
                Layer([Block(options, channels, channels, embedding)]),
            )
        )
        self.up = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(options.multipliers))):
            for last in _flags(options.blocks + 1):
                layer = _layer(options, channels + skips.pop(), multiplier * width, embedding, resolution)
                channels = multiplier * width
                if last and level:
                    resolution *= 2
                    layer.append(Upsample(channels))
                self.up.append(layer)
        self.norm = _norm(channels)
        self.conv_out = _zero(nn.Conv2d(channels, spec.out_channels, 3, padding=1))

    def forward(self, x_t: Tensor, noise_level: Tensor, condition: Condition) -> Tensor:
        """Down, across and up, joining each step up with the same step down."""
        emb = self.embedding(noise_level, condition)
        h = self.conv_in(x_t if condition.low_res is None else torch.cat((x_t, condition.low_res), dim=1))
        skips = [h]
        for layer in self.down:
            h = layer(h, emb)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, emb)
        for layer in self.up:
            h = layer(torch.cat((h, skips.pop()), dim=1), emb)
        out: Tensor = self.conv_out(F.silu(self.norm(h)))
        return out


def _flags(count: int) -> Iterator[bool]:
    """False `count - 1` times, then True."""
    return (index == count - 1 for index in range(count))


def _layer(options: UNet, channels: int, out: int, embedding: int, resolution: int) -> Layer:
    """A residual block, with attention where the resolution has it."""
    layer = Layer([Block(options, channels, out, embedding)])
    if resolution in options.attention:
        layer.append(Attention(out, options.heads))
    return layer


class Layer(nn.ModuleList):
    """Modules in a row, the blocks among them also given the embedding."""

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        """[B, C, R, R], [B, E] -> [B, C', R', R']."""
        for module in self:
            h = module(h, emb) if isinstance(module, Block) else module(h)
        return h


class Embedding(nn.Module):
    """Noise level, class and augmentation levels as one vector [B, size]."""

    def __init__(self, width: int, size: int, spec: NetworkSpec) -> None:
        super().__init__()
        self.width = width
        self.noise = _mlp(width, size)
        self.label = nn.Embedding(spec.classes, size) if spec.classes else None
        self.levels = nn.ModuleList(_mlp(width, size) for _ in range(spec.levels))

    def forward(self, noise_level: Tensor, condition: Condition) -> Tensor:
        """The activated sum of what the network is told."""
        emb: Tensor = self.noise(sinusoidal(noise_level, self.width))
        if self.label is not None:
            emb = emb + self.label(condition.label)
        levels = () if condition.levels is None else condition.levels.unbind(1)
        for mlp, level in zip(self.levels, levels, strict=True):
            emb = emb + mlp(sinusoidal(level, self.width))
        return F.silu(emb)


def sinusoidal(value: Tensor, width: int) -> Tensor:
    """Cosines and sines of value [B] at width/2 frequencies from 1 down towards 1/10000: [B, width] (Improved DDPM's code)."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=value.device, dtype=value.dtype) * (-math.log(10000) / half))
    angles = value.unsqueeze(1) * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=1)


def _mlp(width: int, size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, size), nn.SiLU(), nn.Linear(size, size))


class Block(nn.Module):
    """A residual block: norm, convolve, take in the embedding, norm, convolve (zero at first), add."""

    def __init__(self, options: UNet, channels: int, out: int, embedding: int) -> None:
        super().__init__()
        self.scale_shift = options.scale_shift
        self.norm1 = _norm(channels)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.emb_proj = nn.Linear(embedding, 2 * out if options.scale_shift else out)
        self.norm2 = _norm(out)
        self.dropout = nn.Dropout(options.dropout)
        self.conv2 = _zero(nn.Conv2d(out, out, 3, padding=1))
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """[B, C, R, R], [B, E] -> [B, C', R, R]."""
        h = self.conv1(F.silu(self.norm1(x)))
        told = self.emb_proj(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)  # AdaGN, Improved DDPM appendix A
        else:
            h = self.norm2(h + told)
        out: Tensor = self.skip(x) + self.conv2(self.dropout(F.silu(h)))
        return out


class Attention(nn.Module):
    """Self-attention over all pixels, zero at first, added to its input."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, R, R] -> the same."""
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, 3, self.heads, channels // self.heads, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        h = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(x.shape)
        out: Tensor = x + self.out(h)
        return out


class Downsample(nn.Conv2d):
    """Halve the resolution by a convolution with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2, padding=1)


class Upsample(nn.Module):
    """Double the resolution: repeat pixels, then convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, R, R] -> [B, C, 2R, 2R]."""
        height, width = x.shape[-2:]
        out: Tensor = self.conv(F.interpolate(x, size=(2 * height, 2 * width), mode="nearest"))
        return out


def _norm(channels: int) -> nn.GroupNorm:
    """Group norm with gcd(32, channels) groups: 32 wherever they divide the channels."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


def _zero(conv: nn.Conv2d) -> nn.Conv2d:
    """Start at zero, so that a block starts as the identity and the network as zero."""
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


@hookimpl
def cdmkit_components() -> list[type[Component]]:
    """The U-Net."""
    return [UNet]
