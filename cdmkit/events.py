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
    """Training goes on. Means are over the images since the last event; NaN where there is nothing to tell."""

    stage: str
    step: int
    steps: int
    images: int
    """Seen by now, repeats counted."""
    loss: float
    """The mean of what training minimises."""
    levels: tuple[float, ...]
    """The mean loss, without weights, in each of 8 equal parts of the timesteps 1..T, the least noisy first."""
    grad_norm: float
    """The mean norm of the gradient, before clipping."""
    lr: float
    """The learning rate of the last step."""
    images_per_second: float
    """Over all devices."""
    gflops: float
    """10^9 floating-point operations per second that the network's products make, over all devices; a step counts for three forward passes
    of its images.
    """
    eta: float
    """Seconds until the stage is trained."""
    skipped: int
    """Samples of the data that are left out, as far as that is known by now."""


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
    drift: float | None = None
    """While a stage that enlarges trains: how far the mean of a colour channel is, on average, from that of the real image it enlarged, in
    units of [-1, 1].
    """


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
