"""Shards as one sequence of pictures."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from cdmkit.data import shards as module
from cdmkit.data.shards import Shards, open_shards
from cdmkit.data.writer import Sample, write_shards
from cdmkit.errors import DataError


def pictures(count: int, size: int = 8, seed: int = 0) -> torch.Tensor:
    """Noise, uint8 [count, 3, size, size]."""
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def stored(folder: Path, images: Sequence[torch.Tensor], labels: Sequence[int | None], per_shard: int = 3) -> Shards:
    """Shards of these samples, opened."""
    write_shards((Sample(image, label) for image, label in zip(images, labels, strict=True)), folder, per_shard=per_shard)
    return open_shards(f"{folder}/*.tar")


def test_reads_in_any_order(tmp_path: Path) -> None:
    """Pictures and labels are found by their number through all shards, with repeats."""
    images = pictures(10)
    shards = stored(tmp_path, list(images), list(range(10)))
    wanted = torch.tensor([9, 0, 3, 2, 3, 6])
    read, labels = shards.read(wanted)
    assert (len(shards), shards.classes, shards.resolution) == (10, 10, 8)
    assert torch.equal(read, images[wanted])
    assert torch.equal(labels, wanted)


def test_from_several_threads_with_few_files_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More shards than may stay open are read as well, by any number of threads."""
    monkeypatch.setattr(module, "_OPEN_FILES", 2)
    images = pictures(40)
    shards = stored(tmp_path, list(images), [0] * 40, per_shard=2)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda n: shards.read(torch.tensor([n]))[0], range(40)))
    assert torch.equal(torch.cat(read), images)
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_without_labels(tmp_path: Path) -> None:
    """Data without any label has no classes, and its labels read as 0."""
    shards = stored(tmp_path, list(pictures(4)), [None] * 4)
    assert shards.classes == 0
    assert shards.read(torch.arange(4))[1].tolist() == [0, 0, 0, 0]


def test_label_all_or_none(tmp_path: Path) -> None:
    """Some samples without a label are an error that names the first."""
    with pytest.raises(DataError, match=r"train-00001\.tar: key 'train-0000003': no label: .* \(and more: 1 x no label"):
        stored(tmp_path, list(pictures(5)), [0, 1, 2, None, None])


def test_size_must_be_that_of_the_first(tmp_path: Path) -> None:
    """A picture of another size is named, with both sizes."""
    shards = stored(tmp_path, [*pictures(2), *pictures(1, size=9)], [0, 0, 0])
    assert len(shards.read(torch.tensor([0, 1]))[0]) == 2
    with pytest.raises(DataError, match=r"key 'train-0000002': wrong size: the image is 9 x 9, but the first one is 8 x 8"):
        shards.read(torch.tensor([2]))


def test_pictures_must_be_square(tmp_path: Path) -> None:
    """A first picture that is not square is an error."""
    with pytest.raises(DataError, match="the image is 5 x 8, not square"):
        _ = stored(tmp_path, [pictures(1)[0, :, :, :5]], [0]).resolution


def test_broken_picture_is_named(tmp_path: Path) -> None:
    """What cannot be decoded is an error with shard and key."""
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("broken.png")
        info.size = 9
        tar.addfile(info, io.BytesIO(b"not a png"))
    with pytest.raises(DataError, match=r"x\.tar: key 'broken': not a JPEG"):
        open_shards(str(path)).read(torch.tensor([0]))


def test_shard_that_shrinks_in_use(tmp_path: Path) -> None:
    """A shard that is cut after indexing is an error, not a wrong picture."""
    shards = stored(tmp_path, list(pictures(3)), [0, 1, 2])
    with (tmp_path / "train-00000.tar").open("r+b") as file:
        file.truncate(700)
    with pytest.raises(DataError, match="shorter since it was opened"):
        shards.read(torch.tensor([2]))


def test_shard_that_vanishes_in_use(tmp_path: Path) -> None:
    """A shard that is removed before its first use is an error that names it."""
    shards = stored(tmp_path, list(pictures(3)), [0, 1, 2])
    (tmp_path / "train-00000.tar").unlink()
    with pytest.raises(DataError, match=r"train-00000\.tar.* cannot be read: No such file"):
        shards.read(torch.tensor([2]))


def test_indexed_once_while_unchanged(tmp_path: Path) -> None:
    """The same files give the same object; changed files are indexed anew."""
    shards = stored(tmp_path, list(pictures(3)), [0, 1, 2])
    assert open_shards(f"{tmp_path}/*.tar") is shards
    assert len(stored(tmp_path, list(pictures(2)), [0, 1])) == 2


def test_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    """Equal content under other names has one fingerprint; other pictures, labels or counts have another."""
    images, labels = list(pictures(5)), [0, 1, 2, 3, 4]
    first = stored(tmp_path / "a", images, labels).fingerprint()
    (tmp_path / "a").rename(tmp_path / "b")
    for path in (tmp_path / "b").iterdir():
        path.rename(path.with_name("x" + path.name))
    assert open_shards(f"{tmp_path}/b/*.tar").fingerprint() == first
    others = [
        stored(tmp_path / "c", list(pictures(5, seed=1)), labels),
        stored(tmp_path / "d", images, [0, 1, 2, 3, 5]),
        stored(tmp_path / "e", images[:4], labels[:4]),
    ]
    assert len({first, *(shards.fingerprint() for shards in others)}) == 4
