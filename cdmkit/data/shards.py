"""A set of local WebDataset shards as one sequence of pictures, read in any order."""

from __future__ import annotations

import functools
import hashlib
import os
import threading
import weakref
from pathlib import Path

import attrs
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cdmkit.data.decode import decode
from cdmkit.data.find import find_shards
from cdmkit.data.tar import TarIndex, index_tar
from cdmkit.errors import DataError

_EDGE = 1 << 16
_OPEN_FILES = 256
_PREPARE = "store all pictures square and of one size"


class Shards:
    """The samples of several shards, numbered through in the order of the shards. Safe to read from several threads."""

    def __init__(self, indices: list[TarIndex]) -> None:
        self._indices = indices
        self._starts = np.cumsum([0] + [len(index.keys) for index in indices])
        self._descriptors: dict[int, int] = {}
        self._lock = threading.Lock()
        weakref.finalize(self, _close, self._descriptors)
        self.labels: Tensor = torch.from_numpy(np.concatenate([index.labels for index in indices]))
        """int64 [N], 0 where the data has no classes."""
        self.classes = int(self.labels.max()) + 1
        """The largest label + 1, 0 where no sample has a label."""
        self._check_labels()
        self.labels.clamp_(min=0)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @functools.cached_property
    def resolution(self) -> int:
        """Height and width of the first picture, which all others must share."""
        height, width = map(int, self._decoded(0).shape[:2])
        if height != width:
            raise DataError(f"{self.where(0)}: the image is {width} x {height}, not square: {_PREPARE}")
        return height

    def read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The pictures uint8 [B, 3, S, S] and labels int64 [B] of samples `indices` (int64 [B])."""
        size = self.resolution
        pixels = np.empty((len(indices), size, size, 3), np.uint8)
        for row, index in enumerate(indices.tolist()):
            picture = self._decoded(index)
            if picture.shape != (size, size, 3):
                height, width, _ = picture.shape
                raise DataError(f"{self.where(index)}: the image is {width} x {height}, but the first one is {size} x {size}: {_PREPARE}")
            pixels[row] = picture
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), self.labels[indices]

    def where(self, index: int) -> str:
        """Shard and key of a sample, for people."""
        shard, row = self._place(index)
        return f"{self._indices[shard].path}: key {self._indices[shard].keys[row]!r}"

    def encoded(self, index: int) -> bytes:
        """A picture as it is stored."""
        shard, row = self._place(index)
        offset, size = int(self._indices[shard].offsets[row]), int(self._indices[shard].sizes[row])
        try:
            data = self._pread(shard, size, offset)
        except OSError as error:
            raise DataError(f"{self.where(index)} cannot be read: {error.strerror}") from error
        if len(data) < size:
            raise DataError(f"{self.where(index)}: the shard has become shorter since it was opened: do not change data in use")
        return data

    def fingerprint(self) -> str:
        """A hex digest of what lies in the shards, whatever they are called: the place, size and label of every sample, and the first and
        last 64 KiB of every shard. Reading all pixels would take minutes; a change that leaves every size equal can go unseen.
        """
        digest = hashlib.sha256()
        for shard, index in enumerate(self._indices):
            for column in (index.offsets, index.sizes, index.labels):
                digest.update(column.astype("<i8").tobytes())
            end = index.path.stat().st_size
            digest.update(self._pread(shard, _EDGE, 0) + self._pread(shard, _EDGE, max(0, end - _EDGE)))
        return digest.hexdigest()

    def _decoded(self, index: int) -> npt.NDArray[np.uint8]:
        try:
            return decode(self.encoded(index))
        except DataError as error:
            raise DataError(f"{self.where(index)}: {error}") from None

    def _place(self, index: int) -> tuple[int, int]:
        """A sample's shard and its row there."""
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return shard, index - int(self._starts[shard])

    def _pread(self, shard: int, size: int, offset: int) -> bytes:
        """Read without a seek position, so that threads and forked processes may share a descriptor.

        The first shards read stay open. Those beyond `_OPEN_FILES` are opened for each read: closing another thread's file is no option.
        """
        descriptor = self._descriptor(shard)
        if descriptor is not None:
            return os.pread(descriptor, size, offset)
        with self._indices[shard].path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), size, offset)

    def _descriptor(self, shard: int) -> int | None:
        if shard not in self._descriptors:
            with self._lock:
                if shard not in self._descriptors and len(self._descriptors) < _OPEN_FILES:
                    self._descriptors[shard] = os.open(self._indices[shard].path, os.O_RDONLY | os.O_CLOEXEC)
        return self._descriptors.get(shard)

    def _check_labels(self) -> None:
        """All samples have labels or none has."""
        missing = (self.labels < 0).nonzero()[:, 0]
        if self.classes and len(missing):
            raise DataError(
                f"{self.where(int(missing[0]))} has no .cls, but other samples have ({len(missing)} of {len(self)} are without): "
                "label all or none"
            )


def _close(descriptors: dict[int, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)


def open_shards(pattern: str) -> Shards:
    """The shards a pattern means, indexed once per process for as long as the files stay as they are. Raises DataError as its parts do."""
    return _indexed(tuple(_Version.of(path) for path in find_shards(pattern)))


@attrs.frozen
class _Version:
    """A file as it stands now."""

    path: Path
    size: int
    modified: int

    @classmethod
    def of(cls, path: Path) -> _Version:
        try:
            stat = path.stat()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        return cls(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _indexed(versions: tuple[_Version, ...]) -> Shards:
    try:
        return Shards([index_tar(version.path) for version in versions])
    except OSError as error:
        raise DataError(f"{error.filename or 'a shard'} cannot be read: {error.strerror}") from error
