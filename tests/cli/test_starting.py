"""`cdmkit run` where it starts others of itself: on several devices, and for several stages at the same time."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import click
import pytest

from cdmkit.cli import main
from cdmkit.cli.starting import arguments
from cdmkit.runs import Run
from tests import tiny
from tests.launching.processes import wait_until


def context(*words: str) -> click.Context:
    """That of `cdmkit run` with these words."""
    outer = click.Context(main)
    command = main.get_command(outer, "run")
    assert command is not None
    return command.make_context("run", list(words), parent=outer)


def test_a_command_line_is_told_again_but_for_what_changes() -> None:
    """Options that are not given are left out, and those that can be repeated are."""
    words = ("my recipe.toml", "--set", "a=1", "--set", 'b="x y"', "--run", "here", "--resume", "--devices", "2", "--restarts", "0")
    told = arguments(context(*words), devices=4, stage="base")
    assert told == [*words[:5], "--runs", "runs", *words[5:8], "--stage", "base", "--devices", "4", "--restarts", "0"]
    assert context(*told).params == {**context(*words).params, "devices": 4, "stage": "base"}


@pytest.mark.parametrize(
    "words",
    [
        ["--restarts", "2"],
        ["--nodes", "2"],
        ["--devices", "0"],
        ["--parallel-stages", "--stage", "base"],
        ["--parallel-stages", "--devices", "2", "--nodes", "2"],
        ["--devices", "2", "--nodes", "2", "--restarts", "1"],
        ["--devices", "2", "--nodes", "2"],
    ],
    ids=" ".join,
)
def test_options_that_do_not_go_together_are_usage_errors(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is started."""
    monkeypatch.delenv("SLURM_NODEID", raising=False)
    assert tiny.call("run", tiny.write(tmp_path), "--runs", tmp_path / "runs", *words).exit_code == 2
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("option", [("--devices", "2"), ("--parallel-stages",)])
def test_one_of_several_processes_starts_no_others(option: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchrun has options of its own for that."""
    monkeypatch.setenv("RANK", "0")
    result = tiny.call("run", tiny.write(tmp_path), *option)
    assert (result.exit_code, "RANK is set" in result.stderr) == (2, True)


def test_a_run_on_two_devices_makes_what_one_makes(tmp_path: Path) -> None:
    """A grid of the same stages, whose path alone is on stdout."""
    process = tiny.start("run", tiny.write(tmp_path), "--runs", tmp_path / "runs", "--devices", 2)
    code, out, err = tiny.finish(process)
    assert code == 0, err
    grid = Path(out.removesuffix("\n"))
    assert grid.is_file()
    assert Run(grid.parents[1]).steps() == {"base": 4, "fine": 4}


def test_processes_that_start_again_go_on_in_their_own_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in the newest, which someone else has begun since, though it was the newest that they were told to go on with."""
    recipe = tiny.write(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "ours")
    ours = tiny.run(recipe)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "others")
    assert tiny.run(recipe) != ours
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "ours")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert tiny.run(recipe, "--resume") == ours


@pytest.mark.slow
def test_stages_trained_at_the_same_time_make_the_run_that_one_by_one_make(tmp_path: Path) -> None:
    """To the bit. They are not trained again; the whole is sampled at the end."""
    recipe = tiny.write(tmp_path)
    code, out, err = tiny.finish(tiny.start("run", recipe, "--runs", tmp_path / "together", "--parallel-stages"))
    assert code == 0, err
    assert "[base] base: trained, 4 steps" in err
    assert "[fine] fine: trained, 4 steps" in err
    assert "\nbase: trained already, unchanged, 4 steps\n" in err
    together, one_by_one = Path(out.strip()).parents[1], tiny.run(recipe)
    for stage in ("base", "fine"):
        assert tiny.weights(together, stage) == tiny.weights(one_by_one, stage)
    assert Path(out.strip()).read_bytes() == (one_by_one / "samples" / "fine.png").read_bytes()


@pytest.mark.slow
def test_a_killed_process_costs_no_more_than_what_was_not_saved(tmp_path: Path) -> None:
    """All start again and go on in the same run, whose weights are those of one that was not disturbed."""
    recipe, folder, steps = tiny.write(tmp_path), tmp_path / "killed", "stage.base.train.steps=200"
    process = tiny.start("run", recipe, "--run", folder, "--devices", 2, "--set", steps)
    wait_until(lambda: Run(folder).steps().get("base", 0) > 4, seconds=60)
    children = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    *_, last = (pid for pid in children if b"cdmkit" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(last, signal.SIGKILL)
    code, out, err = tiny.finish(process)
    assert (code, out) == (0, f"{folder / 'samples' / 'fine.png'}\n"), err
    assert "rank 1 died of SIGKILL" in err
    assert "all start again (1 of 3 restarts)" in err
    whole = tmp_path / "whole"
    assert tiny.finish(tiny.start("run", recipe, "--run", whole, "--devices", 2, "--set", steps))[0] == 0
    assert tiny.weights(folder) == tiny.weights(whole)


@pytest.mark.slow
@pytest.mark.parametrize("option", [("--devices", "2"), ("--parallel-stages",)], ids=lambda option: option[0])
def test_a_stopped_run_saves_and_goes_on(option: tuple[str, ...], tmp_path: Path) -> None:
    """Exit code 75 on a signal; then the same command with --resume."""
    recipe, folder = tiny.write(tmp_path), tmp_path / "run"
    command = ("run", recipe, "--run", folder, "--set", "stage.base.train.steps=100000", *option)
    process = tiny.start(*command)
    wait_until(lambda: Run(folder).steps().get("base", 0) > 4, seconds=60)
    process.send_signal(signal.SIGTERM)
    code, out, err = tiny.finish(process)
    assert (code, out) == (75, ""), err
    saved = Run(folder).steps()["base"]
    code, out, err = tiny.finish(tiny.start(*command, "--resume", "--set", f"stage.base.train.steps={saved + 2}"))
    assert (code, out) == (0, f"{folder / 'samples' / 'fine.png'}\n"), err
    assert f"from step {saved}" in err
