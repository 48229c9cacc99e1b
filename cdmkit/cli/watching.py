"""Showing people how a run goes: bars on a terminal, a plain line now and then elsewhere. All of it on stderr."""

from __future__ import annotations

import time
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cdmkit import events
from cdmkit.hookspecs import hookimpl

_PAUSE = 10.0
"""Seconds between two plain lines about the same thing."""


class Watcher:
    """An observer of runs that writes to stderr. Use it as a context manager, so that the terminal is left in order."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        columns = (
            "{task.description:<12}",
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            "left",
            "{task.fields[note]}",
        )
        self._bars = Progress(*(TextColumn(c) if isinstance(c, str) else c for c in columns), console=self.console, transient=True)
        self._tasks: dict[str, TaskID] = {}
        self._last_line = 0.0
        self._causes: set[str] = set()

    def __enter__(self) -> Watcher:
        if self.console.is_interactive:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.console.is_interactive:
            self._bars.stop()

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def _advance(self, what: str, done: int, total: int, note: str, ends: bool) -> None:
        """Move the bar of `what`; or print a line, if the last is some time ago or this is the end."""
        if self.console.is_interactive:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(what, total=total, note="")
            self._bars.update(self._tasks[what], completed=done, total=total, note=note)
            if ends:
                self._bars.remove_task(self._tasks.pop(what))
        elif ends or time.monotonic() - self._last_line >= _PAUSE:
            self._last_line = time.monotonic()
            self._say(f"{what}: {done}/{total}  {note}")

    @hookimpl
    def cdmkit_run_started(self, event: events.RunStarted) -> None:
        """Say where everything goes."""
        self._say(f"run {event.path}: {', '.join(event.stages)}")

    @hookimpl
    def cdmkit_stage_started(self, event: events.StageStarted) -> None:
        """Say how large the stage is and from where it goes on."""
        since = f", from step {event.step}" if event.step else ""
        self._say(f"{event.stage}: training {event.parameters / 1e6:.2f} M parameters for {event.steps} steps{since}")

    @hookimpl
    def cdmkit_progress(self, event: events.Progress) -> None:
        """Show loss, speed and the time left."""
        left = "" if self.console.is_interactive else f"  {timedelta(seconds=round(event.eta))} left"
        note = f"loss {event.loss:.4f}  {event.images_per_second:.0f} images/s{left}"
        self._advance(event.stage, event.step, event.steps, note, ends=event.step == event.steps)

    @hookimpl
    def cdmkit_stage_finished(self, event: events.StageFinished) -> None:
        """Say so, and whether there was anything to do."""
        self._say(f"{event.stage}: {'trained already, unchanged' if event.skipped else 'trained'}, {event.step} steps")

    @hookimpl
    def cdmkit_sampling_progress(self, event: events.SamplingProgress) -> None:
        """Show how many network calls are done."""
        self._advance(f"{event.stage} sampling", event.done, event.total, "network calls", ends=event.done == event.total)

    @hookimpl
    def cdmkit_sample_skipped(self, event: events.SampleSkipped) -> None:
        """Warn of each cause once; the others are in events.jsonl."""
        if event.cause not in self._causes:
            self._causes.add(event.cause)
            self._say(f"warning: {event.message}. It is left out. Of others with the same fault only events.jsonl tells.")

    @hookimpl
    def cdmkit_warned(self, event: events.Warned) -> None:
        """Pass the warning on."""
        self._say(f"warning: {event.message}")
