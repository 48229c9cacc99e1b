"""A set of WebDataset shards as one sequence of pictures, read in any order."""

from __future__ import annotations

import bisect
import contextlib
import functools
import hashlib
import itertools
import os
import threading
import weakref
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cdmkit.data.cache import Cache
from cdmkit.data.decode import MAX_PIXELS, decode, decode_all
from cdmkit.data.find import Located, Shard, locate
from cdmkit.data.index import EDGE
from cdmkit.data.part import Part, parts_of
from cdmkit.data.remote import is_remote
from cdmkit.data.skips import Skips, Tolerance
from cdmkit.errors import DataError
from cdmkit.kinds import Skip

_OPEN_FILES = 256
_NO_LABEL = "no label: it has no .cls, but other samples have: label all or none"
_PREPARE = "store all pictures square and of one size: `cdmkit data prepare` does"


class Shards:
    """The samples of several shards, numbered through in the order of the shards. Safe to read from several threads.

    Samples that cannot be used are errors or, as `tolerance` says, left out: the next good one in this order stands in for each. Which one
    that is depends on the data alone, so the order of training stays a function of its position.
    """

    def __init__(self, located: Located, cache: Cache, tolerance: Tolerance, max_pixels: int) -> None:
        self.crop = located.crop
        """How the pictures were cut and shrunk before they were stored; empty where that is not known."""
        self._cache = cache
        self._parts = parts = parts_of(located, cache)
        self._expected: list[Part] = []
        self._max_pixels = max_pixels
        self._starts = [0, *itertools.accumulate(part.length for part in parts)]
        self._bad: set[int] = set()
        self._marking = threading.Lock()
        self._descriptors: dict[int, int] = {}
        self._lock = threading.Lock()
        weakref.finalize(self, _close, self._descriptors)
        lost = [skip for part in parts for skip in part.skips]
        count = sum(part.lost for part in parts)
        self.skips = Skips(tolerance, len(self) + count)
        self.skips.add(lost, count)
        if not len(self):
            raise DataError(f"no training data: {parts[0].where} and what follows hold no sample that can be used")
        self.classes = max(part.classes for part in parts)
        """The largest label + 1, 0 where no sample has a label."""
        if self.classes:
            self._leave_out_unlabelled()

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def lengths(self) -> list[int]:
        """Samples in each shard."""
        return [part.length for part in self._parts]

    @property
    def largest(self) -> str:
        """Where the largest label is, for people; empty where it is in a shard not yet fetched."""
        label = self.classes - 1
        for start, part in zip(self._starts, self._parts, strict=False):
            if not part.remote and (rows := np.flatnonzero(part.index().labels == label)).size:
                return self.where(start + int(rows[0]))
        return ""

    @functools.cached_property
    def labels(self) -> Tensor:
        """int64 [N], 0 where the data has no classes. Of remote shards, all are fetched for it."""
        return torch.from_numpy(np.concatenate([part.index().labels for part in self._parts])).clamp(min=0)

    def stored_bytes(self) -> npt.NDArray[np.int64]:
        """[N] how long each picture's file is. Of remote shards, all are fetched for it."""
        return np.concatenate([part.index().sizes for part in self._parts])

    @functools.cached_property
    def resolution(self) -> int:
        """Height and width of the first picture that can be used, which all others must share."""
        index = -1
        while True:
            index = self._usable(index + 1)
            data = self.encoded(index)
            try:
                height, width, _ = decode(data, self._max_pixels).shape
            except DataError as error:
                self._leave_out(index, str(error))
                continue
            if height != width:
                raise DataError(f"{self.where(index)}: the image is {width} x {height}, not square: {_PREPARE}")
            return int(height)

    def read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The pictures uint8 [B, 3, S, S] and labels int64 [B] of samples `indices` (int64 [B])."""
        chosen = [self._usable(index) for index in indices.tolist()]
        pixels, faults = decode_all([self.encoded(index) for index in chosen], self.resolution, self._max_pixels)
        while faults:
            for row, fault in faults.items():
                self._leave_out(chosen[row], str(fault))
                chosen[row] = self._usable(chosen[row])
            rows = list(faults)
            pixels[rows], again = decode_all([self.encoded(chosen[row]) for row in rows], self.resolution, self._max_pixels)
            faults = {rows[row]: fault for row, fault in again.items()}
        labels = torch.tensor([self._label(index) for index in chosen])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels

    def where(self, index: int) -> str:
        """Shard and key of a sample, for people."""
        return f"{self._parts[self._place(index)[0]].where}: key {self._key(index)!r}"

    def encoded(self, index: int) -> bytes:
        """A picture as it is stored."""
        shard, row = self._place(index)
        table = self._parts[shard].index()
        size = int(table.sizes[row])
        try:
            data = self._pread(shard, size, int(table.offsets[row]))
        except OSError as error:
            raise DataError(f"{self.where(index)} cannot be read: {error.strerror}") from error
        if len(data) < size:
            raise DataError(f"{self.where(index)}: the shard has become shorter since it was opened: do not change data in use")
        return data

    def expect(self, shards: Sequence[int]) -> None:
        """Fetch remote shards that will soon be read, in the background, and let go of others where the cache has a limit; not of those
        that were expected last, whose images may still be in work.
        """
        wanted = [self._parts[shard] for shard in shards if self._parts[shard].remote]
        if wanted:
            before, self._expected = self._expected, wanted
            threading.Thread(target=_fetch, args=(wanted, before, self._cache), name="cdmkit-fetch", daemon=True).start()

    def fingerprint(self) -> str:
        """A hex digest of what lies in the shards, whatever they are called.

        Where a list beside them tells every shard's SHA-256, it is of those. Else it is of the place, size and label of every sample, and
        of the first and last 64 KiB of every shard: reading all pixels would take minutes, and a change that leaves every size equal can
        go unseen.
        """
        digest = hashlib.sha256()
        if all(part.identity for part in self._parts):
            digest.update("\n".join(part.identity for part in self._parts).encode())
            return digest.hexdigest()
        for shard, part in enumerate(self._parts):
            table = part.index()
            for column in (table.offsets, table.sizes, table.labels):
                digest.update(column.astype("<i8").tobytes())
            end = part.path().stat().st_size
            digest.update(self._pread(shard, EDGE, 0) + self._pread(shard, EDGE, max(0, end - EDGE)))
        return digest.hexdigest()

    def _usable(self, index: int) -> int:
        """The first sample from `index` on, around the end, that is not known to be bad."""
        for candidate in range(index, index + len(self)):
            candidate %= len(self)
            if candidate not in self._bad and self._present(candidate):
                return candidate
        raise DataError(f"no training data: none of the {len(self)} samples of {self._parts[0].where} and what follows can be used")

    def _present(self, index: int) -> bool:
        """Whether a sample is in its shard, with the label it needs; else it is left out."""
        shard, row = self._place(index)
        labels = self._parts[shard].index().labels
        if row >= len(labels):
            self._leave_out(index, "lost: its shard is damaged")
        elif self.classes and labels[row] < 0:
            self._leave_out(index, _NO_LABEL)
        return index not in self._bad

    def _leave_out(self, index: int, message: str) -> None:
        """Take a sample for bad. Raises DataError, naming it, where that is not tolerated."""
        with self._marking:
            if index not in self._bad:
                self.skips.add([self._skip(index, message)], 1)
                self._bad.add(index)  # only now: where it is an error, it stays one

    def _leave_out_unlabelled(self) -> None:
        """All samples of the shards at hand have labels, if any has."""
        local = [(start, part.index().labels) for start, part in zip(self._starts, self._parts, strict=False) if not part.remote]
        bad = [start + int(row) for start, labels in local for row in np.flatnonzero(labels < 0)]
        self.skips.add([self._skip(index, _NO_LABEL) for index in bad], len(bad))
        self._bad.update(bad)

    def _skip(self, index: int, message: str) -> Skip:
        shard, _ = self._place(index)
        return Skip(self._parts[shard].where, self._key(index), message.partition(":")[0], f"{self.where(index)}: {message}")

    def _label(self, index: int) -> int:
        shard, row = self._place(index)
        return max(0, int(self._parts[shard].index().labels[row]))

    def _key(self, index: int) -> str:
        shard, row = self._place(index)
        keys = self._parts[shard].index().keys
        return keys[row] if row < len(keys) else f"number {row}"

    def _place(self, index: int) -> tuple[int, int]:
        """A sample's shard and its row there."""
        shard = bisect.bisect_right(self._starts, index) - 1
        return shard, index - self._starts[shard]

    def _pread(self, shard: int, size: int, offset: int) -> bytes:
        """Read without a seek position, so that threads and forked processes may share a descriptor.

        The first shards read stay open. Those beyond `_OPEN_FILES` are opened for each read: closing another thread's file is no option.
        So are remote ones, which else would take room after the cache let go of them.
        """
        kept = self._descriptor(shard)
        if kept is not None:
            return os.pread(kept, size, offset)
        descriptor = self._parts[shard].open()
        try:
            return os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)

    def _descriptor(self, shard: int) -> int | None:
        if shard not in self._descriptors and not self._parts[shard].remote:
            with self._lock:
                if shard not in self._descriptors and len(self._descriptors) < _OPEN_FILES:
                    self._descriptors[shard] = self._parts[shard].open()
        return self._descriptors.get(shard)


def _fetch(wanted: Sequence[Part], before: Sequence[Part], cache: Cache) -> None:
    """Fetch shards one by one. An error is told to whoever reads one of them: it is tried again there."""
    with contextlib.suppress(Exception):
        for part in wanted:
            part.index()
            os.close(part.open())
        if cache.limit:
            cache.evict([part.path() for part in (*before, *wanted)])


def _close(descriptors: dict[int, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)


def open_shards(
    pattern: str, split: str = "", tolerance: Tolerance | None = None, max_pixels: int = MAX_PIXELS, cache_bytes: int = 0
) -> Shards:
    """The shards that a pattern means, indexed once per process for as long as the files stay as they are.

    cache_bytes: what of fetched shards is kept, 0 for all. Raises DataError as its parts do, and where samples cannot be used that
    `tolerance` does not leave out.
    """
    located = locate(pattern, split)
    versions = tuple(_version(shard) for shard in located.shards)
    return _opened(located, versions, tolerance or Tolerance(), max_pixels, cache_bytes)


def _version(shard: Shard) -> tuple[int, int]:
    """Size and time of change of a local shard as it stands now."""
    if is_remote(shard.where):
        return (0, 0)
    try:
        stat = os.stat(shard.where)
    except OSError as error:
        raise DataError(f"{shard.where} cannot be read: {error.strerror}") from error
    return (stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _opened(located: Located, _versions: tuple[tuple[int, int], ...], tolerance: Tolerance, max_pixels: int, cache_bytes: int) -> Shards:
    return Shards(located, Cache(limit=cache_bytes), tolerance, max_pixels)
