"""Which checkpoints stay."""

from __future__ import annotations

import random

import pytest

from cdmkit.training.retention import Retention

LOSSES = {100: 3.0, 200: 1.0, 300: None, 400: 1.0, 500: 9.0, 550: None}


@pytest.mark.parametrize(
    ("retention", "kept"),
    [
        (Retention(1), {550}),
        (Retention(2), {500, 550}),
        (Retention(9), set(LOSSES)),
        (Retention(1, every=200), {200, 400, 550}),
        (Retention(1, best=1), {200, 550}),
        (Retention(1, best=3), {100, 200, 400, 550}),
        (Retention(1, every=500, best=9), {100, 200, 400, 500, 550}),
    ],
)
def test_newest_regular_and_best_are_kept(retention: Retention, kept: set[int]) -> None:
    """Each for itself and together; what has no loss is none of the best, and of equal ones the older is."""
    assert retention.keeps(LOSSES) == kept
    assert retention.keeps({}) == set()


def test_the_best_of_all_stay_though_others_are_gone() -> None:
    """Deciding after each save among what is left gives the same ones as deciding once among all."""
    retention, pick = Retention(2, every=7, best=3), random.Random(0)  # noqa: S311  (no secret)
    for _ in range(50):
        losses = {step: pick.choice([0.1, 0.2, 0.3, 0.4, None]) for step in range(1, 30)}
        left: dict[int, float | None] = {}
        for step, loss in losses.items():
            left[step] = loss
            left = {at: left[at] for at in sorted(retention.keeps(left))}
        assert set(left) == retention.keeps(losses)
