"""What the backbones are made of, each computed in the way that takes the least time where it runs.

Layers are the field's usual ones, and their weights have the usual names and shapes. Seconds are CPU time of one core of an AMD EPYC with
avx512_bf16, for forward and backward pass, torch 2.13; `python benchmarks/train_step.py` measures whole steps.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_TOKENS_BY_PRODUCTS = 256
"""In bf16 on a CPU, attention among up to so many tokens is two products and a softmax: 8 ms, not the 19 of torch's fused one, for
[8, 4, 256, 32], and 1, not 5, for [8, 4, 64, 48]. Beyond, as in float32, the fused one is no slower, and keeps no square of weights."""
_PIXELS_TO_TRANSPOSE = 256
"""On a CPU a batch of so many pixels is doubled and convolved by one transposed convolution, of 4/9 of the products: 31 ms, not 67, in
float32, and 21, not 33, in bf16 for [8, 128, 16, 16]. With 128 pixels making its kernel takes longer than it saves."""


def exactly(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Where products are computed in the dtype that tensors have, on the device of `x`, whatever autocast says."""
    if not torch.is_autocast_enabled(x.device.type):
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, enabled=False)


class Norm(nn.GroupNorm):
    """Group norm, a scale and a shift for each image, and SiLU, all in float32 whatever the dtype of its input, which is rounded to once.

    One pass of autograd for the three: of what lies between them nothing is kept for the backward pass. Channels-last images stay so, which
    torch's group norm does not leave on CUDA, and for which it is slow on a CPU: the three take 4 ms, not 19, for [4, 64, 64, 64] in bf16.
    """

    def __init__(self, groups: int, channels: int, eps: float, *, silu: bool) -> None:
        super().__init__(groups, channels, eps)
        self.silu = silu

    def forward(self, input: Tensor, told: Tensor | None = None) -> Tensor:
        """[B, C, R, R] -> the same. told: [B, 2 C], what scales, beside 1, and what shifts (AdaGN, Improved DDPM appendix A)."""
        wide = torch.promote_types(input.dtype, torch.float32)
        scale, shift = (each.to(wide).expand(len(input), -1) for each in (self.weight, self.bias))
        if told is not None:
            more, offset = told.to(wide).chunk(2, dim=1)
            scale, shift = scale + scale * more, torch.addcmul(shift + offset, shift, more)
        out: Tensor = _Normed.apply(input, scale, shift, self.num_groups, self.eps, self.silu)  # type: ignore[no-untyped-call]
        return out


class _Normed(torch.autograd.Function):
    """silu(scale (x - mean) / std + shift), with mean and std of each group of channels; scale and shift are [B, C], in the wider dtype.

    As a function of one channel that is silu(gain x + offset). Gradients, with g that of silu's input, x' the normed x and sums over
    pixels: of shift sum g, of scale sum g x', of x gain g - (mean of scale g + x' mean of scale g x') / std, means over a group.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
        """Work on [B, pixels, C], in few tensors that are written to again and again: to get memory for each would take longer."""
        wide = _by_pixel(x).to(scale.dtype)
        mean = _of_groups(wide.mean(1), groups)
        z = wide - mean.unsqueeze(1)
        rstd = _of_groups(z.square_().mean(1), groups).add_(eps).rsqrt_()
        gain, offset = _affine(mean, rstd, scale, shift)
        torch.addcmul(offset, wide, gain, out=z)
        if silu:
            F.silu(z, inplace=True)
        ctx.save_for_backward(x, mean, rstd, scale, shift)
        ctx.groups, ctx.silu = groups, silu
        return _by_channel(z.to(x.dtype), x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, scale and shift."""
        x, mean, rstd, scale, shift = ctx.saved_tensors
        wide, g = (_by_pixel(each).to(scale.dtype) for each in (x, *grads))
        gain, offset = _affine(mean, rstd, scale, shift)
        if ctx.silu:
            z = torch.addcmul(offset, wide, gain)
            g = torch.ops.aten.silu_backward.grad_input(g, z, grad_input=z)
        of_shift, of_x = g.sum(1), g * wide
        of_scale = torch.addcmul(of_x.sum(1), mean, of_shift, value=-1) * rstd
        share = rstd / -wide.shape[1]
        slope = share * _of_groups(scale * of_scale, ctx.groups) * rstd
        constant = torch.addcmul(share * _of_groups(scale * of_shift, ctx.groups), slope, mean, value=-1)
        torch.addcmul(constant.unsqueeze(1), wide, slope.unsqueeze(1), out=of_x).addcmul_(g, gain)
        return _by_channel(of_x.to(x.dtype), x), of_scale, of_shift, None, None, None


def _by_pixel(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, pixels, C], in the same memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _by_channel(y: Tensor, like: Tensor) -> Tensor:
    """[B, pixels, C] -> [B, C, H, W], in the same memory."""
    return y.view(len(y), *like.shape[2:], -1).permute(0, 3, 1, 2)


def _of_groups(each: Tensor, groups: int) -> Tensor:
    """[B, C] -> the mean of its group for each channel, [B, C]."""
    grouped = each.view(len(each), groups, -1)
    return grouped.mean(2, keepdim=True).expand_as(grouped).flatten(1)


def _affine(mean: Tensor, rstd: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """What a channel is multiplied by and what is added to it, [B, 1, C], to norm, scale and shift it."""
    gain = rstd * scale
    return gain.unsqueeze(1), torch.addcmul(shift, mean, gain, value=-1).unsqueeze(1)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v for [B, heads, N, D] each; sums of the softmax are float32 in each way."""
    if not (q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[2] <= _TOKENS_BY_PRODUCTS):
        return F.scaled_dot_product_attention(q, k, v)
    one_q, one_k, one_v = (each.flatten(0, 1) for each in (q, k, v))
    nothing = q.new_zeros(1, 1, 1)
    scores = torch.baddbmm(nothing, one_q, one_k.transpose(1, 2), beta=0, alpha=q.shape[3] ** -0.5)
    return torch.bmm(scores.softmax(2), one_v).view(q.shape)


def double_and_convolve(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Each pixel as 2 x 2, then a 3 x 3 convolution: [B, C, H, W] -> [B, C', 2 H, 2 W].

    Each of four neighbours in the result sees but 2 x 2 pixels of `x`: that is a transposed convolution with stride 2, and as kernel the
    given one convolved with 2 x 2 ones.
    """
    if x.device.type != "cpu" or x[:, 0].numel() < _PIXELS_TO_TRANSPOSE:
        out: Tensor = conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out
    with exactly(x):
        kernel = conv.weight.transpose(0, 1).flatten(2) @ _spread(conv.weight)
    return F.conv_transpose2d(x, kernel.view(*kernel.shape[:2], 4, 4), conv.bias, stride=2, padding=1)


def _spread(like: Tensor) -> Tensor:
    """[9, 16]: a 3 x 3 kernel, turned by half a circle, convolved with 2 x 2 ones, as a matrix."""
    line = torch.eye(3, dtype=like.dtype, device=like.device).flip(0)
    line = F.pad(line, (0, 1)) + F.pad(line, (1, 0))
    return torch.kron(line, line)
