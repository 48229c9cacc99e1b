"""A process for each device: what each is told, how they end, when they start again."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from cdmkit.errors import UsageError
from cdmkit.launching.devices import Node, run_on_devices
from cdmkit.launching.group import SIGNALS
from cdmkit.training.stopping import SIGNALS as OBEYED
from tests.launching.processes import WORK, lives, pids, program, supervisor, wait_until


def run(*lines: str, devices: int = 2, restarts: int = 0, node: Node | None = None, grace: float = 0.5) -> int:
    """Run these lines on devices."""
    return run_on_devices(program(*lines), devices, restarts=restarts, node=node or Node(), grace=grace)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder of the test's own, as if started by hand."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


TELL = 'import json; Path(f"rank-{rank}-{again}").write_text(json.dumps(dict(os.environ)))'


def told(rank: int, start: int = 0) -> dict[str, str]:
    """The environment that a process had."""
    environment: dict[str, str] = json.loads(Path(f"rank-{rank}-{start}").read_text())
    return environment


def test_each_process_is_told_what_torchrun_tells() -> None:
    """Which one it is and where the others are; and threads so that all fit on the machine."""
    assert run(TELL) == 0
    first, second = told(0), told(1)
    assert [first.pop(name) for name in ("RANK", "LOCAL_RANK")] == ["0", "0"]
    assert [second.pop(name) for name in ("RANK", "LOCAL_RANK")] == ["1", "1"]
    names = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "OMP_NUM_THREADS")
    assert {name: first[name] for name in names} == {name: second[name] for name in names}
    assert (first["WORLD_SIZE"], first["LOCAL_WORLD_SIZE"], first["MASTER_ADDR"]) == ("2", "2", "127.0.0.1")
    assert int(first["OMP_NUM_THREADS"]) >= 1


def test_the_users_number_of_threads_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of cores."""
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    assert run(TELL) == 0
    assert told(0)["OMP_NUM_THREADS"] == "77"


def test_only_the_first_speaks(capfd: pytest.CaptureFixture[str]) -> None:
    """Others have no stdout, and their names before their lines on stderr."""
    assert run("print('out', rank)", "print('err', rank, file=sys.stderr)") == 0
    out, err = capfd.readouterr()
    assert out == "out 0\n"
    assert sorted(err.splitlines()) == ["[rank 1] err 1", "err 0"]


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ("sys.exit(5 if rank == '1' else 1)", 5),
        ("sys.exit(75)", 75),
        ("sys.exit(130 if rank == '1' else 75)", 130),
        ("sys.exit(1)", 1),
        ("os.kill(os.getpid(), signal.SIGSEGV) if rank == '0' else sys.exit(1)", 128 + 11),
        ("sys.exit(9 if rank == '1' else 0)", 9),
    ],
)
def test_the_exit_code_is_the_one_that_tells_most(ends: str, code: int) -> None:
    """A user's fault or a stop before what only follows from it."""
    assert run(ends) == code


@pytest.mark.parametrize("code", [2, 7, 75, 130])
def test_what_would_end_the_same_way_is_not_started_again(code: int) -> None:
    """Faults of the user's, and stops."""
    assert run(TELL, f"sys.exit({code})", restarts=2) == code
    assert not Path("rank-0-1").exists()


def test_after_a_crash_all_start_again(capfd: pytest.CaptureFixture[str]) -> None:
    """Under the same name, told that it is again, on another port maybe; it is said who died of what."""
    assert run(TELL, "if rank == '1' and again != '2': os.kill(os.getpid(), signal.SIGKILL)", restarts=3) == 0
    assert [told(1, start)["TORCHELASTIC_RESTART_COUNT"] for start in (0, 1, 2)] == ["0", "1", "2"]
    assert len({told(rank, start)["TORCHELASTIC_RUN_ID"] for rank in (0, 1) for start in (0, 1, 2)}) == 1
    lines = capfd.readouterr().err.splitlines()
    assert lines == [f"rank 1 died of SIGKILL: all start again ({number} of 3 restarts)" for number in (1, 2)]


def test_crashes_are_endured_only_so_often(capfd: pytest.CaptureFixture[str]) -> None:
    """Then the last one's exit code is the job's."""
    assert run(TELL, "sys.exit(1)", restarts=1) == 1
    assert not Path("rank-0-2").exists()
    assert capfd.readouterr().err.splitlines()[-1].endswith("ended with 1: they are not started again")


def test_one_that_hangs_when_another_has_failed_is_killed(capfd: pytest.CaptureFixture[str]) -> None:
    """Also where it ignores signals; what it started itself is killed, too."""
    hang = 'import subprocess; Path(f\'ready-{subprocess.Popen(["sleep", "60"]).pid}\').touch(); obey(); time.sleep(60)'
    fail = "while len(list(Path('.').glob('ready-*'))) < 2: time.sleep(0.02)"
    assert run(f"if rank == '1': {hang}", f"{fail}\nsys.exit(3)") == 3
    assert "rank 1: killed, since 0.5 seconds after a failure they had not ended" in capfd.readouterr().err
    wait_until(lambda: not any(map(lives, pids(Path()))))


def started(tmp_path: Path, ends: str = "sys.exit(75)", restarts: int = 0) -> subprocess.Popen[bytes]:
    """A supervisor of two programs that work until they are asked to stop, when both work."""
    lines = "import sys; from cdmkit.launching.devices import Node, run_on_devices; "
    process = supervisor(f"{lines}sys.exit(run_on_devices({program(WORK, ends)!r}, 2, restarts={restarts}, node=Node()))", tmp_path)
    wait_until(lambda: len(pids(tmp_path)) == 2)
    return process


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_is_handed_on_to_all(tmp_path: Path, number: signal.Signals) -> None:
    """Once, so that they save and end."""
    process = started(tmp_path)
    process.send_signal(number)
    assert process.wait(10) == 75
    assert [path.read_text() for path in tmp_path.glob("asked-*")] == [number.name] * 2


def test_a_signal_while_processes_are_started_is_not_lost(tmp_path: Path) -> None:
    """All hear of it when the last one is there: of those that have just begun, none is left to wait for the others."""
    late = "import signal; from cdmkit.launching import devices as d; from cdmkit.launching.group import Group; begin = Group.__enter__; "
    late += "Group.__enter__ = lambda group: (begin(group), signal.raise_signal(signal.SIGTERM))[0]; "
    process = supervisor(
        f"{late}raise SystemExit(d.run_on_devices({program(WORK, 'time.sleep(60)')!r}, 2, restarts=2, node=d.Node()))", tmp_path
    )
    assert process.wait(10) == 128 + signal.SIGTERM


def test_the_second_signal_is_handed_on_too(tmp_path: Path) -> None:
    """It ends them at once."""
    process = started(tmp_path, "time.sleep(60)")
    process.send_signal(signal.SIGINT)
    wait_until(lambda: len(pids(tmp_path, "asked")) == 2)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130


def test_nothing_starts_again_once_a_signal_came(tmp_path: Path) -> None:
    """Even where a process crashes while it stops."""
    process = started(tmp_path, "sys.exit(1)", restarts=3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 1
    assert len(pids(tmp_path)) == 2


def test_no_process_outlives_its_supervisor(tmp_path: Path) -> None:
    """Not even one that is stopped, when the supervisor is killed."""
    process = started(tmp_path)
    running = pids(tmp_path)
    subprocess.run(["kill", "-STOP", str(running[0])], check=True)
    process.kill()
    process.wait()
    wait_until(lambda: not any(map(lives, running)))


def test_the_signals_are_those_that_a_run_obeys() -> None:
    """Stated twice, since one of the two places must not import torch."""
    assert SIGNALS == OBEYED


def test_nodes_share_the_work(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Ranks count through all of them; the first of all is on the first node."""
    for name, value in {"SLURM_NODEID": "1", "MASTER_ADDR": "node7", "MASTER_PORT": "4321"}.items():
        monkeypatch.setenv(name, value)
    assert run(TELL, "print(rank)", node=Node.of_slurm(3)) == 0
    known = told(3)
    assert [known[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")] == ["3", "1", "6", "node7", "4321"]
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("given", [{}, {"SLURM_NODEID": "1", "MASTER_ADDR": "node7", "MASTER_PORT": "many"}])
def test_nodes_need_a_job_of_slurm(monkeypatch: pytest.MonkeyPatch, given: dict[str, str]) -> None:
    """The message says what is missing, and what to do elsewhere."""
    monkeypatch.delenv("SLURM_NODEID", raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"--nodes is for jobs of Slurm.*use torchrun"):
        Node.of_slurm(2)


def test_the_supervisor_imports_no_torch(tmp_path: Path) -> None:
    """It waits beside the work, whose memory it should leave alone."""
    lines = "import sys; import cdmkit.launching.devices; sys.exit('torch' in sys.modules)"
    assert supervisor(lines, tmp_path).wait(10) == 0
