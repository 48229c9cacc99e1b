"""The order of training."""

from __future__ import annotations

import pytest
import torch

from cdmkit.data.order import Order
from cdmkit.draws import Stream


def test_every_epoch_holds_every_image_once() -> None:
    """No image is left out or repeated within an epoch."""
    images = Order(13, seed=0)(torch.arange(5 * 13)).view(5, 13)
    assert (images.sort(dim=1).values == torch.arange(13)).all()


def test_epochs_differ() -> None:
    """Each epoch has an order of its own."""
    images = Order(100, seed=0)(torch.arange(300)).view(3, 100)
    assert len({tuple(row) for row in images.tolist()}) == 3


def test_seeds_differ() -> None:
    """Another seed gives another order."""
    assert not torch.equal(Order(100, seed=0)(torch.arange(100)), Order(100, seed=1)(torch.arange(100)))


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_depends_on_the_position_alone(count: int) -> None:
    """Any positions, asked for in any order, give what a single sweep gives."""
    sweep = Order(count, seed=3)(torch.arange(200))
    positions = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    order = Order(count, seed=3)
    parts = [order(part) for part in torch.split(positions, 17)]
    assert torch.equal(torch.cat(parts), sweep[positions])


def test_is_the_permutation_of_the_stream() -> None:
    """The formula: permutation(p // count)[p % count]."""
    stream, order = Stream.of(5, "order"), Order(10, seed=5)
    for position in (0, 9, 10, 37, 12345):
        assert order(torch.tensor([position])).item() == stream.permutation(10, position // 10)[position % 10]
