"""The built-in learning-rate schedules."""

from __future__ import annotations

import math
from typing import Any

import pytest

from cdmkit.builtin.lr_schedules import Constant, Cosine, InverseSqrt
from cdmkit.builtin.optimizers import Adam
from cdmkit.cascade import Training
from cdmkit.kinds import LrSchedule


def test_constant_changes_nothing() -> None:
    """It is what there is without a schedule."""
    plain, named = Training(optimizer=Adam(), warmup=5), Training(optimizer=Adam(), warmup=5, lr_schedule=Constant())
    assert [plain.lr_at(step) for step in range(9)] == [named.lr_at(step) for step in range(9)]


def test_cosine_is_half_a_wave() -> None:
    """Equation 5 of SGDR: from 1 to the final share, half way in the middle, and flat from the end on."""
    schedule = Cosine(steps=100, final=0.1)
    expected = [0.1 + 0.5 * (1 - 0.1) * (1 + math.cos(step / 100 * math.pi)) for step in range(101)]
    assert [schedule.factor(step) for step in range(101)] == pytest.approx(expected)
    assert [schedule.factor(step) for step in (0, 50, 100, 10**6)] == pytest.approx([1, 0.55, 0.1, 0.1])
    assert Cosine(steps=7).factor(7) == 0


def test_inverse_sqrt_falls_with_the_root() -> None:
    """1 up to `after`; four times as many steps halve it."""
    schedule = InverseSqrt(after=100)
    assert [schedule.factor(step) for step in (0, 99, 100, 400, 2500)] == pytest.approx([1, 1, 1, 0.5, 0.2])


@pytest.mark.parametrize("schedule", [Cosine(steps=4, final=0.5), InverseSqrt(after=3)])
def test_warmup_multiplies_a_schedule(schedule: LrSchedule) -> None:
    """The learning rate is the optimizer's times both."""
    train = Training(optimizer=Adam(lr=0.3), warmup=5, lr_schedule=schedule)
    expected = [0.3 * schedule.factor(step) * min(1, (step + 1) / 5) for step in range(12)]
    assert [train.lr_at(step) for step in range(12)] == pytest.approx(expected)


@pytest.mark.parametrize("options", [{"steps": 0}, {"steps": 5, "final": 1.1}, {"steps": 5, "final": -0.1}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    """With their range."""
    with pytest.raises(ValueError, match="out of range"):
        Cosine(**options)
