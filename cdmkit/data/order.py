"""The order of training: which image stands at which position of the endless stream."""

from __future__ import annotations

import torch
from torch import Tensor

from cdmkit.draws import Stream


class Order:
    """Every epoch is a new permutation of all `count` images: image of position p = permutation(p // count)[p % count].

    A function of (seed, position) alone, so the state of a stream is its position. Keeps the last permutation it made.
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
            self._epoch, self._permutation = epoch, torch.from_numpy(self._stream.permutation(self._count, epoch))
        return self._permutation
