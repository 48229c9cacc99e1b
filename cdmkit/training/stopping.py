"""Stopping a run politely: the first signal asks, the second one ends it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C, and what job schedulers send before they take a machine away."""

SECOND_SIGNAL = 130
"""The exit code at a second signal."""

_SHOW_CURSOR = "\x1b[?25h"


class StopRequest:
    """Whether someone wants the work to stop. Whoever works looks at `requested` where it can stop."""

    def __init__(self) -> None:
        self.requested = False
        self.reason = "request"

    def request(self, reason: str = "request") -> None:
        """Ask to stop. `reason` is what the message about it says."""
        self.requested = True
        self.reason = reason


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the first signal of `SIGNALS` into a request; the second ends the process at once with exit code 130.

    The end is `os._exit`: an exception could be caught, or wait for threads. Nothing is lost by it, since files are written beside and
    renamed and locks belong to the kernel. Handlers are put back on leaving. Only the main thread can have handlers: elsewhere the request
    is never set by a signal.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        if stop.requested:
            _leave_now()
        stop.request(signal.Signals(number).name)

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_now() -> None:
    """End the process, with the cursor that a progress bar hides shown again."""
    if sys.stderr.isatty():
        os.write(sys.stderr.fileno(), _SHOW_CURSOR.encode())
    os._exit(SECOND_SIGNAL)
