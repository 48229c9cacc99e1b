"""LSUN: databases by category and split."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from cdmkit.builtin.lsun import Lsun
from cdmkit.errors import DataError, SetupError
from cdmkit.kinds import Original, Originals

lmdb = pytest.importorskip("lmdb", reason="LSUN is read with lmdb: pip install 'cdmkit[lsun]'")
SHARED = Path(os.environ.get("CDMKIT_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))


def key(value: bytes) -> bytes:
    return hashlib.sha1(value, usedforsecurity=False).hexdigest().encode()


def write(folder: Path, *values: str) -> Path:
    """A database of these values by their SHA-1, as LSUN has it."""
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for value in values:
            transaction.put(key(value.encode()), value.encode())
    return folder


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """A folder of databases."""
    for name in ("church_outdoor_train", "church_outdoor_val", "tower_val", "bedroom_train", "test"):
        write(tmp_path / f"{name}_lmdb", f"{name} 1", f"{name} 2")
    write(tmp_path / "cat", "cat 1")
    (tmp_path / "bridge_train_lmdb").mkdir()
    return tmp_path


def values(preparer: Lsun, originals: Originals) -> dict[str, dict[str, int]]:
    """Labels by content, by split."""
    return {split: {preparer.read(original).decode(): original.label for original in images} for split, images in originals.splits.items()}


def test_one_database(tmp_path: Path) -> None:
    """Its name tells the split; names are its keys; images have no labels; the order is that of the keys."""
    pictures = [f"picture {number}" for number in range(100)]
    found = Lsun().look(write(tmp_path / "bedroom_val_lmdb", *pictures))
    assert values(Lsun(), found) == {"val": dict.fromkeys(pictures, -1)}
    assert [original.name for original in found.splits["val"]] == sorted(f"bedroom_val_lmdb/{key(p.encode()).decode()}" for p in pictures)
    assert found.classes == ()


def test_versions(tmp_path: Path) -> None:
    """Another size or time of the database is told without reading it; once in a process."""
    one, two = write(tmp_path / "cat", "cat 1"), write(tmp_path / "dog", "dog 1")
    os.utime(two / "data.mdb", ns=(1, 10**9))
    versions = {original.name[:3]: original.place.version() for original in Lsun().look(tmp_path).splits["train"]}
    assert versions["dog"] == ((two / "data.mdb").stat().st_size, 10**9)
    assert versions["cat"] == ((one / "data.mdb").stat().st_size, (one / "data.mdb").stat().st_mtime_ns)


def test_several_databases(several: Path) -> None:
    """Each goes to its split, an object set to train; folders without a database are passed over."""
    found = Lsun().look(several)
    assert values(Lsun(), found) == {
        "train": dict.fromkeys(["bedroom_train 1", "bedroom_train 2", "cat 1", "church_outdoor_train 1", "church_outdoor_train 2"], -1),
        "val": dict.fromkeys(["church_outdoor_val 1", "church_outdoor_val 2", "tower_val 1", "tower_val 2"], -1),
        "test": dict.fromkeys(["test 1", "test 2"], -1),
    }
    assert found.classes == ()
    assert found.passed_over == {"folder without data.mdb": 1}


def test_labels(several: Path) -> None:
    """If asked for, the rank of the category; images whose category is not known are passed over."""
    preparer = Lsun(labels=True)
    found = preparer.look(several)
    assert found.classes == ("bedroom", "cat", "church_outdoor", "tower")
    told = values(preparer, found)
    assert (told["train"]["bedroom_train 1"], told["train"]["cat 1"], told["val"]["church_outdoor_val 2"]) == (0, 1, 2)
    assert "test" not in told
    assert found.passed_over["database without a category"] == 1


def test_some_categories(several: Path) -> None:
    """Labels count those that are chosen."""
    found = Lsun(labels=True, categories=("tower", "church_outdoor")).look(several)
    assert found.classes == ("church_outdoor", "tower")
    assert {original.label for original in found.splits["train"]} == {0}
    assert {original.label for original in found.splits["val"]} == {0, 1}
    assert found.passed_over["database of a category that is not chosen"] == 3


def test_unknown_category(several: Path) -> None:
    """What is there is told, and what was meant."""
    with pytest.raises(DataError, match=r"no category 'churches_outdoor': there are bedroom, cat, .*did you mean \"church_outdoor\""):
        Lsun(categories=("churches_outdoor",)).look(several)


def test_read_only_folders(tmp_path: Path) -> None:
    """Nothing is written beside the data, not even a lock."""
    folder = write(tmp_path / "cat", "picture")
    (folder / "lock.mdb").unlink()
    (folder / "data.mdb").chmod(0o444)
    folder.chmod(0o555)
    try:
        assert values(Lsun(), Lsun().look(folder)) == {"train": {"picture": -1}}
        assert os.listdir(folder) == ["data.mdb"]
    finally:
        folder.chmod(0o755)


def _read(preparer: Lsun, originals: Sequence[Original]) -> list[bytes]:
    return [preparer.read(original) for original in originals]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_in_other_processes(several: Path, method: str) -> None:
    """Each opens the databases itself, though this one has them open."""
    originals = Lsun().look(several).splits["val"]
    expected = _read(Lsun(), originals)
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(_read, (Lsun(), originals)) == expected


def test_truncated(tmp_path: Path) -> None:
    """A database that ends early is an error, where a read beyond its end would kill the process."""
    file = write(tmp_path / "cat", *("x" * 5000 + str(number) for number in range(50))) / "data.mdb"
    whole = file.stat().st_size
    os.truncate(file, whole // 2)
    with pytest.raises(DataError, match=f"data.mdb is truncated: it has {whole // 2} of {whole} bytes"):
        Lsun().look(tmp_path)


@pytest.mark.parametrize("content", [b"", b"<html>" * 9999, bytes(1 << 16)])
def test_damaged(tmp_path: Path, content: bytes) -> None:
    """What is no database."""
    (write(tmp_path / "cat", "picture") / "data.mdb").write_bytes(content)
    with pytest.raises(DataError, match=r"cat/data.mdb cannot be read"):
        Lsun().look(tmp_path)


def test_damaged_pages(tmp_path: Path) -> None:
    """A database of which some pages are overwritten."""
    folder = write(tmp_path / "cat", *(f"picture {number}" for number in range(500)))
    with (folder / "data.mdb").open("r+b") as file:
        file.seek(2 * 4096)
        file.write(b"\xff" * (folder / "data.mdb").stat().st_size)
        file.truncate(1 << 20)
    with pytest.raises(DataError, match=r"cat is damaged"):
        Lsun().look(folder)


def test_nothing_there(tmp_path: Path) -> None:
    """Folders without a database, databases without an image, keys that have gone."""
    with pytest.raises(DataError, match=r"no LSUN at .*looked for data.mdb"):
        Lsun().look(tmp_path)
    with pytest.raises(DataError, match="no images"):
        Lsun().look(write(tmp_path / "cat"))
    with pytest.raises(DataError, match="not in the database any more"):
        Lsun().read(Original("cat/x", -1, (str(tmp_path / "cat"), b"x")))
    with pytest.raises(DataError, match=r"only test_lmdb: set labels = false"):
        Lsun(labels=True).look(write(tmp_path / "test_lmdb", "picture"))


def test_without_lmdb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install is told."""
    folder = write(tmp_path / "cat", "picture")
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(SetupError, match=r"pip install 'cdmkit\[lsun\]'"):
        Lsun().look(folder)


def test_real_images() -> None:
    """LSUN's layout with photographs."""
    if not (SHARED / "lsun-layout").is_dir():
        pytest.skip(f"no lsun-layout at {SHARED}; set CDMKIT_TEST_DATA")
    found = Lsun(labels=True).look(SHARED / "lsun-layout")
    assert {split: len(images) for split, images in found.splits.items()} == {"train": 300, "val": 180}
    assert found.classes == ("bedroom", "church_outdoor", "tower")
    assert all(Lsun().read(original)[:4] == b"RIFF" for original in found.splits["val"])
