"""Shards as a source of originals: which split a tar belongs to, and what its labels mean."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
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
            data = (content or f"{path.name} {name}").encode("utf-8", "surrogateescape")
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
    """A word of the name tells the split, in the usual ways to write it; labels are named by their numbers."""
    for name in ("train-00000", "train-00001", "imagenet1k-validation-07", "x_val_3", "test"):
        write(tmp_path / f"{name}.tar", "a.png", "a.cls=2")
    found = Reshard().look(tmp_path)
    assert found.classes == ("0", "1", "2")
    assert listed(found) == {
        "test": {"test.tar/a": 2},
        "train": {"train-00000.tar/a": 2, "train-00001.tar/a": 2},
        "val": {"imagenet1k-validation-07.tar/a": 2, "x_val_3.tar/a": 2},
    }


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train-00000-of-00002", "val-00000-of-00001"),
        ("train-shard-0", "val-shard-0"),
        ("Train_00000", "Valid_00000"),
        ("training_set.0", "dev_set.0"),
        ("0-TRAIN", "0-Validation"),
        ("i1k-train-64px-000000-of-000064-v2", "i1k-val-64px-000000-of-000064-v2"),
    ],
)
def test_val_is_not_merged_into_train(tmp_path: Path, train: str, val: str) -> None:
    """Wherever in the names the words stand."""
    for name in (train, val):
        write(tmp_path / f"{name}.tar", "a.png")
    assert listed(Reshard().look(tmp_path)) == {"train": {f"{train}.tar/a": -1}, "val": {f"{val}.tar/a": -1}}


def test_folders_tell_splits(tmp_path: Path) -> None:
    """Of a pattern over several, where the tars' names do not."""
    for split in ("train", "val"):
        write(tmp_path / split / "00000.tar", f"{split}.png")
    assert listed(Reshard().look(tmp_path / "*" / "*.tar")) == {"train": {"00000.tar/train": -1}, "val": {"00000.tar/val": -1}}
    write(tmp_path / "test" / "val-0.tar", "x.png")
    with pytest.raises(DataError, match=r"val-0.tar: its name tells several splits, test and val: call them"):
        Reshard().look(tmp_path / "*" / "*.tar")


@pytest.mark.parametrize(
    "names", [("00000", "00001"), ("faces-0", "faces-1"), ("x-0-of-2", "x-1-of-2"), ("64px-0-a", "64px-1-a"), ("one",)]
)
def test_names_without_a_split(tmp_path: Path, names: tuple[str, ...]) -> None:
    """If names differ in numbers only, all is train."""
    for name in names:
        write(tmp_path / f"{name}.tar", "a.png")
    found = Reshard().look(tmp_path)
    assert listed(found) == {"train": {f"{name}.tar/a": -1 for name in names}}
    assert found.classes == ()


@pytest.mark.parametrize("names", [("a", "b"), ("faces-0", "heldout-0"), ("x-0", "x-eval-0"), ("0", "0b")])
def test_names_that_may_tell_a_split(tmp_path: Path, names: tuple[str, str]) -> None:
    """If they differ in words, what these mean is not guessed."""
    for name in names:
        write(tmp_path / f"{name}.tar", "a.png")
    with pytest.raises(DataError, match=r"differ in more than a number, .*call them as in train-00000.tar .*or list all in a dataset.json"):
        Reshard().look(tmp_path)


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


@pytest.mark.parametrize("name", ["dataset.json", "_info.json", "my list.json"])
def test_a_list_itself(tmp_path: Path, name: str) -> None:
    """It means all that it lists, and tells the splits of that; the folder's other tars are not asked for."""
    for tar in ("a.tar", "deep/b.tar", "other.tar"):
        write(tmp_path / tar, "x.png", "x.cls=1")
    card(tmp_path, {"train": ["a.tar"], "val": ["deep/b.tar"]}, classes=["cat", "dog"])
    (tmp_path / "dataset.json").rename(tmp_path / name)
    found = Reshard().look(tmp_path / name)
    assert listed(found) == {"train": {"a.tar/x": 1}, "val": {"b.tar/x": 1}}
    assert (found.classes, found.passed_over) == (("cat", "dog"), {})
    (tmp_path / "a.tar").unlink()
    with pytest.raises(DataError, match=r"a.tar is missing"):
        Reshard().look(tmp_path / name)
    with pytest.raises(DataError, match=r"gone.json cannot be read as a list of shards"):
        Reshard().look(tmp_path / "gone.json")


def test_lists_without_splits(tmp_path: Path) -> None:
    """Those of open_clip and wids: names tell the splits."""
    for name in ("train-0.tar", "val-0.tar"):
        write(tmp_path / name, "x.png")
    (tmp_path / "sizes.json").write_text('{"train-0.tar": 1, "val-0.tar": 1}')
    wids = {"wids_version": 1, "shardlist": [{"url": "val-0.tar", "nsamples": 1}]}
    (tmp_path / "wids.json").write_text(json.dumps(wids))
    assert listed(Reshard().look(tmp_path / "sizes.json")) == {"train": {"train-0.tar/x": -1}, "val": {"val-0.tar/x": -1}}
    assert listed(Reshard().look(tmp_path / "wids.json")) == {"val": {"val-0.tar/x": -1}}
    wids["shardlist"] = [{"url": "https://user:secret@host/val-0.tar", "nsamples": 1}]
    (tmp_path / "wids.json").write_text(json.dumps(wids))
    with pytest.raises(DataError, match=r"wids.json: its list names https://.*host/val-0.tar: only files are prepared") as told:
        Reshard().look(tmp_path / "wids.json")
    assert "secret" not in str(told.value)


def test_a_shard_in_two_splits(tmp_path: Path) -> None:
    """Whether its images are for training is not guessed."""
    write(tmp_path / "a.tar", "x.png")
    card(tmp_path, {"train": ["a.tar"], "val": ["a.tar"]})
    with pytest.raises(DataError, match=r"dataset.json: 'a.tar' is in train and in val"):
        Reshard().look(tmp_path)


def test_all_damaged_shards_are_named(tmp_path: Path) -> None:
    """In one error, so that they can be mended at once."""
    for number in range(5):
        write(tmp_path / f"train-{number}.tar", "a.png")
    os.truncate(tmp_path / "train-1.tar", 700)
    os.truncate(tmp_path / "train-3.tar", 0)
    with pytest.raises(DataError, match=r"2 shards cannot be used:\n.*train-1.tar: truncated.*\n.*train-3.tar: the file is empty"):
        Reshard().look(tmp_path)
    card(tmp_path, {"train": ["train-0.tar", "train-3.tar", "gone.tar"]})
    os.truncate(tmp_path / "train-0.tar", 5120)
    with pytest.raises(DataError, match=r"3 shards .*\n.*train-0.tar has 5120 bytes.*\n.*train-3.tar: .*\n.*gone.tar is missing"):
        Reshard().look(tmp_path)


def test_shards_without_an_end_mark(tmp_path: Path) -> None:
    """All that is there is taken, and they are counted."""
    for number in range(3):
        os.truncate(write(tmp_path / f"{number}.tar", "a.png"), 1024 if number else 10240)
    found = Reshard().look(tmp_path)
    assert len(found.splits["train"]) == 3
    assert found.passed_over == {"shard without an end mark": 2}


def test_names_of_any_kind(tmp_path: Path) -> None:
    """Other scripts and undecodable bytes, in names of tars and of members, fit a manifest and stay different."""
    name = os.fsdecode(b"\xc3\xa9 raw\xff-0.tar")
    write(tmp_path / name, "é.png")
    with tarfile.open(tmp_path / name, "a", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape") as tar:
        tar.addfile(tarfile.TarInfo("raw\udcfe.png"))
    assert list(listed(Reshard().look(tmp_path))["train"]) == [r"é raw\xff-0.tar/raw\xfe", r"é raw\xff-0.tar/é"]


@pytest.mark.parametrize("locale", [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONUTF8": "1"}])
def test_names_do_not_depend_on_the_locale(tmp_path: Path, locale: dict[str, str]) -> None:
    """Those of tars and of their members, listed or not."""
    for place in (tmp_path, tmp_path / "listed"):
        write(place / "é.tar", "中.png", "中.cls=0", "bad é.png", "bad é.cls=x")
    card(tmp_path / "listed", {"train": ["é.tar"]}, classes=["ñ"])
    program = """if True:
        import pathlib, sys
        from cdmkit.builtin.reshard import Reshard
        for path in sys.argv[1:]:
            found = Reshard().look(pathlib.Path(path))
            print(ascii((found.splits["train"][0].name, found.classes, found.passed_over)))
    """
    places = [tmp_path, tmp_path / "listed", tmp_path / "listed" / "dataset.json"]
    told = subprocess.run([sys.executable, "-c", program, *places], env=os.environ | locale, capture_output=True, text=True)
    bad = {"bad label (é.tar/bad é)": 1}
    assert told.stdout.splitlines() == [ascii(("é.tar/中", (name,), bad)) for name in ("0", "ñ", "ñ")], told.stderr


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
    """They are counted by why, some are named, and the rest is taken."""
    write(tmp_path / "train-0.tar", "a.png", "a.cls=0", "b.png", "b.cls=x", "c.cls=0", f"{'d' * 90}.cls=0")
    write(tmp_path / "train-1.tar", "a.png", "a.cls=0", *(member for key in "bcd" for member in (f"{key}.png", f"{key}.cls=-1")))
    found = Reshard().look(tmp_path)
    assert listed(found) == {"train": {"train-0.tar/a": 0, "train-1.tar/a": 0}}
    assert found.passed_over == {
        "bad label (train-0.tar/b, train-1.tar/b, train-1.tar/c, ...)": 4,
        f"label without image (train-0.tar/c, train-0.tar/{'d' * 68}...)": 2,
    }


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
