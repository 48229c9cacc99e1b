"""Progress bars with the time left on a terminal, a plain line now and then elsewhere. All of it on stderr."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

PAUSE = 10.0
"""Seconds between two plain lines."""

_BESIDE = 54
"""Columns of a terminal for what stands before the note of a bar."""

_BARS = "▁▂▃▄▅▆▇█"


class Bars:
    """Shows how far things are. Use it as a context manager, so that the terminal is left in order.

    A terminal is not touched before there is anything to show: several processes may share it, of which one speaks.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        name, left, note = (TextColumn(text) for text in ("{task.description:<12}", "left", "{task.fields[note]}"))
        columns = (name, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), left, note)
        self._bars = Progress(*columns, console=self.console, transient=True)
        self._tasks: dict[str, TaskID] = {}
        self._last_line = 0.0

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.console.is_interactive:
            self._bars.stop()

    @property
    def draws(self) -> bool:
        """Whether bars are drawn, and in Unicode."""
        return self.console.is_interactive and self.console.encoding.startswith("utf")

    def fitting(self, parts: Iterable[str]) -> str:
        """As many of some words, the most important first, as there is room for beside a bar; all of them in a line."""
        note, *rest = filter(None, parts)
        for part in rest:
            longer = f"{note}  {part}"
            if self.console.is_interactive and len(longer) > self.console.width - _BESIDE:
                break
            note = longer
        return note

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, markup=False, soft_wrap=True)

    def advance(self, what: str, done: int, total: int, note: str = "", left: float | None = None) -> None:
        """Move the bar of `what`; or print a line, if the last is some time ago or this is the end. left: seconds, for lines; bars know."""
        if self.console.is_interactive:
            self._bars.start()
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(what, total=total, completed=done, note="")
            self._bars.update(self._tasks[what], completed=done, total=total, note=note)
            if done == total:
                self._bars.remove_task(self._tasks.pop(what))
        elif done == total or time.monotonic() - self._last_line >= PAUSE:
            self._last_line = time.monotonic()
            self.say(f"{what}: {done}/{total}  {note}" + ("" if left is None else f"  {clock(left)} left"))


def rate(gflops: float) -> str:
    """1,234 GFLOP/s as 1.23 TFLOP/s; nothing where it is not known."""
    if not math.isfinite(gflops):
        return ""
    return f"{gflops / 1000:.3g} TFLOP/s" if gflops >= 1000 else f"{gflops:.3g} GFLOP/s"


def sparkline(values: Sequence[float]) -> str:
    """Positive numbers as bars from the lowest to the highest, by their logarithms; a blank where there is none."""
    logs = [math.log(value) if 0 < value < math.inf else math.nan for value in values]
    known = [each for each in logs if not math.isnan(each)]
    span = max(known, default=0.0) - min(known, default=0.0)
    heights = (each if math.isnan(each) else (each - min(known)) / span if span else 0.0 for each in logs)
    return "".join(" " if math.isnan(each) else _BARS[round(each * (len(_BARS) - 1))] for each in heights)


def clock(seconds: float) -> str:
    """3,723 seconds as 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
