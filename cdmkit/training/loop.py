"""Training one stage, from nothing or from where it was left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from cdmkit.cascade import Stage
from cdmkit.cascade.memory import out_of_memory
from cdmkit.cascade.sampling import Tick
from cdmkit.data.resize import Resize
from cdmkit.errors import NumericsError, SetupError, Stopped
from cdmkit.events import Emit, StageStarted, Warned
from cdmkit.kinds import Batch, Batches, Session, Source
from cdmkit.training.checkpoint import load_latest, place
from cdmkit.training.learner import Learner
from cdmkit.training.progress import Meter
from cdmkit.training.saving import Saver
from cdmkit.training.snapshots import Snapshots
from cdmkit.training.step import Objective
from cdmkit.training.stopping import StopRequest
from cdmkit.training.together import check_equal_steps, losing_peers, wait_for_all, watchdog
from cdmkit.training.watched import Left, Watched

SampleGrid = Callable[[nn.Module, int, Tick], None]
"""Draws samples with the averaged network at a step; is to call the last now and then, and be ended by what that raises."""


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
    Of several processes (see `Session`) each calls this, and the first one writes. With as many processes as before a resumed run has the
    same bits, too; with more or fewer every image and its noise are the same, and sums differ by rounding.

    Raises Stopped after saving where `stop` is set in any process, NumericsError after `train.bad_steps` bad steps in a row,
    CheckpointError where saving or restoring fails, SetupError where the device lacks memory, PeerLost where another process is gone.
    """
    session = stage.backend.start()
    at_once = check_shares(stage, session)
    checkpoints = folder / "ckpt"
    checkpoints.mkdir(parents=True, exist_ok=True)
    with out_of_memory(too_much(stage)), losing_peers(session), watchdog(session) as alive:
        learner = Learner(stage, classes=classes, seed=seed, session=session)
        saved = load_latest(checkpoints, lambda message: emit(Warned(message=message)))
        if saved is not None:
            learner.restore(saved)
            saved = attrs.evolve(saved, tensors={})  # closes its files, which take room on the disk while they are open, removed or not
        check_equal_steps(session, learner.step)
        objective = Objective.of(
            stage, parent, learner.shared, learner.timesteps, classes=classes, downsample=downsample, seed=seed, session=session
        )
        if session.world > 1:
            learner.settle(objective, _blank(at_once, stage.resolution))
        emit(StageStarted(stage=stage.name, step=learner.step, steps=stage.train.steps, parameters=learner.parameter_count()))
        if learner.step < stage.train.steps:
            leaves = stop if session.world == 1 else StopRequest()  # nobody may leave alone while others wait for their gradients
            with (
                Watched(
                    source.open(at_once, session.rank, session.world, seed, learner.step * stage.train.batch), classes, leaves
                ) as batches,
                Saver(checkpoints, learner, metadata, emit, saved) as saver,
            ):
                snapshots = Snapshots(folder / "averages", learner, metadata, emit)
                _Loop(learner, objective, batches, saver, snapshots, Meter(stage, learner, emit, classes), stop, alive, sample).run()
    return place(checkpoints, learner.step)


def check_shares(stage: Stage, session: Session) -> int:
    """How many images this process works on at once: a part of its share of a batch. Raises SetupError where they do not come out even."""
    batch, accumulate = stage.train.batch, stage.train.accumulate
    if batch % (accumulate * session.world):
        each = f", each in accumulate = {accumulate} parts" if accumulate > 1 else ""
        raise SetupError(
            f"stage {stage.name!r}: batch = {batch} cannot be split equally over {session.world} devices{each}: "
            f"make it a multiple of {accumulate * session.world}"
        )
    return batch // (accumulate * session.world)


def _blank(count: int, resolution: int) -> Batch:
    """Black images."""
    images = torch.zeros(count, 3, resolution, resolution, dtype=torch.uint8)
    return Batch(images, torch.zeros(count, dtype=torch.int64), torch.arange(count))


@attrs.frozen(eq=False)
class _Loop:
    """A stage at its training."""

    learner: Learner
    objective: Objective
    batches: Batches
    saver: Saver
    snapshots: Snapshots
    meter: Meter
    stop: StopRequest
    alive: Callable[[], None]
    """Puts off the end by the watchdog."""
    sample: SampleGrid | None

    def run(self) -> None:
        """Step until the end or until told to stop; then tell what of the data was left out."""
        try:
            self._steps()
        except Left:
            self._stopped()
        finally:
            self.meter.tell(self.batches.skips())

    def _steps(self) -> None:
        learner, session, pace = self.learner, self.learner.session, self.learner.stage.train
        while learner.step < pace.steps:
            if session.agree(self.stop.requested):
                self._stopped()
            self.alive()
            lr = learner.lr
            update = learner.update(self.objective, self.batches)
            self.meter.add(update)
            self.saver.add(update)
            session.boundary()
            ends = learner.step == pace.steps
            reports = ends or learner.step % pace.log_every == 0
            saves = ends or learner.step % pace.checkpoint_every == 0
            shows = pace.sample_every and learner.step % pace.sample_every == 0
            if reports or saves or shows or self.snapshots.due or session.device.type == "cpu":  # on a CPU looking costs nothing
                self._check()
            if reports:
                self.meter.tell(self.batches.skips())
                self.meter.report(lr, self.batches.skipped)
            with self.meter.paused():
                if self.snapshots.due:
                    self.snapshots.take()
                if saves:
                    self._save(ends)
                if self.sample and shows:
                    self._show(self.sample)

    def _show(self, sample: SampleGrid) -> None:
        """Sample, in each process alike, until done; alone, it may be left before, to save and stop."""

        def tick(_stage: str) -> None:
            self.alive()
            if self.learner.session.world == 1 and self.stop.requested:
                raise Left

        with contextlib.suppress(Left):
            sample(self.learner.ema.module, self.learner.step, tick)

    def _save(self, last_chance: bool) -> None:
        """Save. On the last chance go on when the checkpoint stands: launchers end all processes soon after the first one leaves."""
        self.saver.save(last_chance=last_chance)
        if last_chance:
            wait_for_all(self.learner.session)

    def _stopped(self) -> None:
        """Save, and raise Stopped."""
        self._save(True)
        reason = self.stop.reason if self.stop.requested else "what another process was told"
        where = f"step {self.learner.step} of {self.learner.stage.train.steps} of stage {self.learner.stage.name!r}"
        raise Stopped(f"stopped by {reason} at {where}; all is saved. Go on with the same command and --resume")

    def _check(self) -> None:
        """Raise NumericsError where too many steps in a row were bad. Such steps moved nothing, so the last checkpoint is good."""
        train = self.learner.stage.train
        if int(self.learner.most_bad_steps) < train.bad_steps:
            return
        found = self.learner.last_bad
        images = found.images(self.learner.session, train.batch, self.batches.where) if found else ""
        in_a_row = f" {train.bad_steps} steps in a row" if train.bad_steps > 1 else ""
        raise NumericsError(
            f"stage {self.learner.stage.name!r}: loss or gradient was NaN or infinite{in_a_row}, by step {self.learner.step}; "
            f'{self.saver.last}. {images}Lower lr, set clip_grad or use precision = "fp32"; train.bad_steps says how many are borne.'
        )


def too_much(stage: Stage) -> str:
    """What to say where the device has not enough memory to train a stage."""
    train = stage.train
    at_once = f"{train.batch // train.accumulate} images of {stage.resolution} x {stage.resolution}"
    return (
        f"stage {stage.name!r}: the device has not enough memory for {at_once} at once. "
        f"Raise train.accumulate (now {train.accumulate}) or lower train.batch (now {train.batch})."
    )
