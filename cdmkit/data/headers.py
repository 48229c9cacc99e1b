"""The headers of tar archives: ustar, GNU and PAX, each with its sum checked. Nothing is ever unpacked."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cdmkit.errors import DataError

_BLOCK = 512
_WINDOW = 1 << 15
_NEAR = 1 << 15
_LONGEST_HEADER = 1 << 16
_ADLER = 65521
_FILE = ord("0")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Member(NamedTuple):
    """A regular file in a tar archive: its name and where its bytes lie."""

    name: str
    offset: int
    size: int


class NoEnd(DataError):
    """An archive whose members are whole, but which nothing ends: not closed by its writer, or cut at the right place."""


class _Long(NamedTuple):
    """What an extended header tells of the member behind it, where that does not fit a plain one."""

    name: str = ""
    size: int | None = None


_PLAIN = _Long()


class Window:
    """Positioned reads of a file through one block of it, since headers of small members lie close together. Far jumps read no more than
    they need.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._at = 0
        self._block = b""

    def read(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes from `offset` on: fewer at the end of the file."""
        start = offset - self._at
        if not 0 <= start <= len(self._block) - size:
            near = start - len(self._block) < _NEAR
            self._at, self._block, start = offset, os.pread(self._fd, max(size, _WINDOW) if near else size, offset), 0
        return self._block[start : start + size]


def members(file: Window, path: Path, begin: int, end: int) -> Iterator[Member]:
    """The regular files of an archive that lies in a file from byte `begin` up to `end`, in order.

    `path` is named in errors. Raises DataError, naming the byte, where the archive is damaged, cut short or none, and NoEnd where all
    members are whole but no mark tells that there are no more.
    """
    if begin == end:
        raise DataError(f"{path}: the file is empty (0 bytes): copy or make it again")
    offset, long = begin, _PLAIN
    while offset < end:
        header = file.read(min(_BLOCK, end - offset), offset)
        if not header[0] and not header.strip(b"\0"):
            _check_end(file, offset, end, path)
            return
        name, kind, size = _parsed(header, offset, path)
        start = offset + _BLOCK
        if long.size is not None and kind == _FILE:
            size = long.size
        if start + size > end:
            raise DataError(
                f"{path}: truncated: the member {name!r} at byte {offset} needs {size} bytes, "
                f"but the file ends at byte {end}: copy or make it again"
            )
        offset = start + -(-size // _BLOCK) * _BLOCK
        if kind == _FILE:
            yield Member(long.name or name, start, size)
        long = _extended(file, kind, start, size, long, path) if kind in b"LKxg" else _PLAIN
    if offset > end:
        raise DataError(f"{path}: truncated: the last member lacks its padding, for the file ends at byte {end}: copy or make it again")
    raise NoEnd(f"{path}: no end mark: it may have been cut between two members, at byte {end}; nothing tells how many there should be")


def _extended(file: Window, kind: int, start: int, size: int, long: _Long, path: Path) -> _Long:
    """What an extended header of GNU (L, K) or PAX (x, g) tells of the next member, beside what is known."""
    if size > _LONGEST_HEADER:
        raise DataError(f"{path}: damaged: {size} bytes of extended header at byte {start - _BLOCK}")
    if kind == ord("L"):
        return _Long(_text(file.read(size, start)), long.size)
    return _pax(file.read(size, start), start, path) if kind == ord("x") else long


def _parsed(header: bytes, offset: int, path: Path) -> tuple[str, int, int]:
    """Name, kind (an ASCII code, `_FILE` for all that are regular files) and size of the data of a 512-byte header.

    Half of Adler-32 is the sum of bytes modulo 65521, and many times faster than `sum`. A header's own sum counts as blanks.
    """
    if len(header) < _BLOCK:
        if not offset:
            raise DataError(_not_a_header(header, offset, path))
        raise DataError(f"{path}: truncated: it ends within the header at byte {offset}: copy or make it again")
    try:
        stored, size = _number(header[148:156]), _number(header[124:136])
    except ValueError:
        stored = size = -1
    found = (zlib.adler32(header[156:], zlib.adler32(header[:148])) & 0xFFFF) - 1 + 8 * 0x20
    if size < 0 or (stored - found) % _ADLER:
        raise DataError(_not_a_header(header, offset, path))
    name = header[:100].partition(b"\0")[0].decode("utf-8", "surrogateescape")
    if header[345] and header[257:263] == b"ustar\0":
        name = f"{_text(header[345:500])}/{name}"
    kind = header[156]
    if kind in b"\x007":
        kind = _FILE
    return name, kind, 0 if kind in b"123456" else size  # no data follow a link, device, folder or pipe, whatever its header says


def _number(field: bytes) -> int:
    """A number of a header: octal digits, or base 256 where the first bit is set (GNU, for 8 GiB and more)."""
    if field[0] < 0x80:
        return int(field.rstrip(b" \0") or b"0", 8)
    return int.from_bytes(field[1:], "big") if field[0] == 0x80 else -1


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _pax(payload: bytes, offset: int, path: Path) -> _Long:
    """`path` and `size` of a PAX extended header. Its records are "<length> <key>=<value>" and a line end."""
    name, size, at, end = "", None, 0, len(payload.rstrip(b"\0"))
    try:
        while at < end:
            blank = payload.index(b" ", at)
            after = at + int(payload[at:blank])
            if not blank < after <= end:
                raise ValueError
            key, _, value = payload[blank + 1 : after].partition(b"=")
            if key == b"path":
                name = value[:-1].decode("utf-8", "surrogateescape")
            elif key == b"size":
                size = int(value)
                if size < 0:
                    raise ValueError
            at = after
    except ValueError:
        raise DataError(f"{path}: damaged: unreadable extended header at byte {offset}") from None
    return _Long(name, size)


def _not_a_header(header: bytes, offset: int, path: Path) -> str:
    """What to say of a block that should be a header."""
    if offset:
        return f"{path}: damaged: the block at byte {offset} is no tar header: copy or make it again"
    for magic, name in _COMPRESSED.items():
        if header.startswith(magic):
            return f"{path}: compressed with {name}: shards are read at random, so unpack it to a plain .tar first"
    return f"{path}: not a tar file: it begins with {header[:24]!r}"


def _check_end(file: Window, offset: int, end: int, path: Path) -> None:
    """Refuse anything but zeros behind the end mark: joined archives and blanked blocks would end the shard early."""
    while offset < end:
        block = file.read(min(1 << 20, end - offset), offset)
        if block.strip(b"\0"):
            raise DataError(f"{path}: more data behind the end mark at byte {offset}: join archives with `tar --concatenate`, not `cat`")
        offset += len(block)
        if not block:
            return
