"""Stages at the same time: who has which devices, and what becomes of the others when one fails or all are to stop."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from cdmkit.launching.stages import shares, train_together
from tests.launching.processes import WORK, pids, program, supervisor, wait_until


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder of the test's own, with as many threads as the library chooses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.parametrize(
    ("own", "cards", "expected"),
    [
        (2, "0 1 2 3 4", ["0,1", "2,3"]),
        (1, "3 GPU-5", ["3", "GPU-5"]),
        (1, "0", ["0", "0"]),
    ],
)
def test_each_stage_has_devices_of_its_own(own: int, cards: str, expected: list[str]) -> None:
    """As many as the others, named as they were; where there are fewer than stages, they are shared."""
    environments = shares(["base", "fine"], own, cards.split())
    assert [environments[stage]["CUDA_VISIBLE_DEVICES"] for stage in ("base", "fine")] == expected


def test_without_such_devices_stages_share_the_cores() -> None:
    """Nothing is said of devices."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert shares(["base", "fine"], 1, []) == {stage: {"OMP_NUM_THREADS": str(max(1, cores // 2))} for stage in ("base", "fine")}


def test_stages_run_together_in_their_environments(capfd: pytest.CaptureFixture[str]) -> None:
    """Each line on stderr has the stage's name; stdout is for the result, which comes later."""
    meet = "Path(os.environ['OWN']).touch()\nwhile len(list(Path('.').iterdir())) < 2: time.sleep(0.02)"
    command = program(meet, "print('out')", "print('hello', file=sys.stderr)")
    assert train_together({"base": command, "fine": command}, {"base": {"OWN": "a"}, "fine": {"OWN": "b"}}) == 0
    out, err = capfd.readouterr()
    assert (out, sorted(err.splitlines())) == ("", ["[base] hello", "[fine] hello"])


def test_when_one_fails_the_others_save(capfd: pytest.CaptureFixture[str]) -> None:
    """They are asked once; the exit code is that of the first that failed."""
    fails = program("while not list(Path('.').glob('ready-*')): time.sleep(0.02)", "sys.exit(6)")
    commands = {"base": program(WORK, "sys.exit(75)"), "fine": fails}
    assert train_together(commands, {stage: {} for stage in commands}) == 6
    assert [path.read_text() for path in Path().glob("asked-*")] == ["SIGTERM"]
    assert capfd.readouterr().err == "fine ended with 6: the other stages are asked to save and stop\n"


def started(tmp_path: Path, commands: dict[str, list[str]], ready: int) -> subprocess.Popen[bytes]:
    """Stages that are trained together by a process of their own, when so many of them work."""
    lines = f"import sys; from cdmkit.launching.stages import train_together; commands = {commands!r}; "
    process = supervisor(lines + "sys.exit(train_together(commands, dict.fromkeys(commands, {})))", tmp_path)
    wait_until(lambda: len(pids(tmp_path)) == ready)
    return process


def test_a_signal_stops_all_stages(tmp_path: Path) -> None:
    """Once: the one that ends first does not make the others end at once."""
    commands = {"base": program(WORK, "sys.exit(75)"), "fine": program(WORK, "time.sleep(0.5)", "sys.exit(75)")}
    process = started(tmp_path, commands, 2)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 75
    assert [path.read_text() for path in tmp_path.glob("asked-*")] == ["SIGINT", "SIGINT"]


def test_a_stage_that_dies_of_the_signal_does_not_hide_that_others_saved(tmp_path: Path) -> None:
    """One that has not begun to work, or has just ended, does."""
    deaf = program("Path(f'ready-{os.getpid()}').touch()", "time.sleep(60)")
    process = started(tmp_path, {"base": deaf, "fine": program(WORK, "time.sleep(0.3)", "sys.exit(75)")}, 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 75


def test_a_signal_to_stages_that_save_already_does_not_end_them(tmp_path: Path) -> None:
    """They were asked when another failed; only one more ends them at once."""
    slow = program(WORK, "time.sleep(0.5)", "Path('saved').touch()", "sys.exit(75)")
    fails = program("while not list(Path('.').glob('ready-*')): time.sleep(0.02)", "sys.exit(6)")
    process = started(tmp_path, {"base": slow, "fine": fails}, 1)
    wait_until(lambda: len(pids(tmp_path, "asked")) == 1)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 6
    assert (tmp_path / "saved").exists()
