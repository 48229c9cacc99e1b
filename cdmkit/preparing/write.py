"""A shard and what is known of it, each complete or not there.

OUT/train-00000.tar             the shard
OUT/train-00000.idx.npz         its index, for those who read it
OUT/parts/train-00000.tsv.gz    its lines of the manifest
OUT/parts/train-00000.json      its record, written last: where it stands, the shard is done
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import attrs
import cattrs

from cdmkit.data.index import beside, write_index
from cdmkit.data.tar import index_tar
from cdmkit.data.writer import open_tar
from cdmkit.files import digest, read_sealed, sealed, sync, write_json, written
from cdmkit.kinds import Original
from cdmkit.preparing.images import Made, Outcome, Refused
from cdmkit.preparing.plan import Shard

PARTS = "parts"

PLAN = "plan.json"
"""The file among the parts that tells what is made."""


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
    """That of the plan for this shard."""
    samples: int
    """0 where all its images are rejected: then there is no shard."""
    bytes: int
    sha256: str
    index_sha256: str
    rows_sha256: str
    """Of its lines of the manifest, compressed."""
    per_class: dict[str, int]
    enlarged: int
    side: int | None
    """Height and width of its images."""
    rejected: list[Rejected]
    tools: dict[str, str]

    @property
    def passing(self) -> bool:
        """Whether it lacks images that may be read another time."""
        return any(each.passing for each in self.rejected)


def record_of(out: Path, shard: Shard) -> Path:
    """Where the record of a shard is."""
    return out / PARTS / f"{shard.stem}.json"


def rows_of(out: Path, shard: Shard) -> Path:
    """Where its lines of the manifest are."""
    return out / PARTS / f"{shard.stem}.tsv.gz"


def read_record(path: Path) -> Part | None:
    """A record, if it is as it was written."""
    try:
        return cattrs.structure(read_sealed(path), Part)
    except (OSError, ValueError, KeyError, TypeError, cattrs.BaseValidationError):
        return None


def stands(out: Path, shard: Shard, part: Part, check: bool = False) -> bool:
    """Whether what a record tells of is there. check: whether to read the shard too, which takes its time."""
    path = out / shard.file
    try:
        if digest(rows_of(out, shard)) != part.rows_sha256:
            return False
        if not part.samples:
            return not path.exists()
        return path.stat().st_size == part.bytes and (not check or digest(path) == part.sha256)
    except OSError:
        return False


def mend_index(out: Path, shard: Shard, part: Part) -> Part:
    """Make the index of a shard anew where it is not as it was written, and note that; the record as it stands then."""
    index = beside(out / shard.file)
    with contextlib.suppress(OSError):
        if not part.samples or digest(index) == part.index_sha256:
            return part
    write_index(index_tar(out / shard.file), index)
    if digest(index) != part.index_sha256:  # another version wrote it
        part = attrs.evolve(part, index_sha256=digest(index))
        write_json(record_of(out, shard), sealed(attrs.asdict(part)))
    return part


Tell = Callable[[str, Rejected | None], None]
"""Where each image is told of: its split, and why it is in no shard, if it is in none."""


class Writer:
    """Writes the shards of a plan into a folder, one after the other."""

    def __init__(self, out: Path, tools: dict[str, str], side: int | None) -> None:
        self._out = out
        self._tools = tools
        self._side = side
        """The side that all images must have: by default that of the first one."""

    def write(self, shard: Shard, mark: str, images: Iterable[tuple[Original, Outcome]], tell: Tell) -> Part:
        """Write a shard, then its record, with the digest `mark`. Raises OSError where they cannot be written, and then leaves no record.

        `tell` is told of each image, and may raise to end this.
        """
        record = record_of(self._out, shard)
        if record.exists():  # it tells of another shard
            record.unlink()
            sync(record.parent)
        contents = _Contents(shard, self._side, tell)
        size, sha256, index = self._write(self._out / shard.file, contents.samples(images))
        self._side = contents.side
        rows = gzip.compress("".join(contents.rows).encode(), mtime=0)
        with written(rows_of(self._out, shard)) as file:
            file.write(rows)
        part = Part(
            digest=mark,
            samples=contents.per_class.total(),
            bytes=size,
            sha256=sha256,
            index_sha256=index,
            rows_sha256=hashlib.sha256(rows).hexdigest(),
            per_class={str(label): count for label, count in sorted(contents.per_class.items()) if label >= 0},
            enlarged=contents.enlarged,
            side=contents.side,
            rejected=contents.rejected,
            tools=self._tools,
        )
        write_json(record, sealed(attrs.asdict(part)))
        return part

    def _write(self, path: Path, samples: Iterator[dict[str, Any]]) -> tuple[int, str, str]:
        """Write a shard and its index; the shard's size, and both digests."""
        first = next(samples, None)
        if first is None:
            for stale in (path, beside(path)):  # an archive of nothing would be taken for a damaged one
                stale.unlink(missing_ok=True)
            return 0, "", ""
        with written(path) as file:
            counted = _Counted(file)
            with open_tar(counted) as tar:
                for sample in itertools.chain([first], samples):
                    tar.write(sample)
        write_index(index_tar(path), beside(path))
        return counted.size, counted.sha256.hexdigest(), digest(beside(path))


class _Contents:
    """What a shard comes to hold, gathered as it is written."""

    def __init__(self, shard: Shard, side: int | None, tell: Tell) -> None:
        self._shard = shard
        self._tell = tell
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
                rejected = Rejected(name=escaped(original.name), cause=escaped(outcome.cause), passing=outcome.passing)
                self.rejected.append(rejected)
                self._tell(self._shard.split, rejected)
                continue
            self.side = outcome.side
            self.per_class[original.label] += 1
            self.enlarged += outcome.enlarged
            key, label = f"{self._shard.split}-{position:07d}", "" if original.label < 0 else str(original.label)
            self.rows.append(f"{key}\t{label}\t{self._shard.file}\t{escaped(original.name)}\n")
            yield {"__key__": key, **({"cls": label.encode()} if label else {}), outcome.extension: outcome.data}
            self._tell(self._shard.split, None)


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
