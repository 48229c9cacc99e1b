"""How training goes, measured without making the device wait between two reports."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

import torch

from cdmkit.cascade import Stage
from cdmkit.cascade.tracing import PASSES, forward_flops
from cdmkit.events import Emit, Progress, Warned
from cdmkit.kinds import Skip
from cdmkit.training.learner import Learner, Update

LEVELS = 8
"""Equal parts of 1..T that losses are told for, the least noisy first."""


class Meter:
    """Sums losses and gradient norms on the device and reads them once per report. Durations are of a clock that never jumps."""

    def __init__(self, stage: Stage, learner: Learner, emit: Emit, classes: int) -> None:
        self.stage = stage
        self.learner = learner
        self.emit = emit
        self._flops = PASSES * forward_flops(stage, classes)
        self._one = torch.ones_like(learner.bad_steps)
        steps = stage.process().steps
        self._level_of = ((torch.arange(steps + 1) - 1).clamp(min=0) * LEVELS // steps).to(self._one.device)
        self._restart()

    def _restart(self) -> None:
        self._sums = torch.zeros(3, device=self._one.device)
        self._levels = torch.zeros(2, LEVELS, device=self._one.device)
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
        found = torch.stack((update.plain, torch.ones_like(update.plain)))
        self._levels.index_add_(1, self._level_of[update.t], torch.where(update.bad, 0.0, found))

    def tell(self, skips: Sequence[Skip]) -> None:
        """Emit SampleSkipped for each."""
        for skip in skips:
            self.emit(skip.event())

    def report(self, lr: float, skipped: int) -> None:
        """Emit Progress, and Warned where steps were skipped; then start anew. lr: of the last step. skipped: samples that are left out.

        Of several processes all report at the same steps.
        """
        losses, images = self.learner.session.total(self._levels)  # the other sums are equal in all processes
        # Waits for the device, so that the clock is read when the work is done.
        loss, norm, good, *levels = torch.cat((self._sums, losses / images)).tolist()
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
                levels=tuple(levels),
                grad_norm=norm / good if good else float("nan"),
                lr=lr,
                images_per_second=rate,
                gflops=self._flops * rate / 1e9,
                eta=(train.steps - step) * train.batch / rate,
                skipped=skipped,
            )
        )
        self._restart()
