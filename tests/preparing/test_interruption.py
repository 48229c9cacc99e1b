"""Work that is killed, interrupted or out of room: what is left, and that going on ends with the same bytes."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from cdmkit import preparing
from cdmkit.kinds import Original, Originals, Preparer
from cdmkit.preparing import Settings, Step
from cdmkit.preparing.images import Maker
from cdmkit.preparing.pool import ENDING, outcomes, undisturbed
from tests.preparing.driver import LARGE, SETTINGS, make

DRIVER = (sys.executable, "-m", "tests.preparing.driver")
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc to look for processes in")


def contents(out: Path) -> dict[str, bytes]:
    """Every file under a folder."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def started(folder: Path) -> subprocess.Popen[str]:
    """A process that makes a data set with two workers in some seconds, in a process group of its own."""
    (folder / "source").mkdir(exist_ok=True)
    (folder / "source" / "slow").write_text("0.02")
    command = (*DRIVER, "prepare", str(folder), "2")
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def alive(group: int) -> int:
    """How many processes of a group there are."""
    found = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found += int(fields[2]) == group and fields[0] != "Z"
    return found


def none_left(group: int) -> bool:
    """Whether all of them are gone within some seconds."""
    for _ in range(100):
        if not alive(group):
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What becomes of `LARGE`, undisturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert make(folder, 0, LARGE) == 0
    return contents(folder / "out")


def same_at_last(folder: Path, workers: int, whole: dict[str, bytes]) -> bool:
    """Whether going on makes the same."""
    (folder / "source" / "slow").unlink(missing_ok=True)
    return make(folder, workers, LARGE) == 0 and contents(folder / "out") == whole


class Stopped(NamedTuple):
    """A process that was stopped in the midst of its work."""

    folder: Path
    workers: int
    code: int
    errors: str
    seconds: float
    left: bool


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> dict[signal.Signals, Stopped]:
    """One by each signal, side by side since they take long to start: SIGINT as Ctrl-C sends it, to the whole group."""
    processes = {number: started(tmp_path_factory.mktemp(number.name)) for number in (signal.SIGKILL, signal.SIGINT)}
    found = {}
    for number, process in processes.items():
        assert process.stdout is not None
        while process.stdout.readline() in ("0\n", "16\n"):  # until the workers are well on their way
            pass
        workers, since = alive(process.pid), time.monotonic()
        os.killpg(process.pid, number) if number is signal.SIGINT else process.send_signal(number)
        _, errors = process.communicate()
        folder = Path(str(process.args[4]))  # type: ignore[index]
        found[number] = Stopped(folder, workers, process.returncode, errors, time.monotonic() - since, not none_left(process.pid))
    return found


def test_killed_at_every_file_operation(tmp_path: Path) -> None:
    """The same command goes on, and ends with the bytes of an undisturbed run, nothing more."""
    subprocess.run((*DRIVER, "every-point", str(tmp_path)), cwd=ROOT, check=True, capture_output=True)
    whole = contents(tmp_path / "whole" / "out")
    assert {"dataset.json", "manifest.tsv.gz", "rejects.tsv", "train-00002.tar", "val-00000.tar"} < whole.keys()
    killed = sorted(tmp_path.glob("killed-*"))
    assert len(killed) > 30
    for folder in killed:
        assert contents(folder / "out") == whole, folder.name


def test_no_process_outlives_one_that_was_killed(stopped: dict[signal.Signals, Stopped], whole: dict[str, bytes]) -> None:
    """SIGKILL, which nobody can answer; going on with workers gives the same bytes."""
    killed = stopped[signal.SIGKILL]
    assert killed.workers >= 4  # with the process itself, and the one that starts them
    assert not killed.left
    assert not (killed.folder / "out" / "dataset.json").exists()
    assert same_at_last(killed.folder, 2, whole)


def test_interrupted(stopped: dict[signal.Signals, Stopped], whole: dict[str, bytes]) -> None:
    """At once, with 130, silently, with no process and nothing half-made left; images under way are not waited for."""
    ended = stopped[signal.SIGINT]
    assert (ended.code, ended.errors, ended.left) == (130, "", False)
    assert ended.seconds < 3
    assert not list((ended.folder / "out").rglob("*.partial"))
    assert not (ended.folder / "out" / "dataset.json").exists()
    assert same_at_last(ended.folder, 0, whole)


@pytest.mark.parametrize("number", ENDING)
def test_what_is_an_interruption(tmp_path: Path, whole: dict[str, bytes], number: signal.Signals) -> None:
    """What schedulers send, and what a closed terminal does; afterwards it means what it meant before."""
    before = signal.getsignal(number)

    def terminate(step: Step) -> None:
        if step.done > 100:
            signal.raise_signal(number)

    (tmp_path / "source").mkdir()
    plan, _ = preparing.plan(LARGE, tmp_path / "source", SETTINGS[LARGE])
    with pytest.raises(KeyboardInterrupt):
        preparing.prepare(plan, tmp_path / "out", workers=2, max_reject=0.1, tell=terminate)
    assert multiprocessing.active_children() == []
    assert signal.getsignal(number) is before
    assert 4 <= len(list((tmp_path / "out" / "parts").glob("*.json"))) < 10
    assert same_at_last(tmp_path, 0, whole)


def test_interruption_at_the_start() -> None:
    """While a worker is being started, a signal waits: then the worker can be ended, too."""
    reached = []

    def interrupted() -> None:
        with undisturbed():
            signal.raise_signal(signal.SIGINT)
            reached.append(True)
        reached.append(False)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert reached == [True]


def test_what_is_ignored_stays_so(tmp_path: Path) -> None:
    """SIGHUP under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        (tmp_path / "source").mkdir()
        plan, _ = preparing.plan(LARGE, tmp_path / "source", SETTINGS[LARGE])
        preparing.prepare(plan, tmp_path / "out", workers=0, max_reject=0.1, tell=lambda _: signal.raise_signal(signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (tmp_path / "out" / "dataset.json").exists()


class Heavy(Preparer):
    """Images that are as large as what fits into no pipe."""

    def look(self, path: Path) -> Originals:
        raise NotImplementedError

    def read(self, original: Original) -> bytes:
        """Noise, quick to make, for it is not compressed."""
        file = io.BytesIO()
        Image.frombytes("RGB", (128, 128), os.urandom(3 * 128 * 128)).save(file, "BMP")
        return file.getvalue()


def test_stopped_while_results_are_sent() -> None:
    """A worker ends what it sends: else whoever waits for the rest would wait for ever."""
    for number in range(6):
        with outcomes(Maker(Heavy(), Settings()), (Original(str(n), -1, n) for n in range(10_000)), 2) as made:
            for _ in range(40 + 7 * number):
                next(made)
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_killed_at_random(tmp_path: Path, whole: dict[str, bytes]) -> None:
    """Twenty times in a row."""
    for number in range(20):
        process = started(tmp_path)
        time.sleep(1.5 + 0.2 * number)
        process.kill()
        process.communicate()
        assert none_left(process.pid)
    assert same_at_last(tmp_path, 2, whole)


def test_no_room(tmp_path: Path) -> None:
    """A plan, a record or a shard runs into a limit: said, with nothing half-written, and gone on from when there is room."""
    sizes = (100, 900, 5_000)
    ended = subprocess.run((*DRIVER, "full", str(tmp_path), *map(str, sizes)), cwd=ROOT, check=True, capture_output=True, text=True)
    assert ended.stdout == "[4, 4, 4]\n"
    assert make(tmp_path / "whole") == 0
    for size in sizes:
        out = tmp_path / str(size) / "out"
        assert f"{out}: no room left on the disk (File too large): make room; what is done stays" in ended.stderr
        assert not list(out.rglob("*.partial"))
        assert not list(out.glob("*.tar"))
        assert make(out.parent) == 0
        assert contents(out) == contents(tmp_path / "whole" / "out")
