"""Which image goes into which shard: known before any is read."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from cdmkit.data.originals import Piece
from cdmkit.draws import Stream
from cdmkit.errors import DataError, UsageError
from cdmkit.kinds import Original, Originals, Preparer
from cdmkit.preparing.settings import Settings, plain

_MOST_SHARDS = 100_000
"""Their numbers have five digits."""


@attrs.frozen
class Shard:
    """Some neighbours in the shuffled order of a split."""

    split: str
    number: int
    first: int
    """The position of its first image."""
    count: int
    """How many images it is to hold, if none is rejected."""

    @property
    def stem(self) -> str:
        """What its files are called, without what follows the dot."""
        return f"{self.split}-{self.number:05d}"

    @property
    def file(self) -> str:
        """What it is called."""
        return f"{self.stem}.tar"


@attrs.frozen(eq=False)
class Split:
    """The images of a split, shuffled and cut into shards."""

    name: str
    originals: Sequence[Original]
    order: npt.NDArray[np.int64]
    """For each position, the original that stands there."""
    shards: tuple[Shard, ...]

    @classmethod
    def of(cls, name: str, originals: Sequence[Original], settings: Settings) -> Split:
        """Shuffle and cut. Shards but the last are of one size, which is lowered where there would be fewer than `min_shards`."""
        count = len(originals)
        size = min(settings.per_shard, max(1, count // settings.min_shards))
        if count > size * _MOST_SHARDS:
            raise UsageError(f"{name}: {count:,} images, {size:,} to a shard, are more than {_MOST_SHARDS:,} shards: put more into each")
        shards = tuple(Shard(name, first // size, first, min(size, count - first)) for first in range(0, count, size))
        return cls(name, originals, Stream.of(settings.seed, "prepare", name).permutation(count, 0), shards)

    def at(self, first: int, count: int) -> Iterator[Original]:
        """The originals at some positions."""
        return (self.originals[index] for index in self.order[first : first + count].tolist())


@attrs.frozen(eq=False)
class Plan:
    """A data set to be made."""

    preparer: Preparer
    settings: Settings
    splits: tuple[Split, ...]
    classes: tuple[str, ...]
    listing: str
    """A digest of what the source lists: splits, names, labels and classes."""
    root: Path | None = None
    """The source, a file, a folder or a pattern, if there is one."""

    @classmethod
    def of(cls, preparer: Preparer, originals: Originals, settings: Settings, root: Path | None = None) -> Plan:
        """Plan a data set. Raises DataError where what was listed cannot be one."""
        splits = tuple(Split.of(name, listed, settings) for name, listed in originals.splits.items() if len(listed))
        if not splits:
            raise DataError("the source holds no images")
        for split in splits:
            if not re.fullmatch("[A-Za-z0-9_]+(-[A-Za-z0-9_]+)*", split.name):
                raise DataError(f"a split is called {split.name!r}: letters, digits, - and _ are wanted, for it becomes the name of files")
            _check_labels(split, len(originals.classes))
        return cls(preparer, settings, splits, tuple(originals.classes), _listing(splits, originals.classes), root)

    @property
    def shards(self) -> list[Shard]:
        """All shards, in the order they are made in."""
        return [shard for split in self.splits for shard in split.shards]

    @property
    def count(self) -> int:
        """How many images are listed."""
        return sum(len(split.originals) for split in self.splits)

    @property
    def source(self) -> dict[str, Any]:
        """Where the images are from, as it is noted: the preparer and its options. Of paths, which differ from machine to machine, the
        last part.
        """
        options = {name: _unplaced(value) for name, value in plain(self.preparer).items()}
        return {"preparer": self.preparer.type_name, **options}

    @property
    def terms(self) -> dict[str, Any]:
        """All that the shards' bytes depend on, beside the images and the tools. JSON."""
        settings = {name: value for name, value in self.settings.plain().items() if name != "license"}
        return {"format": 2, "settings": settings, "source": self.source, "listing": self.listing}

    def digests(self) -> dict[Shard, str]:
        """For each shard a digest of `terms`, and of what tells the pictures in it from others of the same names."""
        terms, versions = json.dumps(self.terms, sort_keys=True).encode(), _Versions()
        found = {}
        for split in self.splits:
            for shard in split.shards:
                digest = hashlib.sha256(terms + shard.stem.encode())
                for original in split.at(shard.first, shard.count):
                    digest.update(repr(versions.of(original.place)).encode("utf-8", "surrogateescape"))
                found[shard] = digest.hexdigest()
        return found

    @property
    def folders(self) -> set[str]:
        """The folders of the files that are known to be read."""
        return {each.place.folder for split in self.splits for each in split.originals if isinstance(each.place, Piece)}


class _Versions:
    """What tells the bytes at a place from others, without reading them: the size and time of files; not where they lie.

    A place may have a method `version` that tells it. Of others, which must be equal in every run, absolute paths count as the files that
    they mean, folders as their largest file, and all else as it is.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, ...]] = {}

    def of(self, place: Any) -> Any:
        """That of a place. Equal bytes at another time make another one."""
        if callable(version := getattr(place, "version", None)):
            try:
                return version()
            except (DataError, OSError):
                return ()
        if isinstance(place, tuple):
            return tuple(map(self.of, place))
        if isinstance(place, str) and os.path.isabs(place):
            return self._stamp(place)
        return place

    def _stamp(self, path: str) -> tuple[int, ...]:
        """Asked for only once: an archive holds many images."""
        if path not in self._known:
            self._known[path] = _stamp(path)
        return self._known[path]


def _stamp(path: str) -> tuple[int, ...]:
    """Size and time of a file, or of the largest one in a folder; nothing where there is none."""
    try:
        if os.path.isdir(path):
            return max(((entry.stat().st_size, entry.stat().st_mtime_ns) for entry in os.scandir(path) if entry.is_file()), default=())
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_size, status.st_mtime_ns


def _unplaced(value: Any) -> Any:
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _check_labels(split: Split, classes: int) -> None:
    """All images of a split have a label that has a name, or none has any."""
    labels = np.fromiter((original.label for original in split.originals), np.int64, len(split.originals))
    if (labels == -1).all():
        return
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        name, label, _ = split.originals[int(wrong[0])]
        raise DataError(f"{split.name}: {name!r} has the label {label}, but there are {classes} classes: label all images or none")


def _listing(splits: Sequence[Split], classes: Sequence[str]) -> str:
    digest = hashlib.sha256(repr(list(classes)).encode())
    for split in splits:
        digest.update(repr((split.name, len(split.originals))).encode())
        for original in split.originals:
            digest.update(repr((original.name, original.label)).encode())
    return digest.hexdigest()
