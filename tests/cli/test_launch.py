"""`cdmkit launch`: what it hands to Slurm, and what it prints of that."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from cdmkit.runs import Run
from tests import tiny
from tests.launching import slurm
from tests.launching.processes import wait_until


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in where Slurm's commands have stand-ins."""
    slurm.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_dry_run_prints_the_scripts(cluster: Path) -> None:
    """A job for each stage and one that samples; nothing is submitted or made."""
    tiny.write(cluster)
    before = sorted(cluster.iterdir())
    result = tiny.call("launch", "tiny.toml", "--dry-run", "--devices", 4, "--partition", "gpu", "--account", "us", "--time", "1:00:00")
    assert result.exit_code == 0, result.stderr
    assert sorted(cluster.iterdir()) == before
    assert result.stdout.count("#!/bin/bash\n") == 3
    lines = result.stdout.splitlines()
    assert lines.count("#SBATCH --partition=gpu") == lines.count("#SBATCH --account=us") == lines.count("#SBATCH --time=1:00:00") == 3
    commands = [line for line in lines if "srun " in line]
    assert ["-jobs/recipe.toml --run " in line for line in commands] == [True] * 3
    assert ["--devices 4" in line for line in commands] == [True, True, False]
    last = "sbatch --parsable --dependency=afterok:<id of base>:<id of fine> --kill-on-invalid-dep=yes"
    assert f"# {last}" in lines
    told = json.loads(tiny.call("launch", "tiny.toml", "--dry-run", "--json").stdout)
    assert [job["job"] for job in told] == ["base", "fine", "sampling"]
    assert " ".join(told[-1]["command"]) == last


def test_the_jobs_ids_are_printed(cluster: Path) -> None:
    """With the run that they work on, which none of them has made yet, and where they log to."""
    tiny.write(cluster)
    result = tiny.call("launch", "tiny.toml", "--json", "--slurm", "cpus-per-task=16", "--slurm", "exclusive")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert [(job["job"], job["id"]) for job in told["jobs"]] == [("base", "1"), ("fine", "2"), ("sampling", "3")]
    run = Path(told["run"])
    assert run.parent == cluster / "runs" / "tiny"
    assert not run.exists()
    assert told["jobs"][0]["log"] == f"{run}-jobs/base-1.log"
    script = (cluster / "1.sh").read_text()
    assert "\n#SBATCH --cpus-per-task=16\n#SBATCH --exclusive\n" in script
    again = json.loads(tiny.call("launch", "tiny.toml", "--json").stdout)
    assert again["run"] != told["run"]


def test_stages_that_are_named_are_trained_and_nothing_is_sampled(cluster: Path) -> None:
    """In the run that is named."""
    tiny.write(cluster)
    result = tiny.call("launch", "tiny.toml", "--stage", "fine", "--run", "here", "--set", "seed=1")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.split()[-3:] == ["fine", "1", f"{cluster}/here-jobs/fine-1.log"]
    assert not (cluster / "2.sh").exists()
    assert f"run {cluster}/here-jobs/recipe.toml --run {cluster}/here --stage fine\n" in (cluster / "1.sh").read_text()


def test_jobs_keep_to_the_recipe_as_it_was(cluster: Path) -> None:
    """What is laid on it is in it, and the file may be changed while jobs wait."""
    recipe = tiny.write(cluster)
    assert tiny.call("launch", "tiny.toml", "--run", "here", "--set", "seed=7").exit_code == 0
    recipe.write_text("changed")
    kept = tiny.call("show", cluster / "here-jobs" / "recipe.toml")
    assert kept.exit_code == 0, kept.stderr
    assert "seed = 7" in kept.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--stage", "fin"], 2, 'did you mean "fine"?'),
        (["--slurm", "--time=3"], 2, "KEY or KEY=VALUE"),
        (
            [f"--set=stage.{stage}.{key}" for stage in ("base", "fine") for key in ('weights="w"', "train.steps=0")],
            2,
            "no stage is trained",
        ),
        (["--resume"], 2, "there is no run"),
        (["--set", "stage.base.resolution=-4"], 3, "resolution"),
    ],
)
def test_nothing_is_submitted_where_something_is_wrong(cluster: Path, arguments: list[str], code: int, message: str) -> None:
    """It is found before."""
    tiny.write(cluster)
    result = tiny.call("launch", "tiny.toml", *arguments)
    assert (result.exit_code, message in result.stderr) == (code, True), result.stderr
    assert not list(cluster.glob("*.sh"))


@pytest.mark.slow
def test_jobs_on_two_nodes_stop_queue_anew_and_make_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One stage is stopped when its time is nearly over, and goes on when it starts again; the last job samples."""
    slurm.install(tmp_path / "bin", slurm.SRUN_ON_TWO_NODES)
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "FAKE_SLURM": str(tmp_path), "FAKE_NODES": "127.0.0.1"}
    for name, value in {**environment, "SLURM_JOB_ID": str(10_000 + os.getpid() % 10_000), "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    result = tiny.call("launch", tiny.write(tmp_path), "--runs", tmp_path, "--nodes", 2, "--json", "--set", "stage.base.train.steps=400")
    assert result.exit_code == 0, result.stderr
    run = Run(Path(json.loads(result.stdout)["run"]))

    def start(job: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["bash", tmp_path / f"{job}.sh"], stdout=subprocess.DEVNULL)

    base = start(1)
    wait_until(lambda: run.steps().get("base", 0) > 4, seconds=60)
    os.kill(int((tmp_path / "srun").read_text()), signal.SIGUSR1)
    assert base.wait(60) == 75
    assert (tmp_path / "requeued").exists()
    assert 4 < run.steps()["base"] < 400
    assert [start(job).wait(90) for job in (1, 2, 3)] == [0, 0, 0]
    assert run.steps() == {"base": 400, "fine": 4}
    assert (run.path / "samples" / "fine.png").is_file()
