"""Indices of shards kept on disk: `<shard>.idx.npz` beside a shard that cdmkit prepared, or in the user's cache.

An index is believed as long as its shard has the same size, first and last 64 KiB, and has not been changed since: one beside a shard must
not be older than it, one in the cache must know the time of its last change. It holds arrays and JSON, nothing that could run.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cdmkit.data.cache import cache_folder
from cdmkit.data.keys import Keys
from cdmkit.data.tar import TarIndex, index_tar, open_regular
from cdmkit.errors import SetupError
from cdmkit.files import written
from cdmkit.kinds import Skip

EDGE = 1 << 16
"""Bytes at either end of a shard that tell it from others."""

_WORTH_KEEPING = 10_000
"""Samples: fewer are indexed in less than a tenth of a second."""


def index_of(path: Path) -> TarIndex:
    """The index of a shard: the one beside it, or in the cache, where it fits; else made, and kept in the cache where that is worth it.

    Raises OSError where the shard cannot be read, and DataError where it is no regular file.
    """
    edges, status = edges_of(path), path.stat()
    with suppress(Exception):  # a file that is none of ours may break in any way: the shard itself is what counts
        if beside(path).stat().st_mtime_ns >= status.st_mtime_ns:
            return _read(beside(path), path, edges)
    with suppress(Exception):
        return _read(_cached(path, status), path, edges)
    index = index_tar(path)
    if len(index.keys) >= _WORTH_KEEPING:
        with suppress(OSError, SetupError):  # a cache that is full, read-only or nowhere costs time, no more
            cached = _cached(path, status)
            cached.parent.mkdir(parents=True, exist_ok=True)
            write_index(index, cached)
    return index


def _cached(path: Path, status: os.stat_result) -> Path:
    """Where the cache keeps the index of a file as it stands now."""
    known = (os.fsencode(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return cache_folder().with_name("indices") / f"{hashlib.sha256(repr(known).encode()).hexdigest()}.npz"


def beside(path: Path) -> Path:
    """Where the index of a shard lies that was prepared with it."""
    return path.with_suffix(".idx.npz")


def edges_of(path: Path) -> str:
    """A digest of a file's size and of its first and last 64 KiB. Raises DataError where it is no regular file."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        return hashlib.sha256(size.to_bytes(8, "little") + read_edges(file.fileno())).hexdigest()


def read_edges(descriptor: int) -> bytes:
    """The first and last 64 KiB of a file."""
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, EDGE, 0) + os.pread(descriptor, EDGE, max(0, size - EDGE))


def write_index(index: TarIndex, to: Path) -> None:
    """Write the index of a shard. Equal shards make equal files."""
    here = str(index.path)
    facts = {
        "edges": edges_of(index.path),
        "skips": [[skip.key, skip.cause, skip.message.removeprefix(here)] for skip in index.skips],
        "unread": index.unread,
        "note": index.note.removeprefix(here),
    }
    buffer = io.BytesIO()
    np.savez(
        buffer,
        offsets=index.offsets,
        sizes=index.sizes,
        labels=index.labels,
        keys=_bytes(index.keys.text),
        facts=_bytes(json.dumps(facts, sort_keys=True).encode()),
    )
    with written(to) as file:
        file.write(buffer.getvalue())


def _read(kept: Path, path: Path, edges: str) -> TarIndex:
    """A kept index. Raises ValueError where it is not that of the shard at `path`, or none at all."""
    size = path.stat().st_size
    with zipfile.ZipFile(kept) as archive:
        if sum(item.file_size for item in archive.infolist()) > size + EDGE:  # a header alone takes more than its line of an index
            raise ValueError("larger than what it is about")
    with np.load(kept, allow_pickle=False) as arrays:
        facts: dict[str, Any] = json.loads(arrays["facts"].tobytes())
        if facts["edges"] != edges:
            raise ValueError("of another shard")
        keys = Keys(arrays["keys"].tobytes())
        offsets, sizes, labels = (arrays[name].astype(np.int64, casting="safe") for name in ("offsets", "sizes", "labels"))
    if not offsets.shape == sizes.shape == labels.shape == (len(keys),):
        raise ValueError("lengths differ")
    if len(keys) and not (offsets.min() >= 0 <= sizes.min() and sizes.max() <= size and (offsets <= size - sizes).all()):
        raise ValueError("leads out of the shard")
    here = str(path)
    skips = tuple(Skip(here, str(key), str(cause), here + str(message)) for key, cause, message in facts["skips"])
    note = here + str(facts["note"]) if facts["note"] else ""
    return TarIndex(path, keys, offsets, sizes, labels, skips, int(facts["unread"]), note)


def _bytes(data: bytes) -> npt.NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8)
