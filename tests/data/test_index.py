"""Indices of shards that are kept on disk."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdmkit.data import index as module
from cdmkit.data.index import beside, index_of, write_index
from cdmkit.data.tar import TarIndex, index_tar


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CDMKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def shard(path: Path, count: int = 5, size: int = 700) -> Path:
    """A tar of samples, one of them with a bad label, one with a name that is not UTF-8."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for n in range(count):
            for name, data in ((f"k{n}.png", bytes([n % 256]) * size), (f"k{n}.cls", b"x" if n == 1 else b"%d" % n)):
                info = tarfile.TarInfo(name.replace("k2", "k\udcff2"))
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def same(one: TarIndex, two: TarIndex) -> bool:
    arrays = ("offsets", "sizes", "labels")
    return (one.path, one.keys, one.skips) == (two.path, two.keys, two.skips) and all(
        np.array_equal(getattr(one, name), getattr(two, name)) for name in arrays
    )


def refuse(*_: object) -> TarIndex:
    raise AssertionError("indexed anew")


def test_is_read_instead_of_the_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written beside a shard comes back whole: odd names, faults and all."""
    path = shard(tmp_path / "x.tar")
    expected = index_tar(path)
    assert len(expected.skips) == 1
    write_index(expected, beside(path))
    monkeypatch.setattr(module, "index_tar", refuse)
    assert same(index_of(path), expected)


def test_equal_shards_make_equal_files(tmp_path: Path) -> None:
    """Whenever they are written."""
    path = shard(tmp_path / "x.tar")
    write_index(index_tar(path), tmp_path / "1")
    write_index(index_tar(path), tmp_path / "2")
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_of_a_changed_shard_is_not_believed(tmp_path: Path) -> None:
    """A shard that was replaced is indexed anew: by another size, and by other bytes at either end."""
    path = shard(tmp_path / "x.tar")
    write_index(index_tar(path), beside(path))
    data = bytearray(path.read_bytes())
    for place in (600, len(data) - 11_000):
        changed = data.copy()
        changed[place] ^= 1
        path.write_bytes(changed)
        assert same(index_of(path), index_tar(path))
    shard(path, count=9)
    assert len(index_of(path).keys) == 8


def rewritten(path: Path, later: bool = True) -> None:
    """Give all samples but the first and last fifty the label 7: neither size nor ends change."""
    data = bytearray(path.read_bytes())
    place = -1
    for number in range(600):
        place = data.index(b".cls", place + 1)
        if 50 <= number < 550:
            data[place // 512 * 512 + 512] = ord("7")
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + (1 if later else 0)))


@pytest.mark.parametrize("kept", ["beside", "cached"])
def test_a_shard_changed_in_its_midst_is_indexed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str) -> None:
    """Labels that were corrected in place change neither the size of a shard nor its ends; the time of change tells."""
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for n in range(600):
            for name, data in ((f"k{n:03d}.png", bytes(700)), (f"k{n:03d}.cls", b"%d" % (n % 5))):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    if kept == "beside":
        write_index(index_tar(path), beside(path))
        os.utime(path, ns=(0, beside(path).stat().st_mtime_ns))
    else:
        monkeypatch.setattr(module, "_WORTH_KEEPING", 10)
        index_of(path)
    rewritten(path)
    labels = index_of(path).labels
    assert (labels[50:550] == 7).all()
    assert (labels[:50] != 7).all()


def test_an_index_copied_after_its_shard_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be of any age as long as it is not older than the shard; its messages name the shard where it is now."""
    (tmp_path / "a").mkdir()
    path = shard(tmp_path / "a" / "x.tar")
    write_index(index_tar(path), beside(path))
    (tmp_path / "a").rename(tmp_path / "b")
    moved = tmp_path / "b" / "x.tar"
    expected = index_tar(moved)
    write_index(expected, tmp_path / "anew")
    assert beside(moved).read_bytes() == (tmp_path / "anew").read_bytes()
    monkeypatch.setattr(module, "index_tar", refuse)
    assert same(index_of(moved), expected)
    assert all(str(moved) in skip.message for skip in index_of(moved).skips)


def test_no_home_costs_time_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no place for a cache, local shards are read all the same."""
    monkeypatch.delenv("CDMKIT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(module, "_WORTH_KEEPING", 1)
    assert len(index_of(shard(tmp_path / "x.tar")).keys) == 4


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


Arrays = dict[str, Any]


def cut(kept: Path, _arrays: Arrays) -> None:
    kept.write_bytes(kept.read_bytes()[:-30])


def bomb(kept: Path, _arrays: Arrays) -> None:
    with zipfile.ZipFile(kept, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("keys.npy", bytes(1 << 26))


def pickled(kept: Path, arrays: Arrays) -> None:
    np.savez(kept, **{**arrays, "facts": np.array([Canary(str(kept.parent / "canary"))], object)})


def changed(name: str, change: Callable[[Any], Any]) -> Callable[[Path, Arrays], None]:
    """Damage that changes one array."""
    return lambda kept, arrays: np.savez(kept, **{**arrays, name: change(arrays[name])})


DAMAGES: dict[str, Callable[[Path, Arrays], object]] = {
    "empty": lambda kept, _arrays: kept.write_bytes(b""),
    "garbage": lambda kept, _arrays: kept.write_bytes(bytes(range(256)) * 10),
    "cut": cut,
    "bomb": bomb,
    "pickle": pickled,
    "missing array": lambda kept, arrays: np.savez(kept, **{name: array for name, array in arrays.items() if name != "keys"}),
    "lengths": changed("labels", lambda array: array[:-1]),
    "outside": changed("offsets", lambda array: array + 10**6),
    "negative": changed("sizes", lambda array: array - 10_000),
    "overflow": changed("sizes", lambda array: array + 2**62),
    "floats": changed("offsets", lambda array: array.astype(float)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_no_index_is_not_believed(tmp_path: Path, damage: str) -> None:
    """Damage of any sort costs time, no more; nothing in it is run."""
    path = shard(tmp_path / "x.tar")
    expected, kept = index_tar(path), beside(path)
    write_index(expected, kept)
    DAMAGES[damage](kept, dict(np.load(kept)))
    assert same(index_of(path), expected)
    assert not (tmp_path / "canary").exists()


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (self.path, "w"))


def test_large_shards_are_kept_in_the_cache(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard without an index beside it is indexed once; a small one each time, without leaving anything."""
    monkeypatch.setattr(module, "_WORTH_KEEPING", 10)
    small, large = shard(tmp_path / "s.tar", count=9), shard(tmp_path / "l.tar", count=20)
    expected = [index_of(small), index_of(large)]
    assert len(list((cache / "indices").iterdir())) == 1
    assert not beside(large).exists()
    monkeypatch.setattr(module, "index_tar", refuse)
    assert same(index_of(large), expected[1])
    with pytest.raises(AssertionError):
        index_of(small)


def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its path is a file."""
    monkeypatch.setattr(module, "_WORTH_KEEPING", 1)
    cache.write_text("")
    path = shard(tmp_path / "x.tar")
    assert same(index_of(path), index_tar(path))


def test_missing_shard(tmp_path: Path) -> None:
    """That is an error of the file system."""
    with pytest.raises(FileNotFoundError):
        index_of(tmp_path / "x.tar")
