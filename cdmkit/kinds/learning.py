"""The kinds of learning over time: how fast weights move at each step, and which averages of them are kept."""

from __future__ import annotations

from abc import abstractmethod
from functools import cache

import numpy as np

from cdmkit.component import Component

MAX_SIGMA_REL = 0.28
"""The widest power profile there is: at gamma = 0, where all steps count alike, sigma_rel is the root of 1/12, 0.289."""


class LrSchedule(Component):
    """How the learning rate changes while a stage is trained. It multiplies the optimizer's `lr`, and is multiplied by the warm-up."""

    kind = "lr-schedule"

    @abstractmethod
    def factor(self, step: int) -> float:
        """What the optimizer's `lr` is multiplied by at optimizer step `step`, counted from 0; not negative."""


class Average(Component):
    """A moving average of a stage's weights: average <- decay average + (1 - decay) weights, after every optimizer step."""

    kind = "average"

    @abstractmethod
    def decay_at(self, step: int) -> float:
        """The share of the average that stays at optimizer step `step`, counted from 0; in [0, 1]."""

    @property
    def sigma_rel(self) -> float | None:
        """The relative width of its power profile (see `power_exponent`): such averages can be combined after training.

        None where its profile is another one.
        """
        return None


def exponential_decay(decay: float, ramp: bool, step: int) -> float:
    """The decay of an exponential moving average at `step`, from 0. ramp: let it grow as (1 + step) / (10 + step) up to `decay`."""
    return min(decay, (1 + step) / (10 + step)) if ramp else decay


@cache
def power_exponent(sigma_rel: float) -> float:
    """The gamma of the power profile whose standard deviation is `sigma_rel`, in (0, 0.28], times the length of training.

    After t steps the profile at tau in [0, t] is (gamma + 1) tau^gamma / t^(gamma + 1) (EDM2, arXiv:2312.02696, section 3.1). Its variance,
    that of a beta distribution, is t^2 (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), which falls as gamma rises.
    """
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())
