"""From a recipe's `shards` pattern to the files it means."""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import functools
import glob
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

import attrs

from cdmkit.data.cache import cache_folder
from cdmkit.data.listing import NAMES, Listed, Listing
from cdmkit.data.remote import NotThere, is_remote, read_text, shown
from cdmkit.errors import DataError
from cdmkit.files import write_text

_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
_MOST_NAMES = 1_000_000
_MEND = (
    "in a recipe, set CDMKIT_DATA if it reads that, give --set data.source.shards=PATTERN, or change `shards`; "
    "how to make shards: docs/how-to/prepare-images.md"
)


@attrs.frozen
class Shard:
    """A shard that a pattern means: where it is, a path or a URL, and what a list of shards tells of it."""

    where: str
    listed: Listed


@attrs.frozen
class Located:
    """The shards of a pattern, and what the list beside them tells: how images were cropped, and how many labels there are."""

    shards: tuple[Shard, ...]
    crop: str
    """Empty where it does not tell."""
    classes: int
    """0 where it does not tell."""
    notes: tuple[str, ...] = ()
    """What is odd, though it can be used."""


@contextlib.contextmanager
def _found(pattern: str) -> Iterator[None]:
    """Tell what names mean that no file system can hold, folders that cannot be listed, and braces beyond reason, as a DataError."""
    try:
        yield
    except (OSError, ValueError, RecursionError) as error:
        told = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"shards = {shown(pattern[:200])!r} cannot be looked for: {told or error}") from None


def locate(pattern: str, split: str = "") -> Located:
    """The shards that `pattern` means: local files as `find_shards` gives them, URLs with braces, or those of a list: a path or URL of
    `dataset.json`, `_info.json`, `sizes.json` or of wids, and one of its splits.

    Raises DataError as `find_shards` does, and where a list is none or has no such split.
    """
    with _found(pattern):
        return _located(pattern, split)


def _located(pattern: str, split: str) -> Located:
    if is_remote(pattern):
        return _remote(pattern, split)
    listed = read_list(pattern)
    if listed is not None:
        path, text = listed
        return _of_list(Listing.parse(text, str(path)), split, str(path), f"{path.parent}/")
    if split:
        raise DataError(f"split = {split!r} chooses from a list of shards, such as dataset.json, but shards = {pattern!r} is none")
    paths, listings = _complete(pattern)
    told = {folder: dict(listing.named()) for folder, listing in listings.items()}
    shards = tuple(Shard(str(path), told[path.parent].get(path.name, Listed())) for path in paths)
    return Located(shards, *_shared(list(listings.values())), tuple(_surplus(paths, told)))


def _surplus(paths: list[Path], told: Mapping[Path, Mapping[str, Listed]]) -> Iterator[str]:
    """Shards that a list beside them does not name, though it names others of them: left over from another data set, it may be."""
    known = {path for path in paths if path.name in told[path.parent]}
    for path in paths:
        if path not in known and any(each.parent == path.parent for each in known):
            yield f"{path} is read, though the list of shards beside it does not name it: remove it, if it is of other data"


def _of_list(listing: Listing, split: str, where: str, base: str, query: str = "") -> Located:
    """The shards of one split of a list, whose names are relative to `base`, and followed by `query`."""
    shards = tuple(Shard(name if "://" in name else base + name + query, listed) for name, listed in listing.of(split, where).items())
    if not shards:
        raise DataError(f"no training data: {where} lists no shard")
    for shard in shards:
        path = Path(shard.where)
        if is_remote(shard.where):
            continue
        if not path.is_file():
            raise DataError(f"{shard.where} is missing: {where} lists it: copy it again")
    return Located(shards, listing.crop, len(listing.classes))


@functools.lru_cache(maxsize=16)
def _remote(pattern: str, split: str) -> Located:
    """The shards of a URL with braces, or of a list that is one. Its query, if any, goes along to all that lies beside it.

    A server is asked once per process: data are opened again for every preview, and must not wait for it then.
    """
    path, mark, query = pattern.partition("?")
    base = path.rpartition("/")[0] + "/"
    if path.endswith(".json"):
        text = _kept_text(pattern)
        if text is None:
            raise DataError(f"no training data: there is no {shown(pattern)}; {_MEND}")
        return _of_list(Listing.parse(text, shown(pattern)), split, shown(pattern), base, mark + query)
    if split:
        raise DataError(f"split = {split!r} chooses from a list of shards, such as dataset.json, but shards = {shown(pattern)!r} is none")
    if any(wild in path for wild in "*["):
        raise DataError(
            f"shards = {shown(pattern)!r}: servers cannot be asked for wildcards: write braces, such as train-{{00000..00063}}.tar"
        )
    texts = ((name, _kept_text(base + name + mark + query)) for name in NAMES if "{" not in base)
    listing = next((Listing.parse(text, shown(base) + name) for name, text in texts if text is not None), Listing({}))
    told = dict(listing.named())
    urls = islice(expand_braces(pattern), _MOST_NAMES)
    shards = tuple(Shard(url, told.get(url.partition("?")[0].rpartition("/")[2], Listed())) for url in urls)
    return Located(shards, listing.crop, len(listing.classes))


def _kept_text(url: str) -> str | None:
    """A list on a server, None where there is none; the one that came last, where the server cannot be reached now."""
    kept = cache_folder().with_name("lists") / f"{hashlib.sha256(url.encode('utf-8', 'surrogateescape')).hexdigest()}.json"
    try:
        text = read_text(url)
    except NotThere:
        raise
    except DataError:
        if kept.is_file():
            return kept.read_text("utf-8")
        raise
    if text is not None:
        with contextlib.suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_text(kept, text)
    return text


def _shared(listings: list[Listing]) -> tuple[str, int]:
    """The crop that all lists tell, and the most classes that any does."""
    crops = {listing.crop for listing in listings}
    return crops.pop() if len(crops) == 1 else "", max((len(listing.classes) for listing in listings), default=0)


def read_list(data: str) -> tuple[Path, str] | None:
    """The list of shards that a folder holds or a path is, and its text; None for whatever else, such as a pattern.

    Raises DataError where a folder has none, or it cannot be read.
    """
    path = Path(os.path.expanduser(data))
    if path.is_dir():
        found = _list_in(path)
        if found is None and (path / "parts" / "plan.json").exists():
            raise DataError(f"{path} is not finished: run the same `cdmkit data prepare` again, which goes on where it was")
        if found is None:
            raise DataError(f"{path} has no list of shards ({', '.join(NAMES)}): name the shards by a pattern, such as {path / '*.tar'}")
        path = found
    elif path.suffix != ".json" or is_remote(data):
        return None
    return path, _text_of(path)


def _list_in(folder: Path) -> Path | None:
    """The list of shards in a folder."""
    return next((folder / name for name in NAMES if (folder / name).exists()), None)


def _text_of(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a list of shards: {error}") from None


def find_shards(pattern: str) -> list[Path]:
    """The files that a pattern means: braces `{000..007}` and `{a,b}` in their order, `*`, `?` and `[...]` in order of name.

    What exists by its literal name is that file, so names may hold `[`, `?`, `#` and blanks. Raises DataError, saying what was looked for
    and what is there instead, where anything the braces name is missing or a wildcard matches nothing.
    """
    return _complete(pattern)[0]


def _complete(pattern: str) -> tuple[list[Path], dict[Path, Listing]]:
    """The files that a pattern means, and the list of shards in each of their folders."""
    if re.match(r"pipe:|[a-z][a-z0-9+]*://", pattern, re.IGNORECASE):
        raise DataError(
            f"shards = {shown(pattern)!r}: only files, http(s)://, s3:// and gs:// are read, and no shell command is ever run; {_MEND}"
        )
    with _found(pattern):
        return _matched(pattern)


def _matched(pattern: str) -> tuple[list[Path], dict[Path, Listing]]:
    names = list(islice(expand_braces(os.path.expanduser(pattern)), _MOST_NAMES + 1))
    if len(names) > _MOST_NAMES:
        raise DataError(f"shards = {pattern!r} stands for more than {_MOST_NAMES} files: name fewer")
    found = dict.fromkeys(path for name in names for path in _matches(name, pattern))
    wanted, there = {os.path.basename(name) for name in names}, {path.name for path in found}
    listings = {folder: Listing({}) for folder in {path.parent for path in found}}
    for folder in listings:
        path = _list_in(folder)
        if path is not None:
            listings[folder] = Listing.parse(_text_of(path), str(path))
            _check_complete(listings[folder], path, pattern, wanted, there)
    return list(found), listings


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


def _check_complete(listing: Listing, where: Path, pattern: str, wanted: set[str], found: set[str]) -> None:
    """Compare files with the list beside them, at `where`: a shard that is meant but missing would silently shorten every epoch."""
    wild = [name for name in wanted if glob.has_magic(name)]
    for name, _ in listing.named():
        path = where.parent / name
        if name not in found and (name in wanted or any(fnmatch.fnmatch(name, each) for each in wild)):
            raise DataError(f"{path} is missing: {where.name} beside it lists it, and shards = {pattern!r} means it: copy it again")
