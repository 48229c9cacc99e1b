"""One shard of a set: local and indexed at once, or remote and fetched when its samples are needed."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import attrs

from cdmkit.data.cache import Cache
from cdmkit.data.find import Located, Shard
from cdmkit.data.index import index_of, read_edges
from cdmkit.data.remote import is_remote, shown
from cdmkit.data.tar import TarIndex
from cdmkit.errors import DataError, SetupError
from cdmkit.kinds import Skip

_PAUSE = 60.0
"""Seconds for which a shard that did not come is not asked for again: others who wait for it are told at once."""

_TRIES = 5
"""How often a shard is fetched anew that the cache lets go of before it is used."""

T = TypeVar("T")

_kept_open = threading.Semaphore(256)
"""How many files of shards this process keeps open."""


class Part:
    """A shard and its index. Safe to use from several threads."""

    def __init__(self, shard: Shard, classes: int, cache: Cache) -> None:
        self._shard = shard
        self._listed_classes = classes
        self._cache = cache
        self._index: TarIndex | None = None
        self._path: Path | None = None
        self._descriptor: int | None = None
        self._failure: tuple[float, DataError | SetupError] | None = None
        self._lock = threading.Lock()
        self.where = shown(shard.where)
        """Path or URL, for people."""
        self.remote = is_remote(shard.where)
        if not (self.remote and shard.listed.samples is not None):
            self.index()

    @property
    def length(self) -> int:
        """Samples; of a remote shard, those that a list tells."""
        listed = self._shard.listed.samples
        return listed if self.remote and listed is not None else len(self.index().keys)

    @property
    def classes(self) -> int:
        """The largest label + 1, 0 without labels; of a shard not yet fetched, what the list tells of all."""
        return self._listed_classes if self._index is None else int(self._index.labels.max(initial=-1)) + 1

    @property
    def skips(self) -> tuple[Skip, ...]:
        """What in it is known to be unusable."""
        return () if self._index is None else self._index.skips

    @property
    def note(self) -> str:
        """What is odd about it, though all that is there can be used: an end that nothing tells. Empty where a list tells its samples."""
        return self._index.note if self._index is not None and self._shard.listed.samples is None else ""

    def lost(self, mean: float) -> int:
        """How many samples are unusable: told by a list; else those with a key, and as many as would fit behind the place of damage.

        mean: bytes of a sample, its headers included.
        """
        if not self.skips:
            return 0
        listed, index = self._shard.listed.samples, self.index()
        if listed is not None:
            return max(len(index.skips), listed - len(index.keys))
        keyed = sum(1 for skip in index.skips if skip.key)
        return keyed + (0 if keyed == len(index.skips) else max(1, round(index.unread / mean)))

    @property
    def identity(self) -> str:
        """What tells its content from that of others without looking at it; empty where a list does not tell."""
        listed = self._shard.listed
        named = self.remote and listed.samples is not None
        return listed.sha256 or (f"{self.where.rpartition('/')[2]}:{listed.samples}" if named else "")

    def index(self) -> TarIndex:
        """Its index, when it is fetched and read. Raises DataError where that cannot be or it is not what a list tells, and SetupError
        where there is no place for it.
        """
        if self._index is None:
            with self._lock:
                if self._failure is not None and time.monotonic() - self._failure[0] < _PAUSE:
                    raise self._failure[1]
                if self._index is None:
                    try:
                        self._index = self._made()
                    except (DataError, SetupError) as error:
                        self._failure = (time.monotonic(), error)
                        raise
        return self._index

    def read(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes from `offset` on, without a seek position, so that threads and forked processes may share a descriptor.

        Of local shards the first ones read stay open; the others are opened for each read, and so are remote ones, which else would take
        room after the cache let go of them. Raises OSError, and DataError where it does not come.
        """
        kept = self._descriptor
        if kept is not None:
            return os.pread(kept, size, offset)
        descriptor = self._open()
        slots = _kept_open
        if not self.remote and slots.acquire(blocking=False):
            with self._lock:
                if self._descriptor is None:
                    self._descriptor = descriptor
                    weakref.finalize(self, _close, descriptor, slots)
                    return os.pread(descriptor, size, offset)
            slots.release()
        try:
            return os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)

    def edges(self) -> bytes:
        """Its first and last 64 KiB. Raises DataError where it cannot be read."""
        try:
            descriptor = self._open()
            try:
                return read_edges(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise DataError(f"{self.where} cannot be read: {error.strerror}") from error

    def path(self) -> Path:
        """The local file, fetched where it is remote. Raises DataError where it does not come."""
        path = self._path
        if path is None:
            listed = self._shard.listed
            path = self._cache.fetch(self._shard.where, listed.bytes, listed.sha256) if self.remote else Path(self._shard.where)
            self._path = path
        return path

    def _open(self) -> int:
        """A descriptor, fetched anew where the cache let go of the file."""
        return self._there(lambda path: os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def _there(self, use: Callable[[Path], T]) -> T:
        """What comes of using the local file. A remote one is fetched anew where the cache lets go of it first, as another stream may have
        it do.
        """
        for _ in range(_TRIES if self.remote else 0):
            try:
                return use(self.path())
            except FileNotFoundError:
                self._path = None
        return use(self.path())

    def _made(self) -> TarIndex:
        try:
            index, size = self._there(lambda path: (index_of(path), path.stat().st_size))
        except OSError as error:
            raise DataError(f"{self.where} cannot be read: {error.strerror}") from error
        if self._shard.listed.bytes not in (None, size):
            told = f"{self.where} has {size} bytes, but the list beside it says {self._shard.listed.bytes}: copy it again"
            index = attrs.evolve(index, skips=(Skip(self.where, "", "wrong length", told), *index.skips))
        found, listed, labels = len(index.keys) + len(index.skips), self._shard.listed.samples, index.labels
        if listed is not None and listed != found and not any(skip.key == "" for skip in index.skips):
            raise DataError(f"{self.where} has {found} samples, but the list beside it says {listed}: copy or make it again")
        if self._listed_classes and labels.max(initial=-1) >= self._listed_classes:
            key = index.keys[int(labels.argmax())]
            raise DataError(
                f"{self.where}: key {key!r} has the label {labels.max()}, but the list beside it names {self._listed_classes} classes"
            )
        return index


def _close(descriptor: int, slots: threading.Semaphore) -> None:
    os.close(descriptor)
    slots.release()


def parts_of(located: Located, cache: Cache) -> list[Part]:
    """Every shard of a set. Those without a list that tells their samples are fetched now; and the first one, where the list does not tell
    whether there are labels.
    """
    parts = [Part(shard, located.classes, cache) for shard in located.shards]
    if not located.classes:
        parts[0].index()
    return parts
