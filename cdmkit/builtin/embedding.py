"""What the backbones share: one vector of all that a network is told, layers that start at zero, and recomputation."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as without_keeping

from cdmkit.builtin.layers import exactly
from cdmkit.diffusion import Condition
from cdmkit.kinds import NetworkSpec


class Embedding(nn.Module):
    """Noise level, class and augmentation levels as one vector [B, size], in float32 also in mixed precision: it is small, and bf16 holds
    no whole numbers above 256.

    width: of the sinusoidal embedding of each number. frequency_shift: see `sinusoidal`.
    """

    def __init__(self, width: int, size: int, spec: NetworkSpec, frequency_shift: int = 0) -> None:
        super().__init__()
        self.width, self.frequency_shift = width, frequency_shift
        self.noise = self._mlp(size)
        self.label = Labels(spec.classes, size, spec.unlabeled) if spec.classes else None
        self.levels = nn.ModuleList(self._mlp(size) for _ in range(spec.levels))

    def _mlp(self, size: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(self.width, size), nn.SiLU(), nn.Linear(size, size))

    def forward(self, noise_level: Tensor, condition: Condition) -> Tensor:
        """The activated sum of what the network is told."""
        with exactly(noise_level):
            return F.silu(self._sum(noise_level, condition))

    def _sum(self, noise_level: Tensor, condition: Condition) -> Tensor:
        emb: Tensor = self.noise(sinusoidal(noise_level, self.width, self.frequency_shift))
        if self.label is not None:
            emb = emb + self.label(condition.label)
        levels = () if condition.levels is None else condition.levels.unbind(1)
        for mlp, level in zip(self.levels, levels, strict=True):
            emb = emb + mlp(sinusoidal(level, self.width, self.frequency_shift))
        return emb


class Labels(nn.Embedding):
    """A row for each class and, where a network can be told no label, one more, the last, for -1."""

    def __init__(self, classes: int, size: int, unlabeled: bool) -> None:
        super().__init__(classes + unlabeled, size)
        self.unlabeled = unlabeled

    def forward(self, label: Tensor) -> Tensor:
        """int64 [B] -> [B, size]."""
        return super().forward(label % self.num_embeddings if self.unlabeled else label)  # as Python counts: -1 is the last


def sinusoidal(value: Tensor, width: int, shift: int = 0) -> Tensor:
    """Cosines and sines of value [B] at half = width/2 frequencies 10000^(-i / (half - shift)), i = 0..half-1: [B, width].

    shift = 0: down to just above 1/10000 (Improved DDPM's code); 1: down to 1/10000 itself (DDPM's code).
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=value.device, dtype=value.dtype) * (-math.log(10000) / (half - shift)))
    angles = value.unsqueeze(1) * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=1)


L = TypeVar("L", bound=nn.Module)


def zero(layer: L) -> L:
    """Start at zero, so that a block starts as the identity and the network as zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def run(block: nn.Module, *inputs: Tensor, checkpoint: bool) -> Tensor:
    """block(*inputs). With `checkpoint` its activations are computed again in the backward pass, not kept until then (arXiv:1604.06174)."""
    if checkpoint and torch.is_grad_enabled():
        out: Tensor = without_keeping(block, *inputs, use_reentrant=False)  # this form restores autocast and torch's generator
    else:
        out = block(*inputs)
    return out
