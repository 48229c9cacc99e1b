"""Snapshots of power averages, kept for good: what averages of other widths are made of after training (see `posthoc`).

averages/step-00001000/    of a stage's folder
  average-1.safetensors    the average of that name, with what a weights file says of itself, and under "average" its sigma_rel
  state.json               as that of a checkpoint: the SHA-256 of every file
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from cdmkit.errors import CheckpointError
from cdmkit.events import Emit, Warned
from cdmkit.training.checkpoint import Checkpoint, is_complete, read_metadata, save, saved
from cdmkit.training.learner import Learner
from cdmkit.training.retention import Retention
from cdmkit.training.together import gathered

_ALL = Retention(newest=1, every=1)


@attrs.frozen(eq=False)
class Snapshots:
    """Makes snapshots of what a learner averages, into `folder`. Training waits meanwhile: there are few, each a part of a checkpoint."""

    folder: Path
    learner: Learner
    metadata: Mapping[str, Any]
    """What weights files say of themselves, but for the step."""
    emit: Emit

    @property
    def due(self) -> bool:
        """Whether the step just done is one whose snapshot is kept."""
        step, train = self.learner.step, self.learner.stage.train
        return train.snapshot_every > 0 and (step % train.snapshot_every == 0 or step == train.steps)

    def take(self) -> None:
        """Make one; all processes call this, the first writes. It stands when this returns, or Warned is emitted: training goes on.

        Take it before the checkpoint of the same step, so that no resumed run begins after a snapshot that is not there.
        """
        learner, stage = self.learner, self.learner.stage
        tensors = {name: gathered(learner.averages[name].module.state_dict(), learner.session) for name in stage.train.snapshots}
        if learner.session.rank:
            return
        on_cpu = {name: {key: tensor.cpu() for key, tensor in each.items()} for name, each in tensors.items()}
        try:
            self.folder.mkdir(exist_ok=True)  # not the stage's folder: where that is gone, the run was deleted
            save(self.folder, Checkpoint(step=learner.step, tensors=on_cpu, state={}, about=widths(learner)), self.metadata, _ALL)
        except OSError as error:
            self.emit(Warned(message=f"stage {stage.name!r}: no snapshot of step {learner.step}: {error}. Training goes on."))


def widths(learner: Learner) -> dict[str, dict[str, Any]]:
    """What the file of each power average says of it: its width, and which tensors are no averages, but as they were at its step."""
    return {
        name: {"average": {"sigma_rel": sigma_rel, "copied": sorted(key for key, _ in learner.averages[name].module.named_buffers())}}
        for name, sigma_rel in learner.stage.train.snapshots.items()
    }


@attrs.frozen
class Snapshot:
    """A snapshot that was made."""

    path: Path
    step: int
    sigma_rel: float
    copied: frozenset[str]
    """Tensors that are no averages."""

    @classmethod
    def read(cls, path: Path) -> Snapshot:
        """What a file says of itself. Raises CheckpointError where it is damaged or says nothing."""
        facts = read_metadata(path)
        try:
            about = facts["average"]
            return cls(path, int(facts["step"]), float(about["sigma_rel"]), frozenset(about["copied"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is no snapshot of an average: it lacks {error}. Remove it.") from error


def snapshots(folder: Path) -> list[Snapshot]:
    """Those under a stage's folder `averages`, by step. Raises CheckpointError, naming the file, where one is damaged."""
    files = (file for path in saved(folder) if is_complete(path) for file in path.glob("average-*.safetensors"))
    return sorted(map(Snapshot.read, files), key=lambda snapshot: (snapshot.step, snapshot.path))
