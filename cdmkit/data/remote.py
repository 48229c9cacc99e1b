"""Files at an address: http, https, s3 and gs, through fsspec. Nothing is taken that is shorter than the server or the caller says.

fsspec and what it needs (`aiohttp` for http, https; `s3fs` for s3; `gcsfs` for gs) are imported where an address is opened, not before.
"""

from __future__ import annotations

import contextlib
import errno
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from cdmkit.errors import CdmkitError, DataError, SetupError
from cdmkit.redact import redact

_REMOTE = re.compile(r"(https?|s3|gs)://")
_INSTALL = {"s3": "pip install s3fs", "gs": "pip install gcsfs"}
_QUERY = re.compile(r"(://[^\s?'\"]*\?)[^\s'\"]+")
_QUOTED = re.compile(r"(?:[\w.~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*", re.ASCII)
_BLOCK = 1 << 20
_PASSING = frozenset({408, 425, 429})
"""Of the answers 4xx, those that may be another in a moment."""
_LOCAL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
"""What only writing can meet; a network's errors are others."""


@attrs.frozen
class Patience:
    """How long to bear with a server."""

    attempts: int = attrs.field(default=4, validator=attrs.validators.ge(1))
    wait: float = 1.0
    """Seconds before the second attempt; doubled before each further one."""
    timeout: float = 60.0
    """Seconds without a byte after which an attempt has failed."""


_PATIENCE = Patience()


class NotThere(DataError):
    """The server has no such file, or does not let us see whether it has."""


class _Passing(Exception):
    """What may be gone at the next attempt."""


def is_remote(text: str) -> bool:
    """Whether a text is an address that can be read: `http://`, `https://`, `s3://` or `gs://`."""
    return _REMOTE.match(text) is not None


def shown(text: str) -> str:
    """The text as it may be read by others: without users, passwords and whole queries, for any word of a query can be a signature."""
    return _QUERY.sub(r"\1***", redact(text))


def read_text(url: str, most: int = 64 << 20, patience: Patience = _PATIENCE) -> str | None:
    """A small UTF-8 file such as `dataset.json`; None where the server has none.

    So is it where access is refused (401, 403): to those who may read files but not list them, stores answer this instead of 404. Raises
    DataError where the file has more than `most` bytes, is no text or does not come.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "text"
            download(url, path, most=most, patience=patience)
            return path.read_text("utf-8")
    except NotThere:
        return None
    except UnicodeDecodeError:
        raise DataError(f"{shown(url)} is no UTF-8 text: check the address") from None
    except OSError as error:
        raise SetupError(f"{tempfile.gettempdir()} cannot be written to: {error.strerror}. Make room there, or set TMPDIR.") from None


def download(url: str, path: Path, size: int | None = None, most: int | None = None, patience: Patience = _PATIENCE) -> int | None:
    """Write what is at an address to `path`.

    Returned is the length it was held against: `size`, or what the server tells; None where it tells none. Raises NotThere, DataError where
    it is of another size, has more than `most` bytes or does not come in several attempts, SetupError where a package is missing, and
    OSError where `path` cannot be written.
    """
    trouble = ""
    for attempt in range(patience.attempts):
        if attempt:
            time.sleep(patience.wait * 2 ** (attempt - 1))
        try:
            return _attempt(url, path, size, most, patience.timeout)
        except _Passing as error:
            trouble = str(error)
    raise DataError(
        f"{shown(url)} cannot be downloaded, after {patience.attempts} attempts: {trouble}. "
        "Check the address and the network, then try again."
    )


def _attempt(url: str, path: Path, size: int | None, most: int | None, timeout: float) -> int | None:
    """Download once. Raises _Passing where another attempt may help, else as `download` does."""

    def check(told: int | None, got: int) -> None:
        """Stop at the first block of a file that cannot be right, such as one without end."""
        if got and size is not None and told not in (None, size):
            raise DataError(f"{shown(url)} has {told} bytes at the server, but should have {size}: is it another version?")
        if bound is not None and got > bound:
            raise DataError(f"{shown(url)} has more than {bound} bytes: check the address")

    bound = most if size is None else size
    path.touch()  # here a folder that refuses is told from a server that does
    with _opened(url, timeout) as (system, options):
        from fsspec.callbacks import Callback

        callback = Callback(hooks={"check": check})
        try:
            system.get_file(url, str(path), callback=callback, **options)
        except CdmkitError:
            raise
        except Exception as error:  # fsspec hands on what the packages below it raise, which have no common class
            raise _failure(url, error, timeout) from None
    length: int | None = callback.size if size is None else size
    got = path.stat().st_size
    if length is not None and got != length:
        raise _Passing(f"{got} of {length} bytes came")
    return length


def _failure(url: str, error: Exception, timeout: float) -> Exception:
    """What to raise for what fsspec raised."""
    import aiohttp

    if isinstance(error, OSError) and error.errno in _LOCAL:
        return error
    status = next((code for name in ("status", "code") if isinstance(code := getattr(error, name, None), int)), 0)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return NotThere(f"{shown(url)} is not there ({status or 404}): check the address")
    if isinstance(error, PermissionError) or status in (401, 403) or str(error).startswith("Forbidden"):  # the last is how gcsfs tells 403
        return NotThere(f"{shown(url)}: the server refuses access ({status or 403}): check the address and the rights, or sign it anew")
    if isinstance(error, (aiohttp.RedirectClientError, aiohttp.TooManyRedirects)):
        return DataError(
            f"{shown(url)}: the server sends us on without end, or to what is no http ({shown(str(error))}): check the address"
        )
    if isinstance(error, TimeoutError):
        return _Passing(f"nothing came for {timeout:g} s")
    words = (
        f"the server answers {status} {getattr(error, 'message', '')}".rstrip()
        if status
        else " ".join(shown(str(error)).split()) or type(error).__name__
    )
    if isinstance(error, ValueError) or (400 <= status < 500 and status not in _PASSING):
        return DataError(f"{shown(url)} cannot be downloaded: {words}. Check the address")
    return _Passing(words)


@contextlib.contextmanager
def _opened(url: str, timeout: float) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The file system of an address, and the options its `get_file` needs.

    It is ours alone: fsspec would else hand out a shared one, whose connections nobody closes. All is read in one stream: several would lay
    the file out at its full length first, where a missing part goes unseen.
    """
    match = _REMOTE.match(url)
    if match is None:
        raise DataError(f"{shown(url)!r} is no address of http, https, s3 or gs")
    scheme = match[1]
    try:
        import aiohttp
        import fsspec
        from fsspec.asyn import sync

        limits = aiohttp.ClientTimeout(total=None, connect=timeout, sock_connect=timeout, sock_read=timeout)
        options: dict[str, Any] = {}
        if scheme == "s3":
            settings: dict[str, Any] = {"config_kwargs": {"connect_timeout": timeout, "read_timeout": timeout}, "max_concurrency": 1}
        elif scheme == "gs":
            settings, options = {"requests_timeout": limits}, {"headers": {}}  # headers of one's own: one stream
        else:
            # A signature holds for the very letters of an address, so one that is quoted already stays as it is. Nothing is to be packed
            # for the way: its length would be another than the file's.
            client = {"timeout": limits, "read_bufsize": _BLOCK, "headers": {"Accept-Encoding": "identity"}}
            settings = {"client_kwargs": client, "encoded": _QUOTED.fullmatch(url) is not None}
        system = fsspec.filesystem(scheme, skip_instance_cache=True, **settings)
    except ImportError as error:
        command = _INSTALL.get(scheme, "pip install 'cdmkit[remote]'")
        raise SetupError(f"{shown(url)}: reading {scheme}:// needs a package that is not installed ({error}): {command}") from None
    try:
        yield system, options
    finally:
        if scheme in ("http", "https"):
            sync(system.loop, sync(system.loop, system.set_session).close)
