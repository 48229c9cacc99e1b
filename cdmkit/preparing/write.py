"""A shard and what is known of it, each complete or not there.

OUT/train-00000.tar             the shard
OUT/train-00000.idx.npz         its index, for those who read it
OUT/parts/train-00000.tsv.gz    its lines of the manifest
OUT/parts/train-00000.json      its record, written last: where it stands, the shard is done
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import attrs
import cattrs

from cdmkit.data.index import beside, write_index
from cdmkit.data.tar import index_tar
from cdmkit.data.writer import open_tar
from cdmkit.files import write_json, written
from cdmkit.kinds import Original
from cdmkit.preparing.images import Made, Outcome, Refused
from cdmkit.preparing.plan import Shard

PARTS = "parts"


@attrs.frozen(kw_only=True)
class Rejected:
    """An image that is in no shard."""

    name: str
    cause: str
    passing: bool
    """Whether it may be read another time."""


@attrs.frozen(kw_only=True)
class Part:
    """The record of a shard that is done."""

    digest: str
    """That of the plan."""
    samples: int
    """0 where all its images are rejected: then there is no shard."""
    bytes: int
    sha256: str
    per_class: dict[str, int]
    enlarged: int
    side: int | None
    """Height and width of its images."""
    rejected: list[Rejected]
    tools: dict[str, str]


def record_of(out: Path, shard: Shard) -> Path:
    """Where the record of a shard is."""
    return out / PARTS / f"{shard.stem}.json"


def rows_of(out: Path, shard: Shard) -> Path:
    """Where its lines of the manifest are."""
    return out / PARTS / f"{shard.stem}.tsv.gz"


def read_part(out: Path, shard: Shard, digest: str) -> Part | None:
    """The record of a shard, if the shard is done and of the plan with this digest."""
    try:
        part = cattrs.structure(json.loads(record_of(out, shard).read_bytes()), Part)
        size = (out / shard.file).stat().st_size if part.samples else 0
        whole = rows_of(out, shard).is_file() and (not part.samples or beside(out / shard.file).is_file())
        done = part.digest == digest and size == part.bytes and whole
    except (OSError, ValueError, KeyError, TypeError, cattrs.BaseValidationError):
        return None
    return part if done else None


class Writer:
    """Writes the shards of a plan into a folder, one after the other."""

    def __init__(self, out: Path, digest: str, tools: dict[str, str], side: int | None) -> None:
        self._out = out
        self._digest = digest
        self._tools = tools
        self._side = side
        """The side that all images must have: by default that of the first one."""

    def write(self, shard: Shard, images: Iterable[tuple[Original, Outcome]]) -> Part:
        """Write a shard, then its record. Raises OSError where they cannot be written, and then leaves neither."""
        contents = _Contents(shard, self._side)
        samples = contents.samples(images)
        first = next(samples, None)
        path, size, sha256 = self._out / shard.file, 0, ""
        if first is None:
            for stale in (path, beside(path)):  # an archive of nothing would be taken for a damaged one
                stale.unlink(missing_ok=True)
        else:
            with written(path) as file:
                counted = _Counted(file)
                with open_tar(counted) as tar:
                    for sample in itertools.chain([first], samples):
                        tar.write(sample)
            size, sha256 = counted.size, counted.sha256.hexdigest()
            write_index(index_tar(path), beside(path))
        self._side = contents.side
        part = Part(
            digest=self._digest,
            samples=contents.per_class.total(),
            bytes=size,
            sha256=sha256,
            per_class={str(label): count for label, count in sorted(contents.per_class.items()) if label >= 0},
            enlarged=contents.enlarged,
            side=contents.side,
            rejected=contents.rejected,
            tools=self._tools,
        )
        with written(rows_of(self._out, shard)) as file:
            file.write(gzip.compress("".join(contents.rows).encode(), mtime=0))
        write_json(record_of(self._out, shard), attrs.asdict(part))
        return part


class _Contents:
    """What a shard comes to hold, gathered as it is written."""

    def __init__(self, shard: Shard, side: int | None) -> None:
        self._shard = shard
        self.side = side
        self.per_class: Counter[int] = Counter()
        self.enlarged = 0
        self.rejected: list[Rejected] = []
        self.rows: list[str] = []

    def samples(self, images: Iterable[tuple[Original, Outcome]]) -> Iterator[dict[str, Any]]:
        """Those images that are accepted, as members of an archive."""
        for position, (original, outcome) in enumerate(images, start=self._shard.first):
            if isinstance(outcome, Made) and outcome.side != (self.side or outcome.side):
                outcome = Refused(f"of another size: {outcome.side} x {outcome.side}, but the first one is {self.side} x {self.side}")
            if isinstance(outcome, Refused):
                self.rejected.append(Rejected(name=escaped(original.name), cause=escaped(outcome.cause), passing=outcome.passing))
                continue
            self.side = outcome.side
            self.per_class[original.label] += 1
            self.enlarged += outcome.enlarged
            key, label = f"{self._shard.split}-{position:07d}", "" if original.label < 0 else str(original.label)
            self.rows.append(f"{key}\t{label}\t{self._shard.file}\t{escaped(original.name)}\n")
            yield {"__key__": key, **({"cls": label.encode()} if label else {}), outcome.extension: outcome.data}


class _Counted:
    """A file that knows the length and digest of what was written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.size = 0
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.size += len(data)
        self.sha256.update(data)
        return self._file.write(data)


def escaped(text: str) -> str:
    """A text as a field of a table or in JSON: what neither holds (tabs, line ends, bytes that are no UTF-8) as its number."""
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda match: f"\\x{ord(match[0]):02x}", text)
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
