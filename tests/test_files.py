"""Files that are written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cdmkit import files
from cdmkit.files import make_folder, read_sealed, sealed, write_json, write_text
from tests.training.test_checkpoint import full_disk


def test_content_is_replaced(tmp_path: Path) -> None:
    """Text and JSON replace what was there, in UTF-8, and leave nothing beside."""
    path = tmp_path / "größe.json"
    write_text(path, "old")
    write_json(path, {"größe": 64})
    assert json.loads(path.read_text(encoding="utf-8")) == {"größe": 64}
    assert list(tmp_path.iterdir()) == [path]


def test_failed_write_keeps_the_old_content(tmp_path: Path) -> None:
    """A full disk raises OSError; the old file stands, and nothing is left beside it."""
    path = tmp_path / "file"
    write_text(path, "old")
    with full_disk(), pytest.raises(OSError, match="too large"):
        write_text(path, "new" * 100)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_nan_is_refused(tmp_path: Path) -> None:
    """JSON has no NaN: writing it is a ValueError and no file."""
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "file", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_any_change_of_a_sealed_object_is_found(tmp_path: Path) -> None:
    """Of its values and of its spelling; what is no object at all is an error, too."""
    path = tmp_path / "object.json"
    write_json(path, sealed({"größe": [1, 2.5], "none": None}))
    assert {key: value for key, value in read_sealed(path).items() if key != "checksum"} == {"größe": [1, 2.5], "none": None}
    good = path.read_bytes()
    for bad in (good + b"\n", good.replace(b"2.5", b"2.6"), good.replace(b"  ", b" "), b"[1]", b"{}", b"", b"\xff", b"[" * 100_000):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"object|as it was written|JSON|Expecting|decode"):
            read_sealed(path)


def test_made_folders_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each folder that a new one was made in is synced."""
    synced: list[Path] = []
    monkeypatch.setattr(files, "sync", synced.append)
    make_folder(tmp_path / "a" / "b" / "c")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "c").is_dir()
    assert sorted(synced) == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
