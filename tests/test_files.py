"""Files that are complete or not there."""

from __future__ import annotations

import contextlib
from pathlib import Path

from cdmkit.files import written


def test_appears_when_complete(tmp_path: Path) -> None:
    """Until the block ends the old content stands."""
    path = tmp_path / "x.bin"
    with written(path) as file:
        file.write(b"one")
        assert not path.exists()
    with written(path) as file:
        file.write(b"two")
        assert path.read_bytes() == b"one"
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def test_failure_leaves_the_old_file(tmp_path: Path) -> None:
    """A block that fails changes nothing and leaves nothing."""
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with contextlib.suppress(RuntimeError), written(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
