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
from cdmkit.errors import DataError
from cdmkit.files import digest
from cdmkit.preparing import Settings
from cdmkit.preparing.verify import Verified, verify
from tests.preparing.drawn import Drawn


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of two splits, not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    plan, _ = preparing.plan(Drawn(count=13, broken=(3,)), folder, Settings(resolution=8, per_shard=6))
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
                assert verify(str(copy), 1).faults, f"{path.name}, byte {place}"
        path.write_bytes(good)
    assert verify(str(copy), 1).faults == []


@pytest.mark.parametrize(
    "name", ["train-00000.tar", "manifest.tsv.gz", "rejects.tsv", "parts/train-00000.json", "parts/train-00000.tsv.gz"]
)
def test_any_missing_file_is_found(copy: Path, name: str) -> None:
    """But for an index, which can be made at any time."""
    (copy / name).unlink()
    (fault,) = verify(str(copy), 1).faults
    assert str(copy) in fault.message
    (copy / "train-00001.idx.npz").unlink()
    assert len(verify(str(copy), 1).faults) == 1


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
    assert found == {"label beyond the classes": 1, "wrong count": 1, "wrong class counts": 1, "wrong index": 1, "damaged card": 1}


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
