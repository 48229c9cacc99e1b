"""The stream of batches: what comes does not depend on how it is read."""

from __future__ import annotations

import itertools
import threading
import time

import pytest
import torch
from torch import Tensor

from cdmkit.data import loader as module
from cdmkit.data.loader import Loader
from cdmkit.data.order import Order
from cdmkit.errors import DataError
from cdmkit.kinds import Batch

COUNT = 50


def read(indices: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures that show their index; every third takes longer."""
    time.sleep(0.002 if int(indices[0]) % 3 == 0 else 0)
    return indices.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2), indices + 1000


def batches(number: int, batch: int = 8, rank: int = 0, world: int = 1, seed: int = 0, position: int = 0, workers: int = 2) -> list[Batch]:
    loader = Loader(read, Order(COUNT, seed), batch=batch, rank=rank, world=world, position=position, workers=workers)
    with loader:
        return list(itertools.islice(loader, number))


def joined(parts: list[Batch]) -> Batch:
    return Batch(*(torch.cat(column) for column in zip(*parts, strict=True)))


def equal(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("batch", [1, 8, 64, 65, 200])
def test_batches_follow_the_order(batch: int) -> None:
    """Images, labels and positions belong together, and positions run from 0 without a gap."""
    seen = joined(batches(3, batch))
    expected = Order(COUNT, seed=0)(torch.arange(3 * batch))
    assert torch.equal(seen.positions, torch.arange(3 * batch))
    assert torch.equal(seen.labels, expected + 1000)
    assert torch.equal(seen.images[:, 0, 0, 0], expected.to(torch.uint8))
    assert seen.images.shape == (3 * batch, 3, 2, 2)


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_threads_change_nothing(workers: int) -> None:
    """The number of threads changes no batch."""
    assert equal(joined(batches(20, workers=workers)), joined(batches(20, workers=2)))


@pytest.mark.parametrize("start", [0, 1, 5, 6, 7, 40])
def test_opens_anywhere(start: int) -> None:
    """Opened at a position, the stream goes on as if it had never stopped, across epochs."""
    whole = joined(batches(50))
    resumed = joined(batches(5, position=8 * start, workers=3))
    assert equal(resumed, Batch(*(column[8 * start : 8 * (start + 5)] for column in whole)))


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_global_batch(world: int) -> None:
    """Rank r holds every world-th image of each global batch from the r-th, so together they hold what one rank would."""
    single = batches(10, batch=8)
    ranks = [batches(10, batch=8 // world, rank=rank, world=world) for rank in range(world)]
    for step, whole in enumerate(single):
        for rank in range(world):
            assert equal(ranks[rank][step], Batch(*(column[rank::world] for column in whole)))


def test_resumes_on_another_number_of_ranks() -> None:
    """A run may go on with more ranks: global batches stay the same."""
    whole = batches(10, batch=8)[6]
    parts = joined([batches(1, batch=4, rank=rank, world=2, position=48)[0] for rank in range(2)])
    assert torch.equal(parts.positions.sort().values, whole.positions)
    assert torch.equal(parts.labels.sort().values, whole.labels.sort().values)


def test_seed_changes_the_order() -> None:
    """Another seed gives other batches."""
    assert not torch.equal(batches(1, seed=1)[0].labels, batches(1, seed=2)[0].labels)


def test_error_comes_where_the_batch_would() -> None:
    """Batches before a broken picture arrive, then its error is raised, again and again."""
    broken = int(Order(COUNT, seed=0)(torch.tensor([20])))

    def fails(indices: Tensor) -> tuple[Tensor, Tensor]:
        if broken in indices:
            raise DataError(f"shard: key {broken}")
        return read(indices)

    with Loader(fails, Order(COUNT, 0), batch=8) as loader:
        assert len(list(itertools.islice(loader, 2))) == 2
        for _ in range(2):
            with pytest.raises(DataError, match=f"key {broken}"):
                next(loader)


def test_reads_ahead_within_bounds() -> None:
    """While nobody asks, a few batches are read and no more."""
    asked = []

    def counts(indices: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(len(indices))
        return read(indices)

    with Loader(counts, Order(COUNT, 0), batch=8, workers=2) as loader:
        next(loader)
        time.sleep(0.2)
        assert 16 <= sum(asked) <= 6 * 8


def test_workers_work_at_once() -> None:
    """`workers` reads go on at the same time: each of these waits for two others."""
    meeting = threading.Barrier(3, timeout=20)

    def meets(indices: Tensor) -> tuple[Tensor, Tensor]:
        meeting.wait()
        return read(indices)

    with Loader(meets, Order(COUNT, 0), batch=64 * 3, workers=3) as loader:
        assert len(next(loader).images) == 64 * 3
        meeting.abort()


def test_close_ends_the_threads() -> None:
    """After closing, no thread of the loader lives and what was not begun is not read."""
    before = threading.active_count()
    begun = []

    def slow(indices: Tensor) -> tuple[Tensor, Tensor]:
        begun.append(len(indices))
        time.sleep(0.05)
        return read(indices)

    loader = Loader(slow, Order(COUNT, 0), batch=640, workers=2)
    next(loader)
    loader.close()
    assert threading.active_count() == before
    assert sum(begun) < 2 * 640


@pytest.mark.parametrize("workers", [0, 2])
def test_waiting_for_a_batch_can_be_cut_short(workers: int) -> None:
    """Whether the next batch is there is told after a while; waiting takes nothing away from the stream."""
    go_on = threading.Event()

    def waits(indices: Tensor) -> tuple[Tensor, Tensor]:
        if workers:
            go_on.wait(20)
        return read(indices)

    with Loader(waits, Order(COUNT, 0), batch=8, workers=workers) as loader:
        assert loader.ready(0.05) == (workers == 0)
        go_on.set()
        assert loader.ready(20)
        assert torch.equal(next(loader).positions, torch.arange(8))
        assert loader.ready(20)
        assert torch.equal(next(loader).positions, torch.arange(8, 16))


def test_closing_does_not_wait_long_for_what_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that hangs is left to itself."""
    monkeypatch.setattr(module, "_PATIENCE", 0.2)
    go_on = threading.Event()

    def hangs(indices: Tensor) -> tuple[Tensor, Tensor]:
        go_on.wait(20)
        return read(indices)

    loader = Loader(hangs, Order(COUNT, 0), batch=8)
    assert not loader.ready(0.05)
    began = time.monotonic()
    loader.close()
    assert time.monotonic() - began < 5
    go_on.set()
    for thread in [each for each in threading.enumerate() if each.name.startswith(module.THREADS)]:
        thread.join(20)
