"""The kinds of data: sources of endless batches in an order that is a function of a seed, and preparers of the shards they read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import attrs
from torch import Tensor

from cdmkit.component import Component
from cdmkit.events import SampleSkipped

_LOOK = 0.5
"""Seconds between two looks."""


class Skip(NamedTuple):
    """A sample that cannot be used, or all of a shard from some byte on."""

    shard: str
    key: str
    """Empty where what is damaged is the shard."""
    cause: str
    """What many have in common: "damaged or truncated JPEG", "bad label"."""
    message: str
    """All of it, with shard and key, for people."""

    def event(self) -> SampleSkipped:
        """What observers are told of it."""
        return SampleSkipped(**self._asdict())


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
    crop: str = ""
    """How images were made square and small before they were stored, such as "adm"; empty where that is not known."""
    largest: str = ""
    """Where the largest label is, for messages."""
    notes: tuple[str, ...] = ()
    """What is odd about the data, though it can be used."""
    skips: tuple[Skip, ...] = ()
    """What of the data is left out, as far as it is known without decoding all."""


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

    def where(self, position: int) -> str:
        """Where the image at a position of training lies, for messages: by default only its position."""
        return f"position {position}"

    def ready(self, seconds: float) -> bool:
        """Wait for the next batch, no longer than this; whether it is there. By default it always is: `next` waits for it."""
        return True

    def awaited(self, look: Callable[[], None]) -> Batch:
        """The next batch; `look` is called every half second that it does not come, and what it raises ends the wait."""
        while not self.ready(_LOOK):
            look()
        return next(self)

    @property
    def skipped(self) -> int:
        """How many samples of the data are left out, as far as that is known by now."""
        return 0

    def skips(self) -> list[Skip]:
        """What could not be used since this was last called; others stand in for it. By default nothing ever is left out."""
        return []


class Original(NamedTuple):
    """An image where it came from, not read yet."""

    name: str
    """What it is called there, such as "n01440764/n01440764_10026.JPEG": unique within its split. For the manifest and for messages."""
    label: int
    """Its class, from 0; -1 where images have none."""
    place: Any
    """Where its bytes lie, as its preparer understands it: small, equal in every run, and fit to be sent to another process. It may have a
    method `version() -> tuple[int, ...]`, which tells without reading whether they are the same as before: by size and time of change, say.
    """


@attrs.frozen(kw_only=True)
class Originals:
    """All images that a preparer has found."""

    splits: Mapping[str, Sequence[Original]]
    """By split ("train", "val"), in an order that depends on the names alone."""
    classes: Sequence[str] = ()
    """The name of each label; empty where images have none."""
    passed_over: Mapping[str, int] = attrs.field(factory=dict)
    """How many files were left out, by why: "hidden file", "no image by its name"."""


class Preparer(Component):
    """Where images come from before they are in shards: what `cdmkit data prepare` reads."""

    kind = "preparer"

    @abstractmethod
    def look(self, path: Path) -> Originals:
        """List the images under `path`, without decoding any. Raises DataError, saying what was looked for, where there is none or where
        labels cannot be told.
        """

    @abstractmethod
    def read(self, original: Original) -> bytes:
        """The image as a file: JPEG, PNG, WebP or BMP. Called in other processes, in any order; what it opens it may keep open there.

        Raises DataError where it cannot be read: the image is then rejected, and listed as such.
        """
