"""A training process to be killed.

driver.py train FOLDER STEPS      train, stopping politely at signals; prints a line at each checkpoint
driver.py at-random FOLDER STEPS  train, killed with SIGKILL at 20 random instants, started again each time. Prints how often it was killed
driver.py every-point FOLDER      train in FOLDER/whole; then, for each file operation n of its saves, in FOLDER/killed-n with SIGKILL
before operation n, and resume. Prints how many operations there were
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch._dynamo  # noqa: F401  (torch.optim imports it at its first use, in a second: here once, not in every fork)

from cdmkit.errors import Stopped
from cdmkit.events import CheckpointSaved, Event
from cdmkit.training import stop_on_signals
from tests.training.components import make_stage, run

OPERATIONS = {"write", "flush", "fsync", "mkdir", "rename", "replace", "unlink", "rmdir"}
"""Built-in functions that change what is on a disk. A file that is opened to be written is there before its first write."""

KILLS = 20


def train(folder: Path, steps: int) -> int:
    def tell(event: Event) -> None:
        if isinstance(event, CheckpointSaved):
            sys.stdout.write(f"{event.step}\n")
            sys.stdout.flush()

    try:
        with stop_on_signals() as stop:
            run(make_stage({"steps": steps, "checkpoint_every": 1}), folder, emit=tell, stop=stop)
    except Stopped as stopped:
        sys.stderr.write(f"{stopped}\n")
        return stopped.exit_code
    return 0


def count_operations(folder: Path, die_at: int | None = None) -> int:
    """Train with a checkpoint at each of two steps, of which one is kept, and count the file operations of the thread that saves; die
    before number `die_at`. Of writes in a row the first counts: all of them are in one buffer until it is flushed.
    """
    count, before = 0, ""

    def watch(_frame: FrameType, event: str, function: Any) -> None:
        nonlocal count, before
        if event == "c_call" and function.__name__ in OPERATIONS:
            if count == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            count += not function.__name__ == before == "write"
            before = function.__name__

    threading.setprofile(watch)  # of the threads that are started from now on
    run(make_stage({"steps": 2, "checkpoint_every": 1, "keep": 1}), folder)
    return count


def in_child(folder: Path, die_at: int | None) -> bool:
    """Train in a forked process; whether it was killed."""
    child = os.fork()
    if child == 0:
        count_operations(folder, die_at)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def every_point(folder: Path) -> int:
    points = count_operations(folder / "whole")  # in this process, so that what is done but once need not be done by each
    for point in range(points):
        killed = folder / f"killed-{point}"
        if not in_child(killed, point) or in_child(killed, None):
            raise RuntimeError(f"operation {point} did not come, or training could not go on after it")
    return points


def at_random(folder: Path, steps: int) -> int:
    """Train in forked processes, the first `KILLS` of them killed within an eighth of a second. Gives how many were before one was done."""
    run(make_stage({"steps": 1}), folder.with_name("before"))  # so that what is done but once need not be done by each
    for deaths in range(KILLS):
        child = os.fork()
        if child == 0:
            run(make_stage({"steps": steps, "checkpoint_every": 1}), folder)
            os._exit(0)
        time.sleep(random.uniform(0.01, 0.125))  # noqa: S311  (no secret)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            return deaths
    run(make_stage({"steps": steps, "checkpoint_every": 1}), folder)
    return KILLS


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["train", folder, steps]:
            sys.exit(train(Path(folder), int(steps)))
        case ["every-point", folder]:
            sys.stdout.write(str(every_point(Path(folder))))
        case ["at-random", folder, steps]:
            sys.stdout.write(str(at_random(Path(folder), int(steps))))
