"""The stream that training reads: labels that a network has not, and being left while it waits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cdmkit.errors import DataError
from cdmkit.kinds import Batch, Batches, Skip
from cdmkit.training import StopRequest
from cdmkit.training.watched import Left, Watched
from tests.training.components import make_stage, run

SKIP = Skip("x.tar", "a", "bad label", "x.tar: key 'a' has the label 'x'")


class Given(Batches):
    """One batch with these labels, again and again."""

    def __init__(self, *labels: int) -> None:
        self.labels = torch.tensor(labels)
        self.closed = False

    def __next__(self) -> Batch:
        return Batch(torch.zeros(len(self.labels), 3, 8, 8, dtype=torch.uint8), self.labels, torch.arange(10, 10 + len(self.labels)))

    def skips(self) -> list[Skip]:
        return [SKIP]

    def close(self) -> None:
        self.closed = True


def test_passes_on_what_is_well() -> None:
    """Batches, skips and closing; any label where none is told."""
    given = Given(0, 4, 2)
    with Watched(given, 5, StopRequest()) as batches:
        assert next(batches).labels.tolist() == [0, 4, 2]
        assert batches.skips() == [SKIP]
    assert given.closed
    assert next(Watched(given, 0, StopRequest())).labels.tolist() == [0, 4, 2]


def test_a_label_that_is_no_class() -> None:
    """Its position, and what to set."""
    with pytest.raises(DataError, match=r"position 11 has the label 4, but data\.classes = 4: set data\.classes = 5 or more"):
        next(Watched(Given(0, 4, 2), 4, StopRequest()))


def test_training_ends_with_it(tmp_path: Path) -> None:
    """Not with an error of the device."""
    with pytest.raises(DataError, match=r"data\.classes = 2: set"):
        run(make_stage(), tmp_path, classes=2)


class Silent(Given):
    """A stream whose next batch does not come."""

    def ready(self, seconds: float) -> bool:
        return False


def test_is_left_while_it_waits(tmp_path: Path) -> None:
    """A request to stop is obeyed though no batch comes: training saves, and says how to go on."""
    stop = StopRequest()
    stop.request("SIGTERM")
    with pytest.raises(Left):
        next(Watched(Silent(0), 5, stop))
