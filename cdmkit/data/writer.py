"""Pictures to WebDataset shards that any tool can read."""

from __future__ import annotations

import glob
import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from cdmkit.data.encode import Encoding
from cdmkit.files import written

if TYPE_CHECKING:
    from webdataset import TarWriter


class Sample(NamedTuple):
    """A picture to store."""

    image: Tensor
    """uint8 [3, S, S]."""
    label: int | None = None
    info: Mapping[str, Any] | None = None
    """What else is known of it, stored as JSON."""


def write_shards(samples: Iterable[Sample], folder: Path, prefix: str = "train", per_shard: int = 10_000) -> list[Path]:
    """Write samples to `folder/prefix-00000.tar`, ... as lossless PNG, `.cls` and `.json`, with keys `prefix-0000000`, ...

    Each shard is complete or not there, and equal samples make equal bytes. What was there under these names before is replaced or
    removed, so that no two jobs mix. Returns the shards' paths. Raises OSError where a shard cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    numbered = enumerate(samples)
    for first in numbered:
        path = folder / f"{prefix}-{len(paths):05d}.tar"
        _write_shard(path, prefix, itertools.chain([first], itertools.islice(numbered, per_shard - 1)))
        paths.append(path)
    for stale in sorted(set(folder.glob(f"{glob.escape(prefix)}-[0-9][0-9][0-9][0-9][0-9].tar")) - set(paths)):
        stale.unlink()
    return paths


def _write_shard(path: Path, prefix: str, samples: Iterable[tuple[int, Sample]]) -> None:
    with written(path) as file, open_tar(file) as tar:
        for number, sample in samples:
            tar.write({"__key__": f"{prefix}-{number:07d}", **_members(sample)})


def open_tar(file: Any) -> TarWriter:
    """A shard to write to: `tar.write({"__key__": key, extension: bytes, ...})` adds a sample, its members in order of extension.

    Equal samples make equal bytes: ustar headers without time or owner. `file` needs no more than `write`.
    """
    from webdataset import TarWriter  # slow to import, and only writing needs it

    return TarWriter(file, encoder=False, mtime=0, user="", group="", mode=0o644)


def _members(sample: Sample) -> dict[str, bytes]:
    """The members of a sample by extension."""
    members = {"png": Encoding.PNG(sample.image.permute(1, 2, 0).numpy())}
    if sample.label is not None:
        members["cls"] = str(sample.label).encode()
    if sample.info is not None:
        members["json"] = json.dumps(sample.info, sort_keys=True).encode()
    return members
