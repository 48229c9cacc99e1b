"""Training a stage: pace, events, faults, and going on after any end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

from cdmkit.builtin.densities import LossAware
from cdmkit.builtin.schedules import Cosine
from cdmkit.cascade.sampling import Tick
from cdmkit.component import component
from cdmkit.diffusion import Condition, Noised, Output, Parameterization
from cdmkit.errors import CheckpointError, NumericsError, SetupError, Stopped
from cdmkit.events import CheckpointSaved, Event, Progress, StageStarted, Warned
from cdmkit.kinds import Backbone, Loss, NetworkSpec
from cdmkit.training import StopRequest
from cdmkit.training.checkpoint import latest, load
from tests.training.components import Tiny, contents, make_sr_stage, make_stage, run
from tests.training.test_checkpoint import full_disk, truncate

DRIVER = Path(__file__).with_name("driver.py")


def test_events_tell_how_training_goes(tmp_path: Path) -> None:
    """Start, progress every `log_every` steps and at the end, a checkpoint every `checkpoint_every` and at the end."""
    path, events = run(make_stage({"steps": 7, "log_every": 3, "checkpoint_every": 4, "warmup": 14}), tmp_path)
    (started,) = [e for e in events if isinstance(e, StageStarted)]
    assert (started.stage, started.step, started.steps, started.parameters) == ("base", 0, 7, 499)
    progress = [e for e in events if isinstance(e, Progress)]
    assert [(e.step, e.images) for e in progress] == [(3, 12), (6, 24), (7, 28)]
    assert [e.lr for e in progress] == pytest.approx([0.01 * n / 14 for n in (3, 6, 7)])
    assert all(e.images_per_second > 0 and e.grad_norm > 0 and 0 < e.loss < 10 for e in progress)
    assert progress[0].eta > progress[-1].eta == 0
    saved = [e for e in events if isinstance(e, CheckpointSaved)]
    assert [e.step for e in saved] == [4, 7]
    assert path == saved[-1].path == tmp_path / "ckpt" / "step-00000007"


def test_samples_are_drawn_from_the_average(tmp_path: Path) -> None:
    """The sample function gets the averaged module, in eval mode, every `sample_every` steps, and cannot disturb training."""
    seen: list[int] = []

    def sample(network: nn.Module, step: int, _tick: Tick) -> None:
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())
        torch.manual_seed(0)
        network(torch.randn(2, 3, 8, 8), torch.ones(2), Condition(torch.zeros(2, dtype=torch.int64)))
        seen.append(step)

    sampled, _ = run(make_stage({"sample_every": 2}), tmp_path / "a", sample=sample)
    plain, _ = run(make_stage(), tmp_path / "b", sample=sample)
    assert seen == [2, 4, 6]
    assert contents(sampled) == contents(plain)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumed_run_ends_with_the_same_bits(tmp_path: Path, accumulate: int) -> None:
    """A super-resolution stage with dropout and augmentation, trained in three goes, equals one trained in one, file by file."""
    whole, _ = run(make_sr_stage({"accumulate": accumulate, "ema_ramp": True}), tmp_path / "whole", parent=make_stage(resolution=4))
    for steps in (2, 5, 6):
        stage = make_sr_stage({"accumulate": accumulate, "ema_ramp": True, "steps": steps})
        path, _ = run(stage, tmp_path / "parts", parent=make_stage(resolution=4))
    assert contents(path) == contents(whole)


def test_finished_training_is_left_alone(tmp_path: Path) -> None:
    """Training that has its steps already gives its checkpoint and does nothing."""
    path, _ = run(make_stage(), tmp_path)
    before = contents(path)
    again, events = run(make_stage(), tmp_path)
    assert again == path
    assert contents(path) == before
    assert [type(e) for e in events] == [StageStarted]


def test_stop_saves_and_resume_goes_on(tmp_path: Path) -> None:
    """A stop request lets the step finish, saves it once, and raises Stopped; going on gives the bits of the undisturbed run."""
    whole, _ = run(make_stage(), tmp_path / "whole")
    stop = StopRequest()
    saved: list[int] = []

    def ask(event: Event) -> None:
        if isinstance(event, Progress) and event.step == 2:
            stop.request("SIGTERM")
        if isinstance(event, CheckpointSaved):
            saved.append(event.step)

    stage = make_stage({"log_every": 2})
    with pytest.raises(Stopped, match=r"stopped by SIGTERM at step 2 of 6 of stage 'base'.*--resume"):
        run(stage, tmp_path / "run", emit=ask, stop=stop)
    assert saved == [2]
    with pytest.raises(Stopped):
        run(stage, tmp_path / "run", emit=ask, stop=stop)
    assert saved == [2]
    path, _ = run(stage, tmp_path / "run")
    assert contents(path) == contents(whole)


def test_one_bad_step_is_skipped_with_a_warning(tmp_path: Path) -> None:
    """A step with NaN is left out: training ends well, says so, and the means are of the good steps."""
    path, events = run(make_stage({"steps": 4}, backbone=Tiny(nan_calls=(2,))), tmp_path)
    (warned,) = [e for e in events if isinstance(e, Warned)]
    assert "1 of 4 steps up to step 4 were skipped" in warned.message
    (progress,) = [e for e in events if isinstance(e, Progress)]
    assert 0 < progress.loss < 10
    assert all(bool(t.isfinite().all()) for tensors in load(path).tensors.values() for t in tensors.values())


def test_three_bad_steps_in_a_row_end_training(tmp_path: Path) -> None:
    """The third NaN in a row is a NumericsError that names the stage, the step and the last good checkpoint, which is untouched."""
    stage = make_stage({"steps": 20}, backbone=Tiny(nan_calls=(2, 5, 6, 7)))
    with pytest.raises(NumericsError, match=r"stage 'base'.*3 steps in a row, by step 7; .*step-00000006") as caught:
        run(stage, tmp_path)
    assert caught.value.exit_code == 6
    saved = load(tmp_path / "ckpt" / "step-00000006")
    assert saved.state["bad_steps"] == 2
    assert all(bool(t.isfinite().all()) for t in saved.tensors["weights"].values())


def test_bad_steps_are_counted_across_a_resume(tmp_path: Path) -> None:
    """Two bad steps before a stop and one after it are three in a row."""
    run(make_stage({"steps": 3}, backbone=Tiny(nan_calls=(2, 3))), tmp_path)
    with pytest.raises(NumericsError, match="by step 4"):
        run(make_stage({"steps": 6}, backbone=Tiny(nan_calls=(1,))), tmp_path)


def test_full_disk_is_outlived_for_a_while(tmp_path: Path) -> None:
    """Failed saves are warned of while training goes on; the third in a row is a CheckpointError, and the old checkpoint stands."""
    run(make_stage({"steps": 1}), tmp_path)
    warnings: list[str] = []

    def note(event: Event) -> None:
        if isinstance(event, Warned):
            warnings.append(event.message)

    with full_disk(), pytest.raises(CheckpointError, match=r"step 4 could not be saved.*step-00000001"):
        run(make_stage({"steps": 9, "checkpoint_every": 1}), tmp_path, emit=note)
    assert [f"step {n} could not be saved" in message for n, message in zip((2, 3), warnings, strict=True)] == [True, True]
    assert [path.name for path in (tmp_path / "ckpt").iterdir()] == ["step-00000001"]


def test_failed_last_save_is_an_error(tmp_path: Path) -> None:
    """Training that cannot save its end has not ended well, even at the first failure."""
    with full_disk(), pytest.raises(CheckpointError, match="there is no checkpoint yet"):
        run(make_stage({"steps": 1}), tmp_path)


def test_deleted_run_is_said(tmp_path: Path) -> None:
    """Where the run's folder is deleted while it trains, the next save says so instead of making a new one."""

    def delete(event: Event) -> None:
        if isinstance(event, CheckpointSaved):
            shutil.rmtree(tmp_path / "run")

    with pytest.raises(CheckpointError, match=r"step 6 cannot be saved.*is gone"):
        run(make_stage(), tmp_path / "run", emit=delete)
    assert not (tmp_path / "run").exists()


def test_damaged_checkpoint_costs_only_the_way_back(tmp_path: Path) -> None:
    """With the newest checkpoint damaged, training goes on from the one before, warns, and ends with the same bits."""
    whole, _ = run(make_stage({"keep": 2}), tmp_path)
    before = contents(whole)
    truncate(whole / "ema.safetensors")
    path, events = run(make_stage({"keep": 2}), tmp_path)
    (warned,) = [e for e in events if isinstance(e, Warned)]
    assert "step-00000006" in warned.message
    assert "Going on from step 3" in warned.message
    assert contents(path) == before


@component("wide")
class Wide(Backbone):
    """The tiny network by another shape."""

    def build(self, spec: NetworkSpec) -> nn.Module:
        return Tiny().build(attrs.evolve(spec, levels=1))


def test_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    """A checkpoint that does not fit names the tensors, with shapes."""
    run(make_stage(), tmp_path)
    with pytest.raises(CheckpointError, match=r"told\.weight is \[8, 1\], the network has \[8, 2\]"):
        run(make_stage(backbone=Wide()), tmp_path)


@component("greedy")
class Greedy(Loss):
    """Wants more memory than there is."""

    def __call__(self, output: Output, noised: Noised, parameterization: Parameterization) -> Tensor:
        return torch.empty(10**15)


def test_lack_of_memory_is_explained(tmp_path: Path) -> None:
    """Running out of memory says how large the batch is and what to lower."""
    with pytest.raises(SetupError, match=r"stage 'base': .*not enough memory for 4 images of 8 x 8 at once.*accumulate"):
        run(make_stage(loss=Greedy()), tmp_path)


@component("forgetful")
class Forgetful(Loss):
    """Breaks as defects do."""

    def __call__(self, output: Output, noised: Noised, parameterization: Parameterization) -> Tensor:
        raise RuntimeError("a defect")


def test_defects_are_not_called_lack_of_memory(tmp_path: Path) -> None:
    """Other errors pass through as they are."""
    with pytest.raises(RuntimeError, match="a defect"):
        run(make_stage(loss=Forgetful()), tmp_path)


@contextmanager
def driven(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The driver at work; killed on leaving, if it still is."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(DRIVER.parents[2])}
    command = [sys.executable, str(DRIVER), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def test_killed_at_every_point_of_a_save(tmp_path: Path) -> None:
    """SIGKILL before each file operation of a save, then a resume: the last complete checkpoint loads and the end has the same bits."""
    with driven("every-point", str(tmp_path)) as process:
        output, error = process.communicate(timeout=100)
    assert process.returncode == 0, error
    points = int(output)
    assert points > 30
    whole = contents(tmp_path / "whole" / "ckpt" / "step-00000002")
    for point in range(points):
        assert contents(tmp_path / f"killed-{point}" / "ckpt" / "step-00000002") == whole


def test_killed_at_random_and_resumed(tmp_path: Path) -> None:
    """Processes killed with SIGKILL at random instants, one after another, end with the bits of one that was not."""
    with driven("at-random", str(tmp_path / "killed"), "100") as process:
        output, error = process.communicate(timeout=100)
    assert process.returncode == 0, error
    assert int(output) > 0
    whole, _ = run(make_stage({"steps": 100, "checkpoint_every": 1}), tmp_path / "whole")
    assert contents(tmp_path / "killed" / "ckpt" / whole.name) == contents(whole)


def test_terminated_process_saves_and_says_stopped(tmp_path: Path) -> None:
    """SIGTERM to a training process: it saves the step it is at and leaves with code 75."""
    with driven("train", str(tmp_path), "100000") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        _, error = process.communicate(timeout=60)
    assert process.returncode == Stopped.exit_code, error
    assert "stopped by SIGTERM" in error
    saved = latest(tmp_path / "ckpt")
    assert saved is not None
    assert load(saved).step >= 1


def test_speed_is_that_of_training_alone(tmp_path: Path) -> None:
    """Time that sample grids take is not counted."""
    events: list[Event] = []
    stage = make_stage({"steps": 4, "log_every": 2, "sample_every": 1})
    run(stage, tmp_path, emit=events.append, sample=lambda _network, _step, _tick: time.sleep(0.5))
    slowest = min(event.images_per_second for event in events if isinstance(event, Progress))
    assert slowest > 2 * stage.train.batch


def test_what_a_density_learned_is_resumed(tmp_path: Path) -> None:
    """Importance sampling stopped half-way and gone on with ends with the bits of one that was not disturbed."""
    options: dict[str, Any] = {"density": LossAware(history=1), "schedule": Cosine(timesteps=4)}
    whole, _ = run(make_stage({"steps": 12}, **options), tmp_path / "whole")
    run(make_stage({"steps": 6}, **options), tmp_path / "halved")
    halved, _ = run(make_stage({"steps": 12}, **options), tmp_path / "halved")
    assert "density.safetensors" in contents(whole)
    assert contents(halved) == contents(whole)
    plain, _ = run(make_stage({"steps": 12}, schedule=Cosine(timesteps=4)), tmp_path / "plain")
    assert contents(plain)["ema.safetensors"] != contents(whole)["ema.safetensors"]
    assert "density.safetensors" not in contents(plain)
