"""Files that are written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cdmkit.files import write_json, write_text
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
