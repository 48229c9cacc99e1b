"""Where the samples of a WebDataset shard lie: one pass over the headers of a local tar file.

The headers are walked here, not with `tarfile`, because that takes a damaged header for the end of the archive (a shard that ends early
without a word) and is several times slower. ustar, GNU and PAX names are read. Nothing is extracted, decoded or followed.

Members are joined to samples by key: the member's path up to the *last* dot of its file name. (WebDataset splits at the first dot, so
`n01.v0.jpg` and `n01.v1.jpg` would become one sample.) The members of a sample need not be neighbours. An image member has one of the
extensions in `IMAGE_EXTENSIONS`, a label is a `.cls` member of ASCII digits; all other members are passed over, pickles among them, as are
links, devices, folders, names that are absolute or lead upwards, and names that begin with `.` or `__`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import attrs
import numpy as np
import numpy.typing as npt

from cdmkit.errors import DataError

IMAGE_EXTENSIONS = frozenset({"bmp", "jpeg", "jpg", "png", "webp"})

_BLOCK = 512
_LONGEST_HEADER = 1 << 16
_LONGEST_LABEL = 32
_LARGEST_IMAGE = 1 << 30
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Member(NamedTuple):
    """A regular file in a tar archive: its name and where its bytes lie."""

    name: str
    offset: int
    size: int


@attrs.frozen(eq=False)
class TarIndex:
    """The samples of one shard, in the order of their images."""

    path: Path
    keys: list[str]
    offsets: npt.NDArray[np.int64]
    """[N] where each image begins, in bytes."""
    sizes: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    """[N], -1 where a sample has no `.cls`."""


def index_tar(path: Path) -> TarIndex:
    """Index a shard. Raises DataError, naming the shard and the byte or key, where anything in it is damaged or incomplete."""
    images: dict[str, Member] = {}
    labels: dict[str, int] = {}
    with path.open("rb") as file:
        for member in members(file.fileno(), path):
            key, _, extension = member.name.rpartition(".")
            extension = extension.lower()
            if extension in IMAGE_EXTENSIONS and _wanted(key):
                if key in images:
                    raise DataError(f"{path}: key {key!r} has two images, {images[key].name!r} and {member.name!r}: keep one")
                if member.size > _LARGEST_IMAGE:
                    raise DataError(f"{path}: key {key!r} has an image of {member.size} bytes: more than 1 GiB is refused")
                images[key] = member
            elif extension == "cls" and _wanted(key):
                if key in labels:
                    raise DataError(f"{path}: key {key!r} has two labels: keep one {member.name!r}")
                labels[key] = _label(os.pread(file.fileno(), min(member.size, _LONGEST_LABEL + 1), member.offset), key, path)
    if not images:
        raise DataError(f"{path}: no image in this archive: a sample is <key>.png (or {', '.join(sorted(IMAGE_EXTENSIONS))}) and <key>.cls")
    lonely = next((key for key in labels if key not in images), None)
    if lonely is not None:
        raise DataError(f"{path}: key {lonely!r} has a label but no image: add its image or remove its .cls")
    return TarIndex(
        path=path,
        keys=list(images),
        offsets=np.array([m.offset for m in images.values()], np.int64),
        sizes=np.array([m.size for m in images.values()], np.int64),
        labels=np.array([labels.get(key, -1) for key in images], np.int64),
    )


def _wanted(key: str) -> bool:
    """Whether a key can be that of a sample: a plain relative path to a file that is neither hidden nor metadata."""
    name = key.rpartition("/")[2]
    if not name or name.startswith((".", "__")):
        return False
    return not key.startswith("/") and ".." not in key.replace("\\", "/").split("/")


def _label(text: bytes, key: str, path: Path) -> int:
    """A label of ASCII digits, white space around them allowed. (`int` would take other scripts' digits, signs and underscores.)"""
    digits = text.strip()
    if not (digits.isdigit() and len(digits) <= 9):
        shown = repr(text[:_LONGEST_LABEL])[1:]
        raise DataError(f"{path}: key {key!r} has the label {shown}: a .cls member holds the class as plain digits, such as 7")
    return int(digits)


def members(fd: int, path: Path, begin: int = 0, end: int | None = None) -> Iterator[Member]:
    """The regular files of an archive open at `fd`, in order; of one that lies within the file, from byte `begin` up to `end`.

    `path` is named in errors.
    """
    long_name = ""
    for name, kind, start, size in _headers(fd, path, begin, os.fstat(fd).st_size if end is None else end):
        if kind in b"LKxg":
            if size > _LONGEST_HEADER:
                raise DataError(f"{path}: damaged: {size} bytes of extended header at byte {start - _BLOCK}")
            if kind == ord("L"):
                long_name = _text(os.pread(fd, size, start))
            elif kind == ord("x"):
                long_name = _pax_path(os.pread(fd, size, start), start, path)
            continue
        if kind in b"07":
            yield Member(long_name or name, start, size)
        long_name = ""


def _headers(fd: int, path: Path, offset: int, end: int) -> Iterator[tuple[str, int, int, int]]:
    """Each header's name and kind, and where its data begin and how long they are."""
    if end == offset:
        raise DataError(f"{path}: the file is empty (0 bytes): copy or make it again")
    while header := os.pread(fd, min(_BLOCK, max(0, end - offset)), offset):
        if not any(header):
            _check_end(fd, offset, end, path)
            return
        name, kind, size = _parsed(header, offset, path)
        start = offset + _BLOCK
        if start + size > end:
            raise DataError(
                f"{path}: truncated: the member {name!r} at byte {offset} needs {size} bytes, "
                f"but the file ends at byte {end}: copy or make it again"
            )
        yield name, kind, start, size
        offset = start + -(-size // _BLOCK) * _BLOCK


def _parsed(header: bytes, offset: int, path: Path) -> tuple[str, int, int]:
    """Name, kind (an ASCII code, 0 told as "0") and size of the data of a 512-byte header."""
    if len(header) < _BLOCK:
        raise DataError(f"{path}: truncated: it ends within the header at byte {offset}: copy or make it again")
    try:
        stored = _number(header[148:156])
        size = _number(header[124:136])
    except ValueError:
        stored = size = -1
    if size < 0 or stored != sum(header) - sum(header[148:156]) + 8 * 0x20:
        raise DataError(_not_a_header(header, offset, path))
    name = _text(header[:100])
    if header[257:263] == b"ustar\0" and header[345]:
        name = f"{_text(header[345:500])}/{name}"
    kind = header[156] or ord("0")
    return name, kind, 0 if kind in b"123456" else size  # no data follow a link, device, folder or pipe, whatever its header says


def _number(field: bytes) -> int:
    """A number of a header: octal digits, or base 256 where the first bit is set (GNU, for 8 GiB and more)."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.rstrip(b" \0") or b"0", 8)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _pax_path(payload: bytes, offset: int, path: Path) -> str:
    """`path` of a PAX extended header, "" where it has none. Its records are "<length> <key>=<value>" and a line end."""
    found, at, end = "", 0, len(payload.rstrip(b"\0"))
    try:
        while at < end:
            blank = payload.index(b" ", at)
            after = at + int(payload[at:blank])
            if not blank < after <= end:
                raise ValueError
            key, _, value = payload[blank + 1 : after].partition(b"=")
            if key == b"path":
                found = value[:-1].decode("utf-8", "surrogateescape")
            at = after
    except ValueError:
        raise DataError(f"{path}: damaged: unreadable extended header at byte {offset}") from None
    return found


def _not_a_header(header: bytes, offset: int, path: Path) -> str:
    """What to say of a block that should be a header."""
    if offset:
        return f"{path}: damaged: the block at byte {offset} is no tar header: copy or make it again"
    for magic, name in _COMPRESSED.items():
        if header.startswith(magic):
            return f"{path}: compressed with {name}: shards are read at random, so unpack it to a plain .tar first"
    return f"{path}: not a tar file: it begins with {header[:24]!r}"


def _check_end(fd: int, offset: int, end: int, path: Path) -> None:
    """Refuse anything but zeros behind the end mark: joined archives and blanked blocks would end the shard early."""
    while block := os.pread(fd, min(1 << 20, max(0, end - offset)), offset):
        if any(block):
            raise DataError(f"{path}: more data behind the end mark at byte {offset}: join archives with `tar --concatenate`, not `cat`")
        offset += len(block)
