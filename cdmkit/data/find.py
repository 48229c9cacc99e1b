"""From a recipe's `shards` pattern to the files it means."""

from __future__ import annotations

import difflib
import fnmatch
import glob
import json
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from cdmkit.errors import DataError

_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
_MOST_NAMES = 1_000_000
_MEND = (
    "set CDMKIT_DATA if the recipe reads it, give --set data.source.shards=PATTERN, or change `shards` in the recipe; "
    "what shards are and how to make them: docs/how-to/train-on-your-shards.md"
)


def find_shards(pattern: str) -> list[Path]:
    """The files that a pattern means: braces `{000..007}` and `{a,b}` in their order, `*`, `?` and `[...]` in order of name.

    What exists by its literal name is that file, so names may hold `[`, `?`, `#` and blanks. Raises DataError, saying what was looked for
    and what is there instead, where anything the braces name is missing or a wildcard matches nothing.
    """
    if re.match(r"pipe:|[a-z][a-z0-9+]*://", pattern):
        raise DataError(f"shards = {pattern!r} is not a local path: only files are read, and no shell command is ever run; {_MEND}")
    names = list(islice(expand_braces(os.path.expanduser(pattern)), _MOST_NAMES + 1))
    if len(names) > _MOST_NAMES:
        raise DataError(f"shards = {pattern!r} stands for more than {_MOST_NAMES} files: name fewer")
    found = dict.fromkeys(path for name in names for path in _matches(name, pattern))
    for folder in {path.parent for path in found}:
        _check_complete(folder, pattern, {os.path.basename(name) for name in names}, {path.name for path in found})
    return list(found)


def expand_braces(pattern: str) -> Iterator[str]:
    """Every name that `{000..007}` (digits keep their width) and `{a,b}` stand for, the first brace turning slowest.

    Raises DataError where a range falls, which would stand for nothing.
    """
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    first, last, choices = match.groups()
    if choices is None and int(first) > int(last):
        raise DataError(f"shards: {match[0]} falls: a range goes from the lower number to the higher")
    for item in choices.split(",") if choices is not None else (f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)):
        yield from expand_braces(pattern[: match.start()] + item + pattern[match.end() :])


def _matches(name: str, pattern: str) -> list[Path]:
    """The files of one brace-free name. The part of it that exists is taken literally, the rest as wildcards."""
    there, wild = Path(name), ""
    while not there.exists() and there.name:
        there, wild = there.parent, os.path.join(there.name, wild) if wild else there.name
    if there.is_dir() and not wild:
        raise DataError(f"shards = {pattern!r}: {there} is a folder: name the files in it, such as {there / '*.tar'}")
    matches = [there / match for match in sorted(glob.glob(wild, root_dir=there))] if wild else [there]
    if not matches:
        raise DataError(f"no training data: shards = {pattern!r} {_whereabouts(there, wild)}; {_MEND}")
    return matches


def _whereabouts(there: Path, wild: str) -> str:
    """What of a missing path is there."""
    first, _, rest = wild.partition("/")
    if rest:
        return f"looks in {there.resolve() / first}, which does not exist"
    names = sorted(os.listdir(there)) if there.is_dir() else []
    similar = difflib.get_close_matches(wild, names, n=3, cutoff=0.5) or [name for name in names if name.endswith(".tar")][:3]
    others = f"similar there: {', '.join(similar)}" if similar else "no .tar file is there"
    return f"matches no file in {there.resolve()} ({others})"


def _check_complete(folder: Path, pattern: str, wanted: set[str], found: set[str]) -> None:
    """Compare a folder with the `dataset.json` in it, if any: a shard that is missing or cut would silently shorten every epoch.

    The file lists `{"splits": {split: {"shards": [{"file": name, "bytes": size}, ...]}}}`. A listed shard must be there if the pattern
    means it, and have the size that is told.
    """
    wild = [name for name in wanted if glob.has_magic(name)]
    for name, size in _listed(folder / "dataset.json"):
        path = folder / name
        if name in found and path.stat().st_size != size:
            raise DataError(f"{path} has {path.stat().st_size} bytes, but dataset.json beside it says {size}: copy it again")
        if name not in found and (name in wanted or any(fnmatch.fnmatch(name, each) for each in wild)):
            raise DataError(f"{path} is missing: dataset.json beside it lists it, and shards = {pattern!r} means it: copy it again")


def _listed(card: Path) -> list[tuple[str, int]]:
    """The shards that a `dataset.json` lists, with their sizes; none where there is no such file."""
    try:
        splits = json.loads(card.read_text("utf-8"))["splits"]
        return [(str(shard["file"]), int(shard["bytes"])) for split in splits.values() for shard in split["shards"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{card} cannot be read as the list of shards beside it ({error!r}): mend or remove it") from None
