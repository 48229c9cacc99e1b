"""Every random number as a function of what it is for.

A `Stream` is named by a seed and words ("sr64", "noise"); what it gives for image `index` at draw `step` depends on nothing else: not on
the batch, the number of devices, the order of work or what was drawn before. So any image can be made again alone, training resumes by
knowing one position, and ranks need not agree on anything.

The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), written with tensor operations:
it runs on whatever device the indices lie on, has no state and never makes the host wait.
"""

from __future__ import annotations

import hashlib
import math

import attrs
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 of four counter words and two key words, each an int64 tensor (or int) holding an unsigned 32-bit value."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _multiply(word: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a 32 x 32 bit product. The product wraps in int64, which leaves its bits right."""
    product = word * factor
    return (product >> 32) & _MASK, product & _MASK


@attrs.frozen
class Stream:
    """The draws named by (seed, words). Cheap to make; holds two integers."""

    key: tuple[int, int]

    @classmethod
    def of(cls, seed: int, *words: str | int) -> Stream:
        """The stream of a seed and the words that say what it is for."""
        text = "\0".join(str(word) for word in (seed, *words)).encode()
        digest = hashlib.blake2b(text, digest_size=8).digest()
        return cls((int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")))

    def bits(self, index: Tensor, count: int, step: int = 0) -> Tensor:
        """Unsigned 32-bit draws in int64 [B, count] for the images `index` (int64 [B]) at draw number `step`."""
        row = index.unsqueeze(1)
        blocks = torch.arange((count + 3) // 4, device=index.device).expand(len(index), -1)
        words = philox((blocks, torch.full_like(row, step), row & _MASK, (row >> 32) & _MASK), self.key)
        return torch.stack(words, dim=-1).flatten(1)[:, :count]

    def uniform(self, index: Tensor, count: int = 1, step: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform draws in [0, 1), [B, count], in steps of 2**-24 (2**-32 in float64)."""
        bits = self.bits(index, count, step)
        if dtype == torch.float64:
            return bits.to(dtype) * 2.0**-32
        return (bits >> 8).to(dtype) * 2.0**-24

    def integers(self, index: Tensor, low: int, high: int, step: int = 0) -> Tensor:
        """One integer per image, uniform in {low, ..., high}: int64 [B]. The bias is below (high - low) / 2**32."""
        return low + ((self.bits(index, 1, step)[:, 0] * (high - low + 1)) >> 32)

    def normal(self, index: Tensor, shape: tuple[int, ...], step: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal draws [B, *shape] by the Box-Muller transform of 32-bit uniforms (|x| < 6.7)."""
        count = math.prod(shape)
        pairs = self.bits(index, 2 * ((count + 1) // 2), step).to(torch.float64 if dtype == torch.float64 else torch.float32)
        first, second = pairs[:, 0::2], pairs[:, 1::2]
        radius = torch.sqrt(-2 * torch.log((first + 1) * 2.0**-32))
        angle = second * (2 * math.pi * 2.0**-32)
        both = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
        return both.flatten(1)[:, :count].reshape(-1, *shape).to(dtype)

    def permutation(self, count: int, epoch: int) -> npt.NDArray[np.int64]:
        """A permutation of range(count) that depends on the epoch: how an epoch is shuffled."""
        return self.generator(epoch).permutation(count)

    def generator(self, epoch: int) -> np.random.Generator:
        """NumPy's generator of the stream for an epoch: what is to be drawn in one go, on the host."""
        return np.random.Generator(np.random.Philox(key=self.key[0] | self.key[1] << 32, counter=[0, 0, 0, epoch]))


@attrs.frozen(eq=False)
class Draw:
    """A stream bound to the images of a batch: what a component is handed when it needs chance.

    `index` is int64 [B], the images' global numbers, on the device where the draws are wanted.
    """

    stream: Stream
    index: Tensor
    dtype: torch.dtype = torch.float32

    def uniform(self, low: float = 0.0, high: float = 1.0, step: int = 0) -> Tensor:
        """One uniform draw per image: [B] in [low, high)."""
        return low + (high - low) * self.stream.uniform(self.index, 1, step, self.dtype)[:, 0]

    def integers(self, low: int, high: int, step: int = 0) -> Tensor:
        """One integer per image in {low, ..., high}: int64 [B]."""
        return self.stream.integers(self.index, low, high, step)

    def normal(self, shape: tuple[int, ...], step: int = 0) -> Tensor:
        """Standard normal draws for each image: [B, *shape]."""
        return self.stream.normal(self.index, shape, step, self.dtype)
