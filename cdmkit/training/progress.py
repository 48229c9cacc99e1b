"""How training goes, measured without making the device wait between two reports."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

import torch

from cdmkit.cascade import Stage
from cdmkit.events import Emit, Progress, Warned
from cdmkit.kinds import Skip
from cdmkit.training.learner import Learner, Update


class Meter:
    """Sums losses and gradient norms on the device and reads them once per report. Durations are of a clock that never jumps."""

    def __init__(self, stage: Stage, learner: Learner, emit: Emit) -> None:
        self.stage = stage
        self.learner = learner
        self.emit = emit
        self._one = torch.ones_like(learner.bad_steps)
        self._restart()

    def _restart(self) -> None:
        self._sums = torch.zeros(3, device=self._one.device)
        self._since = self.learner.step
        self._clock = time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time of what is no training, begun when the device is done with all before."""
        since = time.monotonic()
        yield
        self._clock += time.monotonic() - since

    def add(self, update: Update) -> None:
        """Count a step; a bad one has no part in the means."""
        self._sums += torch.where(update.bad, 0.0, torch.stack((update.loss, update.grad_norm, self._one)))

    def tell(self, skips: Sequence[Skip]) -> None:
        """Emit SampleSkipped for each."""
        for skip in skips:
            self.emit(skip.event())

    def report(self, lr: float, skipped: int) -> None:
        """Emit Progress, and Warned where steps were skipped; then start anew. lr: of the last step. skipped: samples that are left out."""
        loss, norm, good = self._sums.tolist()  # waits for the device, so that the clock is read when the work is done
        train, step = self.stage.train, self.learner.step
        counted = step - self._since
        rate = counted * train.batch / max(time.monotonic() - self._clock, 1e-9)
        if bad := counted - int(good):
            steps = f"{bad} of {counted} steps up to step {step}"
            self.emit(Warned(message=f"stage {self.stage.name!r}: {steps} were skipped: loss or gradient not finite"))
        self.emit(
            Progress(
                stage=self.stage.name,
                step=step,
                steps=train.steps,
                images=step * train.batch,
                loss=loss / good if good else float("nan"),
                grad_norm=norm / good if good else float("nan"),
                lr=lr,
                images_per_second=rate,
                eta=(train.steps - step) * train.batch / rate,
                skipped=skipped,
            )
        )
        self._restart()
