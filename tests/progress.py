"""An event of progress, for tests that look at some of its fields."""

from __future__ import annotations

from typing import Any

from cdmkit.events import Progress


def progress(step: int, **changes: Any) -> Progress:
    """The event at a step of stage "base" with some fields changed."""
    fields: dict[str, Any] = {
        "stage": "base",
        "step": step,
        "steps": 10,
        "images": 4 * step,
        "loss": 0.5,
        "levels": (0.5, 0.25),
        "grad_norm": 1.0,
        "lr": 0.1,
        "images_per_second": 2.0,
        "gflops": 3.0,
        "eta": 3.0,
        "skipped": 0,
    }
    return Progress(**{**fields, **changes})
