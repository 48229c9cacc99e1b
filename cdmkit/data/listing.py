"""Lists of shards that lie beside them: cdmkit's own `dataset.json`, and those of timm, open_clip and wids."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import attrs

from cdmkit.errors import DataError
from cdmkit.nearest import did_you_mean

NAMES = ("dataset.json", "_info.json", "sizes.json")
"""What lists are called, in the order that they are believed in."""


@attrs.frozen
class Listed:
    """What a list tells of a shard; None where it does not."""

    samples: int | None = None
    bytes: int | None = None
    sha256: str | None = None


@attrs.frozen
class Listing:
    """The shards of each split, by file name (or URL), in the list's order; the only split of a list without any is "".

    crop: how images were made square and small, classes: the name of each label; empty where the list does not tell.
    """

    splits: Mapping[str, Mapping[str, Listed]]
    crop: str = ""
    classes: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, where: str) -> Listing:
        """Understand a list. `where` is named in errors. Raises DataError where it is none of the four."""
        try:
            plain = json.loads(text)
            return cls({split: dict(shards) for split, shards in _splits(plain)}, _crop(plain), _classes(plain))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"{where} cannot be read as a list of shards ({error!r}): mend or remove it") from None

    def of(self, split: str, where: str) -> Mapping[str, Listed]:
        """The shards of a split; "" is the only one. Raises DataError where there is no such split, or several to choose from."""
        if not split and len(self.splits) == 1:
            return next(iter(self.splits.values()))
        if split in self.splits:
            return self.splits[split]
        known = did_you_mean(split, self.splits) if split else ""
        raise DataError(f"{where} has the splits {', '.join(self.splits)}: {f'there is no {split!r}{known}' if split else 'set `split`'}")

    def named(self) -> Iterator[tuple[str, Listed]]:
        """All shards with their names."""
        for shards in self.splits.values():
            yield from shards.items()


def _splits(plain: Any) -> Iterator[tuple[str, Iterator[tuple[str, Listed]]]]:
    if "shardlist" in plain:  # wids
        yield "", ((_plain_name(shard["url"]), Listed(samples=_count(shard["nsamples"]))) for shard in plain["shardlist"])
    elif "splits" in plain:
        for split, told in plain["splits"].items():
            yield split, _timm(told) if "filenames" in told else _own(told)
    elif not plain:
        raise ValueError("it lists nothing")
    else:  # open_clip
        yield "", ((_plain_name(name), Listed(samples=_count(count))) for name, count in plain.items())


def _own(told: Mapping[str, Any]) -> Iterator[tuple[str, Listed]]:
    for shard in told["shards"]:
        samples, sha256 = shard.get("samples"), shard.get("sha256")
        yield (
            _plain_name(shard["file"]),
            Listed(None if samples is None else _count(samples), _count(shard["bytes"]), None if sha256 is None else _digest(sha256)),
        )


def _timm(told: Mapping[str, Any]) -> Iterator[tuple[str, Listed]]:
    for name, count in zip(told["filenames"], told["shard_lengths"], strict=True):
        yield _plain_name(name), Listed(samples=_count(count))


def _plain_name(name: Any) -> str:
    """A shard's name, which must not lead out of the folder that the list is in; a URL may be anywhere."""
    if not isinstance(name, str) or not name or "\0" in name or not name.isprintable():
        raise ValueError(f"{name!r} is no file name")
    if "://" not in name and (PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts):
        raise ValueError(f"{name!r} leads out of the folder")
    return name


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 40:
        raise ValueError(f"{value!r} is no count")
    return value


def _digest(value: Any) -> str:
    if not isinstance(value, str) or len(value) != 64 or not set(value) <= set("0123456789abcdef"):
        raise ValueError(f"{value!r} is no SHA-256")
    return value


def _crop(plain: Any) -> str:
    crop = plain.get("crop", "") if "splits" in plain else ""
    return crop if isinstance(crop, str) else ""


def _classes(plain: Any) -> tuple[str, ...]:
    classes = plain.get("classes") if "splits" in plain else None
    return tuple(map(str, classes)) if isinstance(classes, list) else ()
