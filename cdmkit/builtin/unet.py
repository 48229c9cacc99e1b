"""The U-Net of DDPM, Improved DDPM, ADM and SR3 (arXiv:2006.11239, 2102.09672, 2105.05233, 2104.07636), as CDM's stages use it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdmkit.builtin.embedding import Embedding, run, zero
from cdmkit.builtin.layers import Norm, attend, double_and_convolve
from cdmkit.component import Binds, Component, component, option
from cdmkit.diffusion import Condition
from cdmkit.hookspecs import hookimpl
from cdmkit.kinds import Backbone, Dropout, NetworkSpec


class Resample(Enum):
    """How the network halves and doubles the resolution."""

    CONV = "conv"
    """By a convolution with stride 2, and by repeated pixels before a convolution (DDPM, Improved DDPM)."""
    RESIDUAL = "residual"
    """By a residual block that averages or repeats pixels on both its branches (BigGAN, arXiv:1809.11096; ADM, SR3)."""


class Padding(Enum):
    """Where zeros are put around the input of a convolution with stride 2."""

    BOTH = "both"
    """One pixel on each side."""
    END = "end"
    """One pixel to the right and below (DDPM's code: TensorFlow's SAME)."""


@component("unet")
class UNet(Backbone):
    """A U-Net of residual blocks, attention at named resolutions, and zero-initialised outputs: DDPM's, Improved DDPM's, ADM's or SR3's.

    Class, noise level and augmentation levels are embedded, summed and given to every block; the low-resolution image is concatenated
    to x_t.
    """

    channels: int = option(128, help="channels at full resolution; a multiple of 4", ge=4)
    multipliers: tuple[int, ...] = option(
        (1, 2, 2, 2), help="channels at each resolution, full to lowest, as multiples of `channels`", ge=1
    )
    blocks: int = option(2, help="residual blocks per resolution (one more on the way up)", ge=1)
    attention: tuple[int, ...] = option((16,), help="resolutions, in pixels, with self-attention after each block", ge=1)
    middle_attention: bool = option(True, help="self-attention between the two blocks between the ways down and up")
    heads: int = option(4, help="attention heads", ge=1)
    head_channels: int | None = option(None, help="channels of an attention head, in place of `heads` (ADM: 64)", ge=1)
    dropout: float = option(0.0, help="dropout rate in each residual block", ge=0, lt=1, binds=Binds.TRAINING)
    scale_shift: bool = option(True, help="the embedding scales and shifts each block's second norm; otherwise it is added before it")
    skip_rescale: bool = option(False, help="divide residual sums by sqrt(2) (arXiv:2011.13456, SR3)")
    resample: Resample = option(
        Resample.CONV, help="halve and double the resolution by convolutions (DDPM) or in residual blocks (ADM, SR3)"
    )
    downsample_padding: Padding = option(
        Padding.BOTH, help='where a convolution that halves is padded: both sides or the end (DDPM\'s code); for resample = "conv"'
    )
    frequency_shift: int = option(
        0, help="1: the lowest frequency of embedded numbers is 1/10000 (DDPM's code); 0: just above it", ge=0, le=1
    )
    norm_groups: int = option(32, help="groups of a group norm; the greatest common divisor where this does not divide its channels", ge=1)
    norm_eps: float = option(1e-5, help="what each group norm adds to the variance (DDPM's code: 1e-6)", gt=0)
    checkpoint: bool = option(False, help="compute blocks again in the backward pass: less memory, more time", binds=Binds.NOTHING)

    def build(self, spec: NetworkSpec) -> nn.Module:
        """The network; ValueError where its resolutions do not come out even, or an option would change nothing."""
        self._check_resolutions(spec)
        self._check_heads(spec)
        if self.resample is Resample.RESIDUAL and self.downsample_padding is not UNet().downsample_padding:
            raise ValueError(
                f'downsample_padding = "{self.downsample_padding.value}" changes nothing with resample = "residual", '
                'which halves by averaging: leave it out, or set resample = "conv"'
            )
        return UNetModule(self, spec)

    def _check_resolutions(self, spec: NetworkSpec) -> None:
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
        resolutions = self._resolutions(spec)
        if strange := [r for r in self.attention if r not in resolutions]:
            raise ValueError(f"attention = {strange} names no resolution of this network, which has {resolutions}")

    def _check_heads(self, spec: NetworkSpec) -> None:
        if self.head_channels is not None and self.heads != UNet().heads:
            raise ValueError(f"heads = {self.heads} changes nothing beside head_channels = {self.head_channels}: leave one of them out")
        resolutions = self._resolutions(spec)
        attending = {*self.attention, *(resolutions[-1:] if self.middle_attention else ())}
        among = f"heads = {self.heads}" if self.head_channels is None else f"heads of head_channels = {self.head_channels}"
        for multiplier, resolution in zip(self.multipliers, resolutions, strict=True):
            if resolution in attending and self.channels * multiplier % (self.head_channels or self.heads):
                raise ValueError(f"{self.channels} * {multiplier} channels cannot be split among {among}")

    def _resolutions(self, spec: NetworkSpec) -> list[int]:
        return [spec.resolution >> level for level in range(len(self.multipliers))]


class UNetModule(nn.Module):
    """The module that `UNet.build` makes: (x_t [B, 3, R, R], noise level [B], Condition) -> [B, out_channels, R, R]."""

    def __init__(self, options: UNet, spec: NetworkSpec) -> None:
        super().__init__()
        self.checkpoint = options.checkpoint
        width, embedding = options.channels, 4 * options.channels
        self.embedding = Embedding(width, embedding, spec, options.frequency_shift)
        first = options.multipliers[0] * width
        self.conv_in = nn.Conv2d(spec.image_channels * (2 if spec.low_res else 1), first, 3, padding=1)
        channels, resolution, skips = first, spec.resolution, [first]
        self.down = nn.ModuleList()
        for level, multiplier in enumerate(options.multipliers):
            if level:
                self.down.append(Layer([_downsample(options, channels, embedding)]))
                skips.append(channels)
                resolution //= 2
            for _ in range(options.blocks):
                self.down.append(_layer(options, channels, multiplier * width, embedding, resolution in options.attention))
                channels = multiplier * width
                skips.append(channels)
        self.middle = nn.ModuleList(
            (
                _layer(options, channels, channels, embedding, options.middle_attention),
                _layer(options, channels, channels, embedding, False),
            )
        )
        self.up = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(options.multipliers))):
            for last in _flags(options.blocks + 1):
                layer = _layer(options, channels + skips.pop(), multiplier * width, embedding, resolution in options.attention)
                channels = multiplier * width
                if last and level:
                    resolution *= 2
                    layer.append(_upsample(options, channels, embedding))
                self.up.append(layer)
        self.norm = _norm(options, channels)
        self.conv_out = zero(nn.Conv2d(channels, spec.out_channels, 3, padding=1))

    def forward(self, x_t: Tensor, noise_level: Tensor, condition: Condition) -> Tensor:
        """Down, across and up, joining each step up with the same step down."""
        emb = self.embedding(noise_level, condition)
        image = x_t if condition.low_res is None else torch.cat((x_t, condition.low_res), dim=1)
        h = self.conv_in(image.contiguous(memory_format=torch.channels_last))  # as all that follows, also where weights are not
        skips = [h]
        for layer in self.down:
            h = run(layer, h, emb, checkpoint=self.checkpoint)
            skips.append(h)
        for layer in self.middle:
            h = run(layer, h, emb, checkpoint=self.checkpoint)
        for layer in self.up:
            h = run(layer, h, emb, skips.pop(), checkpoint=self.checkpoint)
        out: Tensor = self.conv_out(self.norm(h))
        return out


def _flags(count: int) -> Iterator[bool]:
    """False `count - 1` times, then True."""
    return (index == count - 1 for index in range(count))


def _layer(options: UNet, channels: int, out: int, embedding: int, attention: bool) -> Layer:
    """A residual block, with or without attention."""
    layer = Layer([Block(options, channels, out, embedding)])
    if attention:
        layer.append(Attention(options, out))
    return layer


def _downsample(options: UNet, channels: int, embedding: int) -> nn.Module:
    if options.resample is Resample.RESIDUAL:
        return Block(options, channels, channels, embedding, nn.AvgPool2d(2))
    return Downsample(channels, options.downsample_padding)


def _upsample(options: UNet, channels: int, embedding: int) -> nn.Module:
    if options.resample is Resample.RESIDUAL:
        return Block(options, channels, channels, embedding, nn.Upsample(scale_factor=2))
    return Upsample(channels)


class Layer(nn.ModuleList):
    """Modules in a row, the blocks among them also given the embedding."""

    def forward(self, h: Tensor, emb: Tensor, skip: Tensor | None = None) -> Tensor:
        """[B, C, R, R], [B, E] and, on the way up, [B, S, R, R] -> [B, C', R', R']."""
        if skip is not None:
            h = torch.cat((h, skip), dim=1)  # here, so that a checkpoint keeps the parts, which others keep too, and not the whole
        for module in self:
            h = module(h, emb) if isinstance(module, Block) else module(h)
        return h


class Block(nn.Module):
    """A residual block: norm, convolve, take in the embedding, norm, convolve (zero at first), add.

    resize: what both branches do to the resolution, as in BigGAN's blocks: before the first convolution, and before the skip.
    """

    def __init__(self, options: UNet, channels: int, out: int, embedding: int, resize: nn.Module | None = None) -> None:
        super().__init__()
        self.scale_shift, self.skip_rescale = options.scale_shift, options.skip_rescale
        self.resize = nn.Identity() if resize is None else resize
        self.norm1 = _norm(options, channels)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.emb_proj = nn.Linear(embedding, 2 * out if options.scale_shift else out)
        self.norm2 = _norm(options, out)
        self.dropout = Dropout(options.dropout)
        self.conv2 = zero(nn.Conv2d(out, out, 3, padding=1))
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """[B, C, R, R], [B, E] -> [B, C', R', R']."""
        h = self.conv1(self.resize(self.norm1(x)))
        told = self.emb_proj(emb)
        h = self.norm2(h, told) if self.scale_shift else self.norm2(h + told[:, :, None, None])
        return _sum(self.skip(self.resize(x)), self.conv2(self.dropout(h)), self.skip_rescale)


class Attention(nn.Module):
    """Self-attention over all pixels, zero at first, added to its input."""

    def __init__(self, options: UNet, channels: int) -> None:
        super().__init__()
        self.heads = options.heads if options.head_channels is None else channels // options.head_channels
        self.skip_rescale = options.skip_rescale
        self.norm = _norm(options, channels, silu=False)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, R, R] -> the same."""
        batch, channels, height, width = x.shape
        by_pixel = self.qkv(self.norm(x)).permute(0, 2, 3, 1)
        q, k, v = by_pixel.reshape(batch, height * width, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        h = attend(q, k, v).transpose(1, 2).reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        return _sum(x, self.out(h), self.skip_rescale)


def _sum(x: Tensor, h: Tensor, rescale: bool) -> Tensor:
    """The sum; where `rescale`, at about the variance of each (arXiv:2011.13456, appendix H)."""
    return (x + h) / math.sqrt(2) if rescale else x + h


class Downsample(nn.Conv2d):
    """Halve the resolution by a convolution with stride 2."""

    def __init__(self, channels: int, padding: Padding) -> None:
        super().__init__(channels, channels, 3, stride=2, padding=1 if padding is Padding.BOTH else 0)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, R, R] -> [B, C, R/2, R/2]."""
        return super().forward(x if self.padding[0] else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the resolution: repeat pixels, then convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, R, R] -> [B, C, 2R, 2R]."""
        return double_and_convolve(x, self.conv)


def _norm(options: UNet, channels: int, *, silu: bool = True) -> Norm:
    """Group norm with as many groups as asked for wherever they divide the channels, and SiLU unless that is without."""
    return Norm(math.gcd(options.norm_groups, channels), channels, options.norm_eps, silu=silu)


@hookimpl
def cdmkit_components() -> list[type[Component]]:
    """The U-Net."""
    return [UNet]
