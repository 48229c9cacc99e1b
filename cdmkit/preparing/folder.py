"""The folder that a data set is made in: whose it is, and what of it is done."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cdmkit.errors import SetupError, UsageError
from cdmkit.files import write_json
from cdmkit.preparing.card import CARD, MANIFEST, REJECTS
from cdmkit.preparing.plan import Plan
from cdmkit.preparing.write import PARTS

_PLAN = f"{PARTS}/plan.json"
_LOCK = ".lock"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Be the only one at work in a folder, which is made. Raises SetupError where another process is, or where it cannot be."""
    lock = FileLock(out / _LOCK)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise SetupError(f"{out} is in use by another process, which holds {out / _LOCK}: wait for it, or stop it first") from None
    except OSError as error:
        raise SetupError(f"{out} cannot be used: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


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


def claim(out: Path, plan: Plan, replace: bool) -> None:
    """Note that this data set is made here. Raises UsageError where another one is, unless `replace`: then that is removed.

    Anything else in the folder is never touched, and refused.
    """
    terms = plan.terms | {"shards": {split.name: len(split.shards) for split in plan.splits}}
    noted = _noted(out)
    if noted == terms:
        return
    if noted is None:
        strange = sorted(path.name for path in out.iterdir() if path.name not in (_LOCK, PARTS))
        strange += [f"{PARTS}/{path.name}" for path in _within(out / PARTS) if path.name != f".{Path(_PLAN).name}.partial"]
        if strange:
            raise UsageError(f"{out} holds {', '.join(strange[:3])}, which this command did not make: choose an empty folder")
    elif not replace:
        raise UsageError(f"{out} holds another data set: {_difference(noted, terms)}. Choose another folder, or replace it with --replace.")
    else:
        _remove(out, noted["shards"])
    (out / PARTS).mkdir(exist_ok=True)
    write_json(out / _PLAN, terms)


def _noted(out: Path) -> dict[str, Any] | None:
    """The terms of the data set that is made here, if one is."""
    try:
        noted: dict[str, Any] = json.loads((out / _PLAN).read_bytes())
        return {key: noted[key] for key in ("format", "settings", "source", "listing", "shards")}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SetupError(f"{out / _PLAN} cannot be read ({error!r}): remove {out}, or choose another folder") from error


def _within(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _difference(noted: dict[str, Any], terms: dict[str, Any]) -> str:
    """What of two plans is not the same, for people."""
    before, now = ({**{f"source.{name}": value for name, value in each["source"].items()}, **each["settings"]} for each in (noted, terms))
    changed = [
        f"{key} = {json.dumps(before.get(key))} there, {json.dumps(now.get(key))} here" for key in now if before.get(key) != now[key]
    ]
    changed += [f"{key} = {json.dumps(before[key])} there" for key in before if key not in now]
    return "; ".join(changed) or "the source lists other images, labels or classes than it did"


def _remove(out: Path, shards: dict[str, int]) -> None:
    """Remove a data set. What says that it is one goes first, what says that it is ours stays last."""
    names = [f"{split}-{number:05d}" for split, count in shards.items() for number in range(count)]
    for name in (CARD, MANIFEST, REJECTS, *(f"{name}{ending}" for name in names for ending in (".tar", ".idx.npz"))):
        for path in (out / name, out / f".{name}.partial"):
            path.unlink(missing_ok=True)
    for path in _within(out / PARTS):
        if path != out / _PLAN:
            path.unlink()


def free_space(out: Path) -> int:
    """How many bytes can be written to a folder, which may not exist yet."""
    there = out.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


def discard(paths: Iterable[Path]) -> None:
    """Remove files, if they are there."""
    for path in paths:
        path.unlink(missing_ok=True)
