"""The order of training: which image stands at which position of the endless stream.

A function of (seed, position) alone, so the state of a stream is its position, and any position is found at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cdmkit.draws import Stream

Shards = npt.NDArray[np.int64]
"""The numbers of some shards."""


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

    For shards that are slow at random places, or not all at hand. lengths: images in each shard. `coming` is told the shards of every block
    that is entered, and of the one after it.
    """

    def __init__(self, lengths: Sequence[int], seed: int, mix: int, coming: Callable[[Sequence[int]], None] = lambda _shards: None) -> None:
        super().__init__(sum(lengths), seed)
        self._within = Stream.of(seed, "order", "within a block")
        self._lengths = np.array(lengths, np.int64)
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._mix = mix
        self._coming = coming
        self._entered = (-1, -1)
        self._cut: tuple[int, list[Shards], npt.NDArray[np.int64]] = (-1, [], self._starts)

    def __call__(self, positions: Tensor) -> Tensor:
        """The images at `positions` (rising int64 [B], from 0): int64 [B]."""
        if len(positions):
            self._enter(self._block_of(int(positions[0])), self._block_of(int(positions[-1])))
        return super().__call__(positions)

    def _enter(self, first: tuple[int, int], last: tuple[int, int]) -> None:
        """Tell of the blocks from the first to the last, and of the one after them, unless that was told already."""
        if last <= self._entered:
            return
        self._entered = last
        told: list[int] = []
        (epoch, number), ahead = first, 1
        while ahead >= 0:
            blocks, _ = self._blocks(epoch)
            told += blocks[number].tolist()
            ahead -= (epoch, number) >= last
            epoch, number = (epoch, number + 1) if number + 1 < len(blocks) else (epoch + 1, 0)
        self._coming(list(dict.fromkeys(told)))

    def _block_of(self, position: int) -> tuple[int, int]:
        """Epoch and number of the block that holds a position."""
        epoch, place = divmod(position, self._count)
        return epoch, int(np.searchsorted(self._blocks(epoch)[1], place, side="right"))

    def _blocks(self, epoch: int) -> tuple[list[Shards], npt.NDArray[np.int64]]:
        """The shards of each block of an epoch, and where each block ends. Keeps the last that it made."""
        if epoch != self._cut[0]:
            shards = self._stream.permutation(len(self._lengths), epoch)
            blocks = [shards[start : start + self._mix] for start in range(0, len(shards), self._mix)]
            self._cut = (epoch, blocks, np.cumsum([self._lengths[block].sum() for block in blocks]))
        return self._cut[1:]

    def _made(self, epoch: int) -> npt.NDArray[np.int64]:
        generator = self._within.generator(epoch)
        images = ([np.arange(self._lengths[s]) + self._starts[s] for s in block] for block in self._blocks(epoch)[0])
        return np.concatenate([generator.permutation(np.concatenate(block)) for block in images])
