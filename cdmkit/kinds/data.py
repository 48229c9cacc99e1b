"""The kind of training data: endless batches of images in an order that is a function of a seed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import attrs
from torch import Tensor

from cdmkit.component import Component


class Batch(NamedTuple):
    """Images to train on."""

    images: Tensor
    """uint8 [B, 3, S, S] at the source's resolution S."""
    labels: Tensor
    """int64 [B], 0 where the data has no classes."""
    positions: Tensor
    """int64 [B]: the place of each image in the endless order of training, from 0. Draws are keyed by it."""


@attrs.frozen(kw_only=True)
class DataCard:
    """What a source offers, known without decoding it all."""

    resolution: int
    """S: images are S x S."""
    count: int
    """Images in an epoch."""
    classes: int
    """Number of labels, 0 where images have none."""
    fingerprint: str
    """Equal where the pictures and labels are equal: hex digest."""


class Source(Component):
    """Where training images come from."""

    kind = "source"

    @abstractmethod
    def card(self) -> DataCard:
        """Look at the data. Raises DataError, saying what was looked for and how to make it, where it is not there or not usable."""

    @abstractmethod
    def open(self, batch: int, rank: int, world: int, seed: int, position: int) -> Batches:
        """An endless stream of this rank's batches of `batch` images, the first starting at global `position`.

        The order is a function of (seed, position) alone. Global batch g holds positions [g * batch * world, (g + 1) * batch * world);
        rank r gets every world-th of them, from the r-th.
        """


class Batches(Iterator[Batch], ABC):
    """An open stream of batches: a context manager that closes itself."""

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Let go of threads and files."""
