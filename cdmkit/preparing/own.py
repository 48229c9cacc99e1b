"""What lies beside the shards of a data set that cdmkit made: card, lists, indices, records."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cdmkit.data.index import EDGE, beside, edges_of
from cdmkit.data.tar import TarIndex
from cdmkit.files import digest, read_sealed
from cdmkit.preparing.card import CARD, card_faults
from cdmkit.preparing.write import PARTS, PLAN, Part, read_record

Told = tuple[str, str]
"""A cause, and what is wrong."""

_AGAIN = "the same `cdmkit data prepare` again makes it anew"


def beside_told(folder: Path, card: Mapping[str, Any]) -> tuple[list[Told], list[str]]:
    """What in a folder is wrong, beside the shards and their indices, and what is odd."""
    shards = {shard["file"]: shard for split in card["splits"].values() for shard in split["shards"]}
    faults = [("damaged card", told) for told in card_faults(folder, card)]
    known = {*shards, *(beside(folder / name).name for name in shards)}
    for path in sorted(folder.iterdir()):
        if path.name.endswith((".tar", ".idx.npz")) and path.name not in known:
            faults.append(("not in the card", f"{path} is not in {CARD}: remove it"))
    if not (folder / PARTS).is_dir():
        gone = f"{folder / PARTS} is gone: the data set can be used as it is, but `cdmkit data prepare` does not know it any more"
        return faults, [gone]
    return [*faults, *_record_faults(folder, shards), *_index_faults(folder)], list(_index_notes(folder))


def _records(folder: Path) -> Iterator[tuple[Path, Part | None]]:
    for path in sorted((folder / PARTS).glob("[!.]*.json")):
        if path.name != PLAN:
            yield path, read_record(path)


def _record_faults(folder: Path, shards: Mapping[str, Any]) -> Iterator[Told]:
    """Records that are damaged or missing, or of other shards than those of the card."""
    cause = "damaged record"
    try:
        read_sealed(folder / PARTS / PLAN)
    except (OSError, ValueError):
        yield cause, f"{folder / PARTS / PLAN} is not as it was written: {_AGAIN}"
    stems = set()
    for path, part in _records(folder):
        stems.add(path.stem)
        rows = path.with_suffix(".tsv.gz")
        if part is None:
            yield cause, f"{path} is not as it was written: {_AGAIN}, and its shard"
            continue
        if not rows.is_file() or digest(rows) != part.rows_sha256:
            yield cause, f"{rows} is not as it was written: {_AGAIN}, and its shard"
        listed = shards.get(f"{path.stem}.tar", {}).get("sha256", "")
        if listed != part.sha256:
            yield cause, f"{path} is of another shard than {CARD} tells: {_AGAIN}"
    for name in sorted(name for name in shards if name.removesuffix(".tar") not in stems):
        yield cause, f"{folder / PARTS / name.removesuffix('.tar')}.json is missing: {_AGAIN}, and its shard"


def _index_faults(folder: Path) -> Iterator[Told]:
    """Indices that were damaged. (What another version wrote is as it was written, though it cannot be used.)"""
    for path, part in _records(folder):
        index = beside(folder / f"{path.stem}.tar")
        if part and part.samples and index.is_file() and digest(index) != part.index_sha256:
            yield "damaged index", f"{index} is not as it was written: {_AGAIN}"


def _index_notes(folder: Path) -> Iterator[str]:
    for path, part in _records(folder):
        index = beside(folder / f"{path.stem}.tar")
        if part and part.samples and not index.is_file():
            yield f"{index} is missing, which costs time when the shard is opened: {_AGAIN}"


def index_told(index: TarIndex) -> tuple[bool, str] | None:
    """What is to be said of the index that is kept beside a shard: whether it is wrong, and why; None where all is well, or none is."""
    kept = beside(index.path)
    if not kept.exists():
        return None
    try:
        with zipfile.ZipFile(kept) as archive:
            if sum(item.file_size for item in archive.infolist()) > index.path.stat().st_size + EDGE:
                return False, "it is larger than its shard, and not used"
        with np.load(kept, allow_pickle=False) as arrays:
            of_it = json.loads(arrays["facts"].tobytes())["edges"] == edges_of(index.path)
            same = arrays["keys"].tobytes() == index.keys.text and all(
                np.array_equal(arrays[name], getattr(index, name)) for name in ("offsets", "sizes", "labels")
            )
    except Exception as error:  # whatever a damaged file, or one of another version, may break
        return False, f"it cannot be read ({type(error).__name__}), and is not used"
    if not of_it:
        return False, "it is that of another shard, and not used"
    return None if same else (True, "that beside it tells other samples: remove it")
