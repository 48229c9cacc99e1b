"""Whether a data set is what the list beside it says, down to every byte, and whether every image in it can be used."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import numpy as np

from cdmkit.data.cache import Cache
from cdmkit.data.decode import MAX_PIXELS, decode, decode_all
from cdmkit.data.find import Shard, locate, read_list
from cdmkit.data.index import fits
from cdmkit.data.listing import Listed, Listing
from cdmkit.data.remote import is_remote, shown
from cdmkit.data.tar import TarIndex, index_tar
from cdmkit.errors import DataError
from cdmkit.files import digest
from cdmkit.kinds import Skip
from cdmkit.preparing.card import CARD, SEAL, card_faults

_AT_ONCE = 64
"""Images that are decoded together."""


class Verified(NamedTuple):
    """What was found."""

    shards: int
    images: int
    faults: list[Skip]


@attrs.frozen
class _Expected:
    """What all shards have in common."""

    classes: int
    """0 where the list does not tell."""
    per_class: Mapping[str, Mapping[str, int]]
    """By file name, where the list tells."""
    resolution: int | None


def verify(data: str, workers: int, tell: Callable[[int, int], None] = lambda _done, _total: None) -> Verified:
    """Check a data set: a folder with a list of its shards, such as `cdmkit data prepare` makes, the list itself, or a pattern of shards.

    `tell` is told how many of how many shards are done. Raises DataError where there is no such data set at all.
    """
    shards, card, folder = _shards(data)
    expected = _Expected(
        len(card.get("classes", ())), {s["file"]: s["per_class"] for s in _own_shards(card) if "per_class" in s}, _resolution(shards, card)
    )
    images, faults = 0, []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for done, (count, found) in enumerate(pool.map(lambda shard: _check(shard, expected), shards), start=1):
            images += count
            faults += found
            tell(done, len(shards))
    if folder is not None:
        faults += [Skip(str(folder), "", "damaged card", told) for told in card_faults(folder, card)]
    return Verified(len(shards), images, faults)


def _shards(data: str) -> tuple[list[Shard], Mapping[str, Any], Path | None]:
    """The shards, the card in full, and the folder where cdmkit made it; empty and None where there is none."""
    found = read_list(data)
    if found is None:
        return list(locate(data).shards), {}, None
    path, text = found
    listing = Listing.parse(text, str(path))
    shards = [Shard(name if is_remote(name) else str(path.parent / name), listed) for name, listed in listing.named()]
    card = json.loads(text)
    own = path.name == CARD and not SEAL.isdisjoint(card)
    return shards, card if path.name == CARD else {}, path.parent if own else None


def _own_shards(card: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for split in card.get("splits", {}).values():
        yield from split.get("shards", ())


def _resolution(shards: Iterable[Shard], card: Mapping[str, Any]) -> int | None:
    """Height and width that all images must have: as the card tells, else those of the first one that is square."""
    if isinstance(card.get("resolution"), int):
        return int(card["resolution"])
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


def _check(shard: Shard, expected: _Expected) -> tuple[int, list[Skip]]:
    """How many images a shard has, and what is wrong with it."""
    where = shown(shard.where)
    try:
        path = _local(shard)
        found = [Skip(where, "", cause, f"{where}: {cause}: {told}") for cause, told in _bytes_faults(path, shard.listed)]
        index = index_tar(path)
        if not found and not fits(index):
            found.append(
                Skip(where, "", "wrong index", f"{where}: wrong index: that beside it is not its own: remove it, or prepare again")
            )
        found += [*index.skips, *_label_faults(index, where, expected), *_image_faults(index, where, expected.resolution)]
    except (OSError, DataError) as error:
        return 0, [Skip(where, "", "cannot be read", f"{where} cannot be read: {error}")]
    count, listed = len(index.keys), shard.listed.samples
    if listed is not None and listed != count:
        found.append(Skip(where, "", "wrong count", f"{where}: wrong count: {count} samples, but the list says {listed}"))
    return count, found


def _bytes_faults(path: Path, listed: Listed) -> Iterator[tuple[str, str]]:
    size = path.stat().st_size
    if listed.bytes not in (None, size):
        yield "wrong size", f"{size} bytes, but the list says {listed.bytes}"
    if listed.sha256 is not None and (sha256 := digest(path)) != listed.sha256:
        yield "wrong SHA-256", f"{sha256}, but the list says {listed.sha256}"


def _label_faults(index: TarIndex, where: str, expected: _Expected) -> Iterator[Skip]:
    wrong = (index.labels >= expected.classes) if expected.classes else np.zeros(len(index.labels), bool)
    labelled = (index.labels >= 0).any() or expected.classes
    for row in np.flatnonzero(wrong | (index.labels < 0) & bool(labelled)).tolist():
        key, label = index.keys[row], int(index.labels[row])
        cause = "no label" if label < 0 else "label beyond the classes"
        told = "it has no .cls" if label < 0 else f"{label}, but the list names {expected.classes}"
        yield Skip(where, key, cause, f"{where}: key {key!r}: {cause}: {told}")
    listed = expected.per_class.get(index.path.name)
    counts = {str(label): count for label, count in Counter(index.labels.tolist()).items() if label >= 0}
    if listed is not None and dict(listed) != counts:
        yield Skip(where, "", "wrong class counts", f"{where}: wrong class counts: {counts}, but the list says {dict(listed)}")


def _image_faults(index: TarIndex, where: str, resolution: int | None) -> Iterator[Skip]:
    """Decode everything."""
    for start in range(0, len(index.keys) if resolution else 0, _AT_ONCE):
        files, side = _files(index, start, _AT_ONCE), resolution or 0
        faults = decode_all(files, np.empty((len(files), side, side, 3), np.uint8), MAX_PIXELS)
        for row, fault in faults.items():
            key = index.keys[start + row]
            yield Skip(where, key, str(fault).partition(":")[0], f"{where}: key {key!r}: {fault}")


def _files(index: TarIndex, start: int, count: int) -> list[bytes]:
    with index.path.open("rb", buffering=0) as file:
        places = zip(index.offsets[start : start + count].tolist(), index.sizes[start : start + count].tolist(), strict=True)
        return [os.pread(file.fileno(), size, offset) for offset, size in places]
