"""Dropout whose masks belong to the images: for the networks that components build, plugins' among them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdmkit.draws import Draw


class Dropout(nn.Module):
    """Zeroes each element of [B, ...] with probability `p` and scales the rest by 1 / (1 - p), while it trains (arXiv:1207.0580).

    What an image loses depends on the image's draws, on this layer's place in the network and on the element's place in the image: not on
    the batch that the image is in, nor on the device, nor on whether it is computed again. `key_dropout` says which images are coming. A
    layer that was never told asks torch's own generator.
    """

    key: tuple[Tensor, Tensor] | None = None
    """An odd factor and a summand for each image, int32 [B]."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] -> the same shape. In images, [B, C, H, W], elements are counted channel by channel within each pixel."""
        if not self.training or self.p == 0:
            return x
        if self.key is None:
            return F.dropout(x, self.p)
        factor, summand = (each.unsqueeze(1) for each in self.key)
        by_pixel = x.permute(0, 2, 3, 1) if x.ndim == 4 else x
        uniform = torch.addcmul(summand, factor, _scattered(by_pixel[0].numel(), x.device))  # wraps round in 32 bits
        kept = (uniform >= round(self.p * 2**32) - 2**31).view(by_pixel.shape)
        return torch.where(kept.permute(0, 3, 1, 2) if x.ndim == 4 else kept, x, 0).mul_(1 / (1 - self.p))

    def extra_repr(self) -> str:
        """The rate."""
        return f"p={self.p}"


def key_dropout(network: nn.Module, draw: Draw) -> None:
    """Tell every `Dropout` of a network the images of its next forward pass. draw: of these images, for dropout alone."""
    layers = [module for module in network.modules() if isinstance(module, Dropout) and module.p > 0]
    if layers:
        words = (draw.stream.bits(draw.index, 2 * len(layers)) - 2**31).to(torch.int32)
        for layer, factor, summand in zip(layers, words[:, ::2].unbind(1), words[:, 1::2].unbind(1), strict=True):
            layer.key = factor | 1, summand


def _scattered(count: int, device: torch.device) -> Tensor:
    """Different int32s without order for 0, 1, ..., count - 1: Wellons's hash "lowbias32", one to one.

    Times an image's odd factor, plus its summand, these are the image's uniforms: under a random key those of any two elements are as good
    as independent in their upper bits (Dietzfelbinger, "Universal hashing and k-wise independent random variables via integer arithmetic
    without primes", STACS 1996). So an element costs two operations, and the hash is computed once for all images.
    """
    mixed = torch.arange(count, dtype=torch.int32, device=device)
    mixed = (mixed ^ (mixed >> 16 & 0xFFFF)) * 0x7FEB352D
    mixed = (mixed ^ (mixed >> 15 & 0x1FFFF)) * (0x846CA68B - 2**32)
    return mixed ^ (mixed >> 16 & 0xFFFF)
