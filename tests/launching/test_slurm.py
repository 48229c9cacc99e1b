"""Jobs of Slurm: their scripts do what they should, as bash runs them with stand-ins for Slurm's commands."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from cdmkit.errors import SetupError
from cdmkit.launching.slurm import Job, Wishes, jobs, submit
from tests.launching.slurm import install

RUN = Path("/my runs/tiny/1")


def made(wishes: Wishes | None = None, *, sample: bool = True) -> list[Job]:
    """The jobs of two stages."""
    return jobs("tiny", RUN, ["base", "fine"], wishes or Wishes(), sample=sample)


def options(job: Job) -> dict[str, str]:
    """What its script asks sbatch for."""
    given = (line.removeprefix("#SBATCH --").partition("=") for line in job.script.splitlines() if line.startswith("#SBATCH"))
    return {key: value for key, _, value in given}


def run(job: Job, folder: Path, codes: str = "0", **environment: str) -> tuple[int, list[list[str]], bool]:
    """Run a job's script where srun ends with these codes in turn: its exit code, srun's words at each call, and whether it queued anew."""
    (folder / "calls").unlink(missing_ok=True)
    (folder / "codes").write_text(codes.replace(" ", "\n") + "\n")
    known = {**os.environ, "SLURM_JOB_ID": "30007", "SLURM_JOB_NODELIST": "node[3-4]", **environment}
    code = subprocess.run(["bash"], input=job.script, text=True, env=known, check=False).returncode
    calls = [line.split("\x1f") for line in (folder / "calls").read_text().splitlines()]
    return code, calls, (folder / "requeued").exists()


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where stand-ins for Slurm's commands leave what they were given; they come before all others on the path."""
    install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path))
    return tmp_path


def test_a_job_asks_for_what_it_needs() -> None:
    """A process for each node, that is told two minutes before the end; the one that samples has one device."""
    base, _, sampling = made(Wishes(devices=8, nodes=2, options={"time": "12:00:00", "exclusive": None}))
    assert options(base) == {
        "job-name": "tiny-base",
        "output": "'/my runs/tiny/1-jobs/base-%j.log'",
        "open-mode": "append",
        "nodes": "2",
        "ntasks-per-node": "1",
        "gpus-per-node": "8",
        "signal": "USR1@120",
        "requeue": "",
        "time": "12:00:00",
        "exclusive": "",
    }
    assert (options(sampling)["nodes"], options(sampling)["gpus-per-node"]) == ("1", "1")
    assert base.log("7") == "/my runs/tiny/1-jobs/base-7.log"


@pytest.mark.parametrize(("more", "asks"), [({"gres": "gpu:h100:4"}, False), ({"signal": "USR1@600"}, True)])
def test_options_win_over_ours(more: Mapping[str, str | None], asks: bool) -> None:
    """Devices are asked for in one way only."""
    given = options(made(Wishes(devices=4, options=more))[0])
    assert given.items() >= more.items()
    assert ("gpus-per-node" in given) is asks


def test_a_stage_is_trained_by_a_command_that_makes_or_joins_the_run(cluster: Path) -> None:
    """Words with blanks arrive whole; several processes have a supervisor, which leaves starting again to the script."""
    alone, _, sampling = made()
    given = ["run", f"{RUN}-jobs/recipe.toml", "--run", str(RUN)]
    (words,) = run(alone, cluster)[1]
    assert words[words.index("cdmkit") + 1 :] == [*given, "--stage", "base"]
    (words,) = run(made(Wishes(devices=8, nodes=2))[0], cluster)[1]
    assert words[words.index("cdmkit") + 1 :] == [*given, "--stage", "base", "--devices", "8", "--restarts", "0", "--nodes", "2"]
    (words,) = run(sampling, cluster)[1]
    assert words[words.index("cdmkit") + 1 :] == [*given, "--resume"]


@pytest.mark.parametrize("code", [0, 2, 5, 130])
def test_what_would_end_the_same_way_runs_once(cluster: Path, code: int) -> None:
    """Its exit code is the job's."""
    ended, calls, requeued = run(made(Wishes(restarts=2))[0], cluster, str(code))
    assert (ended, len(calls), requeued) == (code, 1, False)


def test_a_job_that_saved_and_stopped_queues_anew(cluster: Path) -> None:
    """By its own id."""
    ended, calls, requeued = run(made(Wishes(restarts=2))[0], cluster, "75")
    assert (ended, len(calls), requeued) == (75, 1, True)
    assert (cluster / "requeued").read_text() == "30007\n"


@pytest.mark.parametrize(("codes", "end", "starts"), [("137 1 0", 0, 3), ("1 139 134 0", 134, 3), ("1 75", 75, 2)])
def test_a_job_starts_again_after_a_crash(cluster: Path, codes: str, end: int, starts: int) -> None:
    """At most as often as it may."""
    ended, calls, requeued = run(made(Wishes(restarts=2))[0], cluster, codes)
    assert (ended, len(calls), requeued) == (end, starts, end == 75)


def test_processes_are_told_of_the_first_node(cluster: Path) -> None:
    """Which is where the first of them waits; and how many cores each node has for them."""
    run(made(Wishes(nodes=2))[0], cluster, SLURM_CPUS_PER_TASK="16")
    assert (cluster / "environment").read_text() == "node3 20007 16\n"


def logging_to(job: Job, folder: Path) -> Job:
    """The job, logging to a folder that can be made."""
    return Job(job.name, folder / "jobs", job.script, job.last)


def test_the_last_job_waits_for_all_others(cluster: Path) -> None:
    """And is given up where one of them fails."""
    ids = submit([logging_to(job, cluster) for job in made()])
    assert ids == ["1", "2", "3"]
    given = [(cluster / f"{number}.words").read_text().split() for number in ids]
    assert given == [["--parsable"], ["--parsable"], ["--parsable", "--dependency=afterok:1:2", "--kill-on-invalid-dep=yes"]]
    assert (cluster / "1.sh").read_text() == made()[0].script
    assert (cluster / "jobs").is_dir()


def test_a_refused_job_names_those_before_it(cluster: Path) -> None:
    """And says what Slurm says."""
    (cluster / "refuse").write_text("2")
    with pytest.raises(SetupError, match=r"'fine' could not be submitted: Invalid partition.*scancel 1`"):
        submit([logging_to(job, cluster) for job in made()])


def test_without_slurm_it_is_said_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is submitted."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match="there is no sbatch here"):
        submit([logging_to(job, tmp_path) for job in made()])
