"""Where several processes or jobs work on one run: they are told its folder before any of them has made it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from cdmkit.errors import UsageError
from cdmkit.runs import Run, new_folders

JOBS = "-jobs"
"""What follows the name of a run's folder in that of the folder beside it, where jobs log to: a new run's folder must be empty."""


def place_for(root: Path, name: str, folder: Path | None, *, resume: bool) -> Path:
    """The folder of a run of recipe `name`: `folder`, or a new one under `root`, not made yet; with `resume` as `Run.existing` finds it.

    Raises UsageError where there is no run to go on with, or one where a new one is asked for.
    """
    if resume:
        return Run.existing(root, name, folder).path
    if folder is None:
        known = new_folders(root / name, datetime.now(UTC))
        return next(path for path in known if not path.exists() and not jobs_folder(path).exists())
    if (folder / "run.json").exists():
        raise UsageError(f"{folder} holds a run already: go on with it by --resume, or choose another folder")
    return folder


def jobs_folder(run: Path) -> Path:
    """The folder for logs of jobs."""
    return run.with_name(run.name + JOBS)
