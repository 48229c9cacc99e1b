"""A set of WebDataset shards as one sequence of pictures, read in any order."""

from __future__ import annotations

import bisect
import contextlib
import functools
import hashlib
import itertools
import os
import threading
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cdmkit.data.cache import Cache
from cdmkit.data.decode import MAX_PIXELS, decode, decode_all
from cdmkit.data.find import Located, Shard, locate
from cdmkit.data.part import Part, parts_of
from cdmkit.data.remote import is_remote
from cdmkit.data.skips import Skips, Tolerance
from cdmkit.data.tar import TarIndex
from cdmkit.errors import DataError
from cdmkit.kinds import Skip

_AT_ONCE = 1 << 25
"""Bytes of files that are read before they are decoded."""

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
        self._notes = located.notes
        self._cache = cache
        self._parts = parts_of(located, cache)
        self._expected: list[Part] = []
        self._max_pixels = max_pixels
        self._starts = [0, *itertools.accumulate(part.length for part in self._parts)]
        self._bad: set[int] = set()
        self._admitted: set[int] = set()
        self._marking = threading.Lock()
        self.classes = max(part.classes for part in self._parts)
        """The largest label + 1, 0 where no sample has a label."""
        mean = _bytes_of_a_sample(self._parts)
        self._lost = {number: part.lost(mean) for number, part in enumerate(self._parts) if not part.remote}
        self.skips = Skips(tolerance, len(self) + sum(self._lost.values()))
        self._admit(self._lost)
        if not len(self):
            raise DataError(f"no training data: {self._parts[0].where} and what follows hold no sample that can be used")

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def lengths(self) -> list[int]:
        """Samples in each shard."""
        return [part.length for part in self._parts]

    @property
    def notes(self) -> list[str]:
        """What is odd about shards, though all that is there can be used."""
        return [*self._notes, *(part.note for part in self._parts if part.note)]

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
        """int64 [N], -1 without a label. Of remote shards, all are fetched for it."""
        return torch.from_numpy(np.concatenate([part.index().labels for part in self._parts]))

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
                if height != width:
                    raise DataError(f"not square: the image is {width} x {height}: {_PREPARE}")
            except DataError as error:
                self._leave_out(index, str(error))
            else:
                return int(height)

    def read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The pictures uint8 [B, 3, S, S] and labels int64 [B] of samples `indices` (int64 [B])."""
        chosen = [self._usable(index) for index in indices.tolist()]
        pixels = np.empty((len(chosen), self.resolution, self.resolution, 3), np.uint8)
        for row, found in self._decode(chosen, pixels).items():
            fault: DataError | None = found
            while fault is not None:
                self._leave_out(chosen[row], str(fault))
                chosen[row] = self._usable(chosen[row])
                fault = self._decode(chosen[row : row + 1], pixels[row : row + 1]).get(0)
        labels = torch.tensor([self._label(index) for index in chosen])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels

    def _decode(self, chosen: Sequence[int], pixels: npt.NDArray[np.uint8]) -> dict[int, DataError]:
        """Fill in the pictures of samples; what is wrong with those that cannot be used, by their place."""
        faults: dict[int, DataError] = {}
        files: list[bytes] = []
        first = held = 0
        for row, index in enumerate(chosen):
            files.append(self.encoded(index))
            held += len(files[-1])
            if held >= _AT_ONCE or row + 1 == len(chosen):
                found = decode_all(files, pixels[first : row + 1], self._max_pixels)
                faults |= {first + place: fault for place, fault in found.items()}
                first, held, files = row + 1, 0, []
        return faults

    def where(self, index: int) -> str:
        """Shard and key of a sample, for people."""
        return f"{self._parts[self._place(index)[0]].where}: key {self._key(index)!r}"

    def encoded(self, index: int) -> bytes:
        """A picture as it is stored. Raises DataError where its shard cannot be read, or is damaged before it."""
        shard, row = self._place(index)
        part, table = self._parts[shard], self._table(shard)
        if row >= len(table.keys):
            raise DataError(f"{self.where(index)}: lost: its shard is damaged")
        size = int(table.sizes[row])
        try:
            data = part.read(size, int(table.offsets[row]))
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
        go unseen. Of remote shards of which a list tells no more than the number of samples, it is of their names and numbers.
        """
        digest = hashlib.sha256()
        if all(part.identity for part in self._parts):
            digest.update("\n".join(part.identity for part in self._parts).encode())
            return digest.hexdigest()
        for part in self._parts:
            table = part.index()
            for column in (table.offsets, table.sizes, table.labels):
                digest.update(column.astype("<i8").tobytes())
            digest.update(part.edges())
        return digest.hexdigest()

    def _usable(self, index: int) -> int:
        """The first sample from `index` on, around the end, that is not known to be bad."""
        for candidate in range(index, index + len(self)):
            candidate %= len(self)
            self._table(self._place(candidate)[0])
            if candidate not in self._bad:
                return candidate
        raise DataError(f"no training data: none of the {len(self)} samples of {self._parts[0].where} and what follows can be used")

    def _table(self, shard: int) -> TarIndex:
        """The index of a shard. What in it cannot be used is left out from when it is at hand."""
        index = self._parts[shard].index()
        if shard not in self._admitted:
            self._admit([shard])
        return index

    def _admit(self, shards: Iterable[int]) -> None:
        """Leave out what the indices of shards tell, all of it at once: samples that are lost, damaged, or without a label where others
        have one. Raises DataError where that is not tolerated.
        """
        with self._marking:
            new = [shard for shard in shards if shard not in self._admitted]
            skips, bad = list[Skip](), list[int]()
            for shard in new:
                labels, start = self._parts[shard].index().labels, self._starts[shard]
                bare = [start + int(row) for row in np.flatnonzero(labels < 0)] if self.classes else []
                skips += [*self._parts[shard].skips, *(self._skip(index, _NO_LABEL) for index in bare)]
                bad += [*bare, *range(start + len(labels), self._starts[shard + 1])]
            lost = sum(self._lost.get(shard, 0) for shard in new)
            self.skips.refuse(skips)  # where it is an error, it stays one
            self._bad.update(bad)
            self._admitted.update(new)
            self.skips.add(skips, len(bad) + lost)

    def _leave_out(self, index: int, message: str) -> None:
        """Take a sample for bad. Raises DataError, naming it, where that is not tolerated."""
        with self._marking:
            if index not in self._bad:
                skip = self._skip(index, message)
                self.skips.refuse([skip])
                self._bad.add(index)
                self.skips.add([skip], 1)

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


def _bytes_of_a_sample(parts: Sequence[Part]) -> float:
    """What a sample takes in the local shards, headers and label included: the mean."""
    tables = [part.index() for part in parts if not part.remote]
    count = sum(len(table.keys) for table in tables)
    span = sum(int((table.offsets + table.sizes).max(initial=0)) for table in tables)
    return span / count if count else 1.0


def _fetch(wanted: Sequence[Part], before: Sequence[Part], cache: Cache) -> None:
    """Fetch shards one by one. An error is told to whoever reads one of them."""
    with contextlib.suppress(Exception):
        for part in wanted:
            part.index()
            part.edges()  # fetches it again, if the cache has let go of it
        if cache.limit:
            cache.evict([part.path() for part in (*before, *wanted)])


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


def _version(shard: Shard) -> tuple[int, ...]:
    """A local shard as it stands now."""
    if is_remote(shard.where):
        return ()
    try:
        stat = os.stat(shard.where)
    except OSError as error:
        raise DataError(f"{shard.where} cannot be read: {error.strerror}") from error
    return (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


@functools.lru_cache(maxsize=4)
def _opened(located: Located, _versions: tuple[tuple[int, ...], ...], tolerance: Tolerance, max_pixels: int, cache_bytes: int) -> Shards:
    return Shards(located, Cache(limit=cache_bytes), tolerance, max_pixels)
