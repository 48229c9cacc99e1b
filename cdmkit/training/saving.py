"""When saving goes wrong: training outlives a full disk for a while, but not a deleted run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdmkit.errors import CheckpointError
from cdmkit.events import CheckpointSaved, Emit, Warned
from cdmkit.training.checkpoint import latest, save
from cdmkit.training.learner import Learner

FAILURES = 3
"""Failed saves in a row after which training stops."""


class Saver:
    """Saves a learner into a folder of checkpoints. `saved`: the step that is saved there already."""

    def __init__(self, folder: Path, learner: Learner, metadata: Mapping[str, Any], emit: Emit, saved: int | None) -> None:
        self.folder = folder
        self.learner = learner
        self.metadata = metadata
        self.emit = emit
        self._failures = 0
        self._saved = saved

    @property
    def last(self) -> str:
        """The newest checkpoint, in words."""
        path = latest(self.folder)
        return "there is no checkpoint yet" if path is None else f"the last good checkpoint is {path}"

    def save(self, last_chance: bool = False) -> None:
        """Save, unless this step is saved. Raises CheckpointError at failure number `FAILURES` in a row, or at any on the last chance."""
        stage, step = self.learner.stage, self.learner.step
        if step == self._saved:
            return
        try:
            path = save(self.folder, self.learner.checkpoint(), self.metadata, stage.train.keep)
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
