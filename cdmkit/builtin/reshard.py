"""Images that are in shards already, to be stored anew: in another size, or in another number of shards."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import attrs

from cdmkit.component import Component, component
from cdmkit.data.find import find_shards
from cdmkit.data.listing import NAMES, Listing
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

    If a list of shards lies beside the tars, it tells their splits: `dataset.json` as cdmkit writes it, which tells the names of the
    classes too, or timm's `_info.json`. If not, the last word before a tar's number does: `train-00000.tar`, `imagenet-val-000.tar`. Where
    no tar has such a word, all are `train`.

    A sample is `<key>.png` (or jpg, jpeg, webp, bmp) with or without `<key>.cls`: all have labels, or none has. Passed over and counted are
    samples that cannot be used, and tars of the folder that its list does not name.
    """

    def look(self, path: Path) -> Originals:
        """Index all shards. Raises DataError where one is damaged, or labels or splits cannot be told."""
        passed_over = Counter[str]()
        shards = [shard.absolute() for shard in (_tars(path) if path.is_dir() else find_shards(str(path)))]
        folders = {shard.parent for shard in shards} or {path.absolute()}
        told = _Told.beside(folders.pop()) if len(folders) == 1 else _Told()
        if path.is_dir() and told.splits:
            passed_over["shard that the list beside it does not name"] += len(set(shards) - told.splits.keys())
            shards = list(told.splits)
        if not shards:
            raise DataError(f"no shards in {path}: looked for *.tar; give the folder that holds them, one tar, or a pattern")
        indices = [_indexed(shard, told.bytes.get(shard), passed_over) for shard in shards]
        classes = _classes(indices, told.classes)
        by_name = _by_name([shard for shard in shards if not told.splits.get(shard)])
        splits: dict[str, list[Original]] = defaultdict(list)
        for index in indices:
            splits[told.splits.get(index.path) or by_name[index.path]] += _originals(index)
        ordered = {split: in_order(splits[split], path) for split in sorted(splits)}
        return Originals(splits=ordered, classes=classes, passed_over=dict(+passed_over))

    def read(self, original: Original) -> bytes:
        """A member of a tar."""
        piece: Piece = original.place
        return piece.read()


@attrs.frozen
class _Told:
    """What the list of shards in a folder tells."""

    splits: Mapping[Path, str] = attrs.field(factory=dict)
    """The split of each shard, "" where the list names none."""
    bytes: Mapping[Path, int | None] = attrs.field(factory=dict)
    """How long each shard is, if it tells that."""
    classes: Sequence[str] = ()
    """The names of the labels, if it tells them."""

    @classmethod
    def beside(cls, folder: Path) -> _Told:
        """That of a folder, empty where there is none. Raises DataError where it cannot be understood."""
        for path in (folder / name for name in NAMES):
            try:
                text = path.read_text("utf-8")
            except FileNotFoundError:
                continue
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{path} cannot be read as a list of shards ({error!r}): mend or remove it") from None
            listing = Listing.parse(text, str(path))
            splits = {folder / name: split for split, shards in listing.splits.items() for name in shards}
            return cls(splits, {folder / name: listed.bytes for name, listed in listing.named()}, tuple(map(shown, listing.classes)))
        return cls()


def _tars(folder: Path) -> list[Path]:
    return [folder / entry.name for entry in entries(folder) if entry.name.endswith(".tar") and not is_hidden(entry.name)]


def _indexed(path: Path, size: int | None, passed_over: Counter[str]) -> TarIndex:
    """The samples of a shard. Those that cannot be used are counted. Raises DataError where the shard is damaged, or not of that size."""
    try:
        found = path.stat().st_size
        index = index_tar(path)
    except FileNotFoundError:
        raise DataError(f"{path} is missing, but the list beside it names it: copy it again") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if size not in (None, found):
        raise DataError(f"{path} has {found} bytes, but the list beside it says {size}: copy it again")
    for skip in index.skips:
        if not skip.key:
            raise DataError(skip.message)
        passed_over[skip.cause] += 1
    return index


def _by_name(paths: Sequence[Path]) -> dict[Path, str]:
    """The split of each shard that no card lists, by the last word before the number of its name."""
    words = {path: re.sub(r"[-_.]?\d*$", "", path.name.removesuffix(".tar")).rpartition("-")[2].rpartition("_")[2] for path in paths}
    splits = {path: _SPLITS.get(word.lower(), "") for path, word in words.items()}
    if not any(splits.values()):
        return dict.fromkeys(paths, "train")
    untold = next((path for path, split in splits.items() if not split), None)
    if untold is not None:
        raise DataError(
            f"{untold}: its name tells no split, as others do: call it train-00000.tar or val-00000.tar, or list all in a dataset.json"
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
