"""Folders of images: which layouts are understood, and what is told of those that are not."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from cdmkit.builtin.folder import Folder
from cdmkit.errors import DataError
from cdmkit.kinds import Originals

SHARED = Path(os.environ.get("CDMKIT_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))


def touch(root: Path, *names: str) -> Path:
    """A folder with these files, each holding its name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))
    return root


PNG = b"\x89PNG\r\n\x1a\n and more"


def listed(originals: Originals) -> dict[str, dict[str, int]]:
    """Labels by name, by split."""
    return {split: {original.name: original.label for original in images} for split, images in originals.splits.items()}


def test_splits_and_classes(tmp_path: Path) -> None:
    """Labels are ranks of the sorted folders of train, in every split; deeper folders belong to their class; names are paths."""
    touch(tmp_path, "train/b/1.jpg", "train/a/x/y/2.png", "train/c/3.webp", "val/c/4.jpg", "test/b/5.jpg", "README.md")
    found = Folder().look(tmp_path)
    assert found.classes == ("a", "b", "c")
    assert listed(found) == {
        "train": {"train/a/x/y/2.png": 0, "train/b/1.jpg": 1, "train/c/3.webp": 2},
        "val": {"val/c/4.jpg": 2},
        "test": {"test/b/5.jpg": 1},
    }
    assert [original.name for original in found.splits["train"]] == sorted(listed(found)["train"])


def test_reads_each_file(tmp_path: Path) -> None:
    """The bytes as they are, in another process too: what is sent there are the preparer and the original."""
    touch(tmp_path, "a/1.jpg", "b/2.jpg")
    preparer, originals = pickle.loads(pickle.dumps((Folder(), Folder().look(tmp_path))))  # noqa: S301  # our own
    assert [preparer.read(original) for original in originals.splits["train"]] == [b"a/1.jpg", b"b/2.jpg"]


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "validation", "test"), ("Train", "Val", "Test"), ("training", "valid", "testing"), ("TRAINING", "dev", "test")],
)
def test_other_names_of_splits(tmp_path: Path, train: str, val: str, test: str) -> None:
    """By the usual names, in any case: they are never classes, and never dropped."""
    touch(tmp_path, f"{train}/a/1.jpg", f"{train}/b/1.jpg", f"{val}/b/2.jpg", f"{test}/a/3.jpg")
    found = Folder().look(tmp_path)
    assert listed(found) == {
        "train": {f"{train}/a/1.jpg": 0, f"{train}/b/1.jpg": 1},
        "val": {f"{val}/b/2.jpg": 1},
        "test": {f"{test}/a/3.jpg": 0},
    }
    assert found.passed_over == {}
    assert [Folder().read(original) for original in found.splits["val"]] == [f"{val}/b/2.jpg".encode()]


@pytest.mark.parametrize("names", [("val", "validation"), ("Val", "val"), ("dev", "valid"), ("Train", "train")])
def test_two_names_of_one_split(tmp_path: Path, names: tuple[str, str]) -> None:
    """Which of them is meant is not guessed."""
    touch(tmp_path, "train/a/1.jpg", f"{names[0]}/a/2.jpg", f"{names[1]}/a/2.jpg")
    with pytest.raises(DataError, match=f"both {names[0]} and {names[1]}, which are the same split"):
        Folder().look(tmp_path)


def test_folders_called_much_like_splits(tmp_path: Path) -> None:
    """Beside splits they are passed over under their names; alone they are no classes, though not all folders have images."""
    touch(tmp_path, "train/a/1.jpg", "val_images/a/1.jpg", "val_images/a/2.jpg", "vaild/a/1.jpg", "docs/1.png")
    assert Folder().look(tmp_path).passed_over == {
        "image beside the splits, in val_images: is it a split?": 2,
        "image beside the splits, in vaild: is it a split?": 1,
        "image beside the splits": 1,
    }
    touch(tmp_path / "coco", "train2017/1.jpg", "val2017/1.jpg", "annotations/instances.json")
    with pytest.raises(DataError, match=r"holds train2017 and val2017, but no train: rename them"):
        Folder().look(tmp_path / "coco")
    touch(tmp_path / "flat", "train_1.jpg", "test_1.jpg")
    assert len(Folder().look(tmp_path / "flat").splits["train"]) == 2
    touch(tmp_path / "classes", "bullet train/1.jpg", "bus/1.jpg")
    assert Folder().look(tmp_path / "classes").classes == ("bullet train", "bus")


def test_no_splits(tmp_path: Path) -> None:
    """Without a folder train, all is train."""
    touch(tmp_path, "dog/1.jpg", "cat/1.jpg")
    assert listed(Folder().look(tmp_path)) == {"train": {"cat/1.jpg": 0, "dog/1.jpg": 1}}


def test_flat(tmp_path: Path) -> None:
    """Images that lie in no folders have no labels."""
    touch(tmp_path, "2.jpg", "1.jpg")
    (tmp_path / "no extension").write_bytes(PNG)
    found = Folder().look(tmp_path)
    assert found.classes == ()
    assert listed(found) == {"train": {"1.jpg": -1, "2.jpg": -1, "no extension": -1}}


def test_without_labels(tmp_path: Path) -> None:
    """Folders are no classes if one says so: then images may lie anywhere, and splits need not agree."""
    touch(tmp_path, "train/a/1.jpg", "train/2.jpg", "val/z/3.jpg")
    found = Folder(labels=False).look(tmp_path)
    assert found.classes == ()
    assert listed(found) == {"train": {"train/2.jpg": -1, "train/a/1.jpg": -1}, "val": {"val/z/3.jpg": -1}}


@pytest.mark.parametrize("names", [("a/1.jpg", "b/1.jpg"), ("1.jpg", "2.jpg"), ("train/a/1.jpg", "val/a/1.jpg")])
def test_texts_beside_images(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Files such as LICENSE, which have no extension either, neither stop a data set nor are images."""
    touch(tmp_path, *names, "LICENSE", "README", "Makefile")
    found = Folder().look(tmp_path)
    assert sorted(original.name for images in found.splits.values() for original in images) == list(names)
    assert found.passed_over == ({} if names[0].startswith("train") else {"no image by its content": 3})


def test_what_is_passed_over(tmp_path: Path) -> None:
    """Nothing disappears unsaid."""
    touch(
        tmp_path,
        "train/a/1.jpg",
        "train/a/._1.jpg",
        "train/a/notes.txt",
        "train/empty/notes.txt",
        "extra/a/1.jpg",
        "extra/2.jpg",
        "logo.png",
    )
    (tmp_path / "val" / "a").mkdir(parents=True)
    found = Folder().look(tmp_path)
    assert listed(found) == {"train": {"train/a/1.jpg": 0}}
    assert found.passed_over == {
        "hidden file": 1,
        "no image by its name (.txt)": 2,
        "empty class folder": 2,
        "image beside the splits": 3,
        "split without images": 1,
    }


def test_names_of_any_kind(tmp_path: Path) -> None:
    """Blanks, dots, other scripts, undecodable bytes, quotes and 1000 characters: listed, readable, and writable as a line of UTF-8."""
    long = "/".join(["x" * 200] * 5)
    names = ["a b/c d.jpg", "a.b/v1.0.jpg", "中/é.jpg", "q'\"/#?.jpg", os.fsdecode(b"raw\xff/\xfe.jpg"), "new\nline/1.jpg", f"{long}/1.jpg"]
    touch(tmp_path, *names)
    found = Folder().look(tmp_path)
    told = [original.name for original in found.splits["train"]]
    assert len(found.classes) == len(set(told)) == len(names)
    assert r"raw\xff/\xfe.jpg" in told
    for text in (*told, *found.classes):
        assert text.encode().decode().splitlines() == [text]
    assert {Folder().read(original) for original in found.splits["train"]} == {os.fsencode(name) for name in names}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["1.jpg", "a/2.jpg"], r"holds both images \(1.jpg\) and class folders \(a/2.jpg\): .*labels = false"),
        (["train/a/1.jpg", "val/2.jpg"], "train has class folders, but val has none"),
        (["train/1.jpg", "val/a/2.jpg"], "val has class folders, but train has none"),
        (["train/cat/1.jpg", "val/cats/2.jpg"], r"val: train has no class 'cats': there are cat; did you mean \"cat\"\?"),
        (["val/a/1.jpg", "test/a/2.jpg"], "holds test and val, but no train"),
        (["train/1.jpg", "bus/2.jpg"], "if train is a class"),
        (["train/.x.jpg", "val/a/1.jpg"], "no images under .*train: .*1 x hidden file"),
        (["notes.txt"], r"no images under .*looked for \*.jpg.*1 x no image by its name"),
        ([], "no images under .*passed over: nothing"),
    ],
)
def test_layouts_that_mean_nothing(tmp_path: Path, names: list[str], message: str) -> None:
    """What cannot be told is an error that says what is there and what to do."""
    with pytest.raises(DataError, match=message):
        Folder().look(touch(tmp_path, *names))


def test_no_folder(tmp_path: Path) -> None:
    """A path that is missing, or a file."""
    with pytest.raises(DataError, match="gone does not exist"):
        Folder().look(tmp_path / "gone")
    touch(tmp_path, "1.jpg")
    with pytest.raises(DataError, match="is a file"):
        Folder().look(tmp_path / "1.jpg")


def test_real_images() -> None:
    """A folder of photographs."""
    if not (SHARED / "imagefolder-sample").is_dir():
        pytest.skip(f"no imagefolder-sample at {SHARED}; set CDMKIT_TEST_DATA")
    found = Folder().look(SHARED / "imagefolder-sample")
    assert {split: len(images) for split, images in found.splits.items()} == {"train": 200, "val": 50}
    assert len(found.classes) == 10
    for original in found.splits["val"]:
        assert found.classes[original.label] in original.name
        assert Folder().read(original).startswith(b"\xff\xd8\xff")
