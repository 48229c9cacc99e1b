"""What preparers share: the images of a folder, names that a manifest can hold, and reading them in any process."""

from __future__ import annotations

import difflib
import functools
import heapq
import itertools
import os
import posixpath
import re
import stat
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar, cast

from cdmkit.data.tar import IMAGE_EXTENSIONS
from cdmkit.errors import DataError
from cdmkit.kinds import Original
from cdmkit.nearest import did_you_mean

_LARGEST_IMAGE = 1 << 30
_LARGEST_MEMBER = 1 << 26
_OPEN_FILES = 64
_STATED_FILES = 4096
_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini"})
_UNFIT = re.compile(r"[\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_MAGIC = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|BM.{13}\0", re.DOTALL)
_HEAD = 16
_USUAL = re.compile(r"\.[a-z]{1,6}[0-9]?")
"""Extensions that name a format, not a number or a hash: there are not many of them."""

SPLITS: Mapping[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Words that tell a split, in lower case, and what the splits are called."""

P = ParamSpec("P")
R = TypeVar("R")


def kept(most: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Have a function keep its last `most` results in this process: for what takes time to open. A forked process begins with none."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        cached = functools.lru_cache(maxsize=most)(function)
        os.register_at_fork(after_in_child=cached.cache_clear)
        return cast(Callable[P, R], cached)

    return decorate


class Piece(NamedTuple):
    """Where the bytes of an image lie: in a file, all of it or a part. Fit to be an original's `place`."""

    folder: str
    file: str
    offset: int = 0
    size: int = -1
    """-1: the whole file."""

    def read(self) -> bytes:
        """The bytes. Files of which parts are read stay open. Raises DataError, to which the caller adds which image it was, where they
        cannot be read.
        """
        path = os.path.join(self.folder, self.file)
        try:
            data = _whole(path) if self.size < 0 else os.pread(_opened(path).descriptor, _bounded(self.size), self.offset)
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}") from error
        if len(data) < self.size:
            raise DataError("its file has become shorter since it was listed: do not change data in use")
        return data

    def version(self) -> tuple[int, ...]:
        """What differs where the bytes do, told without reading them: size and time of change of a file; of a part, where it lies in
        the file too. Of a file with parts, that is looked up once in a process. Raises DataError where there is no such file.
        """
        path = os.path.join(self.folder, self.file)
        return _stated(path) if self.size < 0 else (self.offset, self.size, *stated(path))


class _Opened:
    """A file open for reading at any position, closed with the last reference to it."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


_opened = kept(_OPEN_FILES)(_Opened)


def _stated(path: str) -> tuple[int, int]:
    """Size and time of change, in ns, of a file. Raises DataError where there is none."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return status.st_size, status.st_mtime_ns


stated = kept(_STATED_FILES)(_stated)
"""The same, looked up once in a process: for files that hold many images."""


def bytes_of(path: Path) -> bytes:
    """A file with labels or the like. Raises DataError, naming it, where it cannot be read or has more than 1 GiB."""
    try:
        return Piece(str(path.parent), path.name).read()
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _whole(path: str) -> bytes:
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb", buffering=0) as file:  # a pipe must not block
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise DataError("not a regular file")
        _bounded(status.st_size)
        return file.read()


def _bounded(size: int) -> int:
    if size > _LARGEST_IMAGE:
        raise DataError("too large: more than 1 GiB is refused")
    return size


def walk(root: Path, passed_over: Counter[str]) -> list[str]:
    """The image files under a folder, as sorted paths from it; what else is there is counted in `passed_over`, by why.

    Links are followed. Each real folder is visited once, under its own name if that lies under `root`, and `root` is never left upwards:
    links that lead round in circles end. Raises DataError where a folder cannot be listed.
    """
    found: list[str] = []
    seen = {_identity(folder) for folder in Path(os.path.realpath(root)).parents}
    folders, links = [""], list[str]()
    while folders or links:
        folder = folders.pop() if folders else heapq.heappop(links)
        identity = _identity(root / folder)
        if identity in seen:
            passed_over["link to a folder that is listed already"] += 1
            continue
        seen.add(identity)
        for entry in entries(root / folder):
            name = folder + entry.name
            if is_hidden(entry.name):
                passed_over["hidden file"] += 1
            elif is_folder(entry):
                if entry.is_symlink():
                    heapq.heappush(links, f"{name}/")
                else:
                    folders.append(f"{name}/")
            elif reason := why_left_out(entry):
                passed_over[reason] += 1
            else:
                found.append(name)
    return sorted(found)


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, by name. Raises DataError where it cannot be listed."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}") from error


def folders_in(folder: Path) -> list[str]:
    """The sorted names of the folders in a folder, hidden ones left out. Raises DataError where it cannot be listed."""
    return [entry.name for entry in entries(folder) if is_folder(entry) and not is_hidden(entry.name)]


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def why_left_out(entry: os.DirEntry[str]) -> str:
    """Why what is in a folder, and is none itself, is passed over; "" for an image. Of a name without an extension the content tells."""
    try:
        if not entry.is_file():
            return "not a regular file"
    except OSError:
        return "not a regular file"
    return why_no_image(entry.name, lambda: _head(entry.path))


def _head(path: str) -> bytes | None:
    """How a file begins; None where it cannot be read."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb", buffering=0) as file:
            return file.read(_HEAD)
    except OSError:
        return None


def is_hidden(name: str) -> bool:
    """Whether a file or folder is left over by a system: `.DS_Store`, `._x`, `__MACOSX`, `Thumbs.db`."""
    return name.startswith((".", "__")) or name.lower() in _SYSTEM_FILES


def why_no_image(name: str, head: Callable[[], bytes | None]) -> str:
    """Why a file is passed over, "" for an image. `head` gives its first 16 bytes or more, by which a name without an extension is judged;
    where they cannot be read, the file is taken, for whoever reads it will tell why.
    """
    if is_hidden(name):
        return "hidden file"
    extension = posixpath.splitext(name)[1].lower()
    if extension in ("", "."):
        begin = head()
        return "" if begin is None or _MAGIC.match(begin) else "no image by its content"
    if extension[1:] in IMAGE_EXTENSIONS:
        return ""
    return "no image by its name" + (f" ({extension})" if _USUAL.fullmatch(extension) else "")


def splits_in(name: str) -> set[str]:
    """The splits that words of a name tell: of `imagenet-val-000` that is val."""
    return {SPLITS[word] for word in _words(name) if word in SPLITS}


def is_like_a_split(name: str) -> bool:
    """Whether a word of a name is one that tells a split, or is much like one: `val_images`, `train2017`, `vaild`, `testset`."""
    return any(difflib.get_close_matches(word.removesuffix("set"), SPLITS, n=1, cutoff=0.75) for word in _words(name))


def _words(name: str) -> list[str]:
    return re.findall("[a-z]+", name.lower())


def _identity(folder: Path) -> tuple[int, int]:
    try:
        status = os.stat(folder)
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}") from error
    return status.st_dev, status.st_ino


def shown(name: str | bytes) -> str:
    r"""A file's name as a line of UTF-8 text can hold it: undecodable bytes as `\xff`, control characters as `\u000a`, and a backslash
    doubled, so that different names stay different.

    A str is what the file system gives: its bytes count, which are equal in every locale. Names from elsewhere are given as bytes.
    """
    raw = name if isinstance(name, bytes) else _raw(name)
    return _UNFIT.sub(_escaped, raw.decode("utf-8", "surrogateescape"))


def _raw(name: str) -> bytes:
    try:
        return os.fsencode(name)
    except UnicodeEncodeError:  # no file of this system is called that
        return name.encode("utf-8", "surrogatepass")


def utf8(text: str) -> bytes:
    """The bytes of a name that was read as UTF-8, undecodable ones as they were: from an archive or a list."""
    return text.encode("utf-8", "surrogateescape")


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if match[0] == "\\":
        return "\\\\"
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def unknown(name: str, known: Sequence[str]) -> str:
    """What to say of a name that is not one of `known`: itself, some of those, and what was meant."""
    some = ", ".join(map(shown, known[:5])) + (", ..." if len(known) > 5 else "")
    return f"{shown(name)!r}: there are {some or 'none'}{did_you_mean(name, known)}"


def in_order(originals: Iterable[Original], where: Path) -> list[Original]:
    """A split, in the order of names. Raises DataError where two of its images have one name."""
    ordered = sorted(originals, key=lambda original: original.name)
    for one, two in itertools.pairwise(ordered):
        if one.name == two.name:
            raise DataError(f"{where}: two images are called {one.name!r}: rename or remove one")
    return ordered


def check_there(path: Path) -> None:
    """Raise DataError where there is nothing at `path`."""
    if not path.exists():
        raise DataError(f"{path} does not exist: give the file or folder that holds the images")


def members_of_archive(path: Path, names: Collection[str]) -> dict[str, bytes]:
    """The files of these names (without their folders) in a small compressed tar, read in one pass; nothing is written.

    Raises DataError where it is damaged, or one of them has more than 64 MiB.
    """
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                name = posixpath.basename(member.name)
                if name not in names or not member.isfile():
                    continue
                if member.size > _LARGEST_MEMBER:
                    raise DataError(f"{path}: {member.name} has {member.size} bytes: more than 64 MiB is refused")
                file = archive.extractfile(member)
                found[name] = file.read() if file else b""
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} cannot be read as a tar archive ({error}): copy or download it again") from error
    return found
