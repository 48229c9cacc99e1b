"""The folder that a data set is made in: whose it is, and what of it is done."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
from filelock import FileLock, Timeout

from cdmkit.data.index import beside
from cdmkit.errors import SetupError, UsageError
from cdmkit.files import make_folder, read_sealed, sealed, sync, write_json
from cdmkit.preparing.card import CARD, MANIFEST, REJECTS, Parts, read_card
from cdmkit.preparing.plan import Plan, Shard
from cdmkit.preparing.write import PARTS, PLAN, escaped, read_record, record_of, stands

_PLAN = f"{PARTS}/{PLAN}"
_LOCK = ".lock"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TERMS = ("format", "settings", "source", "listing", "shards")


@attrs.frozen(kw_only=True)
class Claim:
    """How a folder stands to a data set that is to be made there."""

    parts: Parts
    """The records of the shards that are done."""
    doomed: tuple[Path, ...] = ()
    """Files of another data set, to be removed."""
    license: str = ""
    """That which was noted before."""
    noted: Mapping[str, Any] | None = None
    """What the plan of the folder says now."""


@contextlib.contextmanager
def locked(out: Path, plan: Plan) -> Iterator[None]:
    """Be the only one at work in a folder, which is made. Raises SetupError where another process is, or where it cannot be, and UsageError
    where it is not apart from the source.

    What was made for this is removed again where the folder does not become one for a data set.
    """
    check_apart(plan, out)
    lock, new = FileLock(out / _LOCK), not out.exists()
    first = not (out / _LOCK).exists()
    try:
        make_folder(out)
        lock.acquire(timeout=0)
    except Timeout:
        raise SetupError(f"{out} is in use by another process, which holds {out / _LOCK}: wait for it, or stop it first") from None
    except (FileExistsError, NotADirectoryError):
        raise SetupError(f"{out} cannot be used: it, or what it would lie in, is a file: choose another folder") from None
    except OSError as error:
        told = f"cannot be {'made' if new else 'used'}: {error.strerror or error}: choose a folder that can be written to"
        raise SetupError(f"{out} {told}") from error
    try:
        yield
    finally:
        if first and not (out / _PLAN).exists():
            discard([out / _LOCK])
        lock.release()
        if new and not (out / _PLAN).exists():
            with contextlib.suppress(OSError):
                out.rmdir()


def check_apart(plan: Plan, out: Path) -> None:
    """Raise UsageError where a data set would be made among the files that it is made of, or over them."""
    root = plan.root
    if root is None:
        return
    here = next(_identities(out), None) if out.exists() else None
    there = root if root.exists() else next(parent for parent in root.absolute().parents if parent.exists())
    if root.is_dir() and _identity(root) in set(_identities(out)):
        told = "is the source itself" if here == _identity(root) else f"lies in the source, {root}"
    elif here is not None and any(here in set(_identities(Path(each))) for each in {str(there), *plan.folders}):
        told = f"holds the source, {root}"
    else:
        return
    raise UsageError(f"{out} {told}: choose a folder apart from it")


def obstacle(plan: Plan, out: Path, replace: bool) -> str:
    """Why a data set cannot be made in a folder as it stands, "" where it can."""
    try:
        if out.exists() and not out.is_dir():
            return f"{out} is a file: choose another folder"
        check_apart(plan, out)
        judge(out, plan, plan.digests(), replace)
    except (UsageError, SetupError, OSError) as error:
        return str(error)
    return ""


def _identities(path: Path) -> Iterator[tuple[int, int]]:
    """Those of a path and of all folders that it really lies in, as far as they are there."""
    real = Path(os.path.realpath(path))
    return (_identity(each) for each in (real, *real.parents) if each.exists())


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """Tell what a folder that cannot be written means, as a SetupError."""
    try:
        yield
    except BrokenPipeError:  # of the terminal
        raise
    except OSError as error:
        again = "what is done stays, and the same command goes on from there"
        if error.errno in _FULL:
            raise SetupError(f"{out}: no room left on the disk ({error.strerror}): make room; {again}") from error
        raise SetupError(f"{out} cannot be written: {error}; {again}") from error


def judge(out: Path, plan: Plan, marks: Mapping[Shard, str], replace: bool) -> Claim:
    """How a folder stands to a data set whose shards have the digests `marks`. Nothing is changed yet.

    Raises UsageError where something else is there: another data set of which anything is done, unless `replace`, or files of others.
    """
    terms = _terms(plan)
    records = {shard: part for shard in marks if (part := read_record(record_of(out, shard)))}
    good = {shard: part for shard, part in records.items() if part.digest == marks[shard]}
    noted = _noted(out, adopt=bool(good))
    if noted is None:
        return Claim(parts={}, doomed=_orphaned(out, replace))
    same = not noted or {key: noted[key] for key in _TERMS} == terms
    if not same and not replace and any(path.suffix in (".tar", ".json") for path in _files(out, noted["shards"])):
        raise UsageError(f"{out} holds another data set: {_difference(noted, terms)}. Choose another folder, or replace it with --replace")
    changed = len(records) - len(good)
    if same and changed and not replace and (out / CARD).exists():
        raise UsageError(
            f"{out} holds a data set of other pictures of the same names: files of {changed:,} of its {len(marks):,} shards have another "
            "size or time in the source now. Choose another folder, or replace it with --replace"
        )
    if replace or not same:
        return Claim(parts={}, doomed=tuple(_files(out, noted["shards"] if noted else terms["shards"])), noted=noted)
    license = (noted or read_card(out)).get("license", "")
    return Claim(parts={shard: part for shard, part in good.items() if stands(out, shard, part)}, license=str(license), noted=noted)


def take(out: Path, plan: Plan, claim: Claim) -> None:
    """Remove what is doomed, and note what is made here. What says that it is a data set goes first, what says whose stays last."""
    if claim.doomed:
        discard(claim.doomed[:1])
        sync(out)
        discard(claim.doomed)
    note = sealed({**_terms(plan), "license": license_of(plan, claim)})
    if note != claim.noted:
        make_folder(out / PARTS)
        write_json(out / _PLAN, note)


def license_of(plan: Plan, claim: Claim) -> str:
    """The licence to note: as it is given now, else as it was before."""
    return escaped(plan.settings.license) or claim.license


def _terms(plan: Plan) -> dict[str, Any]:
    return plan.terms | {"shards": {split.name: len(split.shards) for split in plan.splits}}


def _noted(out: Path, adopt: bool) -> dict[str, Any] | None:
    """What is noted of the data set that is made here, None where none is. adopt: take a damaged note for an empty one."""
    try:
        noted = read_sealed(out / _PLAN)
        return {key: noted[key] for key in (*_TERMS, "license", "checksum")}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError) as error:
        if adopt:
            return {}
        raise SetupError(
            f"{out / _PLAN} cannot be read, or is of another version ({error}): remove {out}, or choose another folder"
        ) from error


def _orphaned(out: Path, replace: bool) -> tuple[Path, ...]:
    """The files of a data set without its plan, which `replace` may remove. Raises UsageError where anything else is in the folder."""
    try:
        card: Any = read_sealed(out / CARD)
        names = [str(shard["file"]) for split in card["splits"].values() for shard in split["shards"]]
        shards: list[Path] | None = [out / name for name in names if name == Path(name).name and name.endswith(".tar")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        shards = None
    if shards is not None:
        if replace:
            parts = (path for path in _within(out / PARTS) if path.name.endswith((".json", ".tsv.gz", ".partial")))
            return (out / MANIFEST, out / REJECTS, *shards, *map(beside, shards), *parts, out / CARD)  # which tells what to remove, last
        raise UsageError(
            f"{out} holds a finished data set without {_PLAN}, so it cannot be told whether it is this one. It can be used as it is; "
            "to make it anew, choose another folder, or replace it with --replace"
        )
    strange = sorted(path.name for path in _within(out) if path.name not in (_LOCK, PARTS))
    strange += [f"{PARTS}/{path.name}" for path in _within(out / PARTS) if path.name != f".{PLAN}.partial"]
    if strange:
        raise UsageError(f"{out} holds {', '.join(strange[:3])}, which this command did not make: choose an empty folder")
    return ()


def _within(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _difference(noted: dict[str, Any], terms: dict[str, Any]) -> str:
    """What of two plans is not the same, for people."""
    before, now = ({**{f"source.{name}": value for name, value in each["source"].items()}, **each["settings"]} for each in (noted, terms))
    changed = [
        f"{key} = {json.dumps(before.get(key))} there, {json.dumps(now.get(key))} here" for key in now if before.get(key) != now[key]
    ]
    changed += [f"{key} = {json.dumps(before[key])} there" for key in before if key not in now]
    if noted["format"] != terms["format"]:
        changed = ["another version of cdmkit began it"]
    return "; ".join(changed) or "the source lists other images, labels or classes than it did"


def _files(out: Path, shards: Mapping[str, int]) -> Iterator[Path]:
    """The files of a data set that are there, the card first; but for its plan."""
    names = [f"{split}-{number:05d}" for split, count in shards.items() for number in range(count)]
    for name in (CARD, MANIFEST, REJECTS, *(f"{name}{ending}" for name in names for ending in (".tar", ".idx.npz"))):
        yield from (path for path in (out / name, out / f".{name}.partial") if path.exists())
    yield from (path for path in _within(out / PARTS) if path != out / _PLAN)


def free_space(out: Path) -> int:
    """How many bytes can be written to a folder, which may not exist yet."""
    there = next(each for each in (out.absolute(), *out.absolute().parents) if each.exists())
    return shutil.disk_usage(there).free


def discard(paths: Iterable[Path]) -> None:
    """Remove files, if they are there."""
    for path in paths:
        path.unlink(missing_ok=True)


def withdraw(out: Path) -> None:
    """Remove the card: from now on, the data set is not finished."""
    if (out / CARD).exists():
        (out / CARD).unlink()
        sync(out)
