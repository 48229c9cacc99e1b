"""Training as several processes: the same images, noise and weights; exact resume; and nobody waits for the dead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.training.components import contents

ROOT = Path(__file__).parents[2]
Ends = list[list[tuple[int, str]]]
"""For every go, how each process ended and what it said."""


def train(folder: Path, *goes: dict[str, Any]) -> Ends:
    """Run goes of `tests.training.ranks` one after another."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.training.ranks", str(folder), json.dumps(goes)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    ends: Ends = json.loads(done.stdout)
    return ends


def all_well(ends: Ends) -> bool:
    assert all(code == 0 for go in ends for code, _ in go), ends
    return True


def checkpoint(folder: Path, step: int = 6) -> Path:
    return folder / "ckpt" / f"step-{step:08d}"


def apart(one: Path, other: Path, file: str = "ema") -> float:
    """The largest difference between the tensors of two checkpoints."""
    mine, theirs = (load_file(checkpoint(folder) / f"{file}.safetensors") for folder in (one, other))
    assert mine.keys() == theirs.keys()
    return max(float((mine[name] - theirs[name]).abs().max()) for name in mine)


@pytest.mark.parametrize("options", [{}, {"stage": "sr", "density": "loss-aware"}], ids=["base", "super-resolution"])
def test_the_number_of_processes_changes_nothing_but_rounding(tmp_path: Path, options: dict[str, Any]) -> None:
    """One, two and four processes, whole or split networks, parts of a batch: after six steps weights and averages agree within 1e-6."""
    two_parts = {"train": {"accumulate": 2, "clip_grad": 0.5}}
    ends = train(
        tmp_path,
        {"world": 1, "folder": "one", "train": {"clip_grad": 0.5}, **options},
        {"world": 2, "folder": "two", **two_parts, **options},
        {"world": 4, "folder": "four", "train": {"clip_grad": 0.5}, **options},
        {"world": 2, "folder": "split", "parallel": "fsdp", **two_parts, **options},
    )
    assert all_well(ends)
    for other in ("two", "four", "split"):
        for file in ("ema", "weights"):
            assert apart(tmp_path / "one", tmp_path / other, file) < 1e-6


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_resumed_processes_end_with_the_same_bits(tmp_path: Path, parallel: str, world: int) -> None:
    """As many processes as before, stopped half-way and gone on with, write the files that undisturbed ones write."""
    go = {"world": world, "parallel": parallel, "stage": "sr"}
    halves = ({**go, "folder": "halves", "train": {"steps": steps}} for steps in (3, 6))
    assert all_well(train(tmp_path, {**go, "folder": "whole"}, *halves))
    assert contents(checkpoint(tmp_path / "halves")) == contents(checkpoint(tmp_path / "whole"))


def test_others_go_on_where_some_stopped(tmp_path: Path) -> None:
    """Two processes that split the network hand over to four that do not: within 1e-6 of two that were not disturbed."""
    ends = train(
        tmp_path,
        {"world": 2, "folder": "two"},
        {"world": 2, "folder": "more", "parallel": "fsdp", "train": {"steps": 3}},
        {"world": 4, "folder": "more"},
    )
    assert all_well(ends)
    assert apart(tmp_path / "two", tmp_path / "more") < 1e-6


def test_samples_change_nothing(tmp_path: Path) -> None:
    """A split average that is called between steps is whole for the call alone."""
    split = {"world": 2, "parallel": "fsdp"}
    assert all_well(train(tmp_path, {**split, "folder": "seen", "shows": True}, {**split, "folder": "unseen"}))
    assert contents(checkpoint(tmp_path / "seen")) == contents(checkpoint(tmp_path / "unseen"))


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_network_may_have_parameters_without_a_part_in_the_loss(tmp_path: Path, parallel: str) -> None:
    """Here those of labels, where there are none: they stay as they are, as they do alone."""
    go = {"classes": 0, "train": {"accumulate": 2}}
    assert all_well(train(tmp_path, {**go, "world": 1, "folder": "one"}, {**go, "world": 2, "folder": "two", "parallel": parallel}))
    assert apart(tmp_path / "one", tmp_path / "two", "weights") < 1e-6


def test_a_killed_process_ends_the_others(tmp_path: Path) -> None:
    """They say that another one is gone; going on gives the bits of the undisturbed run."""
    killed, *others = train(
        tmp_path,
        {"world": 2, "folder": "killed", "signal": [1, 5, "SIGKILL"]},
        {"world": 2, "folder": "killed"},
        {"world": 2, "folder": "whole"},
    )
    assert [code for code, _ in killed] == [1, -9]
    assert "since another one is gone" in killed[0][1]
    assert all_well(others)
    assert contents(checkpoint(tmp_path / "killed")) == contents(checkpoint(tmp_path / "whole"))


def test_a_signal_to_one_stops_all(tmp_path: Path) -> None:
    """All agree on the step, save it and end with 75; going on gives the bits of the undisturbed run."""
    stopped, *others = train(
        tmp_path,
        {"world": 2, "folder": "stopped", "train": {"steps": 9}, "signal": [1, 4, "SIGTERM"]},
        {"world": 2, "folder": "stopped", "train": {"steps": 9}},
        {"world": 2, "folder": "whole", "train": {"steps": 9}},
    )
    assert [code for code, _ in stopped] == [75, 75]
    assert "stopped by what another process was told at step 5 of 9" in stopped[0][1]
    assert "stopped by SIGTERM at step 5 of 9" in stopped[1][1]
    assert all_well(others)
    assert contents(checkpoint(tmp_path / "stopped", 9)) == contents(checkpoint(tmp_path / "whole", 9))


def test_nan_in_one_process_moves_none(tmp_path: Path) -> None:
    """A bad step of one is a bad step of all; the third in a row ends all with 6, and names the images that were at fault, not others."""
    one_bad, three_bad = train(
        tmp_path,
        {"world": 2, "folder": "one", "bad": [5]},
        {"world": 2, "folder": "three", "bad": [7, 8, 9], "train": {"steps": 9}},
    )
    assert all_well([one_bad])
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(checkpoint(tmp_path / "one") / "weights.safetensors").values())
    assert [code for code, _ in three_bad] == [6, 6]
    for _, message in three_bad:  # two calls settle the order of sums, so that call 9 is step 7
        assert "by step 7" in message
        assert "the loss of 2 of 4 images was not finite: position 25 at timestep" in message
        assert "position 27 at timestep" in message
        assert "position 24" not in message


@pytest.mark.parametrize(("step", "where"), [(3, "in update"), pytest.param(0, "in check_equal_steps", marks=pytest.mark.slow)])
def test_a_halted_process_is_found_out(tmp_path: Path, step: int, where: str) -> None:
    """Where one process stands still, as it trains or before that, the others print where they stand and end."""
    go = {"world": 2, "folder": "halted", "train": {"steps": 6}}
    if step == 0:
        assert all_well(train(tmp_path, {**go, "train": {"steps": 3}}))
        damaged = checkpoint(tmp_path / "halted", 5)
        damaged.mkdir()
        (damaged / "state.json").touch()
    (halted,) = train(tmp_path, {**go, "patience": 4, "signal": [1, step, "SIGSTOP"]})
    (code, said), _ = halted
    assert code == 1
    assert "Timeout" in said
    assert where in said


def test_a_batch_must_come_out_even(tmp_path: Path) -> None:
    """A batch that cannot be dealt out equally is refused by all, with the numbers."""
    odd = ({"world": 2, "folder": "odd", "train": {"batch": batch}} for batch in (1, 3))
    for batch, ends in zip((1, 3), train(tmp_path, *odd), strict=True):
        assert [code for code, _ in ends] == [4, 4]
        assert f"batch = {batch} cannot be split equally over 2 devices" in ends[0][1]
