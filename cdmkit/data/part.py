"""One shard of a set: local and indexed at once, or remote and fetched when its samples are needed."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from cdmkit.data.cache import Cache
from cdmkit.data.find import Located, Shard
from cdmkit.data.index import index_of
from cdmkit.data.remote import is_remote, shown
from cdmkit.data.tar import TarIndex
from cdmkit.errors import DataError
from cdmkit.kinds import Skip


class Part:
    """A shard and its index. Safe to use from several threads."""

    def __init__(self, shard: Shard, classes: int, cache: Cache) -> None:
        self._shard = shard
        self._listed_classes = classes
        self._cache = cache
        self._index: TarIndex | None = None
        self._path: Path | None = None
        self._lock = threading.Lock()
        self.where = shown(shard.where)
        """Path or URL, for people."""
        self.remote = is_remote(shard.where)
        if not (self.remote and shard.listed.samples is not None):
            self.index()

    @property
    def length(self) -> int:
        """Samples; of a shard not yet fetched, those that a list tells."""
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
    def lost(self) -> int:
        """How many samples that costs: told by a list, else counted, a damaged end of a shard as one."""
        listed = self._shard.listed.samples
        return len(self.skips) if listed is None or not self.skips else max(len(self.skips), listed - self.length)

    @property
    def identity(self) -> str:
        """What tells its content from that of others without looking at it; empty where a list does not tell."""
        listed = self._shard.listed
        named = self.remote and listed.samples is not None
        return listed.sha256 or (f"{self.where.rpartition('/')[2]}:{listed.samples}" if named else "")

    def index(self) -> TarIndex:
        """Its index, when it is fetched and read. Raises DataError where that cannot be, or it is not what a list tells."""
        if self._index is None:
            with self._lock:
                if self._index is None:
                    self._index = self._made()
        return self._index

    def open(self) -> int:
        """A descriptor to read the shard by, which the caller closes; fetched anew where the cache let go of it. Raises OSError."""
        try:
            return os.open(self.path(), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            if not self.remote:
                raise
            self._path = None
            return os.open(self.path(), os.O_RDONLY | os.O_CLOEXEC)

    def path(self) -> Path:
        """The local file, fetched where it is remote. Raises DataError where it does not come."""
        if self._path is None:
            listed = self._shard.listed
            fetched = self._cache.fetch(self._shard.where, listed.bytes, listed.sha256) if self.remote else Path(self._shard.where)
            self._path = fetched
            return fetched
        return self._path

    def _made(self) -> TarIndex:
        path = self.path()
        try:
            index = index_of(path)
        except OSError as error:
            raise DataError(f"{self.where} cannot be read: {error.strerror}") from error
        found, listed, labels = len(index.keys) + len(index.skips), self._shard.listed.samples, index.labels
        if listed is not None and listed != found and not any(skip.key == "" for skip in index.skips):
            raise DataError(f"{self.where} has {found} samples, but the list beside it says {listed}: copy or make it again")
        if self._listed_classes and labels.max(initial=-1) >= self._listed_classes:
            key = index.keys[int(labels.argmax())]
            raise DataError(
                f"{self.where}: key {key!r} has the label {labels.max()}, but the list beside it names {self._listed_classes} classes"
            )
        return index


def parts_of(located: Located, cache: Cache) -> list[Part]:
    """Every shard of a set. Those without a list that tells their samples are fetched now; and the first one, where the list does not tell
    whether there are labels.
    """
    parts = [Part(shard, located.classes, cache) for shard in located.shards]
    if not located.classes:
        parts[0].index()
    return parts
