"""Learning-rate schedules."""

from __future__ import annotations

import math

from cdmkit.component import Component, component, option
from cdmkit.hookspecs import hookimpl
from cdmkit.kinds import LrSchedule


@component("constant")
class Constant(LrSchedule):
    """The optimizer's `lr` throughout. What training does by itself."""

    def factor(self, step: int) -> float:
        """1."""
        return 1.0


@component("cosine")
class Cosine(LrSchedule):
    """Down along half a wave of the cosine (SGDR, Loshchilov & Hutter, arXiv:1608.03983, eq. 5, without restarts)."""

    steps: int = option(help="steps until it has come down; often those of the whole training", ge=1)
    final: float = option(0.0, help="share of the learning rate at the end and after it", ge=0, le=1)

    def factor(self, step: int) -> float:
        """From 1 at step 0 to `final` at step `steps`, where it stays."""
        done = min(step / self.steps, 1.0)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * done)) / 2


@component("inverse-sqrt")
class InverseSqrt(LrSchedule):
    """Constant at first, then down with the root of the step, towards no end that had to be known before (EDM2, arXiv:2312.02696)."""

    after: int = option(help="steps until it begins to fall", ge=1)

    def factor(self, step: int) -> float:
        """1 up to step `after`, then sqrt(after / step)."""
        return math.sqrt(self.after / max(step, self.after))


@hookimpl
def cdmkit_components() -> list[type[Component]]:
    """The learning-rate schedules."""
    return [Constant, Cosine, InverseSqrt]
