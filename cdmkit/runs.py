"""Run folders: `runs/<recipe>/<id>/`, one per run.

run.json               versions, command line, host, seed, start; how it ended
recipe.toml            the recipe as it was given
recipe.resolved.toml   all that it means
events.jsonl           what happened
metrics.jsonl          how training went
lock, holder.json      who works in it
stages/<name>/         a stage's checkpoints and samples
samples/               what the cascade made
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shlex
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any

import attrs
import tomli
from filelock import FileLock, Timeout

from cdmkit.errors import SetupError, UsageError
from cdmkit.files import write_json, write_text
from cdmkit.redact import redact

LOCK_PATIENCE = 0.5
"""Seconds to wait for a lock: longer than `Run.state` holds it to look."""

_PLACES = ("run.json", "*/run.json", "*/*/run.json")
"""Where runs lie under a folder: in it, in one of people's choice, or in that of their recipe."""

JOIN_PATIENCE = 10.0
"""Seconds to wait where several processes begin to work on stages of one run at the same time."""


@attrs.frozen
class Run:
    """The folder of a run."""

    path: Path

    @classmethod
    def create(
        cls,
        root: Path,
        name: str,
        folder: Path | None = None,
        *,
        recipe: tuple[str, str],
        facts: Mapping[str, Any],
        command: Sequence[str] = (),
    ) -> Run:
        """A new run in `root`/`name`/<UTC time>, or in `folder`.

        recipe: as it was given and with all that it means, both TOML. facts: more for run.json, which is written last: where it stands, all
        of the run does. Raises SetupError where the place holds a run or cannot be written.
        """
        started = datetime.now(UTC)
        try:
            path = _new_folder(root / name, started) if folder is None else folder
            path.mkdir(parents=True, exist_ok=True)
            if not (path / "lock").exists():  # else another process makes the run just now
                _check_empty(path)
            with FileLock(path / "lock").acquire(timeout=JOIN_PATIENCE):
                _check_empty(path)  # others may have come in between
                run = cls(path)
                run.write_recipe(*recipe)
                versions = {"python": platform.python_version(), **{d: _version(d) for d in ("cdmkit", "torch")}}
                about = {
                    "name": name,
                    "started": started.isoformat(timespec="seconds"),
                    "command": redact(shlex.join(command)),
                    "host": socket.gethostname(),
                    "platform": platform.platform(),
                    **facts,
                }
                write_json(path / "run.json", {**about, "versions": {**versions, **facts.get("versions", {})}})
        except (OSError, Timeout) as error:
            raise SetupError(f"cannot make a run in {folder or root / name}: {error}. Choose a place that can be written to.") from error
        return run

    @classmethod
    def existing(cls, root: Path, name: str, folder: Path | None = None) -> Run:
        """The run in `folder`, or the newest of recipe `name` under `root`. Raises UsageError where there is none."""
        run = latest_run(root, name) if folder is None else cls(folder)
        if run is None:
            raise UsageError(f"there is no run of {name!r} under {root} to go on with: start one without --resume")
        if not run.facts:
            raise UsageError(f"{run.path} holds no run that can be gone on with: it has no readable run.json")
        return run

    @classmethod
    def launched(cls, root: Path, name: str, folder: Path | None, launch: str) -> Run | None:
        """The run in `folder`, or the newest of recipe `name` under `root`, that the start named `launch` made; None where it made none."""
        known = list_runs(root, name) if folder is None else [cls(folder)]
        return next((run for run in reversed(known) if run.facts.get("launch") == launch), None)

    @property
    def id(self) -> str:
        """The folder's name: when the run started."""
        return self.path.name

    @property
    def facts(self) -> dict[str, Any]:
        """What run.json says; empty where it cannot be read."""
        return _read_json(self.path / "run.json")

    def note(self, **facts: Any) -> None:
        """Write more facts into run.json, such as the outcome."""
        write_json(self.path / "run.json", {**self.facts, **facts})

    def write_recipe(self, text: str, resolved: str) -> None:
        """Keep the recipe, as it was given and with all that it means, both TOML."""
        write_text(self.path / "recipe.toml", text)
        write_text(self.path / "recipe.resolved.toml", resolved)

    def resolved_recipe(self) -> dict[str, Any]:
        """The resolved recipe as plain tables. Raises SetupError where it cannot be read."""
        path = self.path / "recipe.resolved.toml"
        try:
            return tomli.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SetupError(f"{path} cannot be read: {error}. Start a new run without --resume.") from error

    def stage(self, name: str) -> Path:
        """The folder of a stage, made if need be."""
        folder = self.path / "stages" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def new_samples(self) -> Path:
        """A new folder for samples, named by the time. Raises SetupError where none can be made."""
        try:
            return _new_folder(self.path / "samples", datetime.now(UTC))
        except OSError as error:
            raise SetupError(f"cannot write samples into {self.path}: {error}. Choose another place by --out.") from error

    def claim_stage(self, name: str, fingerprint: str) -> bool:
        """Make a stage's folder one for weights with this fingerprint: what was trained there for another is removed. Was there any?"""
        folder = self.stage(name)
        note = folder / "fingerprint"
        if note.exists() and note.read_text(encoding="utf-8").strip() == fingerprint:
            return False
        removed = (folder / "ckpt").exists()
        (folder / "done").unlink(missing_ok=True)
        for made in ("ckpt", "samples", "averages"):
            shutil.rmtree(folder / made, ignore_errors=True)
        write_text(note, fingerprint + "\n")
        return removed

    @contextlib.contextmanager
    def lock(self, stage: str = "", *, force: bool = False, begin: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Be the only one at work in this folder; with `stage`, on that stage alone, beside others that work on other stages.

        begin: done first, by one process at a time in any case: what is changed of the run as a whole.
        Raises SetupError, naming the holder, where another process is, or where the folder cannot be written to. Locks are the kernel's, so
        that those of a dead process are free. A file system may not share them between machines: a holder noted on another host is
        believed, unless `force` is set.
        """
        if not os.access(self.path, os.W_OK):
            raise SetupError(f"{self.path} cannot be written to: mend its permissions, or start a new run elsewhere")
        with contextlib.ExitStack() as stack:
            if not stage:
                stack.enter_context(_held(self.path, force))
                for folder in self._parts():
                    with _held(folder, force):  # nobody begins on a stage while the whole run is locked
                        pass
                begin()
            else:
                with _held(self.path, force, JOIN_PATIENCE):  # not while all of it is worked on
                    stack.enter_context(_held(self.stage(stage), force))
                    begin()
            yield

    def _parts(self) -> list[Path]:
        """The folders of stages that were worked on alone."""
        return sorted(path.parent for path in (self.path / "stages").glob("*/lock"))

    @property
    def state(self) -> str:
        """Either "running", or how it ended: its noted "outcome", or "interrupted" where it could not note any; "in parts" where its stages
        were only trained one by one.
        """
        if any(_is_held(folder) for folder in (self.path, *self._parts())):
            return "running"
        outcome = self.facts.get("outcome")
        return str(outcome) if outcome else "in parts" if self._parts() else "interrupted"

    def steps(self) -> dict[str, int]:
        """The steps that each stage has saved, in the order of their names."""
        return {folder.name: _steps_saved(folder) for folder in sorted((self.path / "stages").glob("*")) if folder.is_dir()}

    def wanted(self) -> dict[str, int]:
        """The steps that each stage is to be trained for, in the recipe's order; empty where that cannot be read."""
        try:
            return {name: stage["train"]["steps"] for name, stage in self.resolved_recipe()["stage"].items()}
        except (SetupError, KeyError, TypeError, AttributeError):
            return {}


def list_runs(root: Path, name: str | None = None) -> list[Run]:
    """The runs in `root` and its folders (of one recipe), the oldest first; `root` may also be a run's own folder."""
    found = [Run(path.parent) for pattern in _PLACES for path in root.glob(pattern)]
    facts = {run: run.facts for run in found}
    wanted = [run for run in found if name in (None, facts[run].get("name"))]
    return sorted(wanted, key=lambda run: (str(facts[run].get("started", "")), run.path.name, run.path))


def latest_run(root: Path, name: str) -> Run | None:
    """The newest run of a recipe."""
    return next(reversed(list_runs(root, name)), None)


def new_folders(parent: Path, time: datetime) -> Iterator[Path]:
    """What a new folder in `parent` may be called, without end: by a time, with -02, -03, ... after it where that is taken."""
    stem = time.strftime("%Y%m%d-%H%M%S")
    return (parent / (stem if number == 1 else f"{stem}-{number:02}") for number in count(1))


def _new_folder(parent: Path, time: datetime) -> Path:
    """Make the first folder of `new_folders` that nobody has made."""
    parent.mkdir(parents=True, exist_ok=True)
    return next(filter(_make, new_folders(parent, time)))


def _make(path: Path) -> bool:
    """Make a folder; False where it is there already."""
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


def _check_empty(path: Path) -> None:
    """Raise SetupError where a folder holds anything yet but the lock on it."""
    if (path / "run.json").exists():
        raise SetupError(f"{path} holds a run already: go on with it by --resume, or choose another folder")
    if {each.name for each in path.iterdir()} - {"lock"}:
        raise SetupError(f"{path} holds files that are no run's: choose a new or an empty folder")


@contextlib.contextmanager
def _held(folder: Path, force: bool, patience: float = LOCK_PATIENCE) -> Iterator[None]:
    """Hold the lock of a folder, after waiting for it at most `patience` seconds, and note who does. See `Run.lock`."""
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        raise SetupError(f"{folder} is in use by {_holder_in_words(folder)}. Wait for it, or stop it first.") from None
    except OSError as error:
        raise SetupError(f"{folder} cannot be locked: {error}.") from error
    try:
        if _held_elsewhere(folder) and not force:
            words = _holder_in_words(folder)
            raise SetupError(f"{folder} is in use by {words}. If that process is dead, take the run over with --force.")
        started = datetime.now(UTC).isoformat(timespec="seconds")
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "started": started, "job": _slurm_job()}
        write_json(folder / "holder.json", holder)
        try:
            yield
        finally:
            (folder / "holder.json").unlink(missing_ok=True)
    finally:
        lock.release()


def _is_held(folder: Path) -> bool:
    """Whether someone holds the lock of a folder."""
    try:
        with FileLock(folder / "lock").acquire(timeout=0):
            return _held_elsewhere(folder)
    except Timeout:
        return True
    except OSError:  # someone else's folder: no lock can be tried
        return bool(_read_json(folder / "holder.json"))


def _held_elsewhere(folder: Path) -> bool:
    """Whether a process on another host is noted to be at work, whose lock may not reach here.

    Not where that was this very job of Slurm, which began anew on another node: then it is dead.
    """
    holder = _read_json(folder / "holder.json")
    same_job = bool(_slurm_job()) and holder.get("job") == _slurm_job()
    return bool(holder) and holder.get("host") != socket.gethostname() and not same_job


def _slurm_job() -> str:
    """The job of Slurm that this process is part of; empty elsewhere."""
    return os.environ.get("SLURM_JOB_ID", "")


def _holder_in_words(folder: Path) -> str:
    holder = {"host": "an unknown host", "pid": "unknown", "started": "an unknown time", **_read_json(folder / "holder.json")}
    return f"process {holder['pid']} on {holder['host']} since {holder['started']}"


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _steps_saved(stage: Path) -> int:
    """The step of a stage's newest checkpoint, 0 where there is none that was written to its end."""
    names = (path.parent.name.removeprefix("step-") for path in (stage / "ckpt").glob("step-*/state.json"))
    return max((int(name) for name in names if re.fullmatch("[0-9]+", name)), default=0)
