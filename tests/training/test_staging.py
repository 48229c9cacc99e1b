"""Copies in the host's memory."""

from __future__ import annotations

import torch

from cdmkit.training.staging import Staging


def test_a_copy_does_not_follow_what_it_is_of() -> None:
    """It has the values, shape, dtype and layout of the moment."""
    weight = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    before = weight.clone()
    copies = Staging().copy({"weights": {"a": weight}, "ema": {"a": torch.tensor(1, dtype=torch.int16)}, "none": {}})
    weight.zero_()
    copy = copies["weights"]["a"]
    assert torch.equal(copy, before)
    assert copy.stride() == weight.stride()
    assert (copies["ema"]["a"].dtype, int(copies["ema"]["a"]), copies["none"]) == (torch.int16, 1, {})


def test_room_is_taken_once() -> None:
    """The next copy lies where the one before lay, unless the tensor is of another shape or dtype."""
    staging = Staging()
    first = staging.copy({"weights": {"a": torch.zeros(3), "b": torch.zeros(3)}})["weights"]
    again = staging.copy({"weights": {"a": torch.ones(3), "b": torch.ones(4)}})["weights"]
    assert first["a"].data_ptr() == again["a"].data_ptr()
    assert (again["a"].tolist(), again["b"].tolist()) == ([1] * 3, [1] * 4)


def test_tied_tensors_have_a_copy_each() -> None:
    """Files do not share memory, nor do names."""
    tied = torch.ones(2)
    copies = Staging().copy({"weights": {"a": tied, "b": tied}, "ema": {"a": tied}})
    assert len({copies["weights"]["a"].data_ptr(), copies["weights"]["b"].data_ptr(), copies["ema"]["a"].data_ptr()}) == 3
