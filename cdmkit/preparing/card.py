"""What is told of a finished data set, in files beside its shards."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import features

from cdmkit import __version__
from cdmkit.files import digest, read_sealed, sealed, write_text, written
from cdmkit.preparing.plan import Plan, Shard
from cdmkit.preparing.write import Part, Rejected, escaped, rows_of

CARD, MANIFEST, REJECTS = "dataset.json", "manifest.tsv.gz", "rejects.tsv"

SEAL = frozenset({"files", "checksum"})
"""The keys of a card that make every byte of it and of the files beside it count."""

Parts = Mapping[Shard, Part]
"""The record of every shard, in order."""


def tools() -> dict[str, str]:
    """The versions of what decides the bytes of an image."""
    png = features.version("zlib_ng") or features.version("zlib") or "none"
    return {
        "cdmkit": __version__,
        "pillow": version("pillow"),
        "pillow-zlib": png,
        "simplejpeg": version("simplejpeg"),
        "zlib": zlib.ZLIB_RUNTIME_VERSION,
    }


def make_card(plan: Plan, parts: Parts, name: str, license: str) -> dict[str, Any]:
    """The content of `dataset.json`: equal for equal data sets, so neither times nor absolute paths."""
    settings = plan.settings.plain()
    splits = {split.name: _split({shard: parts[shard] for shard in split.shards}) for split in plan.splits}
    card = {
        "format": 1,
        "name": name,
        "source": plan.source,
        "license": license,
        "classes": [escaped(each) for each in plan.classes],
        "resolution": next((part.side for part in parts.values() if part.samples), None),
        **{key: settings[key] for key in ("crop", "encoding", "exif", "min_side", "seed")},
        "tools": {tool: ", ".join(sorted({part.tools.get(tool, "unknown") for part in parts.values()})) for tool in tools()},
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


def sealed_card(card: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """A card with the digests of the files beside the shards, and a checksum of itself."""
    return sealed({**card, "files": {name: digest(out / name) for name in (MANIFEST, REJECTS)}})


def unsealed(card: Mapping[str, Any]) -> dict[str, Any]:
    """What was sealed."""
    return {key: value for key, value in card.items() if key not in SEAL}


def card_faults(out: Path, card: Mapping[str, Any]) -> Iterator[str]:
    """What in a folder is not as its sealed card says, beside the shards."""
    again = "the same `cdmkit data prepare` again writes it anew"
    try:
        read_sealed(out / CARD)
    except (OSError, ValueError):
        yield f"{out / CARD} is not as it was written: {again}"
    files = card.get("files")
    for name in (MANIFEST, REJECTS):
        sha256 = files.get(name) if isinstance(files, dict) else None
        try:
            found = digest(out / name)
        except OSError as error:
            yield f"{out / name} cannot be read ({error.strerror}): {again}"
        else:
            if found != sha256:
                yield f"{out / name} is not as it was written: its SHA-256 is {found}, but {CARD} says {sha256}: {again}"


def read_card(out: Path) -> dict[str, Any]:
    """The content of the `dataset.json` in a folder, empty where there is none."""
    try:
        card = json.loads((out / CARD).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return card if isinstance(card, dict) else {}


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


def write_rejects(out: Path, rejected: Iterable[tuple[str, Rejected]]) -> None:
    """Write which images, of which splits, are in no shard, and why."""
    text = io.StringIO()
    text.write("split\tsource\tcause\n")
    text.writelines(f"{split}\t{each.name}\t{each.cause}\n" for split, each in rejected)
    write_text(out / REJECTS, text.getvalue())
