"""What the list beside the shards of a data set says, for those who compare."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import attrs

from cdmkit.data.find import Shard, read_list
from cdmkit.data.listing import Listing
from cdmkit.data.remote import is_remote
from cdmkit.errors import DataError
from cdmkit.preparing.card import CARD, SEAL

_LARGEST = 8192


class Named(NamedTuple):
    """A shard as it is listed."""

    shard: Shard
    name: str
    """In the list."""
    split: str


@attrs.frozen
class Known:
    """What a list says; of a pattern, the shards alone are known."""

    shards: Sequence[Named]
    card: Mapping[str, Any] = attrs.field(factory=dict)
    """`dataset.json` in full."""
    folder: Path | None = None
    """The folder, where cdmkit made it."""
    classes: int = 0
    """0 where the list does not tell."""
    per_class: Mapping[str, Mapping[str, int]] = attrs.field(factory=dict)
    """Images of each label, by the name of the shard, where the list tells."""
    resolution: int | None = None

    @classmethod
    def read(cls, data: str) -> Known | None:
        """Understand a list, or that of a folder; None for whatever else. Raises DataError where it is damaged or not finished."""
        found = read_list(data)
        if found is None:
            return None
        path, text = found
        named = [
            Named(Shard(name if is_remote(name) else str(path.parent / name), listed), name, split)
            for split, shards in Listing.parse(text, str(path)).splits.items()
            for name, listed in shards.items()
        ]
        if path.name != CARD:
            return cls(named)
        try:
            return cls._of_card(named, json.loads(text), path)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"{path} cannot be read as what cdmkit writes ({error}): mend it, or prepare again") from None

    @classmethod
    def _of_card(cls, named: Sequence[Named], card: Mapping[str, Any], path: Path) -> Known:
        json.dumps(card, ensure_ascii=False, allow_nan=False).encode()  # nothing that cannot be printed
        classes, resolution = card.get("classes", []), card.get("resolution")
        if not (isinstance(classes, list) and all(isinstance(each, str) for each in classes)):
            raise TypeError("classes is no list of names")
        if resolution is not None and (type(resolution) is not int or not 0 < resolution <= _LARGEST):
            raise ValueError(f"resolution is no number from 1 to {_LARGEST}")
        own = not SEAL.isdisjoint(card) and "splits" in card and all("shards" in split for split in card["splits"].values())
        return cls(named, card, path.parent if own else None, len(classes), dict(_counts(card)), resolution)


def _counts(card: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, int]]]:
    for split in card["splits"].values() if "splits" in card else ():
        for shard in split.get("shards", ()):
            counts = shard.get("per_class")
            if counts is None:
                continue
            if not all(key.isascii() and key.isdigit() and type(count) is int for key, count in counts.items()):
                raise ValueError(f"per_class of {shard['file']!r} does not hold a count for each label")
            yield shard["file"], counts
