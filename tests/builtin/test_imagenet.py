"""ImageNet: every layout gives the same originals, and labels are ranks of WNIDs whatever tells them."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdmkit.builtin.imagenet import ImageNet
from cdmkit.errors import DataError, SetupError
from cdmkit.kinds import Originals

SHARED = Path(os.environ.get("CDMKIT_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
A, B, C = "n01440764", "n01443537", "n02119789"
TRAIN = {f"{wnid}/{wnid}_{number}.JPEG": f"{wnid} {number}".encode() for wnid in (C, A, B) for number in (7, 10)}
VAL = {f"ILSVRC2012_val_0000000{number}.JPEG": f"val {number}".encode() for number in range(1, 5)}
VAL_WNIDS = [B, C, A, B]
VAL_LABELS = dict(zip(VAL, (1, 2, 0, 1), strict=True))
IDS = {C: 1, A: 2, B: 3, "n00001740": 1001, "n00002137": 1002}
"""As in the development kit: in an order of their own, and with inner nodes beyond the classes."""


def tar(members: Mapping[str, bytes], mode: str = "w") -> bytes:
    """An archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]  # it takes any mode
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    """A folder of files."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def train_tar(folder: Path) -> Path:
    """The archive of train as it is published: an archive per class, here not in order."""
    inner = {f"{wnid}.tar": tar({name.partition("/")[2]: TRAIN[name] for name in TRAIN if name.startswith(wnid)}) for wnid in (B, C, A)}
    return write(folder, {"ILSVRC2012_img_train.tar": tar(inner)}) / "ILSVRC2012_img_train.tar"


def val_tar(folder: Path) -> Path:
    """The archive of val, its images not in order."""
    return write(folder, {"ILSVRC2012_img_val.tar": tar(dict(reversed(VAL.items())))}) / "ILSVRC2012_img_val.tar"


def meta() -> bytes:
    """meta.mat of the development kit."""
    savemat = pytest.importorskip("scipy.io", reason="the development kit is read with scipy: pip install 'cdmkit[imagenet]'").savemat
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height", "num_train_images")
    synsets = np.zeros((len(IDS), 1), [(field, object) for field in fields])
    for row, (wnid, number) in enumerate(IDS.items()):
        inner = number > 1000
        children = np.array([1.0, 2.0]) if inner else np.zeros((0, 0))
        synsets[row, 0] = (float(number), wnid, "a word", "a gloss", 2.0 * inner, children, 1.0 * inner, 0.0 if inner else 2.0)
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": synsets})
    return buffer.getvalue()


def devkit() -> dict[str, bytes]:
    """The development kit's files."""
    truth = "".join(f"{IDS[wnid]}\n" for wnid in VAL_WNIDS).encode()
    return {"readme.txt": b"?", "data/ILSVRC2012_validation_ground_truth.txt": truth, "data/meta.mat": meta()}


def listed(originals: Originals, split: str) -> dict[str, int]:
    """Labels by name."""
    return {original.name: original.label for original in originals.splits[split]}


def contents(originals: Originals, split: str) -> dict[str, bytes]:
    """Bytes by name, read by a preparer that has been sent to another process."""
    preparer, images = pickle.loads(pickle.dumps((ImageNet(), originals.splits[split])))  # noqa: S301  # our own
    return {original.name: preparer.read(original) for original in images}


LISTS: dict[str, Callable[[], Mapping[str, bytes]]] = {
    "synsets": lambda: {"imagenet_2012_validation_synset_labels.txt": "\n".join(VAL_WNIDS).encode()},
    "names": lambda: {"val_labels.txt": "".join(f"{n} {w}\r\n" for n, w in zip(VAL, VAL_WNIDS, strict=True)).encode()},
    "kaggle": lambda: {
        "LOC_val_solution.csv": "\n".join(
            ["ImageId,PredictionString", *(f"{n[:-5]},{w} 1 2 3 4 {w} 5 6 7 8 " for n, w in zip(VAL, VAL_WNIDS, strict=True))][::-1]
        ).encode()
    },
    "kit": lambda: {f"ILSVRC2012_devkit_t12/{name}": data for name, data in devkit().items()},
    "packed kit": lambda: {
        "ILSVRC2012_devkit_t12.tar.gz": tar({f"ILSVRC2012_devkit_t12/{name}": data for name, data in devkit().items()}, "w:gz")
    },
}
"""All that may tell the labels of val, as files beside it."""


def test_train_in_every_layout(tmp_path: Path) -> None:
    """Packed, unpacked, and as one of its own: equal names, labels, order and bytes."""
    expected = {name: [A, B, C].index(name[:9]) for name in sorted(TRAIN)}
    paths = [train_tar(tmp_path / "packed"), tmp_path / "packed", write(tmp_path / "bare", TRAIN)]
    paths.append(write(tmp_path / "unpacked" / "train", TRAIN).parent)
    kaggle = write(tmp_path / "kaggle" / "ILSVRC" / "Data" / "CLS-LOC" / "train", TRAIN).parent
    paths += [kaggle, *kaggle.parents[:3]]
    for path in paths:
        found = ImageNet().look(path)
        assert list(listed(found, "train").items()) == list(expected.items()), path
        assert contents(found, "train") == TRAIN
        assert (found.classes, list(found.splits), found.passed_over) == ((A, B, C), ["train"], {})


@pytest.mark.parametrize("layout", ["tar", "folder"])
@pytest.mark.parametrize("told_by", LISTS)
def test_val_labels(tmp_path: Path, told_by: str, layout: str) -> None:
    """Whatever tells them, found beside val or given: the rank of the WNID among those of train, not the number in the kit."""
    train_tar(tmp_path)
    if layout == "tar":
        val_tar(tmp_path)
    else:
        write(tmp_path / "val", VAL)
    files = LISTS[told_by]()
    write(tmp_path, files)
    found = ImageNet().look(tmp_path)
    assert listed(found, "val") == VAL_LABELS
    assert contents(found, "val") == VAL
    assert listed(found, "train") == {name: [A, B, C].index(name[:9]) for name in TRAIN}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    top = next(iter(files)).partition("/")[0]
    shutil.move(tmp_path / top, elsewhere / "labels")
    given = (elsewhere / "labels").rename(elsewhere / (top if told_by == "packed kit" else "labels"))
    assert ImageNet(val_labels=str(given)).look(tmp_path).splits == found.splits


def test_ground_truth_itself(tmp_path: Path) -> None:
    """The kit's list of numbers is understood with the meta.mat beside it."""
    kit = write(tmp_path / "kit", devkit())
    write(tmp_path / "val", VAL)
    found = ImageNet(val_labels=str(kit / "data" / "ILSVRC2012_validation_ground_truth.txt")).look(tmp_path)
    assert listed(found, "val") == VAL_LABELS


def test_kaggle(tmp_path: Path) -> None:
    """The list of labels lies beside ILSVRC, from whichever folder in it one starts."""
    root = write(tmp_path / "ILSVRC" / "Data" / "CLS-LOC" / "val", VAL).parent
    write(root / "train", TRAIN)
    write(root / "test", VAL)
    write(tmp_path, LISTS["kaggle"]())
    for path in (root, *root.parents[:3]):
        found = ImageNet().look(path)
        assert listed(found, "val") == VAL_LABELS
        assert list(found.splits) == ["train", "val"]


def test_val_by_class(tmp_path: Path) -> None:
    """Folders tell the labels of val, though not all classes have images there."""
    write(tmp_path / "train", TRAIN)
    write(tmp_path / "val", {f"{C}/x.JPEG": b"x", f"{A}/y.JPEG": b"y"})
    assert listed(ImageNet().look(tmp_path), "val") == {f"{A}/y.JPEG": 0, f"{C}/x.JPEG": 2}


def test_val_alone(tmp_path: Path) -> None:
    """Without train the WNIDs of val are the classes: of its list, or of its folders."""
    write(tmp_path, LISTS["names"]())
    found = ImageNet().look(val_tar(tmp_path))
    assert (found.classes, list(found.splits), listed(found, "val")) == ((A, B, C), ["val"], VAL_LABELS)
    write(tmp_path / "sorted" / "val", {f"{B}/x.JPEG": b"x", f"{A}/y.JPEG": b"y"})
    assert ImageNet().look(tmp_path / "sorted").classes == (A, B)


def test_without_labels(tmp_path: Path) -> None:
    """It is told what was looked for, where, and what to set."""
    with pytest.raises(DataError, match=r"no labels for the 4 images of val: looked in .*LOC_val_solution.csv.*devkit.*set val_labels"):
        ImageNet().look(val_tar(tmp_path))
    with pytest.raises(DataError, match=r"val_labels = 'gone.txt' does not exist"):
        ImageNet(val_labels="gone.txt").look(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{A}\n{B}\n", "has 2 labels, but val has 4 images"),
        (f"{A}\n{B}\ntench\n{C}\n", "labels.txt, line 3: 'tench' is no WNID"),
        ("1\n2\n3\n1\n", "labels.txt, line 1: '1' is no WNID"),
        (f"ILSVRC2012_val_00000001.JPEG {A}\nILSVRC2012_val_00000002.JPEG 5\n", "line 2: '5' is no WNID"),
        (f"ILSVRC2012_val_00000001.JPEG {A}\n\n{B}\n", "line 3: 'n01443537' stands alone"),
        ("".join(f"{name} {A}\n" for name in sorted(VAL)[:3]), "does not tell the label of ILSVRC2012_val_00000004.JPEG"),
        ("", "has 0 labels"),
        ("\udcff", "no text in UTF-8"),
    ],
)
def test_labels_that_do_not_fit(tmp_path: Path, text: str, message: str) -> None:
    """The file and the line, or the image, are named."""
    val_tar(tmp_path)
    (tmp_path / "labels.txt").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=message):
        ImageNet(val_labels=str(tmp_path / "labels.txt")).look(tmp_path)


def test_class_that_train_lacks(tmp_path: Path) -> None:
    """A class of val that is not in train has no label."""
    write(tmp_path / "train", {name: data for name, data in TRAIN.items() if not name.startswith(C)})
    write(tmp_path / "val", VAL)
    write(tmp_path, LISTS["names"]())
    with pytest.raises(DataError, match=f"val has ILSVRC2012_val_00000002.JPEG of the class {C}, which is not one of the 2 of train"):
        ImageNet().look(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data/meta.mat": b"not MATLAB" * 99}, "meta.mat cannot be read"),
        ({"data/meta.mat": b""}, "meta.mat cannot be read"),
        ({"data/ILSVRC2012_validation_ground_truth.txt": b"1\n2\n3\n4\n"}, "line 4 of ILSVRC2012_validation_ground_truth.txt says '4'"),
        ({"data/ILSVRC2012_validation_ground_truth.txt": b"1\n1001\n3\n1\n"}, "line 2 .* says '1001'"),
        ({"data/ILSVRC2012_validation_ground_truth.txt": b"1\n2\n"}, "has 2 labels, but val has 4 images"),
    ],
)
def test_damaged_kits(tmp_path: Path, changes: dict[str, bytes], message: str) -> None:
    """Numbers that are no class's, among them those of inner nodes, and files that are damaged."""
    val_tar(tmp_path)
    write(tmp_path / "ILSVRC2012_devkit_t12", devkit() | changes)
    with pytest.raises(DataError, match=message):
        ImageNet().look(tmp_path)


def test_incomplete_kits(tmp_path: Path) -> None:
    """What is missing is named, in the folder and in the archive."""
    val_tar(tmp_path)
    (write(tmp_path / "ILSVRC2012_devkit_t12", devkit()) / "data" / "meta.mat").unlink()
    with pytest.raises(DataError, match=r"meta.mat: cannot be read: No such file"):
        ImageNet().look(tmp_path)
    write(tmp_path, {"kit.tar.gz": tar({"readme.txt": b"?"}, "w:gz")})
    with pytest.raises(DataError, match=r"kit.tar.gz holds no ILSVRC2012_validation_ground_truth.txt and no meta.mat"):
        ImageNet(val_labels=str(tmp_path / "kit.tar.gz")).look(tmp_path)


def test_without_scipy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the kit needs it, and what to install is told."""
    train_tar(tmp_path)
    val_tar(tmp_path)
    kit = write(tmp_path / "kit", devkit())
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("scipy"):
            raise ImportError
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SetupError, match=r"pip install 'cdmkit\[imagenet\]'"):
        ImageNet(val_labels=str(kit)).look(tmp_path)
    write(tmp_path, LISTS["kaggle"]())
    assert listed(ImageNet().look(tmp_path), "val") == VAL_LABELS


@pytest.mark.parametrize("prefix", ["", "./", "train/", "ILSVRC/Data/CLS-LOC/train/"])
def test_archive_of_class_folders(tmp_path: Path, prefix: str) -> None:
    """A folder tells the class in an archive too, whatever lies above it; deeper folders mean nothing."""
    deep = {f"{A}/deep/x.JPEG": b"deep"}
    write(tmp_path, {"images.tar": tar({prefix + name: data for name, data in (TRAIN | deep).items()})})
    found = ImageNet().look(tmp_path / "images.tar")
    assert (found.classes, list(found.splits)) == ((A, B, C), ["train"])
    assert listed(found, "train") == {name: [A, B, C].index(name[:9]) for name in sorted(TRAIN | deep)}
    assert contents(found, "train") == TRAIN | deep


@pytest.mark.parametrize("layout", ["folders", "archives"])
def test_archive_of_both_splits(tmp_path: Path, layout: str) -> None:
    """Its folders tell them: val is not merged into train, and test, which has no labels, is counted."""
    classed = {f"val/{C}/x.JPEG": b"x", f"Val/{A}/y.JPEG": b"y"}
    if layout == "folders":
        train = {f"train/{name}": data for name, data in TRAIN.items()}
    else:
        train = {f"train/{wnid}.tar": tar({name[10:]: data for name, data in TRAIN.items() if name.startswith(wnid)}) for wnid in (C, A, B)}
    write(tmp_path, {"all.tar": tar({**classed, **train, "test/t.JPEG": b"t"})})
    found = ImageNet().look(tmp_path / "all.tar")
    assert listed(found, "train") == {name: [A, B, C].index(name[:9]) for name in TRAIN}
    assert listed(found, "val") == {f"{A}/y.JPEG": 0, f"{C}/x.JPEG": 2}
    assert contents(found, "train") == TRAIN
    assert found.passed_over == {"image of test, whose labels are secret": 1}
    write(tmp_path, {"flat.tar": tar({f"val/{name}": data for name, data in VAL.items()} | train), **LISTS["names"]()})
    assert listed(ImageNet().look(tmp_path / "flat.tar"), "val") == VAL_LABELS


def test_archive_whose_name_tells_its_split(tmp_path: Path) -> None:
    """Where its folders do not. What contradicts the name that is published is an error, as is an archive of test."""
    sorted_val = {f"{B}/x.JPEG": b"x", f"{A}/y.JPEG": b"y"}
    write(tmp_path, {"imagenet_val.tar": tar(sorted_val)})
    assert list(ImageNet().look(tmp_path / "imagenet_val.tar").splits) == ["val"]
    write(tmp_path / "published", {"ILSVRC2012_img_train.tar": tar(TRAIN), "ILSVRC2012_img_val.tar": tar(sorted_val)})
    assert listed(ImageNet().look(tmp_path / "published"), "val") == {f"{A}/y.JPEG": 0, f"{B}/x.JPEG": 1}
    write(tmp_path / "mixed", {"ILSVRC2012_img_train.tar": tar({f"val/{A}/x.JPEG": b"", **TRAIN})})
    with pytest.raises(DataError, match=f"is train by its name, but holds {A}/x.JPEG in a folder val"):
        ImageNet().look(tmp_path / "mixed")
    write(tmp_path, {"ILSVRC2012_img_test.tar": tar({"x.JPEG": b""})})
    with pytest.raises(DataError, match="holds no images but those of test"):
        ImageNet().look(tmp_path / "ILSVRC2012_img_test.tar")


@pytest.mark.parametrize("layout", ["tar", "folder"])
def test_images_of_one_stem(tmp_path: Path, layout: str) -> None:
    """A list of labels could not tell them apart: they would share one, and a class might vanish."""
    images = {"a.JPEG": b"1", "a.png": b"2", "b.JPEG": b"3"}
    write(tmp_path, {"val.tar": tar(images)} if layout == "tar" else {f"val/{name}": data for name, data in images.items()})
    write(tmp_path, {"val_labels.txt": f"{A}\n{B}\n{C}\n".encode()})
    with pytest.raises(DataError, match=r"val has a.JPEG and a.png, whose labels cannot be told apart"):
        ImageNet().look(tmp_path / "val.tar" if layout == "tar" else tmp_path)


def test_rows_that_contradict_each_other(tmp_path: Path) -> None:
    """An image of two classes is an error, one that is listed twice is none."""
    text = LISTS["names"]()["val_labels.txt"]
    write(tmp_path, {"val_labels.txt": text + text})
    assert listed(ImageNet().look(val_tar(tmp_path)), "val") == VAL_LABELS
    write(tmp_path, {"val_labels.txt": text + f"{next(iter(VAL))} {A}\n".encode()})
    with pytest.raises(DataError, match=f"val_labels.txt, line 5: 'ILSVRC2012_val_00000001.JPEG' is of the class {A}, .* above says {B}"):
        ImageNet().look(tmp_path)


def test_labels_that_nothing_needs(tmp_path: Path) -> None:
    """What is given for nothing is told: there is no file, no val, or a val that is sorted."""
    write(tmp_path / "train", TRAIN)
    with pytest.raises(DataError, match=r"val_labels = 'gone.txt' does not exist"):
        ImageNet(val_labels="gone.txt").look(tmp_path)
    (tmp_path / "given.txt").write_text("?")
    given = ImageNet(val_labels=str(tmp_path / "given.txt"))
    with pytest.raises(DataError, match="has no val: leave it empty"):
        given.look(tmp_path)
    write(tmp_path / "val", {f"{C}/x.JPEG": b"x"})
    with pytest.raises(DataError, match="has val in a folder per class, which tells them: leave it empty"):
        given.look(tmp_path)


def test_texts_beside_images(tmp_path: Path) -> None:
    """LICENSE has no extension, and is no image of a flat val, in a folder or an archive."""
    write(tmp_path, LISTS["names"]())
    write(tmp_path / "val", {**VAL, "LICENSE": b"MIT"})
    write(tmp_path, {"x.tar": tar({**VAL, "LICENSE": b"MIT", "EMPTY": b"", "picture": b"\xff\xd8\xff\xe0" + bytes(99)})})
    found = ImageNet().look(tmp_path)
    assert (listed(found, "val"), found.passed_over) == (VAL_LABELS, {"no image by its content": 1})
    write(tmp_path, {"val_labels.txt": LISTS["names"]()["val_labels.txt"] + f"picture {A}".encode()})
    found = ImageNet().look(tmp_path / "x.tar")
    assert (listed(found, "val"), found.passed_over) == (VAL_LABELS | {"picture": 0}, {"no image by its content": 2})


def test_what_is_passed_over(tmp_path: Path) -> None:
    """Nothing disappears unsaid, in folders and in archives."""
    junk = {"train/extra/x.JPEG": b"", f"train/{A}/.DS_Store": b"", f"train/{A}/boxes.xml": b"", "train/n99999999/note.txt": b""}
    write(tmp_path, {**{f"train/{name}": data for name, data in TRAIN.items()}, **junk})
    train_tar(tmp_path)
    found = ImageNet().look(tmp_path)
    assert found.classes == (A, B, C)
    assert found.passed_over == {
        "image in a folder whose name is no WNID": 1,
        "hidden file": 1,
        "no image by its name (.xml)": 1,
        "no image by its name (.txt)": 1,
        "empty class folder": 1,
        "archive beside the folder of its images": 1,
    }
    inner = tar({f"./{A}_1.JPEG": b"1", f"./._{A}_1.JPEG": b"", "notes.txt": b""})
    found = ImageNet().look(write(tmp_path / "packed", {"x.tar": tar({f"./{A}.tar": inner, "sums.md5": b""})}) / "x.tar")
    assert listed(found, "train") == {f"{A}/{A}_1.JPEG": 0}
    assert found.passed_over == {"hidden file": 1, "no image by its name (.txt)": 1, "no image by its name (.md5)": 1}


def test_unpacking_that_has_not_begun(tmp_path: Path) -> None:
    """A folder without classes does not stand in the way of the archive."""
    train_tar(tmp_path)
    (tmp_path / "train").mkdir()
    assert len(listed(ImageNet().look(tmp_path), "train")) == len(TRAIN)


def test_mixtures(tmp_path: Path) -> None:
    """Images with and without a class in one split mean nothing, and train must have classes."""
    write(tmp_path / "val", {**VAL, f"{A}/x.JPEG": b""})
    with pytest.raises(DataError, match=f"images both with a class .{A}/x.JPEG. and without .ILSVRC2012_val_00000001.JPEG."):
        ImageNet().look(tmp_path)
    write(tmp_path / "flat", {"ILSVRC2012_img_train.tar": tar(VAL)})
    with pytest.raises(DataError, match="train has no classes"):
        ImageNet().look(tmp_path / "flat")


def test_damaged_archives(tmp_path: Path) -> None:
    """The archive, the inner one and the byte are named; images of one name are refused."""
    path = train_tar(tmp_path)
    data = bytearray(path.read_bytes())
    data[512:518] = b"xxxxxx"  # in the header of the first image of the first class
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"ILSVRC2012_img_train.tar/{B}.tar: damaged: the block at byte 512"):
        ImageNet().look(tmp_path)
    path.write_bytes(data[:-20000])
    with pytest.raises(DataError, match=r"truncated|damaged"):
        ImageNet().look(tmp_path)
    path.write_bytes(tar({f"{A}.tar": tar({"x.JPEG": b"1", "./x.JPEG": b"2"})}))
    with pytest.raises(DataError, match=f"two images are called '{A}/x.JPEG'"):
        ImageNet().look(tmp_path)
    path.write_bytes(tar({"readme.txt": b""}))
    with pytest.raises(DataError, match=r"ILSVRC2012_img_train.tar holds no images"):
        ImageNet().look(tmp_path)
    (tmp_path / "x.tar.gz").write_bytes(tar({"x.JPEG": os.urandom(999)}, "w:gz"))
    with pytest.raises(DataError, match="compressed with gzip"):
        ImageNet().look(tmp_path / "x.tar.gz")


def test_nothing_there(tmp_path: Path) -> None:
    """What was looked for is told."""
    with pytest.raises(DataError, match=r"no ImageNet in .*ILSVRC2012_img_train.tar.*CLS-LOC.*preparer `folder`"):
        ImageNet().look(write(tmp_path, {"cats/x.jpg": b""}))
    with pytest.raises(DataError, match="does not exist"):
        ImageNet().look(tmp_path / "gone")


@pytest.mark.parametrize(("name", "counts", "classes"), [("imagenet-like", [149], 149), ("imagefolder-sample", [200, 50], 10)])
def test_real_images(tmp_path: Path, name: str, counts: list[int], classes: int) -> None:
    """Photographs of ImageNet, and the same once more packed as it is published."""
    if not (SHARED / name).is_dir():
        pytest.skip(f"no {name} at {SHARED}; set CDMKIT_TEST_DATA")
    found = ImageNet().look(SHARED / name)
    assert [len(images) for images in found.splits.values()] == counts
    assert len(found.classes) == classes
    with tarfile.open(tmp_path / "ILSVRC2012_img_train.tar", "w") as outer:
        for wnid in found.classes:
            data = tar({path.name: path.read_bytes() for path in (SHARED / name / "train" / wnid).iterdir()})
            info = tarfile.TarInfo(f"{wnid}.tar")
            info.size = len(data)
            outer.addfile(info, io.BytesIO(data))
    packed = ImageNet().look(tmp_path)
    assert list(listed(packed, "train").items()) == list(listed(found, "train").items())
    assert contents(packed, "train") == contents(found, "train")
