"""Writing files so that a crash leaves the old one or the new one, never half of one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Where to write a file, beside `path`. It becomes `path`, on the disk, when the block ends well; it is removed when it does not."""
    beside = path.with_name(f".{path.name}.partial")
    try:
        yield beside
        sync(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    sync(path.parent)


@contextlib.contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which becomes `path` as `replaced` says."""
    with replaced(path) as beside, beside.open("wb") as file:
        yield file


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to `path` all at once. It is on the disk when this returns."""
    with written(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object as indented JSON, as `write_text` does. Raises ValueError at NaN and infinity, which JSON has not."""
    write_text(path, json_text(value))


def json_text(value: Mapping[str, Any]) -> str:
    """What `write_json` writes."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """An object with a checksum of itself, as `read_sealed` wants it."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return {**value, "checksum": hashlib.sha256(text.encode()).hexdigest()}


def read_sealed(path: Path) -> dict[str, Any]:
    """An object that was sealed and then written by `write_json`. Raises ValueError where it is not so, down to every byte."""
    text = path.read_bytes()
    try:
        value: dict[str, Any] = json.loads(text)
        whole = {key: item for key, item in value.items() if key != "checksum"}
        good = json_text(sealed(whole)).encode() == text
    except (AttributeError, RecursionError) as error:
        raise ValueError(f"no object: {error}") from None
    if not good:
        raise ValueError("not as it was written")
    return value


def make_folder(path: Path) -> None:
    """Make a folder and those that it lies in, where they are missing. They are on the disk when this returns."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Put a file's content, or a folder's list of names, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
