"""Training one stage, from nothing or from where it was left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from cdmkit.cascade import Stage
from cdmkit.cascade.memory import out_of_memory
from cdmkit.data.resize import Resize
from cdmkit.errors import NumericsError, SetupError, Stopped
from cdmkit.events import Emit, StageStarted, Warned
from cdmkit.kinds import Batches, Session, Source
from cdmkit.training.checkpoint import load_latest, place
from cdmkit.training.learner import Learner
from cdmkit.training.progress import Meter
from cdmkit.training.saving import Saver
from cdmkit.training.step import Objective
from cdmkit.training.stopping import StopRequest
from cdmkit.training.watched import Left, Watched

BAD_STEPS = 3
"""Steps in a row with NaN or infinity after which training stops."""

SampleGrid = Callable[[nn.Module, int], None]
"""Draws samples with the averaged network at a step."""


def train(
    stage: Stage,
    parent: Stage | None,
    *,
    source: Source,
    downsample: Resize,
    classes: int,
    seed: int,
    folder: Path,
    metadata: Mapping[str, Any],
    emit: Emit,
    stop: StopRequest,
    sample: SampleGrid | None = None,
) -> Path:
    """Train `stage` to `stage.train.steps` and give the path of its last checkpoint.

    Goes on from the newest checkpoint under `folder`/ckpt, if any: killed at any instant and called again, it ends with the same bits as
    if it had not been disturbed (on a CPU, with the same number of threads and the same `accumulate`).

    parent: the stage that `stage` is conditioned on. classes: labels of the data. metadata: what the weights files shall carry.
    Raises Stopped after saving where `stop` is set, NumericsError at `BAD_STEPS` bad steps in a row, CheckpointError where saving or
    restoring fails, SetupError where the device lacks memory.
    """
    session = stage.backend.start()
    checkpoints = folder / "ckpt"
    checkpoints.mkdir(parents=True, exist_ok=True)
    with out_of_memory(_too_much(stage)):
        learner = Learner(stage, classes=classes, seed=seed, session=session)
        saved = load_latest(checkpoints, lambda message: emit(Warned(message=message)))
        if saved is not None:
            learner.restore(saved)
        objective = Objective.of(
            stage, parent, learner.network, learner.timesteps, classes=classes, downsample=downsample, seed=seed, session=session
        )
        emit(StageStarted(stage=stage.name, step=learner.step, steps=stage.train.steps, parameters=learner.parameter_count()))
        saver = Saver(checkpoints, learner, metadata, emit, saved.step if saved else None)
        if learner.step < stage.train.steps:
            with Watched(_open(source, stage, session, seed, learner.step), classes, stop) as batches:
                _run(learner, objective, batches, saver, Meter(stage, learner, emit), stop, sample)
    return place(checkpoints, learner.step)


def _open(source: Source, stage: Stage, session: Session, seed: int, step: int) -> Batches:
    """The stream of this rank's parts of batches, from the first image that `step` steps have not seen."""
    parts = stage.train.accumulate * session.world
    if stage.train.batch % parts:
        raise SetupError(
            f"stage {stage.name!r}: batch = {stage.train.batch} cannot be split over {session.world} devices into "
            f"accumulate = {stage.train.accumulate} parts each: make it a multiple of {parts}"
        )
    return source.open(stage.train.batch // parts, session.rank, session.world, seed, step * stage.train.batch)


def _run(
    learner: Learner, objective: Objective, batches: Batches, saver: Saver, meter: Meter, stop: StopRequest, sample: SampleGrid | None
) -> None:
    """Step until the end or until told to stop; then tell what of the data was left out."""
    try:
        _steps(learner, objective, batches, saver, meter, stop, sample)
    except Left:
        _stopped(learner, saver, stop)
    finally:
        meter.tell(batches.skips())


def _stopped(learner: Learner, saver: Saver, stop: StopRequest) -> None:
    """Save, and raise Stopped."""
    saver.save(last_chance=True)
    where = f"step {learner.step} of {learner.stage.train.steps} of stage {learner.stage.name!r}"
    raise Stopped(f"stopped by {stop.reason} at {where}; all is saved. Go on with the same command and --resume")


def _steps(
    learner: Learner, objective: Objective, batches: Batches, saver: Saver, meter: Meter, stop: StopRequest, sample: SampleGrid | None
) -> None:
    session, pace = objective.session, learner.stage.train
    while learner.step < pace.steps:
        if stop.requested:
            _stopped(learner, saver, stop)
        lr = learner.lr
        meter.add(learner.update(objective, batches))
        session.boundary()
        ends = learner.step == pace.steps
        reports = ends or learner.step % pace.log_every == 0
        saves = ends or learner.step % pace.checkpoint_every == 0
        shows = pace.sample_every and learner.step % pace.sample_every == 0
        if reports or saves or shows or session.device.type == "cpu":  # on a CPU looking costs nothing
            _check(learner, saver)
        if reports:
            meter.tell(batches.skips())
            meter.report(lr, batches.skipped)
        with meter.paused():
            if saves:
                saver.save(last_chance=ends)
            if sample and shows:
                sample(learner.ema.module, learner.step)


def _check(learner: Learner, saver: Saver) -> None:
    """Raise NumericsError where too many steps in a row were bad. Such steps moved nothing, so the last checkpoint is good."""
    if int(learner.most_bad_steps) >= BAD_STEPS:
        raise NumericsError(
            f"stage {learner.stage.name!r}: loss or gradient was NaN or infinite {BAD_STEPS} steps in a row, by step {learner.step}; "
            f'{saver.last}. Lower lr, set clip_grad or use precision = "fp32".'
        )


def _too_much(stage: Stage) -> str:
    """What to say where the device has not enough memory to train a stage."""
    train = stage.train
    at_once = f"{train.batch // train.accumulate} images of {stage.resolution} x {stage.resolution}"
    return (
        f"stage {stage.name!r}: the device has not enough memory for {at_once} at once. "
        f"Raise train.accumulate (now {train.accumulate}) or lower train.batch (now {train.batch})."
    )
