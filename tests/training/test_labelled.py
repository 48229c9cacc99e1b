"""Labels that a network has not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cdmkit.errors import DataError
from cdmkit.kinds import Batch, Batches, Skip
from cdmkit.training.labelled import Labelled
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
    with Labelled(given, 5) as batches:
        assert next(batches).labels.tolist() == [0, 4, 2]
        assert batches.skips() == [SKIP]
    assert given.closed
    assert next(Labelled(given, 0)).labels.tolist() == [0, 4, 2]


def test_a_label_that_is_no_class() -> None:
    """Its position, and what to set."""
    with pytest.raises(DataError, match=r"position 11 has the label 4, but data\.classes = 4: set data\.classes = 5 or more"):
        next(Labelled(Given(0, 4, 2), 4))


def test_training_ends_with_it(tmp_path: Path) -> None:
    """Not with an error of the device."""
    with pytest.raises(DataError, match=r"data\.classes = 2: set"):
        run(make_stage(), tmp_path, classes=2)
