"""Processes that are started together, hear of signals together, and never outlive whoever started them."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType, TracebackType
from typing import IO

import click

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Those that `cdmkit run` obeys: see `cdmkit.training.stopping`, which imports torch."""

FINAL = (2, 3, 4, 5, 6, 7, 130, 75)
"""Exit codes after which nothing is started again, those that tell most first: a user's fault, ended at once, stopped after saving."""

PAUSE = 0.1
"""Seconds between two looks at who still runs."""

_LEADER = ("sh", "-c", "read -r _; kill -KILL 0")
"""Waits for the end of its input, then kills its process group."""


class Group:
    """Processes that share a process group. Use it as a context manager: at its end the whole group is killed.

    A terminal's Ctrl-C does not reach the group: see `Relay`. Its first process is a shell that waits for a pipe of which only this process
    holds the other end. If this process ends in whatever way, SIGKILL included, the kernel closes that end, and the shell kills the group
    with all that was started in it. So the processes need not watch anything, and those that hang are killed, too.
    """

    def __init__(self) -> None:
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._readers: list[threading.Thread] = []
        self.ended: dict[str, int] = {}
        """The exit codes of those that ended by themselves, in the order in which that was seen; -N where signal N ended one."""

    def __enter__(self) -> Group:
        null = subprocess.DEVNULL
        self._leader = subprocess.Popen(_LEADER, stdin=subprocess.PIPE, stdout=null, stderr=null, process_group=0)  # noqa: S603
        return self

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str], *, speaks: bool = False) -> None:
        """Start a process. `environment` is laid over this one's. One that `speaks` has our stdout and stderr; another has no stdout, and
        its lines on stderr have its name before them.
        """
        process = subprocess.Popen(  # noqa: S603  (a command of ours)
            command,
            stdin=subprocess.DEVNULL,
            stdout=None if speaks else subprocess.DEVNULL,
            stderr=None if speaks else subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, **environment},
            process_group=self._leader.pid,
        )
        self._running[name] = process
        if process.stderr:
            reader = threading.Thread(target=_repeat, args=(name, process.stderr), daemon=True)
            reader.start()
            self._readers.append(reader)

    def send(self, number: int) -> None:
        """Send a signal to each process that runs."""
        for process in list(self._running.values()):
            process.send_signal(number)

    def wait(self, seconds: float = math.inf, *, until_failure: bool = False) -> None:
        """Wait until none runs, at most for some seconds, and with `until_failure` until one has ended other than well."""
        end = time.monotonic() + seconds
        self._look()
        while self._running and time.monotonic() < end and not (until_failure and any(self.ended.values())):
            time.sleep(PAUSE)
            self._look()

    @property
    def running(self) -> list[str]:
        """The names of those that have not ended."""
        return list(self._running)

    def _look(self) -> None:
        for name, process in list(self._running.items()):
            code = process.poll()
            if code is not None:
                self.ended[name] = code
                del self._running[name]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.killpg(self._leader.pid, signal.SIGKILL)
        self._leader.wait()
        for process in self._running.values():
            process.wait()
        for reader in self._readers:
            reader.join(timeout=1)  # who left the group may hold the other end
        if self._leader.stdin:
            self._leader.stdin.close()


def _repeat(name: str, stream: IO[str]) -> None:
    """Repeat lines on stderr, with a name before each."""
    with stream:
        for line in stream:
            click.echo(f"[{name}] {line}", nl=False, err=True)


class Relay:
    """Hands each signal of `SIGNALS` on to all processes of `group`: the first makes them save and end, the second makes them end."""

    def __init__(self) -> None:
        self.group: Group | None = None
        self.asked = False
        """Whether the processes were asked to end."""
        self.told = False
        """Whether a signal told this process to end."""

    def begin(self, group: Group) -> None:
        """Hand signals on to a group that is complete, and one that came while it was not."""
        self.group = group
        if self.asked:
            group.send(signal.SIGTERM)

    def ask(self) -> None:
        """Ask the processes to save and end, unless they were asked before."""
        if self.group and not self.asked:
            self.group.send(signal.SIGTERM)
        self.asked = True

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Hand a signal on; but not one's first if `ask` came before it, which would be the processes' second."""
        if self.group and (self.told or not self.asked):
            self.group.send(number)
        self.asked = self.told = True


@contextlib.contextmanager
def relaying() -> Iterator[Relay]:
    """Let a relay handle signals. Only the main thread can have handlers: elsewhere none is handed on."""
    relay = Relay()
    if threading.current_thread() is not threading.main_thread():
        yield relay
        return
    before = {number: signal.signal(number, relay.handle) for number in SIGNALS}
    try:
        yield relay
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def words(ended: Mapping[str, int]) -> str:
    """How those ended that did not end well."""
    names = {number.value: number.name for number in signal.Signals}
    failed = ((name, code) for name, code in ended.items() if code)
    return ", ".join(f"{name} ended with {code}" if code > 0 else f"{name} died of {names.get(-code, -code)}" for name, code in failed)


def exit_code(code: int) -> int:
    """That of a process, as a shell tells it: 128 + N where signal N ended it."""
    return code if code >= 0 else 128 - code


def most_telling(ended: Mapping[str, int]) -> int:
    """The exit code for all: the first of `FINAL` that one ended with, else a signal's, else any, else 0."""
    codes = list(ended.values())
    final = [code for code in FINAL if code in codes]
    signals = [code for code in codes if code < 0]
    return exit_code([*final, *signals, *filter(None, codes), 0][0])


def say(text: str) -> None:
    """Tell people something, on stderr as all that is no result."""
    click.echo(text, err=True)


def threads(shares: int) -> str:
    """OMP_NUM_THREADS for each of several processes: as the user has set it, else an equal share of the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // shares))


def cdmkit(*arguments: str) -> list[str]:
    """`cdmkit ...` with the Python that runs here."""
    return [sys.executable, "-m", "cdmkit", *arguments]
