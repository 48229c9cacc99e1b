"""Whether a data set is what the list beside it says, down to every byte, and whether every image in it can be used."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import attrs
import numpy as np

from cdmkit.data.cache import Cache
from cdmkit.data.decode import MAX_PIXELS, decode, decode_all
from cdmkit.data.find import Shard, locate
from cdmkit.data.index import beside
from cdmkit.data.listing import Listed
from cdmkit.data.remote import is_remote, shown
from cdmkit.data.tar import TarIndex, index_tar
from cdmkit.errors import DataError, UsageError
from cdmkit.files import digest
from cdmkit.kinds import Skip
from cdmkit.preparing.known import Known, Named
from cdmkit.preparing.own import beside_told, index_told
from cdmkit.preparing.rejects import counted

_AT_ONCE = 64
"""Images that are decoded together, if they are small."""

_PIXELS_AT_ONCE = 1 << 24


class Verified(NamedTuple):
    """What was found."""

    shards: int
    images: int
    faults: list[Skip]
    notes: list[str]
    """What is odd, but no fault of the data."""
    advice: str
    """How to mend the faults."""


@attrs.frozen
class _Found:
    """What was found in a shard."""

    count: int = 0
    faults: tuple[Skip, ...] = ()
    notes: tuple[str, ...] = ()
    bare: tuple[str, ...] = ()
    """The keys of samples without a label, where others of the shard have one."""
    labelled: bool = False
    """Whether any sample has a label."""


def verify(data: str, workers: int, tell: Callable[[int, int], None] = lambda _done, _total: None) -> Verified:
    """Check a data set: a folder with a list of its shards, such as `cdmkit data prepare` makes, the list itself, or a pattern of shards.

    `tell` is told how many of how many shards are done. Raises DataError where there is no such data set at all, UsageError for a recipe.
    """
    if data.endswith(".toml"):
        raise UsageError(f"{data} is a recipe: name its shards, or look at what it reads with `cdmkit data inspect {data}`")
    known = Known.read(data) or Known([Named(shard, "", "") for shard in locate(data).shards])
    resolution = known.resolution or _resolution(each.shard for each in known.shards)
    found = []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for done, each in enumerate(pool.map(lambda named: _check(named, known, resolution), known.shards), start=1):
            found.append(each)
            tell(done, len(known.shards))
    labelled = {named.split for named, each in zip(known.shards, found, strict=True) if each.labelled or known.per_class.get(named.name)}
    faults: list[Skip] = []
    notes: list[str] = []
    for named, each in zip(known.shards, found, strict=True):
        faults += [*each.faults, *(_bare(named, each) if named.split in labelled else ())]
        notes += each.notes
    shards_well = not faults
    if known.folder is not None:
        told, more = beside_told(known.folder, known.card)
        faults += [Skip(str(known.folder), "", cause, message) for cause, message in told]
        notes += more
    return Verified(len(found), sum(each.count for each in found), faults, notes, _advice(known, shards_well))


def _advice(known: Known, shards_well: bool) -> str:
    if known.folder is None:
        return "mend the data, or prepare them again"
    if shards_well:
        return "do as it says with each"
    return "`cdmkit data prepare` as it was called, with --check, makes anew the shards that are not as they were written"


def _bare(named: Named, found: _Found) -> Iterator[Skip]:
    """What lacks a label, in a split where others have one."""
    where = shown(named.shard.where)
    if found.count and not found.labelled:
        told = f"{where}: no label: none of its {counted(found.count, 'sample')} has a .cls, but other shards of its split have labels"
        yield Skip(where, "", "no label", told)
    for key in found.bare:
        yield Skip(where, key, "no label", f"{where}: key {key!r}: no label: it has no .cls")


def _resolution(shards: Iterable[Shard]) -> int | None:
    """Height and width that all images must have: those of the first one that is square; None where none is."""
    for shard in shards:
        try:
            index = index_tar(_local(shard))
            for start in range(len(index.keys)):
                try:
                    height, width, _ = decode(_files(index, start, 1)[0]).shape
                except DataError:
                    continue
                if height == width:
                    return int(height)
        except (OSError, DataError):
            continue
    return None


def _local(shard: Shard) -> Path:
    return Cache().fetch(shard.where, shard.listed.bytes, shard.listed.sha256) if is_remote(shard.where) else Path(shard.where)


def _check(named: Named, known: Known, resolution: int | None) -> _Found:
    """What is in a shard, and what is wrong with it."""
    where, listed = shown(named.shard.where), named.shard.listed
    notes: list[str] = []
    try:
        path = _local(named.shard)
        found = [Skip(where, "", cause, f"{where}: {cause}: {told}") for cause, told in _bytes_faults(path, listed)]
        index = index_tar(path)
        if not found and (told := index_told(index)):
            wrong, message = told
            if wrong:
                found.append(Skip(where, "", "wrong index", f"{where}: wrong index: {message}"))
            else:
                notes.append(f"{beside(path)}: {message}")
        notes += [index.note] * bool(index.note)
        found += [*index.skips, *_label_faults(index, where, named, known), *_image_faults(index, where, resolution)]
    except (OSError, DataError, MemoryError) as error:
        told_by = "too little memory" if isinstance(error, MemoryError) else error
        return _Found(faults=(Skip(where, "", "cannot be read", f"{where} cannot be read: {told_by}"),))
    count = len(index.keys)
    if listed.samples not in (None, count):
        found.append(Skip(where, "", "wrong count", f"{where}: wrong count: {count} samples, but the list says {listed.samples}"))
    labelled = bool((index.labels >= 0).any())
    bare = tuple(index.keys[row] for row in np.flatnonzero(index.labels < 0).tolist()) if labelled else ()
    return _Found(count, tuple(found), tuple(notes), bare, labelled)


def _bytes_faults(path: Path, listed: Listed) -> Iterator[tuple[str, str]]:
    size = path.stat().st_size
    if listed.bytes not in (None, size):
        yield "wrong size", f"{size} bytes, but the list says {listed.bytes}"
    if listed.sha256 is not None and (sha256 := digest(path)) != listed.sha256:
        yield "wrong SHA-256", f"{sha256}, but the list says {listed.sha256}"


def _label_faults(index: TarIndex, where: str, named: Named, known: Known) -> Iterator[Skip]:
    """Labels that have no name, and counts that are not as listed."""
    for row in np.flatnonzero(index.labels >= known.classes).tolist() if known.classes else ():
        key, label = index.keys[row], int(index.labels[row])
        told = f"label beyond the classes: {label}, but the list names {known.classes}"
        yield Skip(where, key, "label beyond the classes", f"{where}: key {key!r}: {told}")
    listed = known.per_class.get(named.name)
    counts = {str(label): count for label, count in Counter(index.labels.tolist()).items() if label >= 0}
    if listed is not None and dict(listed) != counts:
        told = f"wrong class counts: {_counts(counts)}, but the list says {_counts(listed)}"
        yield Skip(where, "", "wrong class counts", f"{where}: {told}")


def _counts(per_class: Mapping[str, int]) -> str:
    """How many images there are of each class, of a few of them."""
    each = [f"{count:,} of class {label}" for label, count in sorted(per_class.items(), key=lambda item: int(item[0]))]
    return ", ".join(each[:10]) + (", ..." if len(each) > 10 else "") if each else "none"


def _image_faults(index: TarIndex, where: str, side: int | None) -> Iterator[Skip]:
    """Decode everything."""
    step = max(1, min(_AT_ONCE, _PIXELS_AT_ONCE // (side or 1) ** 2))
    for start in range(0, len(index.keys), step):
        files = _files(index, start, step)
        faults: Mapping[int, DataError | None] = dict.fromkeys(range(len(files)))
        if side is not None:
            faults = decode_all(files, np.empty((len(files), side, side, 3), np.uint8), MAX_PIXELS)
        for row, error in faults.items():
            if fault := _fault(files[row], side) or (str(error) if error else ""):
                key = index.keys[start + row]
                yield Skip(where, key, fault.partition(":")[0], f"{where}: key {key!r}: {fault}")


def _fault(data: bytes, side: int | None) -> str:
    """What is wrong with an image, "" where nothing is."""
    try:
        height, width, _ = decode(data, MAX_PIXELS).shape
    except DataError as error:
        return str(error)
    if height != width:
        return f"not square: {width} x {height}"
    return "" if height == (side or height) else f"wrong size: {width} x {height}, not {side} x {side} as others"


def _files(index: TarIndex, start: int, count: int) -> list[bytes]:
    with index.path.open("rb", buffering=0) as file:
        places = zip(index.offsets[start : start + count].tolist(), index.sizes[start : start + count].tolist(), strict=True)
        return [os.pread(file.fileno(), size, offset) for offset, size in places]
