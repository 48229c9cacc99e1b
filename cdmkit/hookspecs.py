"""Every hook a plugin may implement.

A plugin is a module (or object) named by an entry point of group `cdmkit`, with functions of these names marked `@hookimpl`. Built-in
components come through the same hooks. A plugin may state the version it was written for as `cdmkit_api = 1`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from cdmkit import events
    from cdmkit.component import Component

API_VERSION = 1
"""Grows when a hook or a kind changes so that older plugins would break."""

hookspec = pluggy.HookspecMarker("cdmkit")
hookimpl = pluggy.HookimplMarker("cdmkit")


@hookspec
def cdmkit_components() -> Iterable[type[Component]]:  # type: ignore[empty-body]  # a specification is never called
    """The component classes this plugin offers."""


@hookspec
def cdmkit_run_started(event: events.RunStarted) -> None:
    """A run's folder is open."""


@hookspec
def cdmkit_stage_started(event: events.StageStarted) -> None:
    """A stage begins to train."""


@hookspec
def cdmkit_progress(event: events.Progress) -> None:
    """Training goes on."""


@hookspec
def cdmkit_sample_skipped(event: events.SampleSkipped) -> None:
    """A sample of the data cannot be used."""


@hookspec
def cdmkit_checkpoint_saved(event: events.CheckpointSaved) -> None:
    """A checkpoint stands complete."""


@hookspec
def cdmkit_stage_finished(event: events.StageFinished) -> None:
    """A stage is trained."""


@hookspec
def cdmkit_sampling_progress(event: events.SamplingProgress) -> None:
    """Some network calls of a sampling job are made."""


@hookspec
def cdmkit_samples_written(event: events.SamplesWritten) -> None:
    """Samples were written."""


@hookspec
def cdmkit_warned(event: events.Warned) -> None:
    """Something is odd, but the run goes on."""


@hookspec
def cdmkit_run_finished(event: events.RunFinished) -> None:
    """The run ends."""


def hook_name(event_type: type[events.Event]) -> str:
    """The hook that observes an event: `CheckpointSaved` goes to `cdmkit_checkpoint_saved`."""
    return "cdmkit" + re.sub("([A-Z])", r"_\1", event_type.__name__).lower()
