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
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
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


@attrs.frozen
class Run:
    """The folder of a run."""

    path: Path

    @classmethod
    @contextlib.contextmanager
    def create(
        cls,
        root: Path,
        name: str,
        folder: Path | None = None,
        *,
        seed: int,
        command: Sequence[str] = (),
        plugins: Mapping[str, str] | None = None,
    ) -> Iterator[Run]:
        """A new run in `root`/`name`/<UTC time>, or in `folder`, locked while the context lasts. Writes run.json first of all.

        plugins: the version of each distribution that offers plugins. Raises SetupError where the place holds a run or cannot be written.
        """
        started = datetime.now(UTC)
        try:
            run = cls(_new_folder(root / name, started.strftime("%Y%m%d-%H%M%S")) if folder is None else _empty_folder(folder))
            facts = {
                "name": name,
                "seed": seed,
                "started": started.isoformat(timespec="seconds"),
                "command": redact(shlex.join(command)),
                "host": socket.gethostname(),
                "platform": platform.platform(),
                "versions": {"python": platform.python_version(), **{d: _version(d) for d in ("cdmkit", "torch")}, **(plugins or {})},
            }
            write_json(run.path / "run.json", facts)
        except OSError as error:
            raise SetupError(f"cannot make a run in {folder or root / name}: {error}. Choose a place that can be written to.") from error
        with run.lock():
            yield run

    @classmethod
    @contextlib.contextmanager
    def resume(cls, root: Path, name: str, folder: Path | None = None, *, force: bool = False) -> Iterator[Run]:
        """The run in `folder`, or the newest of recipe `name` under `root`, locked while the context lasts.

        Raises UsageError where there is none, SetupError where it is in use or cannot be written to.
        """
        run = latest_run(root, name) if folder is None else cls(folder)
        if run is None:
            raise UsageError(f"there is no run of {name!r} under {root} to go on with: start one without --resume")
        if not run.facts:
            raise UsageError(f"{run.path} holds no run that can be gone on with: it has no readable run.json")
        if not os.access(run.path, os.W_OK):
            raise SetupError(f"{run.path} cannot be written to: mend its permissions, or start a new run elsewhere")
        with run.lock(force):
            yield run

    @property
    def id(self) -> str:
        """The folder's name: when the run started."""
        return self.path.name

    @property
    def facts(self) -> dict[str, Any]:
        """What run.json says; empty where it cannot be read."""
        return _read_json(self.path / "run.json")

    def note(self, key: str, value: Any) -> None:
        """Write one more fact into run.json, such as the "outcome"."""
        write_json(self.path / "run.json", {**self.facts, key: value})

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
            return _new_folder(self.path / "samples", datetime.now(UTC).strftime("%Y%m%d-%H%M%S"))
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
        for made in ("ckpt", "samples"):
            shutil.rmtree(folder / made, ignore_errors=True)
        write_text(note, fingerprint + "\n")
        return removed

    @contextlib.contextmanager
    def lock(self, force: bool = False) -> Iterator[None]:
        """Be the only one at work in this folder.

        Raises SetupError, naming the holder, where another process is. The lock is the kernel's, so that of a dead process is free. A file
        system may not share locks between machines: a holder noted on another host is believed, unless `force` is set.
        """
        lock = FileLock(self.path / "lock")
        try:
            lock.acquire(timeout=LOCK_PATIENCE)
        except Timeout:
            raise SetupError(f"{self.path} is in use by {self._holder_in_words()}. Wait for it, or stop it first.") from None
        except OSError as error:
            raise SetupError(f"{self.path} cannot be locked: {error}.") from error
        try:
            self._check_holder(force)
            started = datetime.now(UTC).isoformat(timespec="seconds")
            write_json(self.path / "holder.json", {"host": socket.gethostname(), "pid": os.getpid(), "started": started})
            try:
                yield
            finally:
                (self.path / "holder.json").unlink(missing_ok=True)
        finally:
            lock.release()

    def _check_holder(self, force: bool) -> None:
        """Raise SetupError where a process on another host is noted to be at work, whose lock may not reach here."""
        if self._held_elsewhere and not force:
            words = self._holder_in_words()
            raise SetupError(f"{self.path} is in use by {words}. If that process is dead, take the run over with --force.")

    @property
    def _held_elsewhere(self) -> bool:
        return bool(self._holder) and self._holder.get("host") != socket.gethostname()

    @property
    def _holder(self) -> dict[str, Any]:
        return _read_json(self.path / "holder.json")

    def _holder_in_words(self) -> str:
        holder = {"host": "an unknown host", "pid": "unknown", "started": "an unknown time", **self._holder}
        return f"process {holder['pid']} on {holder['host']} since {holder['started']}"

    @property
    def state(self) -> str:
        """Either "running", or how it ended: its noted "outcome", or "interrupted" where it could not note any."""
        try:
            with FileLock(self.path / "lock").acquire(timeout=0):
                running = self._held_elsewhere
        except Timeout:
            running = True
        except OSError:  # someone else's folder: no lock can be tried
            running = bool(self._holder)
        return "running" if running else str(self.facts.get("outcome") or "interrupted")

    def steps(self) -> dict[str, int]:
        """The steps that each stage has saved, in the order of their names."""
        return {folder.name: _steps_saved(folder) for folder in sorted((self.path / "stages").glob("*")) if folder.is_dir()}


def list_runs(root: Path, name: str | None = None) -> list[Run]:
    """The runs under `root` (of one recipe), the oldest first."""
    found = root.glob(f"{name or '*'}/*/run.json")
    return [Run(path.parent) for path in sorted(found, key=lambda path: (path.parent.name, path.parent.parent.name))]


def latest_run(root: Path, name: str) -> Run | None:
    """The newest run of a recipe."""
    return next(reversed(list_runs(root, name)), None)


def _new_folder(parent: Path, stem: str) -> Path:
    """Make `parent`/`stem`, with -02, -03, ... after it where that is taken."""
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = parent / (stem if number == 1 else f"{stem}-{number:02}")
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path


def _empty_folder(path: Path) -> Path:
    """Make `path`, which must not hold anything yet."""
    path.mkdir(parents=True, exist_ok=True)
    if (path / "run.json").exists():
        raise SetupError(f"{path} holds a run already: go on with it by --resume, or choose another folder")
    if any(path.iterdir()):
        raise SetupError(f"{path} holds files that are no run's: choose a new or an empty folder")
    return path


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
    """The step of a stage's newest checkpoint, 0 where there is none."""
    names = (path.name.removeprefix("step-") for path in (stage / "ckpt").glob("step-*"))
    return max((int(name) for name in names if re.fullmatch("[0-9]+", name)), default=0)
