"""A run under torchrun, as on one machine of a cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cdmkit.runs import Run, list_runs
from tests import tiny

STEPS = ("--set", "stage.base.train.steps=200", "--set", "stage.base.train.checkpoint_every=20", "--set", "stage.base.train.sample_every=0")


def torchrun(recipe: Path, *arguments: str) -> subprocess.Popen[str]:
    """Two processes that train a recipe, in a session of their own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    command += ["-m", "cdmkit", "run", str(recipe), "--runs", str(recipe.parent / "runs"), *STEPS, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)


def end(process: subprocess.Popen[str], seconds: float) -> tuple[str, str]:
    """Let it end by itself within some seconds."""
    try:
        return process.communicate(timeout=seconds)
    finally:
        os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None


def run_of(recipe: Path) -> Run:
    """The only run of the recipe, when it has saved something."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for run in list_runs(recipe.parent / "runs"):
            if run.steps().get("base", 0) >= 40:
                return run
        time.sleep(0.1)
    raise AssertionError("nothing was saved")


def workers(launcher: int) -> list[int]:
    """The processes that torchrun started."""
    return [int(pid) for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]


@pytest.mark.slow
def test_a_killed_process_costs_no_more_than_what_was_not_saved(tmp_path: Path) -> None:
    """Torchrun starts all again, they go on in the same run, and its weights are those of one that was not disturbed."""
    recipe = tiny.write(tmp_path / "killed")
    process = torchrun(recipe)
    run = run_of(recipe)
    os.kill(workers(process.pid)[-1], signal.SIGKILL)
    out, err = end(process, 60)
    assert process.returncode == 0, err
    assert "from step" in err
    assert out == f"{run.path / 'samples' / 'fine.png'}\n"
    assert [each.path for each in list_runs(tmp_path / "killed" / "runs")] == [run.path]
    undisturbed = tiny.write(tmp_path / "whole")
    process = torchrun(undisturbed)
    _, err = end(process, 60)
    assert process.returncode == 0, err
    (whole,) = list_runs(tmp_path / "whole" / "runs")
    assert tiny.weights(run.path) == tiny.weights(whole.path)
