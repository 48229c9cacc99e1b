"""Small programs that stand for `cdmkit run`, and ways to look at them from outside."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

HEAD = """
import os, signal, sys, time
from pathlib import Path
rank, again = os.environ.get("RANK", ""), os.environ.get("TORCHELASTIC_RESTART_COUNT", "")

def obey():
    "Obey signals as cdmkit does: the first makes it save, the second makes it end."
    def handle(number, frame):
        if Path(f"asked-{os.getpid()}").exists():
            os._exit(130)
        Path(f"asked-{os.getpid()}").write_text(signal.Signals(number).name)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, handle)
    Path(f"ready-{os.getpid()}").touch()
"""

WORK = """
obey()
while not Path(f"asked-{os.getpid()}").exists():
    time.sleep(0.02)
"""
"""Works until it is asked to stop."""


def program(*lines: str) -> list[str]:
    """A command that runs these lines."""
    return [sys.executable, "-S", "-c", HEAD + "\n".join(lines)]


def supervisor(lines: str, folder: Path) -> subprocess.Popen[bytes]:
    """A process that starts others in `folder`: a small program in the place of `cdmkit run --devices`."""
    command = [sys.executable, "-c", lines]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_until(true: Callable[[], bool], seconds: float = 10) -> None:
    """Wait, for some seconds at most."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def pids(folder: Path, what: str = "ready") -> list[int]:
    """Of the programs that have left this sign."""
    return sorted(int(path.name.partition("-")[2]) for path in folder.glob(f"{what}-*"))


def lives(pid: int) -> bool:
    """Whether a process is there, and not only waits to be forgotten."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
