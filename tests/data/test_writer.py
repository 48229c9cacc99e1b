"""Shards that are written: what other readers find, and that equal samples make equal bytes."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cdmkit.data.writer import Sample, write_shards


def samples(count: int) -> list[Sample]:
    """Pictures of noise, labelled 0, 1, 2, 0, ..."""
    images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return [Sample(image, label % 3, {"seed": label}) for label, image in enumerate(images)]


def test_names_and_members(tmp_path: Path) -> None:
    """Shards and keys are numbered, and a sample's members are neighbours."""
    paths = write_shards(samples(5), tmp_path, "val", per_shard=2)
    assert [path.name for path in paths] == ["val-00000.tar", "val-00001.tar", "val-00002.tar"]
    assert sorted(tmp_path.iterdir()) == paths
    with tarfile.open(paths[1]) as tar:
        assert tar.getnames() == [f"val-000000{n}.{ext}" for n in (2, 3) for ext in ("cls", "json", "png")]
        assert all((m.mtime, m.uid, m.uname, m.gname) == (0, 0, "", "") for m in tar.getmembers())


def test_the_webdataset_library_reads_them(tmp_path: Path) -> None:
    """Pictures, labels and information come back whole from the format's own library."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    expected = samples(4)
    (path,) = write_shards(expected, tmp_path)
    with path.open("rb") as file:
        found = list(group_by_keys(tar_file_expander([{"url": str(path), "stream": file}])))
    assert [sample["__key__"] for sample in found] == [f"train-000000{n}" for n in range(4)]
    for sample, other in zip(expected, found, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(other["png"])))
        assert np.array_equal(pixels, sample.image.permute(1, 2, 0).numpy())
        assert other["cls"] == str(sample.label).encode()
        assert json.loads(other["json"]) == sample.info


def test_equal_samples_make_equal_bytes(tmp_path: Path) -> None:
    """Neither time nor folder is in the bytes."""
    (first,), (second,) = (write_shards(samples(3), tmp_path / name) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_label_and_information_may_lack(tmp_path: Path) -> None:
    """A sample without label or information has no such member."""
    (path,) = write_shards([Sample(samples(1)[0].image)], tmp_path)
    with tarfile.open(path) as tar:
        assert tar.getnames() == ["train-0000000.png"]


def test_no_samples_no_shard(tmp_path: Path) -> None:
    """Nothing is written for nothing."""
    assert write_shards([], tmp_path) == []


def test_a_failing_source_leaves_no_half_shard(tmp_path: Path) -> None:
    """Shards before the failure stand, the one it happened in is not there."""

    def failing() -> Iterator[Sample]:
        yield from samples(3)
        raise RuntimeError("sampling failed")

    with pytest.raises(RuntimeError, match="sampling failed"):
        write_shards(failing(), tmp_path, per_shard=2)
    assert [path.name for path in tmp_path.iterdir()] == ["train-00000.tar"]


def test_no_shard_of_an_earlier_job_stays(tmp_path: Path) -> None:
    """A smaller job in the same folder: what its shards' pattern finds is its own; other files are left alone."""
    images = [Sample(torch.full((3, 4, 4), value, dtype=torch.uint8)) for value in range(5)]
    write_shards(images, tmp_path, prefix="base", per_shard=2)
    write_shards(images, tmp_path, prefix="base-more", per_shard=5)
    assert write_shards(images[:1], tmp_path, prefix="base", per_shard=2) == [tmp_path / "base-00000.tar"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base-00000.tar", "base-more-00000.tar"]
