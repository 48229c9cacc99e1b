"""The order of training: which image stands at which position of the endless stream.

A function of (seed, position) alone, so the state of a stream is its position, and any position is found at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cdmkit.draws import Stream


class Order:
    """Every epoch is a new permutation of all `count` images: image of position p = permutation(p // count)[p % count].

    Keeps the last permutation it made.
    """

    def __init__(self, count: int, seed: int) -> None:
        self._count = count
        self._stream = Stream.of(seed, "order")
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.int64)

    def __call__(self, positions: Tensor) -> Tensor:
        """The images at `positions` (int64 [B], from 0): int64 [B]."""
        epochs = positions // self._count
        images = torch.empty_like(positions)
        for epoch in sorted(set(epochs.tolist())):
            here = epochs == epoch
            images[here] = self._permuted(epoch)[positions[here] % self._count]
        return images

    def _permuted(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, torch.from_numpy(self._made(epoch))
        return self._permutation

    def _made(self, epoch: int) -> npt.NDArray[np.int64]:
        return self._stream.permutation(self._count, epoch)


class BlockOrder(Order):
    """Every epoch goes through the shards in a new order, a block of `mix` shards at a time, whose images are mixed with each other.

    For shards that are slow at random places, or not all at hand. lengths: images in each shard. `coming` is told the shards of the block
    that is begun and of the one after it, each time a block is entered.
    """

    def __init__(self, lengths: Sequence[int], seed: int, mix: int, coming: Callable[[Sequence[int]], None] = lambda _shards: None) -> None:
        super().__init__(sum(lengths), seed)
        self._within = Stream.of(seed, "order", "within a block")
        self._lengths = np.array(lengths, np.int64)
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._mix = mix
        self._coming = coming
        self._entered = (-1, -1)

    def __call__(self, positions: Tensor) -> Tensor:
        """The images at `positions` (int64 [B], from 0): int64 [B]."""
        if len(positions):
            self._enter(*divmod(int(positions[-1]), self._count))
        return super().__call__(positions)

    def _enter(self, epoch: int, place: int) -> None:
        """Tell of the block that holds a place of an epoch, and of the next, unless that was told last."""
        ends = np.cumsum([self._lengths[block].sum() for block in self._blocks(epoch)])
        number = int(np.searchsorted(ends, place, side="right"))
        if self._entered != (epoch, number):
            self._entered = (epoch, number)
            here, *following = self._blocks(epoch)[number:]
            self._coming([*here.tolist(), *(following or self._blocks(epoch + 1))[0].tolist()])

    @functools.lru_cache(maxsize=2)  # noqa: B019  (an order lives as long as its stream of batches)
    def _blocks(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        """The shards of each block of an epoch."""
        shards = self._stream.permutation(len(self._lengths), epoch)
        return [shards[start : start + self._mix] for start in range(0, len(shards), self._mix)]

    def _made(self, epoch: int) -> npt.NDArray[np.int64]:
        generator = self._within.generator(epoch)
        images = ([np.arange(self._lengths[s]) + self._starts[s] for s in block] for block in self._blocks(epoch))
        return np.concatenate([generator.permutation(np.concatenate(block)) for block in images])
