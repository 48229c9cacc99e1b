"""What is told of a finished data set, in files beside its shards."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cdmkit import __version__
from cdmkit.files import digest, json_text, write_text, written
from cdmkit.preparing.plan import Plan, Shard
from cdmkit.preparing.write import PARTS, Part, escaped, rows_of

CARD, MANIFEST, REJECTS = "dataset.json", "manifest.tsv.gz", "rejects.tsv"

SEAL = frozenset({"files", "records", "checksum"})
"""The keys of a card that make every byte beside the shards count."""

Parts = Mapping[Shard, Part]
"""The record of every shard, in order."""


def tools() -> dict[str, str]:
    """The versions of what decides the bytes of an image."""
    return {"cdmkit": __version__, "pillow": version("pillow"), "simplejpeg": version("simplejpeg")}


def make_card(plan: Plan, parts: Parts, name: str) -> dict[str, Any]:
    """The content of `dataset.json`: equal for equal data sets, so neither times nor absolute paths."""
    settings = plan.settings.plain()
    splits = {split.name: _split({shard: parts[shard] for shard in split.shards}) for split in plan.splits}
    card = {
        "format": 1,
        "name": name,
        "source": plan.source,
        "license": settings["license"],
        "classes": [escaped(each) for each in plan.classes],
        "resolution": next((part.side for part in parts.values() if part.samples), None),
        **{key: settings[key] for key in ("crop", "encoding", "exif", "min_side", "seed")},
        "tools": {tool: ", ".join(sorted({part.tools[tool] for part in parts.values()})) for tool in tools()},
        "splits": splits,
    }
    return {**card, "fingerprint": _fingerprint(card)}


def _split(parts: Parts) -> dict[str, Any]:
    shards = [
        {"file": shard.file, "samples": part.samples, "bytes": part.bytes, "sha256": part.sha256, "per_class": part.per_class}
        for shard, part in parts.items()
        if part.samples
    ]
    return {
        "samples": sum(part.samples for part in parts.values()),
        "enlarged": sum(part.enlarged for part in parts.values()),
        "rejected": sum(len(part.rejected) for part in parts.values()),
        "shards": shards,
    }


def _fingerprint(card: Mapping[str, Any]) -> str:
    """A digest of the pictures and labels, whatever made them and whatever they are called."""
    shards = {name: [shard["sha256"] for shard in split["shards"]] for name, split in card["splits"].items()}
    text = json.dumps({"classes": card["classes"], "splits": shards}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(card: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """A card with what makes every byte of its folder count: digests of the files beside the shards, and of itself."""
    whole = {**card, "files": {name: digest(out / name) for name in (MANIFEST, REJECTS)}, "records": _records(out)}
    return {**whole, "checksum": _checksum(whole)}


def unsealed(card: Mapping[str, Any]) -> dict[str, Any]:
    """What was sealed."""
    return {key: value for key, value in card.items() if key not in SEAL}


def card_faults(out: Path, card: Mapping[str, Any]) -> Iterator[str]:
    """What in a folder is not as its sealed card says, beside the shards."""
    whole = {key: value for key, value in card.items() if key != "checksum"}
    if card.get("checksum") != _checksum(whole) or (out / CARD).read_text("utf-8") != json_text(card):
        yield f"{out / CARD} is not as it was written: prepare again"
    for name, sha256 in card.get("files", {}).items():
        try:
            found = digest(out / name)
        except OSError as error:
            yield f"{out / name} cannot be read: {error.strerror}"
        else:
            if found != sha256:
                yield f"{out / name} is not as it was written: its SHA-256 is {found}, but {CARD} says {sha256}"
    if card.get("records") != _records(out):
        yield f"{out / PARTS} is not as it was written: prepare again, or remove it with the line `records` of {CARD}"


def _checksum(card: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(card, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _records(out: Path) -> str:
    """A digest of the records of all parts."""
    found = hashlib.sha256()
    for path in sorted((out / PARTS).iterdir()) if (out / PARTS).is_dir() else ():
        found.update(f"{path.name} {digest(path)}\n".encode())
    return found.hexdigest()


def read_card(out: Path) -> Any:
    """The content of the `dataset.json` in a folder, None where there is none."""
    try:
        return json.loads((out / CARD).read_bytes())
    except (OSError, ValueError):
        return None


def per_class(card: Mapping[str, Any]) -> dict[str, list[int]]:
    """How many images of each class each split has."""
    counts = {}
    for name, split in card["splits"].items():
        count: Counter[str] = Counter()
        for shard in split["shards"]:
            count.update(shard["per_class"])
        counts[name] = [count[str(label)] for label in range(len(card["classes"]))]
    return counts


def write_manifest(out: Path, shards: Iterable[Shard]) -> None:
    """Write which image of the source each sample is. The parts are compressed already, and gzip files can be joined end to end."""
    with written(out / MANIFEST) as file:
        file.write(gzip.compress(b"key\tcls\tshard\tsource\n", mtime=0))
        for shard in shards:
            with rows_of(out, shard).open("rb") as rows:
                shutil.copyfileobj(rows, file)


def write_rejects(out: Path, parts: Parts) -> None:
    """Write which images are in no shard, and why."""
    text = io.StringIO()
    text.write("split\tsource\tcause\n")
    for shard, part in parts.items():
        text.writelines(f"{shard.split}\t{rejected.name}\t{rejected.cause}\n" for rejected in part.rejected)
    write_text(out / REJECTS, text.getvalue())
