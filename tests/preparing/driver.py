"""Processes that make a data set, to be killed.

driver.py prepare FOLDER WORKERS           make FOLDER/out, of some hundred images; prints a line at each step
driver.py every-point FOLDER               make FOLDER/whole/out; then, for each operation n of it that changes files, FOLDER/killed-n/out
                                           with SIGKILL at operation n, and again
driver.py full FOLDER BYTES...             for each number n, make FOLDER/n/out with no file to be longer than n; prints the exit codes
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path

from cdmkit import preparing
from cdmkit.errors import CdmkitError
from cdmkit.preparing import Settings, Step
from tests.preparing.drawn import Drawn

OPERATIONS, WRITING = {"open", "os.mkdir", "os.rename", "os.remove"}, os.O_WRONLY | os.O_RDWR

SMALL, LARGE = Drawn(count=13, broken=(3,)), Drawn(count=400, broken=(3,))

SETTINGS = {SMALL: Settings(resolution=8, per_shard=6), LARGE: Settings(resolution=8, per_shard=25)}


def make(folder: Path, workers: int = 0, preparer: Drawn = SMALL, tell: bool = False) -> int:
    """Make a data set, and return the exit code."""

    def step(step: Step) -> None:
        if tell:
            sys.stdout.write(f"{step.done}\n")
            sys.stdout.flush()

    (folder / "source").mkdir(parents=True, exist_ok=True)
    try:
        plan, _ = preparing.plan(preparer, folder / "source", SETTINGS[preparer])
        preparing.prepare(plan, folder / "out", workers=workers, max_reject=0.1, tell=step)
    except CdmkitError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def forked(folder: Path, kill_at: int = 0, largest: int = resource.RLIM_INFINITY) -> tuple[int, int]:
    """The exit status of another process that makes a data set, and its file operations."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        count = 0

        def audit(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            if event in OPERATIONS and str(folder) in str(arguments[0]) and (event != "open" or int(str(arguments[2])) & WRITING):
                count += 1
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        sys.addaudithook(audit)
        code = make(folder)
        os.write(writing, str(count).encode())
        os._exit(code)
    os.close(writing)
    with open(reading, "rb") as counted:
        operations = int(counted.read() or b"0")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), operations


def every_point(folder: Path) -> None:
    make(folder / "first")  # imports what is imported late: here once, not in every fork
    code, operations = forked(folder / "whole")
    assert (code, operations > 30) == (0, True)
    for number in range(1, operations + 1):
        killed = folder / f"killed-{number}"
        assert forked(killed, number)[0] == -signal.SIGKILL
        assert make(killed) == 0


def full(folder: Path, sizes: list[int]) -> None:
    codes = [forked(folder / str(size), largest=size)[0] for size in sizes]
    sys.stdout.write(f"{codes}\n")


if __name__ == "__main__":
    mode, where, *rest = sys.argv[1:]
    match mode:
        case "every-point":
            every_point(Path(where))
        case "full":
            full(Path(where), [int(size) for size in rest])
        case _:
            sys.exit(make(Path(where), int(rest[0]), LARGE, tell=True))
