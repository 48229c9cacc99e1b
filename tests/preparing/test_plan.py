"""Which image goes where."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from cdmkit import preparing
from cdmkit.component import evolve
from cdmkit.data.crop import Crop
from cdmkit.data.encode import Encoding
from cdmkit.data.originals import Piece
from cdmkit.draws import Stream
from cdmkit.errors import DataError, UsageError
from cdmkit.kinds import Original, Originals
from cdmkit.preparing import Settings
from cdmkit.preparing.plan import Plan, Split
from cdmkit.preparing.settings import Exif
from tests.preparing.drawn import Drawn


def originals(count: int, label: int = -1) -> list[Original]:
    return [Original(str(number), label, number) for number in range(count)]


def split(count: int, **settings: Any) -> Split:
    return Split.of("train", originals(count), Settings(**settings))


def test_every_image_once() -> None:
    """The shards hold all of them, in the order of a permutation by the seed."""
    made = split(100, per_shard=7, seed=3)
    places = [original.place for shard in made.shards for original in made.at(shard.first, shard.count)]
    assert places == Stream.of(3, "prepare", "train").permutation(100, 0).tolist()
    assert sorted(places) == list(range(100))
    assert [shard.file for shard in made.shards] == [f"train-{number:05d}.tar" for number in range(15)]


def test_seeds_and_splits_differ() -> None:
    """Neither shares an order with another."""
    one, other = split(100), split(100, seed=1)
    val = Split.of("val", originals(100), Settings())
    assert not np.array_equal(one.order, other.order)
    assert not np.array_equal(one.order, val.order)


@pytest.mark.parametrize(
    ("count", "per_shard", "min_shards", "sizes"),
    [
        (10, 10, 1, [10]),
        (11, 10, 1, [10, 1]),
        (11, 10, 2, [5, 5, 1]),
        (12, 100, 4, [3, 3, 3, 3]),
        (3, 100, 8, [1, 1, 1]),
    ],
)
def test_sizes_of_shards(count: int, per_shard: int, min_shards: int, sizes: list[int]) -> None:
    """As many images as allowed, fewer where more shards are wanted."""
    assert [shard.count for shard in split(count, per_shard=per_shard, min_shards=min_shards).shards] == sizes


def test_too_many_shards() -> None:
    """Their names have five digits."""
    with pytest.raises(UsageError, match="100,001 images, 1 to a shard, are more than 100,000 shards"):
        split(100_001, per_shard=1)


def plan(splits: dict[str, list[Original]], classes: tuple[str, ...] = ()) -> Plan:
    return Plan.of(Drawn(), Originals(splits=splits, classes=classes), Settings())


def test_what_cannot_be_a_data_set() -> None:
    """Nothing, labels without names or without sense, names that lead elsewhere."""
    with pytest.raises(DataError, match="no images"):
        plan({})
    with pytest.raises(DataError, match="no images"):
        plan({"train": []})
    with pytest.raises(DataError, match="train: '0' has the label 2, but there are 2 classes"):
        plan({"train": originals(3, 2)}, ("a", "b"))
    with pytest.raises(DataError, match="'1' has the label -1"):
        plan({"train": [Original("0", 0, 0), Original("1", -1, 1)]}, ("a", "b"))
    with pytest.raises(DataError, match=r"a split is called '\.\./train'"):
        plan({"../train": originals(3)})


def test_an_unlabelled_split_may_stand_beside_labelled_ones() -> None:
    """As LSUN's `test` does. Splits without images are left out."""
    made = plan({"train": originals(3, 1), "val": [], "test": originals(2)}, ("a", "b"))
    assert [split.name for split in made.splits] == ["train", "test"]


BASE = Settings(resolution=8)

CHANGES: dict[str, Any] = {
    "resolution": 9,
    "crop": Crop.AREA,
    "min_side": 2,
    "encoding": Encoding.JPEG,
    "per_shard": 3,
    "min_shards": 4,
    "seed": 1,
    "max_pixels": 1000,
    "exif": Exif.APPLY,
}


def digest(preparer: Drawn, settings: Settings, folder: Path) -> str:
    return next(iter(preparing.plan(preparer, folder, settings)[0].digests().values()))


def test_the_digest_tells_data_sets_apart(tmp_path: Path) -> None:
    """By all that decides their bytes: every setting, the preparer's options, what is listed. Not by the licence, which is a note."""
    settings = [BASE, *(evolve(BASE, **{name: value}) for name, value in CHANGES.items())]
    digests = [digest(Drawn(), each, tmp_path) for each in settings]
    digests += [digest(Drawn(count=21), BASE, tmp_path), digest(Drawn(broken=(1,)), BASE, tmp_path)]
    assert len(set(digests)) == len(digests)
    assert digest(Drawn(), evolve(BASE, license="free"), tmp_path) == digests[0]
    assert CHANGES.keys() | {"license"} == BASE.plain().keys()


class Stored(NamedTuple):
    """A place as plugins may have one."""

    path: str
    row: int


def test_the_digest_tells_pictures_apart(tmp_path: Path) -> None:
    """By the size and time of the files that hold them, not by where these lie; each shard by its own."""
    digests = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        for file in ("a", "b", "c"):
            (tmp_path / name / file).write_bytes(b"x")
            os.utime(tmp_path / name / file, ns=(0, 0))
        listed = [Original(file, -1, Piece(str(tmp_path / name), file)) for file in "ab"]
        listed += [Original("c", -1, Stored(str(tmp_path / name / "c"), 3)), Original("d", -1, Stored(str(tmp_path / name), 4))]
        digests.append(Plan.of(Drawn(), Originals(splits={"train": listed}), Settings(per_shard=1)))
    here, there = (list(each.digests().values()) for each in digests)
    assert here == there
    assert len(set(here)) == 4
    (tmp_path / "there" / "a").write_bytes(b"xy")
    (tmp_path / "there" / "c").touch()
    (tmp_path / "there" / "b").unlink()
    assert not set(here) & set(digests[1].digests().values())


@pytest.mark.parametrize(
    "changes", [{"crop": Crop.ADM}, {"encoding": Encoding.PNG}, {"exif": Exif.APPLY}], ids=lambda each: next(iter(each))
)
def test_options_without_effect_are_refused(changes: dict[str, Any]) -> None:
    """Files that are kept are neither cropped nor turned nor encoded."""
    with pytest.raises(UsageError, match=f"--{next(iter(changes))} goes with --resolution"):
        Settings(**changes).filled()
