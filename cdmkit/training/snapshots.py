"""Snapshots of power averages, kept for good: what averages of other widths are made of after training (see `posthoc`).

averages/step-00001000/    of a stage's folder
  average-1.safetensors    the average of that name, with what a weights file says of itself, and under "average" its sigma_rel
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from torch import Tensor, nn

from cdmkit.errors import CheckpointError
from cdmkit.events import Emit, Warned
from cdmkit.files import sync
from cdmkit.training.checkpoint import place, read_metadata, told
from cdmkit.training.learner import Learner
from cdmkit.training.tensor_file import write
from cdmkit.training.together import gathered


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
        step, stage = self.learner.step, self.learner.stage
        folder = place(self.folder, step)
        for name, sigma_rel in stage.train.snapshots.items():
            module = self.learner.averages[name].module
            tensors = gathered(module.state_dict(), self.learner.session)
            if self.learner.session.rank:
                continue
            try:
                for each in (self.folder, folder):  # not the stage's folder: where that is gone, the run was deleted
                    each.mkdir(exist_ok=True)
                replace(folder / f"{name}.safetensors", tensors, told({**self.metadata, "average": _about(module, sigma_rel)}, step))
                sync(self.folder)
            except OSError as error:
                self.emit(Warned(message=f"stage {stage.name!r}: no snapshot of {name} at step {step}: {error}. Training goes on."))


def _about(module: nn.Module, sigma_rel: float) -> dict[str, Any]:
    """What a snapshot says of its average: its width, and which tensors are no averages, but as they were at its step."""
    return {"sigma_rel": sigma_rel, "copied": sorted(name for name, _ in module.named_buffers())}


def replace(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file of tensors, on any device, beside its place, and move it there. Raises OSError where it cannot be written."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial, {name: tensor.detach().cpu() for name, tensor in tensors.items()}, metadata)
        partial.rename(path)
        sync(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


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
    return sorted(map(Snapshot.read, folder.glob("step-*/average-*.safetensors")), key=lambda snapshot: (snapshot.step, snapshot.path))
