"""Stored images as a source."""

from __future__ import annotations

import itertools
import os
import threading
from pathlib import Path

import pytest
import torch

from cdmkit.builtin.shapes import Shapes
from cdmkit.builtin.webdataset import WebDataset
from cdmkit.data.writer import Sample, write_shards
from cdmkit.errors import DataError

SHARED = Path(os.environ.get("CDMKIT_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))


def store(folder: Path, shapes: Shapes) -> str:
    """Write shapes to shards; their pattern."""
    images, labels = shapes.render(torch.arange(shapes.count))
    samples = (Sample(image, int(label)) for image, label in zip(images, labels, strict=True))
    write_shards(samples, folder, per_shard=30)
    return f"{folder}/train-*.tar"


def test_stored_shapes_are_the_drawn_ones(tmp_path: Path) -> None:
    """Shapes that were written to shards come back bit-equal, in the same order of training."""
    shapes = Shapes(resolution=16, count=100, classes=5)
    stored = WebDataset(shards=store(tmp_path, shapes))
    with shapes.open(8, 0, 1, 3, 0) as drawn, stored.open(8, 0, 1, 3, 0) as read:
        for one, two in itertools.islice(zip(drawn, read, strict=True), 20):
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_card(tmp_path: Path) -> None:
    """Resolution, count and classes are found in the data."""
    card = WebDataset(shards=store(tmp_path, Shapes(resolution=16, count=100, classes=5))).card()
    assert (card.resolution, card.count, card.classes) == (16, 100, 5)
    assert int(card.fingerprint, 16)


@pytest.mark.parametrize("workers", [1, 4])
def test_workers_change_nothing(tmp_path: Path, workers: int) -> None:
    """The stream is that of (seed, position), whatever the number of threads; it may be opened anywhere and by any number of ranks."""
    pattern = store(tmp_path, Shapes(resolution=8, count=70))
    with WebDataset(shards=pattern).open(8, 0, 1, 0, 0) as batches:
        whole = list(itertools.islice(batches, 20))
    for rank in range(2):
        with WebDataset(shards=pattern, workers=workers).open(4, rank, 2, 0, 40) as batches:
            for batch, expected in zip(itertools.islice(batches, 10), whole[5:], strict=False):
                assert torch.equal(batch.positions, expected.positions[rank::2])
                assert torch.equal(batch.images, expected.images[rank::2])
                assert torch.equal(batch.labels, expected.labels[rank::2])


def test_number_of_workers(tmp_path: Path) -> None:
    """One worker is one thread, several share the work."""
    pattern = store(tmp_path, Shapes(resolution=64, count=70))
    threads = []
    for workers in (1, 5):
        with WebDataset(shards=pattern, workers=workers).open(64, 0, 1, 0, 0) as batches:
            next(batches)
            threads.append(sum(thread.name.startswith("cdmkit-data") for thread in threading.enumerate()))
    assert threads[0] == 1 < threads[1] <= 5


def test_no_data(tmp_path: Path) -> None:
    """Missing data are an error that says how to point to them."""
    with pytest.raises(DataError, match="no training data"):
        WebDataset(shards=f"{tmp_path}/*.tar").card()


@pytest.mark.parametrize(("name", "resolution", "count"), [("cifar10-lossless", 32, 870), ("imagenette64", 64, 2000)])
def test_real_images(name: str, resolution: int, count: int) -> None:
    """Real shards are read as their dataset.json says."""
    if not (SHARED / name).is_dir():
        pytest.skip(f"no {name} at {SHARED}; set CDMKIT_TEST_DATA")
    source = WebDataset(shards=f"{SHARED}/{name}/val-*.tar")
    card = source.card()
    assert (card.resolution, card.count, card.classes) == (resolution, count, 10)
    with source.open(256, 0, 1, 0, 0) as batches:
        batch = next(batches)
    assert batch.images.shape == (256, 3, resolution, resolution)
    assert 90 < batch.images.float().mean() < 150
    assert set(batch.labels.tolist()) == set(range(10))
