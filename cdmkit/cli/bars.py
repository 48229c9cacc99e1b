"""Progress bars with the time left on a terminal, a plain line now and then elsewhere. All of it on stderr."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

PAUSE = 10.0
"""Seconds between two plain lines."""


class Bars:
    """Shows how far things are. Use it as a context manager, so that the terminal is left in order."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        name, left, note = (TextColumn(text) for text in ("{task.description:<12}", "left", "{task.fields[note]}"))
        columns = (name, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), left, note)
        self._bars = Progress(*columns, console=self.console, transient=True)
        self._tasks: dict[str, TaskID] = {}
        self._last_line = 0.0

    def __enter__(self) -> Bars:
        if self.console.is_interactive:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.console.is_interactive:
            self._bars.stop()

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, markup=False, soft_wrap=True)

    def advance(self, what: str, done: int, total: int, note: str = "", left: float | None = None) -> None:
        """Move the bar of `what`; or print a line, if the last is some time ago or this is the end. left: seconds, for lines; bars know."""
        if self.console.is_interactive:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(what, total=total, completed=done, note="")
            self._bars.update(self._tasks[what], completed=done, total=total, note=note)
            if done == total:
                self._bars.remove_task(self._tasks.pop(what))
        elif done == total or time.monotonic() - self._last_line >= PAUSE:
            self._last_line = time.monotonic()
            self.say(f"{what}: {done}/{total}  {note}" + ("" if left is None else f"  {clock(left)} left"))


def clock(seconds: float) -> str:
    """3,723 seconds as 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
