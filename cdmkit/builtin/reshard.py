"""Images that are in shards already, to be stored anew: in another size, or in another number of shards."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import attrs

from cdmkit.component import Component, component
from cdmkit.data.find import find_shards, read_list
from cdmkit.data.listing import NAMES, Listing
from cdmkit.data.originals import Piece, entries, in_order, is_hidden, shown, splits_in, utf8
from cdmkit.data.remote import shown as shown_url
from cdmkit.data.tar import TarIndex, index_tar
from cdmkit.errors import DataError
from cdmkit.hookspecs import hookimpl
from cdmkit.kinds import Original, Originals, Preparer

_MOST_CLASSES = 1_000_000
_EXAMPLES, _LONGEST_EXAMPLE = 3, 80
_MEND = "call them as in train-00000.tar and val-00000.tar, or list all in a dataset.json"


@component("shards")
class Reshard(Preparer):
    """WebDataset tars: a folder that holds some, one tar, a pattern with wildcards or braces, or a list of shards.

    A list, given or beside the tars, tells their splits: `dataset.json` as cdmkit writes it, which tells the names of the classes too, or
    timm's `_info.json`. If there is none, or it does not tell (as `sizes.json`), a word of the tar's name does: train or training; val,
    valid, validation or dev; test or testing; in `train-00000.tar`, `imagenet-val-000-of-100.tar` or `Test.tar`. Where no tar has such a
    word, and their names differ in digits only, all are `train`.

    A sample is `<key>.png` (or jpg, jpeg, webp, bmp) with or without `<key>.cls`: all have labels, or none has. Passed over and counted are
    samples that cannot be used, and tars of the folder that its list does not name; counted too are tars without an end mark.
    """

    def look(self, path: Path) -> Originals:
        """Index all shards. Raises DataError, naming all of them, where some are damaged, and where labels or splits cannot be told."""
        passed_over = Counter[str]()
        shards, told = _found(path, passed_over)
        if not shards:
            raise DataError(
                f"no shards in {path}: looked for *.tar; give the folder that holds them, one tar, a pattern, or a list of them"
            )
        by_name = _by_name([shard for shard in shards if not told.splits.get(shard)])
        indices = _indexed(shards, told.bytes, passed_over)
        classes = _classes(indices, told.classes)
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
    remote: str = ""
    """A shard that it names by a URL, if there is one."""

    @classmethod
    def beside(cls, folder: Path) -> _Told:
        """That of a folder, empty where there is none. Raises DataError where it cannot be understood."""
        if not any((folder / name).is_file() for name in NAMES):
            return cls()
        list_and_text = read_list(str(folder))
        return cls.of(*list_and_text) if list_and_text else cls()

    @classmethod
    def of(cls, path: Path, text: str) -> _Told:
        """That of a list. Raises DataError where it cannot be understood, or has a shard in two splits."""
        listing = Listing.parse(text, str(path))
        splits: dict[Path, str] = {}
        for split, shards in listing.splits.items():
            for name in shards:
                shard = _beside(path, name)
                if splits.setdefault(shard, split) != split:
                    raise DataError(f"{path}: {shown(name)!r} is in {splits[shard]} and in {split}: an image can be in one split only")
        sizes = {_beside(path, name): listed.bytes for name, listed in listing.named()}
        classes = tuple(shown(name.encode("utf-8", "backslashreplace")) for name in listing.classes)
        return cls(splits, sizes, classes, next((name for name, _ in listing.named() if "://" in name), ""))


def _beside(path: Path, name: str) -> Path:
    """A shard that a list names: in UTF-8, whatever the locale."""
    return path.parent / os.fsdecode(utf8(name))


def _found(path: Path, passed_over: Counter[str]) -> tuple[list[Path], _Told]:
    """The shards that a path means, and what the list that it is, or that lies beside them, tells."""
    if path.suffix == ".json" and not path.is_dir() and (given := read_list(str(path.absolute()))):
        told = _Told.of(*given)
        return _local(told, path), told
    shards = [shard.absolute() for shard in (_tars(path) if path.is_dir() else find_shards(str(path)))]
    folders = {shard.parent for shard in shards} or {path.absolute()}
    told = _Told.beside(folders.pop()) if len(folders) == 1 else _Told()
    if path.is_dir() and told.splits:
        passed_over["shard that the list beside it does not name"] += len(set(shards) - told.splits.keys())
        shards = _local(told, path)
    return shards, told


def _local(told: _Told, path: Path) -> list[Path]:
    """All shards of a list. Raises DataError where one is a URL."""
    if told.remote:
        raise DataError(f"{path}: its list names {shown_url(told.remote)}: only files are prepared, so download them and list those")
    return list(told.splits)


def _tars(folder: Path) -> list[Path]:
    return [folder / entry.name for entry in entries(folder) if entry.name.endswith(".tar") and not is_hidden(entry.name)]


def _indexed(paths: Iterable[Path], sizes: Mapping[Path, int | None], passed_over: Counter[str]) -> list[TarIndex]:
    """The samples of all shards. Those that cannot be used are counted, with examples. Raises DataError where shards are damaged, or not
    of the size that is told.
    """
    indices, faults, bad = list[TarIndex](), list[str](), defaultdict[str, list[bytes]](list)
    for path in paths:
        try:
            index = _index(path, sizes.get(path))
        except DataError as error:
            faults.append(str(error))
            continue
        indices.append(index)
        passed_over["shard without an end mark"] += bool(index.note)
        for skip in index.skips:
            bad[skip.cause].append(os.fsencode(f"{path.name}/") + utf8(skip.key))
    if faults:
        raise DataError(faults[0] if len(faults) == 1 else f"{len(faults)} shards cannot be used:\n" + "\n".join(faults))
    for cause, keys in bad.items():
        passed_over[f"{cause} ({_examples(keys)})"] += len(keys)
    return indices


def _examples(keys: Sequence[bytes]) -> str:
    some = [key if len(key) <= _LONGEST_EXAMPLE else f"{key[:_LONGEST_EXAMPLE]}..." for key in map(shown, keys[:_EXAMPLES])]
    return ", ".join(some) + (", ..." if len(keys) > _EXAMPLES else "")


def _index(path: Path, size: int | None) -> TarIndex:
    """The samples of a shard."""
    try:
        found = path.stat().st_size
        index = index_tar(path)
    except FileNotFoundError:
        raise DataError(f"{path} is missing, but the list beside it names it: copy it again") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if size not in (None, found):
        raise DataError(f"{path} has {found} bytes, but the list beside it says {size}: copy it again")
    damage = next((skip for skip in index.skips if not skip.key), None)
    if damage is not None:
        raise DataError(damage.message)
    return index


def _by_name(paths: Sequence[Path]) -> dict[Path, str]:
    """The split of each shard that no list tells it of, by a word of its name, or of a folder's below the one that holds them all."""
    if not paths:
        return {}
    common = os.path.commonpath([path.parent for path in paths])
    told = {path: splits_in(os.path.relpath(path.with_suffix(""), common)) for path in paths}
    for path, splits in told.items():
        if len(splits) > 1:
            raise DataError(f"{path}: its name tells several splits, {' and '.join(sorted(splits))}: {_MEND}")
    if any(told.values()):
        untold = next((path for path, splits in told.items() if not splits), None)
        if untold is not None:
            raise DataError(f"{untold}: its name tells no split, as others do: {_MEND}")
        return {path: min(splits) for path, splits in told.items()}
    plain = {re.sub(r"\d+", "", re.sub(r"-of-\d+$", "", path.stem)): path.name for path in paths}
    if len(plain) > 1:
        one, two, *_ = plain.values()
        raise DataError(f"{one} and {two} differ in more than a number, but no word tells which split each is of: {_MEND}")
    return dict.fromkeys(paths, "train")


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
    prefix = os.fsencode(f"{file}/")
    rows = zip(index.keys, index.labels.tolist(), index.offsets.tolist(), index.sizes.tolist(), strict=True)
    return (Original(shown(prefix + utf8(key)), label, Piece(folder, file, offset, size)) for key, label, offset, size in rows)


@hookimpl
def cdmkit_components() -> list[type[Component]]:
    """The preparer of what is prepared already."""
    return [Reshard]
