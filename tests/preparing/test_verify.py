"""Whether a data set is what it was written as: any flipped bit of any file is found."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cdmkit import preparing
from cdmkit.data.encode import Encoding
from cdmkit.errors import DataError, UsageError
from cdmkit.files import digest
from cdmkit.preparing import Settings
from cdmkit.preparing.verify import Verified, verify
from tests.preparing.drawn import Drawn


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of two splits, not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "source").mkdir()
    plan, _ = preparing.plan(Drawn(count=13, broken=(3,)), folder / "source", Settings(resolution=8, per_shard=6))
    preparing.prepare(plan, folder / "out", workers=0, max_reject=0.1)
    return folder / "out"


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "out")
    return tmp_path / "out"


def causes(found: Verified) -> Counter[str]:
    return Counter(fault.cause for fault in found.faults)


def shards(folder: Path, *members: tuple[str, bytes]) -> str:
    """A tar of these members; its pattern."""
    with tarfile.open(folder / "train-0.tar", "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return f"{folder}/train-*.tar"


def image(size: int) -> bytes:
    return Encoding.PNG(np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8))


@pytest.mark.parametrize("workers", [1, 4])
def test_all_is_well(made: Path, workers: int) -> None:
    """What was just made is as it was made; every shard is told of."""
    told: list[tuple[int, int]] = []
    found = verify(str(made), workers, lambda done, total: told.append((done, total)))
    card = json.loads((made / "dataset.json").read_text())
    assert found.faults == []
    assert found.images == sum(split["samples"] for split in card["splits"].values())
    assert told == [(n, found.shards) for n in range(1, found.shards + 1)]


def test_where_it_lies_makes_no_difference(copy: Path) -> None:
    """It may be moved; shards with their card alone are a data set, too."""
    moved = copy.rename(copy.with_name("elsewhere"))
    assert verify(str(moved), 1).faults == []
    assert verify(f"{moved}/dataset.json", 1).faults == []
    (moved / ".lock").unlink(missing_ok=True)
    assert verify(str(moved), 1).faults == []


def test_any_flipped_bit_is_found(copy: Path) -> None:
    """In every file that was written, whatever the place: shards, indices, card, manifest, list of rejects, records."""
    random = np.random.default_rng(0)
    for path in sorted(path for path in copy.rglob("*") if path.is_file() and path.name != ".lock"):
        good = path.read_bytes()
        for place in {0, len(good) - 1, *random.integers(0, len(good), 25).tolist()}:
            bad = bytearray(good)
            bad[place] ^= 1 << int(random.integers(0, 8))
            path.write_bytes(bad)
            with contextlib.suppress(DataError):  # where the card itself is not to be read
                found = verify(str(copy), 1)
                assert found.faults, f"{path.name}, byte {place}"
        path.write_bytes(good)
    assert verify(str(copy), 1).faults == []
    assert verify(str(copy), 1).notes == []


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("train-00000.tar", "cannot be read"),
        ("manifest.tsv.gz", "the same `cdmkit data prepare` again writes it anew"),
        ("rejects.tsv", "the same `cdmkit data prepare` again writes it anew"),
        ("parts/train-00000.json", "the same `cdmkit data prepare` again makes it anew, and its shard"),
        ("parts/train-00000.tsv.gz", "the same `cdmkit data prepare` again makes it anew, and its shard"),
        ("parts/plan.json", "the same `cdmkit data prepare` again makes it anew"),
    ],
)
def test_any_missing_file_is_found(copy: Path, name: str, told: str) -> None:
    """But for an index, which can be made at any time and is noted; what is said of them helps."""
    (copy / name).unlink()
    (fault,) = verify(str(copy), 1).faults
    assert str(copy / name) in fault.message
    assert told in fault.message
    (copy / "train-00001.idx.npz").unlink()
    found = verify(str(copy), 1)
    assert len(found.faults) == 1
    assert ["train-00001.idx.npz is missing" in note for note in found.notes] == [True]


@pytest.mark.parametrize("name", ["parts", ".", "train-00001.tar"])
def test_what_mends_it_is_named(copy: Path, made: Path, name: str) -> None:
    """And does: the advice is followed."""
    before = {path.name: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    for path in sorted((copy / name).glob("*.*") if (copy / name).is_dir() else [copy / name]):
        if name == "." and path.name not in ("manifest.tsv.gz", "rejects.tsv"):
            continue
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with contextlib.suppress(DataError):
        found = verify(str(copy), 1)
        assert found.faults
        assert ("--check" in found.advice) == (name == "train-00001.tar")
        assert all("data prepare` again" in fault.message for fault in found.faults) == ("--check" not in found.advice)
    if name == "parts":
        (copy / "parts" / "plan.json").write_bytes(before["plan.json"])  # with all records damaged, it is not taken for granted
    plan, _ = preparing.plan(Drawn(count=13, broken=(3,)), made.parent / "source", Settings(resolution=8, per_shard=6))
    preparing.prepare(plan, copy, workers=0, max_reject=0.1, check=name.endswith(".tar"))
    assert verify(str(copy), 1).faults == []
    assert {path.name: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_without_its_records(copy: Path) -> None:
    """Shards and card are a data set; it is noted that prepare knows it no more."""
    shutil.rmtree(copy / "parts")
    found = verify(str(copy), 1)
    assert found.faults == []
    assert ["does not know it any more" in note for note in found.notes] == [True]


def test_an_index_that_tells_of_other_samples(copy: Path) -> None:
    """Is a fault. Where there is no record of what was written, one of another version or shard is noted, for it is not used."""
    kept = copy / "val-00000.idx.npz"
    with np.load(kept) as arrays:
        told = {name: arrays[name] for name in arrays.files}
    np.savez(kept, **{**told, "labels": told["labels"] + 1})
    assert causes(verify(str(copy), 1)) == {"wrong index": 1, "damaged index": 1}
    shutil.rmtree(copy / "parts")
    np.savez(kept, **{name: value for name, value in told.items() if name != "facts"})
    found = verify(str(copy), 1)
    assert (found.faults, any("cannot be read (KeyError), and is not used" in note for note in found.notes)) == ([], True)
    shutil.copy(copy / "train-00000.idx.npz", kept)
    found = verify(str(copy), 1)
    assert (found.faults, any("of another shard, and not used" in note for note in found.notes)) == ([], True)


def test_what_the_card_does_not_name(copy: Path) -> None:
    """Shards and indices from elsewhere would be trained on by a pattern."""
    shutil.copy(copy / "train-00000.tar", copy / "train-00009.tar")
    shutil.copy(copy / "train-00000.idx.npz", copy / "train-00009.idx.npz")
    found = verify(str(copy), 1)
    assert causes(found) == {"not in the card": 2}
    assert all("is not in dataset.json: remove it" in fault.message for fault in found.faults)


def test_faults_are_named(copy: Path) -> None:
    """A byte of an image is found twice: by the shard's SHA-256, and by decoding, which names the key."""
    path = copy / "train-00001.tar"
    data = bytearray(path.read_bytes())
    place = data.index(b".png")
    key = bytes(data[data.rindex(b"train-", 0, place) : place]).decode()
    data[place // 512 * 512 + 512 + 45] ^= 1
    path.write_bytes(data)
    found = verify(str(copy), 1)
    assert causes(found) == {"wrong SHA-256": 1, "damaged or truncated image": 1}
    assert {fault.key for fault in found.faults} == {"", key}
    assert all("train-00001.tar" in fault.message for fault in found.faults)


def test_counts_and_labels_are_compared(copy: Path) -> None:
    """With the card, also where someone made its digests fit."""
    card = json.loads((copy / "dataset.json").read_text())
    with tarfile.open(copy / "train-00000.tar") as tar:
        members = [(m.name, (tar.extractfile(m) or io.BytesIO()).read()) for m in tar]
    name, _ = next(member for member in members if member[0].endswith(".cls"))
    changed = [(each, b"7" if each == name else data) for each, data in members[:-2]]
    shards(copy, *changed)
    (copy / "train-0.tar").rename(copy / "train-00000.tar")
    entry = card["splits"]["train"]["shards"][0]
    entry |= {"bytes": (copy / "train-00000.tar").stat().st_size, "sha256": digest(copy / "train-00000.tar")}
    (copy / "dataset.json").write_text(json.dumps(card))
    found = causes(verify(str(copy), 1))
    assert found == {"label beyond the classes": 1, "wrong count": 1, "wrong class counts": 1, "damaged card": 1, "damaged record": 1}
    told = next(fault.message for fault in verify(str(copy), 1).faults if fault.cause == "wrong class counts")
    assert "of class 7" in told
    assert not set("{}'") & set(told)


def test_shards_without_a_list(tmp_path: Path) -> None:
    """Of a pattern it is found what cannot be used: images, labels, sizes."""
    pattern = shards(
        tmp_path,
        ("a.png", image(8)), ("a.cls", b"0"),
        ("b.png", image(8)[:150]), ("b.cls", b"0"),
        ("c.png", image(9)), ("c.cls", b"0"),
        ("d.png", image(8)),
        ("e.png", image(8)), ("e.cls", b"x"),
    )  # fmt: skip
    found = verify(pattern, 2)
    assert (found.shards, found.images) == (1, 4)
    assert {fault.key: fault.cause for fault in found.faults} == {
        "b": "damaged or truncated image",
        "c": "wrong size",
        "d": "no label",
        "e": "bad label",
    }


def test_images_that_are_not_square(tmp_path: Path) -> None:
    """Are faults, whether any image is square or none."""
    wide = Encoding.PNG(np.zeros((60, 80, 3), np.uint8))
    pattern = shards(tmp_path, ("a.png", wide), ("b.png", wide[:-20]), ("c.png", wide))
    found = verify(pattern, 1)
    assert causes(found)["not square"] == 2
    assert len(found.faults) == 3
    assert "key 'a': not square: 80 x 60" in found.faults[0].message
    pattern = shards(tmp_path, ("a.png", wide), ("b.png", image(8)), ("c.png", image(9)))
    assert {fault.key: fault.cause for fault in verify(pattern, 1).faults} == {"a": "not square", "c": "wrong size"}


def listed(folder: Path, card: object, *names: str) -> str:
    """A `dataset.json`, beside shards of one image each, labelled where their names say so."""
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        labels = [("a.cls", b"0")] if "labelled" in name else []
        Path(shards(folder, ("a.png", image(8)), *labels).replace("*", "0")).rename(folder / name)
    (folder / "dataset.json").write_text(json.dumps(card))
    return str(folder)


def entry(name: str, **told: object) -> dict[str, object]:
    return {"file": name, "bytes": 10240, **told}


def test_labels_are_judged_by_split(tmp_path: Path) -> None:
    """A shard without any beside one with some is a fault; a split without any is none."""
    names = ["labelled-0.tar", "bare-1.tar", "bare-2.tar"]
    for name in names:
        listed(tmp_path, {}, name)
    size = {"bytes": (tmp_path / "bare-1.tar").stat().st_size}
    one = {"train": {"shards": [entry("labelled-0.tar", **size)]}, "test": {"shards": [entry(name, **size) for name in names[1:]]}}
    assert verify(listed(tmp_path, {"classes": ["a"], "splits": one}), 1).faults == []
    two = {"train": {"shards": [entry(name, **size) for name in names]}}
    found = verify(listed(tmp_path, {"classes": ["a"], "splits": two}), 1)
    assert causes(found) == {"no label": 2}
    assert "bare-1.tar: no label: none of its 1 sample has a .cls" in found.faults[0].message
    assert causes(verify(f"{tmp_path}/*.tar", 1)) == {"no label": 2}


def test_counts_of_shards_in_folders(tmp_path: Path) -> None:
    """Are looked up by the name that the list has."""
    listed(tmp_path, {}, "a/labelled-0.tar", "b/labelled-0.tar")
    size = {"bytes": (tmp_path / "a" / "labelled-0.tar").stat().st_size}
    both = [entry("a/labelled-0.tar", per_class={"0": 1}, **size), entry("b/labelled-0.tar", per_class={"0": 2}, **size)]
    found = verify(listed(tmp_path, {"classes": ["x"], "splits": {"train": {"shards": both}}}), 1)
    (fault,) = found.faults
    assert f"{tmp_path}/b/labelled-0.tar: wrong class counts: 1 of class 0, but the list says 2 of class 0" in fault.message


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": 5},
        {"classes": [1]},
        {"classes": ["\ud800"]},
        {"name": "\ud800"},
        {"resolution": -1},
        {"resolution": 100_000},
        {"resolution": "8"},
        {"resolution": True},
        {"resolution": float("nan")},
        {"splits": [1]},
        {"splits": {"train": [1]}},
        {"splits": {"train": {"shards": [entry("x.tar", per_class=5)]}}},
        {"splits": {"train": {"shards": [entry("x.tar", per_class={"a": 1})]}}},
        {"splits": {"train": {"shards": [entry("x.tar", per_class={"0": "1"})]}}},
        {"splits": {"train": {"shards": [entry("\ud800.tar")]}}},
        [1],
    ],
    ids=repr,
)
def test_cards_of_other_types(tmp_path: Path, changes: object) -> None:
    """One error that names the card."""
    card = {"splits": {"train": {"shards": []}}, **changes} if isinstance(changes, dict) else changes
    with pytest.raises(DataError, match=r"dataset\.json cannot be read as") as caught:
        verify(listed(tmp_path, card), 1)
    str(caught.value).encode()


def test_what_is_not_finished(copy: Path) -> None:
    """Is told so, with what to do."""
    (copy / "dataset.json").unlink()
    with pytest.raises(DataError, match="is not finished: run the same `cdmkit data prepare` again"):
        verify(str(copy), 1)


def test_a_recipe(tmp_path: Path) -> None:
    """Is not verified."""
    with pytest.raises(UsageError, match=r"x.toml is a recipe: .*cdmkit data inspect"):
        verify(f"{tmp_path}/x.toml", 1)


def test_lists_of_others(tmp_path: Path) -> None:
    """Counts of open_clip's are compared."""
    shards(tmp_path, ("a.png", image(8)), ("b.png", image(8)))
    (tmp_path / "sizes.json").write_text('{"train-0.tar": 3}')
    assert causes(verify(str(tmp_path), 1)) == {"wrong count": 1}
    (tmp_path / "sizes.json").write_text('{"train-0.tar": 2}')
    assert verify(str(tmp_path), 1).faults == []


def test_what_is_no_data_set(tmp_path: Path) -> None:
    """A folder without a list is answered with a pattern, as is one that is not there."""
    with pytest.raises(DataError, match=r"has no list of shards .*\*\.tar"):
        verify(str(tmp_path), 1)
    with pytest.raises(DataError, match="does not exist"):
        verify(f"{tmp_path}/none/x.tar", 1)
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(DataError, match="cannot be read as a list of shards"):
        verify(str(tmp_path), 1)
