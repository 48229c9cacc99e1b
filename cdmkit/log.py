"""Observers that write a run down: every event to events.jsonl, progress also to metrics.jsonl."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import structlog
from structlog.typing import EventDict, WrappedLogger

from cdmkit.events import Event, Progress, Warned
from cdmkit.hookspecs import hook_name, hookimpl
from cdmkit.redact import redact


class Lines:
    """A text file that only grows, by whole lines, written at once.

    What a crash left of a line is cut off first. Where the disk is full lines are lost, with one warning on stderr: no run ends over that.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._warned = False
        if path.exists():
            _cut_half_line(path)

    def write(self, line: str) -> None:
        """Append a line that ends in a newline."""
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("ab") as file:
                file.write(line.encode(errors="backslashreplace"))
        except OSError as error:
            self._complain(error, size)

    def _complain(self, error: OSError, size: int) -> None:
        with contextlib.suppress(OSError):  # the file may be gone, or not to be written at all
            os.truncate(self.path, size)
        if not self._warned:
            sys.stderr.write(f"cdmkit: warning: {self.path} cannot be written: {error}. The run goes on without it.\n")
        self._warned = True


def _cut_half_line(path: Path) -> None:
    content = path.read_bytes()
    os.truncate(path, content.rfind(b"\n") + 1)


def open_log(path: Path) -> structlog.typing.FilteringBoundLogger:
    """A structured logger that appends JSON lines to `path`: time (UTC), level, event and whatever is given. Secrets in URLs are hidden."""
    log: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
        _Sink(Lines(path)),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger("debug"),
    )
    return log


@attrs.frozen
class _Sink:
    """What structlog calls with each rendered entry, by the name of its level."""

    lines: Lines

    def write(self, entry: str) -> None:
        self.lines.write(entry + "\n")

    debug = info = warning = error = critical = write


def _render(_logger: WrappedLogger, _method: str, entry: EventDict) -> str:
    return json.dumps(jsonable(dict(entry)), ensure_ascii=False)


def jsonable(value: Any) -> Any:
    """The value as JSON has it, without secrets; NaN and infinity, which it has not, as null."""
    match value:
        case dict():
            return {str(key): jsonable(item) for key, item in value.items()}
        case list() | tuple():
            return [jsonable(item) for item in value]
        case float() if not math.isfinite(value):
            return None
        case None | bool() | int() | float():
            return value
        case _:
            return redact(str(value))


class EventLog:
    """Observes a run and logs every event but the progress of sampling, under the name of its hook without `cdmkit_`."""

    def __init__(self, path: Path) -> None:
        self.log = open_log(path)

    def write(self, event: Event) -> None:
        """Log an event, of whatever class."""
        write = self.log.warning if isinstance(event, Warned) else self.log.info
        write(hook_name(type(event)).removeprefix("cdmkit_"), **attrs.asdict(event))

    @hookimpl
    def cdmkit_run_started(self, event: Event) -> None:
        """Log it."""
        self.write(event)

    cdmkit_stage_started = cdmkit_progress = cdmkit_checkpoint_saved = cdmkit_stage_finished = cdmkit_run_started
    cdmkit_samples_written = cdmkit_sample_skipped = cdmkit_warned = cdmkit_run_finished = cdmkit_run_started


class MetricsLog:
    """Observes a run and appends each progress event as one JSON object per line."""

    def __init__(self, path: Path) -> None:
        self.lines = Lines(path)

    @hookimpl
    def cdmkit_progress(self, event: Progress) -> None:
        """Append the event."""
        self.lines.write(json.dumps(jsonable(attrs.asdict(event))) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The progress events of a run in order of writing; of steps trained again after a resume, the last. Half a line is passed over."""
    last = {(line["stage"], line["step"]): line for line in _read_lines(path)}
    return list(last.values())


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue
