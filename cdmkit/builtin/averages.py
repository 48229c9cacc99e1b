"""Moving averages of weights."""

from __future__ import annotations

from cdmkit.component import Component, component, option
from cdmkit.hookspecs import hookimpl
from cdmkit.kinds import MAX_SIGMA_REL, Average, exponential_decay, power_exponent


@component("ema")
class Exponential(Average):
    """An exponential moving average, as `train.ema` is: it reaches back some 1 / (1 - decay) steps, however long training takes."""

    decay: float = option(0.9999, help="share of the average that stays at each step", ge=0, lt=1)
    ramp: bool = option(False, help="let the decay grow as (1 + step) / (10 + step) up to `decay`, for short training")

    def decay_at(self, step: int) -> float:
        """`decay`, or less at first."""
        return exponential_decay(self.decay, self.ramp, step)


@component("power")
class Power(Average):
    """Weights count by a power of their step (EDM2, arXiv:2312.02696, section 3.1): it reaches back a share of training, however long.

    After t steps the weights of step i, from 1, count (i^(gamma + 1) - (i - 1)^(gamma + 1)) / t^(gamma + 1), but where steps were left out.
    """

    sigma_rel: float = option(help="its standard deviation in time, as a share of all steps so far", gt=0, le=MAX_SIGMA_REL)

    def decay_at(self, step: int) -> float:
        """(1 - 1 / t)^(gamma + 1) at t = step + 1: 0 at the first step."""
        return float((1 - 1 / (step + 1)) ** (power_exponent(self.sigma_rel) + 1))


@hookimpl
def cdmkit_components() -> list[type[Component]]:
    """The averages."""
    return [Exponential, Power]
