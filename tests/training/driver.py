"""A training process to be killed.

driver.py train FOLDER STEPS      train, stopping politely at signals; prints a line at each checkpoint
driver.py at-random FOLDER STEPS  train, killed with SIGKILL at random instants and started again until done. Prints how often
driver.py every-point FOLDER      train in FOLDER/whole; then, for each file operation n of that, in FOLDER/killed-n with SIGKILL at
operation n, and resume. Prints how many operations there were
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch._dynamo  # noqa: F401  (torch.optim imports it at its first use, in a second: here once, not in every fork)

from cdmkit.errors import Stopped
from cdmkit.events import CheckpointSaved, Event
from cdmkit.training import stop_on_signals
from tests.training.components import make_stage, run

OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


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
    """Train with a checkpoint at every second step, and count the file operations under `folder`; die at number `die_at`."""
    count = 0

    def watch(name: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if name in OPERATIONS and str(folder) in str(arguments[0]):
            if count == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

    sys.addaudithook(watch)
    run(make_stage({"steps": 4, "checkpoint_every": 2}), folder)
    return count


def in_child(folder: Path, die_at: int | None) -> int:
    """Train in a forked process; gives how many file operations it made, 0 where it was killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, str(count_operations(folder, die_at)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as result:
        said = result.read()
    os.waitpid(child, 0)
    return int(said or 0)


def every_point(folder: Path) -> int:
    points = in_child(folder / "whole", None)
    for point in range(points):
        killed = folder / f"killed-{point}"
        if in_child(killed, point):
            raise RuntimeError(f"operation {point} did not come")
        in_child(killed, None)
    return points


def at_random(folder: Path, steps: int) -> int:
    """Train in forked processes, each killed within half a second, until one comes through. Gives how many were killed."""
    deaths = 0
    while True:
        child = os.fork()
        if child == 0:
            run(make_stage({"steps": steps, "checkpoint_every": 1}), folder)
            os._exit(0)
        time.sleep(random.uniform(0.1, 0.5))  # noqa: S311  (no secret)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            return deaths
        deaths += 1


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["train", folder, steps]:
            sys.exit(train(Path(folder), int(steps)))
        case ["every-point", folder]:
            sys.stdout.write(str(every_point(Path(folder))))
        case ["at-random", folder, steps]:
            sys.stdout.write(str(at_random(Path(folder), int(steps))))
