"""What a run tells the world while it works. Observers watch; nothing they return is read.

Each event goes to the hook of the same name in `cdmkit.hookspecs` (`Progress` to `cdmkit_progress`, and so on).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs


@attrs.frozen(kw_only=True)
class Event:
    """Something that happened."""


@attrs.frozen(kw_only=True)
class RunStarted(Event):
    """The run's folder is open and its resolved recipe is written."""

    path: Path
    name: str
    stages: tuple[str, ...]


@attrs.frozen(kw_only=True)
class StageStarted(Event):
    """A stage begins to train, at `step` of `steps` (above 0 when resumed)."""

    stage: str
    step: int
    steps: int
    parameters: int


@attrs.frozen(kw_only=True)
class Progress(Event):
    """Training goes on. `loss` and `grad_norm` are means since the last event; `eta` is in seconds; `skipped` counts the samples of
    the data that are left out, as far as that is known by now.
    """

    stage: str
    step: int
    steps: int
    images: int
    loss: float
    grad_norm: float
    lr: float
    images_per_second: float
    eta: float
    skipped: int


@attrs.frozen(kw_only=True)
class SampleSkipped(Event):
    """A sample of the data cannot be used, and another stands in for it; `key` is empty where all of a shard from some byte on is lost.

    `cause` is what many have in common, `message` tells all of it.
    """

    shard: str
    key: str
    cause: str
    message: str


@attrs.frozen(kw_only=True)
class CheckpointSaved(Event):
    """A checkpoint stands complete at `path`."""

    stage: str
    step: int
    path: Path


@attrs.frozen(kw_only=True)
class StageFinished(Event):
    """A stage is trained. `skipped`: it already was, unchanged."""

    stage: str
    step: int
    skipped: bool = False


@attrs.frozen(kw_only=True)
class SamplingProgress(Event):
    """`done` of `total` network calls of a sampling job, or of an evaluation, are made."""

    stage: str
    done: int
    total: int


@attrs.frozen(kw_only=True)
class SamplesWritten(Event):
    """A grid (and, for a sampling job, a shard) of samples of `stage` was written."""

    stage: str
    path: Path
    count: int


@attrs.frozen(kw_only=True)
class Warned(Event):
    """Something is odd, but the run goes on."""

    message: str


@attrs.frozen(kw_only=True)
class RunFinished(Event):
    """The run ends; `outcome` is "finished", "stopped" or "failed"."""

    path: Path
    outcome: str


Emit = Callable[[Event], None]
"""Where the working parts send their events."""
