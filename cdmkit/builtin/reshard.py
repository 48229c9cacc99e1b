"""Images that are in shards already, to be stored anew: in another size, or in another number of shards."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import attrs

from cdmkit.component import Component, component
from cdmkit.data.find import find_shards
from cdmkit.data.originals import Piece, entries, in_order, is_hidden, shown
from cdmkit.data.tar import TarIndex, index_tar
from cdmkit.errors import DataError
from cdmkit.hookspecs import hookimpl
from cdmkit.kinds import Original, Originals, Preparer

_SPLITS = {"train": "train", "val": "val", "validation": "val", "valid": "val", "test": "test"}
"""Words of a shard's name that tell its split."""

_MOST_CLASSES = 1_000_000


@component("shards")
class Reshard(Preparer):
    """WebDataset tars: a folder that holds some, one tar, or a pattern with wildcards or braces.

    If a `dataset.json` beside the tars says `{"splits": {split: {"shards": [{"file": name}]}}}`, these are the splits, and its `classes`
    the names of the labels. If not, the last word before the number tells the split: `train-00000.tar`, `imagenet-val-000.tar`. Where no
    shard has such a word, all are `train`.

    A sample is `<key>.png` (or jpg, jpeg, webp, bmp) with or without `<key>.cls`: all have labels, or none has. Tars in the folder that
    `dataset.json` does not list are passed over.
    """

    def look(self, path: Path) -> Originals:
        """Index all shards. Raises DataError where one is damaged, or labels or splits cannot be told."""
        passed_over: Counter[str] = Counter()
        shards = [*_tars(path)] if path.is_dir() else find_shards(str(path))
        folder = shards[0].absolute().parent
        card = _Card.beside(folder) if all(shard.absolute().parent == folder for shard in shards) else _Card()
        if path.is_dir() and card.splits:
            unlisted = {shard.name for shard in shards} - card.splits.keys()
            passed_over["shard that dataset.json does not list"] += len(unlisted)
            shards = [path / name for name in card.splits]
        indices = [(card.splits.get(shard.name, ""), index_tar(_existing(shard.absolute()))) for shard in shards]
        by_name = _by_name([index.path for split, index in indices if not split])
        classes = _classes([index for _, index in indices], card.classes)
        splits: dict[str, list[Original]] = defaultdict(list)
        for split, index in indices:
            splits[split or by_name[index.path]] += _originals(index)
        ordered = {split: in_order(splits[split], path) for split in sorted(splits)}
        return Originals(splits=ordered, classes=classes, passed_over=dict(+passed_over))

    def read(self, original: Original) -> bytes:
        """A member of a tar."""
        piece: Piece = original.place
        return piece.read()


@attrs.frozen
class _Card:
    """What a `dataset.json` tells."""

    splits: Mapping[str, str] = attrs.field(factory=dict)
    """Split by file name."""
    classes: Sequence[str] = ()

    @classmethod
    def beside(cls, folder: Path) -> _Card:
        """That of a folder, empty where there is none or it lists no shards. Raises DataError where it cannot be read."""
        path = folder / "dataset.json"
        try:
            told = json.loads(path.read_text("utf-8"))
            return cls(dict(_listed(told)), _names(told)) if isinstance(told, dict) and "splits" in told else cls()
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"{path} cannot be read as the list of shards beside it ({error!r}): mend or remove it") from None


def _listed(told: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """File name and split of each shard of a card."""
    for split, about in told["splits"].items():
        for shard in about["shards"]:
            name = shard["file"]
            if not isinstance(name, str) or name in ("", ".", "..") or PurePosixPath(name).name != name:
                raise ValueError(f"{name!r} is not the name of a file beside it")
            yield name, split


def _names(told: Mapping[str, Any]) -> Sequence[str]:
    """The names of the classes of a card, none where it has none."""
    names = told.get("classes")
    return tuple(shown(name) for name in names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def _tars(folder: Path) -> Iterable[Path]:
    found = [folder / entry.name for entry in entries(folder) if entry.name.endswith(".tar") and not is_hidden(entry.name)]
    if not found:
        raise DataError(f"no shards in {folder}: looked for *.tar; give the folder that holds them, one tar, or a pattern")
    return found


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"{path} is missing or no file, but dataset.json beside it lists it: copy it again")
    return path


def _by_name(paths: Sequence[Path]) -> dict[Path, str]:
    """The split of each shard that no card lists, by the last word before the number of its name."""
    words = {path: re.sub(r"[-_.]?\d*$", "", path.name.removesuffix(".tar")).rpartition("-")[2].rpartition("_")[2] for path in paths}
    splits = {path: _SPLITS.get(word.lower(), "") for path, word in words.items()}
    if not any(splits.values()):
        return dict.fromkeys(paths, "train")
    untold = next((path for path, split in splits.items() if not split), None)
    if untold is not None:
        raise DataError(
            f"{untold}: its name tells no split, as others do: call it train-00000.tar or val-00000.tar, or list it in dataset.json"
        )
    return splits


def _classes(indices: Iterable[TarIndex], names: Sequence[str]) -> Sequence[str]:
    """The name of each label, its number where it has no other; empty where no sample has a label."""
    most, lonely = -1, ""
    for index in indices:
        labels = index.labels.tolist()
        most = max([most, *labels])
        if not lonely and -1 in labels:
            lonely = f"{index.path}: key {index.keys[labels.index(-1)]!r}"
    if most < 0:
        return ()
    if lonely:
        raise DataError(f"{lonely} has no .cls, but other samples have: label all or none")
    if most >= (len(names) or _MOST_CLASSES):
        raise DataError(f"the largest label is {most}, but there are {len(names) or f'at most {_MOST_CLASSES}'} classes: mend the labels")
    return names or tuple(map(str, range(most + 1)))


def _originals(index: TarIndex) -> Iterable[Original]:
    folder, file = str(index.path.parent), index.path.name
    rows = zip(index.keys, index.labels.tolist(), index.offsets.tolist(), index.sizes.tolist(), strict=True)
    return (Original(shown(f"{file}/{key}"), label, Piece(folder, file, offset, size)) for key, label, offset, size in rows)


@hookimpl
def cdmkit_components() -> list[type[Component]]:
    """The preparer of what is prepared already."""
    return [Reshard]
