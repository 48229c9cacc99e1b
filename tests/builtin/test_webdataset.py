"""Stored images as a source."""

from __future__ import annotations

import itertools
import json
import os
import threading
from pathlib import Path

import pytest
import torch

from cdmkit.builtin.shapes import Shapes
from cdmkit.builtin.webdataset import WebDataset
from cdmkit.data.skips import Damaged
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


def test_split_of_a_list(tmp_path: Path) -> None:
    """A list beside the shards names their splits."""
    store(tmp_path, Shapes(resolution=8, count=70, classes=5))
    shards = [{"file": path.name, "bytes": path.stat().st_size} for path in sorted(tmp_path.glob("*.tar"))]
    splits = {"train": {"shards": shards[:2]}, "val": {"shards": shards[2:]}}
    (tmp_path / "dataset.json").write_text(json.dumps({"splits": splits, "crop": "biggan"}))
    cards = [WebDataset(shards=f"{tmp_path}/dataset.json", split=split).card() for split in ("train", "val")]
    assert [(card.count, card.crop) for card in cards] == [(60, "biggan"), (10, "biggan")]


def test_largest_label_is_found(tmp_path: Path) -> None:
    """The card says where it is."""
    images = torch.zeros(5, 3, 4, 4, dtype=torch.uint8)
    write_shards((Sample(image, label) for image, label in zip(images, [0, 3, 9, 1, 9], strict=True)), tmp_path, per_shard=2)
    assert WebDataset(shards=f"{tmp_path}/*.tar").card().largest == f"{tmp_path}/train-00001.tar: key 'train-0000002'"


def test_damaged_samples_as_the_policy_says(tmp_path: Path) -> None:
    """An error, or left out and told by the card and by the batches."""
    pattern = store(tmp_path, Shapes(resolution=8, count=70, classes=5))
    path = tmp_path / "train-00001.tar"
    data = bytearray(path.read_bytes())
    data[data.index(b"train-0000033.cls") + 512] = ord("x")  # its label
    place = data.index(b"train-0000040.png") + 512
    data[place + 50] ^= 1  # its pixels
    path.write_bytes(data)
    with pytest.raises(DataError, match="key 'train-0000033' has the label"):
        WebDataset(shards=pattern).card()
    source = WebDataset(shards=pattern, damaged=Damaged.SKIP, max_skipped=0.03)
    card = source.card()
    assert (card.count, [skip.key for skip in card.skips]) == (69, ["train-0000033"])
    with source.open(69, 0, 1, 0, 0) as batches:
        assert len(next(batches).labels) == 69
        assert [skip.key for skip in batches.skips()] == ["train-0000040"]
        assert batches.skips() == []
    with pytest.raises(DataError, match="1 of 70 samples cannot be used"):
        WebDataset(shards=pattern, damaged=Damaged.SKIP, max_skipped=0.01).card()


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


def test_a_cache_needs_an_order_that_lets_go_of_shards() -> None:
    """With a full shuffle every shard is needed at any time."""
    with pytest.raises(ValueError, match="cache needs mix"):
        WebDataset(shards="x", cache=1.0)
    assert WebDataset(shards="x", cache=1.0, mix=4).cache == 1.0
