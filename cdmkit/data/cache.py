"""Remote shards on the local disk: downloaded once, verified, and shared by all processes that name the same folder.

Beside a file `<SHA-256 of its URL>-<its name>` lie a note `<SHA-256>.json` (size and digest; when it was last used is when it was modified)
and a lock `<SHA-256>.lock`, held while the file is downloaded. A file without a note that fits is never used, so a download that was killed
leaves nothing that is read. Which files are in use, and so must not be removed, is told by locks on single bytes of `in-use.lock`: the
kernel lets go of them when a process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import re
import threading
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from urllib.parse import unquote

import attrs
from filelock import FileLock

from cdmkit.data.remote import Patience, download, shown
from cdmkit.errors import DataError, SetupError
from cdmkit.files import digest, sync, write_json

_KEY = 64
_LONGEST_NAME = 100
_STORED = re.compile(r"[0-9a-f]{64}-.*")
_PARTIAL = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{32}\.partial")
_AUTHORITY = re.compile(r"[a-z0-9]+://[^/?#]*")


def cache_folder() -> Path:
    """Where shards are kept: `shards` in $CDMKIT_CACHE, else in $XDG_CACHE_HOME/cdmkit, else in ~/.cache/cdmkit."""
    given, home = os.environ.get("CDMKIT_CACHE"), os.environ.get("XDG_CACHE_HOME", "")
    base = Path(given or (os.path.join(home, "cdmkit") if os.path.isabs(home) else "~/.cache/cdmkit"))
    try:
        return base.expanduser().absolute() / "shards"
    except RuntimeError as error:
        raise SetupError(f"there is no folder to keep downloads in: {error}. Set CDMKIT_CACHE to one.") from None


@attrs.frozen
class Cache:
    """A folder of downloaded files. Threads, processes and, where its file system shares locks, machines may use it at once."""

    folder: Path = attrs.field(factory=cache_folder)
    limit: int = 0
    """The bytes that `evict` makes the files stay within; 0 for any number."""
    patience: Patience = attrs.field(factory=Patience)

    def path(self, url: str) -> Path:
        """Where the file of a URL is kept. The name tells nothing of the URL's query, which may hold a signature."""
        key = hashlib.sha256(url.encode("utf-8", "surrogateescape")).hexdigest()
        name = unquote(re.split(r"[?#]", _AUTHORITY.sub("", url, count=1))[0].rpartition("/")[2])
        return self.folder / f"{key}-{re.sub(r'[^A-Za-z0-9._-]+', '_', name)[-_LONGEST_NAME:]}"

    def fetch(self, url: str, size: int | None = None, sha256: str | None = None) -> Path:
        """The local file of a URL, downloaded where it is not there. It stays until `evict` is called in this process without it.

        A file that is there is trusted if it has the size, and by its note the digest, that are asked for and those it came with. Raises
        DataError where the file does not come or is not as asked for, SetupError where the folder cannot be used.
        """
        path = self.path(url)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _hold(path)
            if not _fits(path, size, sha256):
                with FileLock(_beside(path, "lock")):
                    _hold(path)  # which `evict` in another thread may have undone
                    if not _fits(path, size, sha256):  # else another process has brought it meanwhile
                        self._download(url, path, size, sha256)
        except OSError as error:
            raise SetupError(
                f"{self.folder} cannot be used to keep {shown(url)}: {error.strerror or error}. "
                "Make room there and mend its permissions, or set CDMKIT_CACHE to another folder."
            ) from None
        with contextlib.suppress(OSError):  # a cache that is only read keeps no order of use
            os.utime(_beside(path, "json"))
        return path

    def evict(self, keep: Collection[Path] = ()) -> int:
        """Remove the files that were used longest ago until the rest is within the limit. The bytes of that rest are returned.

        `keep` is all that this process still reads. It stays, and so does what another living process has fetched: the rest can be above
        the limit. What killed downloads have left goes in any case.
        """
        kept = {_key(path) for path in keep}
        for path in self.folder.glob("*.partial"):
            if _PARTIAL.fullmatch(path.name) and _key(path) not in kept:
                self._remove(path)
        files = sorted(_stored(self.folder))
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if not self.limit or total <= self.limit:
                break
            if _key(path) not in kept and self._remove(path):
                total -= size
        return total

    def _download(self, url: str, path: Path, size: int | None, sha256: str | None) -> None:
        """Bring the file and write its note. For whom holds the lock."""
        for stale in self.folder.glob(f"{_key(path)}.*.partial"):
            stale.unlink(missing_ok=True)
        partial = _beside(path, f"{uuid.uuid4().hex}.partial")
        try:
            length = download(url, partial, size, patience=self.patience)
            found = digest(partial)
            if sha256 and found != sha256.lower():
                raise DataError(f"{shown(url)} has the SHA-256 {found}, but should have {sha256.lower()}: is it another version?")
            if length is None and not sha256:
                raise DataError(
                    f"{shown(url)}: the server does not tell its length, so a cut one would go unseen: list its size or SHA-256"
                )
            sync(partial)
            size = partial.stat().st_size
            _beside(path, "json").unlink(missing_ok=True)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        write_json(_beside(path, "json"), {"url": shown(url), "size": size, "sha256": found})

    def _remove(self, path: Path) -> bool:
        """Remove a file, and its note if it has one, unless another process reads it or someone downloads it."""
        with contextlib.suppress(OSError), _HOLDING:  # which a lock is refused with, too
            _lock_use(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
            then = fcntl.LOCK_SH  # a thread of this process that downloads the file needs its hold
            try:
                with FileLock(_beside(path, "lock"), timeout=0):
                    if _STORED.fullmatch(path.name):
                        _beside(path, "json").unlink(missing_ok=True)
                    path.unlink(missing_ok=True)
                    then = fcntl.LOCK_UN
                    return True
            finally:
                _lock_use(path, then)
        return False


def _key(path: Path) -> str:
    """The SHA-256 of the URL that a file in the cache is of."""
    return path.name[:_KEY]


def _beside(path: Path, ending: str) -> Path:
    """What lies beside a cached file."""
    return path.with_name(f"{_key(path)}.{ending}")


def _fits(path: Path, size: int | None, sha256: str | None) -> bool:
    """Whether a file is there, as its note says and as is asked for."""
    try:
        note = json.loads(_beside(path, "json").read_text("utf-8"))
        noted, found = note["size"], note["sha256"]
        return path.stat().st_size == noted and size in (None, noted) and (not sha256 or sha256.lower() == found)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _stored(folder: Path) -> Iterator[tuple[int, int, Path]]:
    """Of every cached file: when it was last used (ns), its bytes, its path."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if _STORED.fullmatch(path.name):
            with contextlib.suppress(FileNotFoundError):  # another process removes it
                note = _beside(path, "json")
                yield (note if note.exists() else path).stat().st_mtime_ns, path.stat().st_size, path


_HOLDING = threading.Lock()
"""Locks of bytes are a process's, not a thread's: what one thread takes, another would let go of."""


@functools.cache
def _uses(folder: Path) -> int:
    """The descriptor of `in-use.lock`. It stays open: closing any one of that file lets go of all locks the process has on it."""
    return os.open(folder / "in-use.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _lock_use(path: Path, kind: int) -> None:
    """Lock the byte that stands for a file's key. Raises OSError."""
    fcntl.lockf(_uses(path.parent), kind, 1, int(_key(path)[:15], 16))


def _hold(path: Path) -> None:
    """Have a file stay for as long as this process lives."""
    with contextlib.suppress(OSError), _HOLDING:  # a folder that cannot be written to, or that has no locks, can still be read
        _lock_use(path, fcntl.LOCK_SH)
