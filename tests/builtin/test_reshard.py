"""Shards as a source of originals: which split a tar belongs to, and what its labels mean."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cdmkit.builtin.reshard import Reshard
from cdmkit.errors import DataError
from cdmkit.kinds import Originals

SHARED = Path(os.environ.get("CDMKIT_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))


def write(path: Path, *members: str) -> Path:
    """A tar of members, each "name" or "name=content"; an image without content holds its name and its tar's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for member in members:
            name, _, content = member.partition("=")
            data = (content or f"{path.name} {name}").encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def card(folder: Path, splits: Mapping[str, list[str]], **more: Any) -> None:
    """A dataset.json that lists these shards."""
    sizes = {name: (folder / name).stat().st_size if (folder / name).is_file() else 1 for names in splits.values() for name in names}
    shards = {split: {"shards": [{"file": name, "bytes": sizes[name]} for name in names]} for split, names in splits.items()}
    told = {"splits": shards, **more}
    (folder / "dataset.json").write_text(json.dumps(told))


def listed(originals: Originals) -> dict[str, dict[str, int]]:
    """Labels by name, by split."""
    return {split: {original.name: original.label for original in images} for split, images in originals.splits.items()}


def test_splits_by_name(tmp_path: Path) -> None:
    """The word before the number tells the split, in the usual ways to write it; labels are named by their numbers."""
    for name in ("train-00000", "train-00001", "imagenet1k-validation-07", "x_val_3", "test"):
        write(tmp_path / f"{name}.tar", "a.png", "a.cls=2")
    found = Reshard().look(tmp_path)
    assert found.classes == ("0", "1", "2")
    assert listed(found) == {
        "test": {"test.tar/a": 2},
        "train": {"train-00000.tar/a": 2, "train-00001.tar/a": 2},
        "val": {"imagenet1k-validation-07.tar/a": 2, "x_val_3.tar/a": 2},
    }


@pytest.mark.parametrize("names", [("00000", "00001"), ("faces-0", "faces-1"), ("a", "training-set")])
def test_names_without_a_split(tmp_path: Path, names: tuple[str, ...]) -> None:
    """If no name tells a split, all is train."""
    for name in names:
        write(tmp_path / f"{name}.tar", "a.png")
    found = Reshard().look(tmp_path)
    assert listed(found) == {"train": {f"{name}.tar/a": -1 for name in names}}
    assert found.classes == ()


def test_some_names_without_a_split(tmp_path: Path) -> None:
    """If others tell one, that of the rest is not guessed."""
    write(tmp_path / "val-0.tar", "a.png")
    write(tmp_path / "more-0.tar", "a.png")
    with pytest.raises(DataError, match=r"more-0.tar: its name tells no split"):
        Reshard().look(tmp_path)


def test_dataset_json(tmp_path: Path) -> None:
    """It tells splits and classes, whatever the shards are called; what it does not list is passed over."""
    for name in ("a.tar", "b.tar", "train-0.tar"):
        write(tmp_path / name, "x.png", "x.cls=1")
    card(tmp_path, {"train": ["b.tar"], "held-out": ["a.tar"]}, classes=["cat", "dog"])
    found = Reshard().look(tmp_path)
    assert listed(found) == {"held-out": {"a.tar/x": 1}, "train": {"b.tar/x": 1}}
    assert found.classes == ("cat", "dog")
    assert found.passed_over == {"shard that the list beside it does not name": 1}


def test_one_shard_and_patterns(tmp_path: Path) -> None:
    """A tar, or some of them, with what dataset.json beside them tells."""
    for number in range(4):
        write(tmp_path / f"{number}.tar", "x.png", "x.cls=0")
    card(tmp_path, {"train": ["0.tar", "1.tar", "2.tar"], "val": ["3.tar"]}, classes=["cat"])
    assert listed(Reshard().look(tmp_path / "3.tar")) == {"val": {"3.tar/x": 0}}
    assert listed(Reshard().look(tmp_path / "{1..3}.tar")) == {"train": {"1.tar/x": 0, "2.tar/x": 0}, "val": {"3.tar/x": 0}}
    assert len(listed(Reshard().look(tmp_path / "*.tar"))["train"]) == 3
    (tmp_path / "0.tar").unlink()  # which is none of those that are asked for
    assert listed(Reshard().look(tmp_path / "[12].tar")) == {"train": {"1.tar/x": 0, "2.tar/x": 0}}
    with pytest.raises(DataError, match="matches no file"):
        Reshard().look(tmp_path / "x*.tar")


def test_shards_of_several_folders(tmp_path: Path) -> None:
    """A pattern may mean them, as long as names tell them apart."""
    write(tmp_path / "a" / "train-0.tar", "x.png")
    write(tmp_path / "b" / "train-1.tar", "x.png")
    card(tmp_path / "a", {"val": ["train-0.tar"]})
    assert list(listed(Reshard().look(tmp_path / "{a,b}" / "train-*.tar"))["train"]) == ["train-0.tar/x", "train-1.tar/x"]
    write(tmp_path / "b" / "train-0.tar", "x.png")
    with pytest.raises(DataError, match=r"two images are called 'train-0.tar/x'"):
        Reshard().look(tmp_path / "{a,b}" / "train-*.tar")


def test_reads_each_member(tmp_path: Path) -> None:
    """The image's bytes, in another process too: what is sent there are the preparer and the original."""
    write(tmp_path / "train-0.tar", "b.png", "b.cls=1", "a.jpg", "a.cls=0")
    write(tmp_path / "train-1.tar", "a.png", "a.cls=0")
    preparer, originals = pickle.loads(pickle.dumps((Reshard(), Reshard().look(tmp_path))))  # noqa: S301  # our own
    expected = [b"train-0.tar a.jpg", b"train-0.tar b.png", b"train-1.tar a.png"]
    assert [preparer.read(original) for original in originals.splits["train"]] == expected


@pytest.mark.parametrize(
    ("members", "classes", "message"),
    [
        (("a.png", "a.cls=0", "b.png"), [], "train-0.tar: key 'b' has no .cls, but other samples have: label all or none"),
        (("a.png", "a.cls=2"), ["cat", "dog"], "the largest label is 2, but there are 2 classes"),
        (("a.png", "a.cls=999999999"), [], "the largest label is 999999999"),
    ],
)
def test_labels_that_mean_nothing(tmp_path: Path, members: tuple[str, ...], classes: list[str], message: str) -> None:
    """Labels that some lack, or that are no class."""
    write(tmp_path / "train-0.tar", *members)
    card(tmp_path, {"train": ["train-0.tar"]}, classes=classes)
    with pytest.raises(DataError, match=message):
        Reshard().look(tmp_path)


def test_labels_of_one_split_alone(tmp_path: Path) -> None:
    """All splits are labelled, or none."""
    write(tmp_path / "train-0.tar", "a.png", "a.cls=0")
    write(tmp_path / "test-0.tar", "a.png")
    with pytest.raises(DataError, match=r"test-0.tar: key 'a' has no .cls"):
        Reshard().look(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", '{"splits": 3}', '{"splits": {"train": {"shards": [{"file": "../x.tar", "bytes": 1}]}}}'])
def test_unusable_lists(tmp_path: Path, text: str) -> None:
    """One that cannot be understood, or leads out of its folder, is an error."""
    write(tmp_path / "val-0.tar", "a.png")
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset.json cannot be read"):
        Reshard().look(tmp_path)


def test_other_lists(tmp_path: Path) -> None:
    """That of timm tells splits; that of open_clip has none, so names tell them."""
    for name in ("a.tar", "val-0.tar"):
        write(tmp_path / name, "x.png")
    told = {"splits": {"test": {"filenames": ["a.tar"], "shard_lengths": [1]}, "train": {"filenames": ["val-0.tar"], "shard_lengths": [1]}}}
    (tmp_path / "_info.json").write_text(json.dumps(told))
    assert listed(Reshard().look(tmp_path)) == {"test": {"a.tar/x": -1}, "train": {"val-0.tar/x": -1}}
    (tmp_path / "_info.json").unlink()
    (tmp_path / "sizes.json").write_text('{"val-0.tar": 1}')
    assert listed(Reshard().look(tmp_path)) == {"val": {"val-0.tar/x": -1}}


def test_missing_and_damaged_shards(tmp_path: Path) -> None:
    """Nothing of a data set is lost in silence."""
    with pytest.raises(DataError, match=r"no shards in .*looked for \*.tar"):
        Reshard().look(tmp_path)
    write(tmp_path / "train-0.tar", "a.png", "b.png")
    card(tmp_path, {"train": ["train-0.tar", "train-1.tar"]})
    with pytest.raises(DataError, match=r"train-1.tar is missing"):
        Reshard().look(tmp_path)
    write(tmp_path / "train-1.tar", "c.png")
    with pytest.raises(DataError, match=r"train-1.tar has 10240 bytes, but the list beside it says 1:"):
        Reshard().look(tmp_path)
    (tmp_path / "train-1.tar").unlink()
    (tmp_path / "dataset.json").unlink()
    (tmp_path / "train-0.tar").write_bytes((tmp_path / "train-0.tar").read_bytes()[:1100])
    with pytest.raises(DataError, match=r"train-0.tar: truncated"):
        Reshard().look(tmp_path)


def test_samples_that_cannot_be_used(tmp_path: Path) -> None:
    """They are counted by why, and the rest is taken."""
    write(tmp_path / "train-0.tar", "a.png", "a.cls=0", "b.png", "b.cls=x", "c.cls=0")
    found = Reshard().look(tmp_path)
    assert listed(found) == {"train": {"train-0.tar/a": 0}}
    assert sum(found.passed_over.values()) == 2


def test_real_shards() -> None:
    """CIFAR-10 pictures with their dataset.json."""
    folder = SHARED / "cifar10-lossless"
    if not folder.is_dir():
        pytest.skip(f"no cifar10-lossless at {SHARED}; set CDMKIT_TEST_DATA")
    found = Reshard().look(folder)
    assert {split: len(images) for split, images in found.splits.items()} == {"train": 7770, "val": 870}
    assert found.classes[6] == "frog"
    first = found.splits["train"][0]
    assert (first.name, first.label) == ("train-00000.tar/train-000000", 7)
    with tarfile.open(folder / "train-00000.tar") as tar:
        file = tar.extractfile("train-000000.png")
        assert file is not None
        assert Reshard().read(first) == file.read()
