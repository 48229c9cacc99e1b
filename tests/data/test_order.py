"""The order of training."""

from __future__ import annotations

import pytest
import torch

from cdmkit.data.order import BlockOrder, Order
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


LENGTHS = [5, 1, 7, 3, 4, 6, 2]


def shards_of(images: torch.Tensor) -> list[int]:
    """The shard that each image is in."""
    ends = torch.tensor(LENGTHS).cumsum(0)
    return torch.searchsorted(ends, images, right=True).tolist()


def test_blocks_hold_every_image_once() -> None:
    """An epoch of blocks leaves nothing out, and the next has another order."""
    images = BlockOrder(LENGTHS, seed=0, mix=2)(torch.arange(2 * 28)).view(2, 28)
    assert (images.sort(dim=1).values == torch.arange(28)).all()
    assert not torch.equal(images[0], images[1])


def test_a_block_is_of_few_shards_mixed() -> None:
    """Images of `mix` shards at a time, not one shard after another; their shards differ between epochs."""
    images = BlockOrder([50] * 6, seed=1, mix=2)(torch.arange(600)).view(2, 3, 100) // 50
    found = [[sorted(set(block.tolist())) for block in epoch] for epoch in images]
    assert all(len(block) == 2 for epoch in found for block in epoch)
    assert all(block[:50].unique().numel() == 2 for epoch in images for block in epoch)
    assert found[0] != found[1]


@pytest.mark.parametrize("mix", [1, 3, 7, 100])
def test_blocks_depend_on_the_position_alone(mix: int) -> None:
    """Opened anywhere, the order goes on as an uninterrupted one."""
    sweep = BlockOrder(LENGTHS, seed=3, mix=mix)(torch.arange(200))
    for start in (0, 27, 28, 100, 199):
        assert torch.equal(BlockOrder(LENGTHS, seed=3, mix=mix)(torch.arange(start, 200)), sweep[start:])


def test_coming_shards_are_told_in_time() -> None:
    """Entering a block tells its shards and those of the next, across the end of an epoch; each block once."""
    told: list[list[int]] = []
    order = BlockOrder(LENGTHS, seed=2, mix=3, coming=lambda shards: told.append(list(shards)))
    here = []
    for position in range(3 * 28):
        before = len(told)
        (shard,) = shards_of(order(torch.tensor([position])))
        assert shard in told[-1]
        if len(told) > before and len(told) > 1:
            assert shard in told[-2], "the block before told of it, too"
        here.append(shard)
    assert len(told) == 9


def test_all_blocks_of_a_batch_are_told() -> None:
    """A batch that spans blocks tells of each of them, and of the next."""
    told: list[list[int]] = []
    order = BlockOrder(LENGTHS, seed=2, mix=1, coming=lambda shards: told.append(list(shards)))
    seen = shards_of(order(torch.arange(20)))
    assert set(seen) <= set(told[0])
    assert len(told[0]) == len(set(seen)) + 1
    order(torch.arange(20, 21))
    assert len(told) == 1 + (shards_of(order(torch.arange(20, 21)))[0] not in seen)


def test_any_place_of_a_large_order_is_found_at_once() -> None:
    """An epoch far on is made without those before it: of ImageNet's size, in well under the second that a test may notice."""
    count, epoch = 1_281_167, 500
    positions = torch.arange(epoch * count, epoch * count + 8)
    assert torch.equal(Order(count, 0)(positions), torch.from_numpy(Stream.of(0, "order").permutation(count, epoch)[:8]))
