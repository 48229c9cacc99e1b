"""Saving beside training: it waits while a copy is made, and goes on while one thread writes that. And when saving goes wrong: training
outlives a full disk for a while, but not a deleted run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any

import attrs
import torch

from cdmkit.errors import CheckpointError
from cdmkit.events import CheckpointSaved, Emit, Warned
from cdmkit.training.checkpoint import Checkpoint, latest, save
from cdmkit.training.learner import Learner, Update
from cdmkit.training.retention import Retention
from cdmkit.training.snapshots import widths
from cdmkit.training.staging import Staging

FAILURES = 3
"""Failed saves in a row after which training stops."""

LONG_WAIT, LONG_SHARE = 1.0, 0.05
"""Seconds, and part of the time between two saves, that training may wait for the one before without a word."""


class Saver:
    """Saves a learner into a folder of checkpoints; a context. `resumed`: the checkpoint there that the learner was restored from.

    There is one writer: a save that comes while another is under way waits for it. What becomes of one is told from the thread that trains,
    at its next call here. Of several processes the first one writes; the others only give it their parts.
    """

    def __init__(self, folder: Path, learner: Learner, metadata: Mapping[str, Any], emit: Emit, resumed: Checkpoint | None) -> None:
        self.folder = folder
        self.learner = learner
        self.metadata = metadata
        self.emit = emit
        train = learner.stage.train
        self._retention = Retention(train.keep, train.keep_every, train.keep_best)
        self._one = torch.ones_like(learner.bad_steps)
        self._losses = torch.tensor(resumed.state.get("losses", [0.0, 0.0]) if resumed else [0.0, 0.0], device=self._one.device)
        self._asked = self._saved = resumed.step if resumed else None
        self._failures = 0
        self._told_of_wait = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cdmkit-saver")
        self._staging = Staging()
        self._staged: Checkpoint | None = None
        self._writing: tuple[Checkpoint, Future[Path]] | None = None
        self._begun = time.monotonic()

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Let the save under way come to its end. Its failure is raised, or only told where another error ends training."""
        try:
            self._conclude()
        except CheckpointError as failure:
            if error is None:
                raise
            self.emit(Warned(message=str(failure)))
        finally:
            self._thread.shutdown()

    @property
    def last(self) -> str:
        """The newest checkpoint, in words; one that is being written is waited for."""
        if self._writing:
            wait([self._writing[1]])
        path = latest(self.folder)
        return "there is no checkpoint yet" if path is None else f"the last good checkpoint is {path}"

    def add(self, update: Update) -> None:
        """Count the loss of the step just done, a bad one's not, and tell what became of the save before, if it is done by now.

        Raises CheckpointError as `save` does. The device is not waited for.
        """
        if (self.learner.step - 1) % self.learner.stage.train.checkpoint_every == 0:
            self._losses = torch.zeros_like(self._losses)
        self._losses = self._losses + torch.where(update.bad, 0.0, torch.stack((update.loss, self._one)))
        if self._writing and self._writing[1].done():
            self._conclude()

    def save(self, last_chance: bool = False) -> None:
        """Begin to save, unless this step was saved. On the last chance return when the checkpoint stands.

        Raises CheckpointError where the folder is gone, at failure number `FAILURES` in a row, or at any on the last chance.
        """
        step = self.learner.step
        if step != self._asked:
            self._asked = step
            checkpoint = self.learner.checkpoint()  # all processes take part
            if self.learner.session.rank:
                return
            self._wait_for_turn()
            self._staged = attrs.evolve(
                checkpoint,
                tensors=self._staging.copy(checkpoint.tensors),
                state={**checkpoint.state, **self._loss_so_far(step)},
                about=widths(self.learner),
            )
            self._begin(self._staged)
        elif last_chance:  # a save of this step is under way, or failed
            self._conclude()
            if self._saved != step and self._staged:
                self._begin(self._staged)
        if last_chance:
            self._conclude(last_chance=True)

    def _loss_so_far(self, step: int) -> dict[str, Any]:
        """Sum and number of the good steps' losses since the last multiple of `checkpoint_every`; their mean, where all such are counted.

        So checkpoints that a stop made are not compared with those that others are compared with, and a resumed run keeps the same ones.
        """
        total, good = self._losses.tolist()
        if not math.isfinite(total):
            return {}
        whole = good and step % self.learner.stage.train.checkpoint_every == 0
        return {"losses": [total, good], "loss": total / good if whole else None}

    def _wait_for_turn(self) -> None:
        """Wait for the save under way, and say once that training has to."""
        since = time.monotonic()
        self._conclude()
        now = time.monotonic()
        waited, between, stage = now - since, now - self._begun, self.learner.stage
        if waited > max(LONG_WAIT, LONG_SHARE * between) and not self._told_of_wait:
            self._told_of_wait = True
            self.emit(
                Warned(
                    message=f"stage {stage.name!r}: saving takes longer than checkpoint_every = {stage.train.checkpoint_every} steps: "
                    f"training waited {waited:.1f} of the last {between:.1f} seconds for it. Save less often, or to a faster disk."
                )
            )

    def _begin(self, staged: Checkpoint) -> None:
        """Have the thread write."""
        self._begun = time.monotonic()
        self._writing = staged, self._thread.submit(save, self.folder, staged, self.metadata, self._retention)

    def _conclude(self, last_chance: bool = False) -> None:
        """Wait for the save under way, if any, and tell what became of it."""
        if self._writing is None:
            return
        checkpoint, result = self._writing
        wait([result])
        self._writing = None
        stage, step = self.learner.stage, checkpoint.step
        try:
            path = result.result()
        except OSError as error:
            self._failures += 1
            message = f"stage {stage.name!r}: step {step} could not be saved: {error}; {self.last}"
            if last_chance or self._failures >= FAILURES:
                raise CheckpointError(f"{message}. Make room or mend the disk, then go on with --resume.") from error
            self.emit(Warned(message=f"{message}. Training goes on."))
            return
        self._failures = 0
        self._saved = step
        self.emit(CheckpointSaved(stage=stage.name, step=step, path=path))
