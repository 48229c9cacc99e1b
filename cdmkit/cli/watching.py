"""Showing people how a run goes: bars on a terminal, a plain line now and then elsewhere. All of it on stderr."""

from __future__ import annotations

from rich.console import Console

from cdmkit import events
from cdmkit.cli.bars import Bars, rate, sparkline
from cdmkit.hookspecs import hookimpl


class Watcher(Bars):
    """An observer of runs that shows them. Use it as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(console)
        self._causes: set[str] = set()

    @hookimpl
    def cdmkit_run_started(self, event: events.RunStarted) -> None:
        """Say where everything goes."""
        self.say(f"run {event.path}: {', '.join(event.stages)}")

    @hookimpl
    def cdmkit_stage_started(self, event: events.StageStarted) -> None:
        """Say how large the stage is and from where it goes on."""
        since = f", from step {event.step}" if event.step else ""
        self.say(f"{event.stage}: training {event.parameters / 1e6:.2f} M parameters for {event.steps} steps{since}")

    @hookimpl
    def cdmkit_progress(self, event: events.Progress) -> None:
        """Show loss, speed, gradient norm and the time left; on a terminal also the loss of each noise level, as bars."""
        speed = (f"{event.images_per_second:.0f} images/s", rate(event.gflops))
        told = (f"loss {event.loss:.4f}", *speed, f"grad {event.grad_norm:.3g}", sparkline(event.levels) if self.draws else "")
        self.advance(event.stage, event.step, event.steps, self.fitting(told), event.eta)

    @hookimpl
    def cdmkit_stage_finished(self, event: events.StageFinished) -> None:
        """Say so, and whether there was anything to do."""
        self.say(f"{event.stage}: {'trained already, unchanged' if event.skipped else 'trained'}, {event.step} steps")

    @hookimpl
    def cdmkit_sampling_progress(self, event: events.SamplingProgress) -> None:
        """Show how many network calls are done."""
        self.advance(f"{event.stage} sampling", event.done, event.total, "network calls")

    @hookimpl
    def cdmkit_sample_skipped(self, event: events.SampleSkipped) -> None:
        """Warn of each cause once; the others are in events.jsonl."""
        if event.cause not in self._causes:
            self._causes.add(event.cause)
            self.say(f"warning: {event.message}. It is left out. Of others with the same fault only events.jsonl tells.")

    @hookimpl
    def cdmkit_warned(self, event: events.Warned) -> None:
        """Pass the warning on."""
        self.say(f"warning: {event.message}")
