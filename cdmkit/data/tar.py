"""WebDataset shards: plain tar files, read where the images lie, never unpacked.

An index is made in one pass over the headers, which finds every image's bytes. What `tarfile` or a streaming reader would pass over in
silence (a damaged header, a file cut short, a sample of one half) is told as a `Skip`: what lies before stays usable, and the caller
decides whether to go on.

Members are joined to samples by key: the member's path up to the *last* dot of its file name. (WebDataset splits at the first dot, so
`n01.v0.jpg` and `n01.v1.jpg` would become one sample.) The members of a sample need not be neighbours. An image member has one of the
extensions in `IMAGE_EXTENSIONS`, a label is a `.cls` member of ASCII digits; all other members are passed over, pickles among them, as are
links, devices, folders, names that are absolute or lead upwards, and names that begin with `.` or `__`.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import attrs
import numpy as np
import numpy.typing as npt

from cdmkit.data.headers import Member, NoEnd, Window, members
from cdmkit.data.keys import Keys
from cdmkit.errors import DataError
from cdmkit.kinds import Skip

IMAGE_EXTENSIONS = frozenset({"bmp", "jpeg", "jpg", "png", "webp"})
"""Of members that hold an image, in lower case."""

_LONGEST_LABEL = 32
_LARGEST_IMAGE = 1 << 28


@attrs.frozen(eq=False)
class TarIndex:
    """The samples of one shard, in the order of their images."""

    path: Path
    keys: Keys
    offsets: npt.NDArray[np.int64]
    """[N] where each image begins, in bytes."""
    sizes: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    """[N], -1 where a sample has no `.cls`."""
    skips: tuple[Skip, ...] = ()
    """What in the shard cannot be used."""
    unread: int = 0
    """Bytes behind the place where it is damaged."""
    note: str = ""
    """What is odd about the shard, though all that is there can be used."""


def index_tar(path: Path) -> TarIndex:
    """Index a shard. What is damaged or incomplete in it is left out and told in `skips`. Raises OSError where it cannot be read, and
    DataError where it is no regular file.
    """
    samples = _Samples(path)
    with open_regular(path) as file:
        window, size = Window(file.fileno()), os.fstat(file.fileno()).st_size
        try:
            for member in members(window, path, 0, size):
                samples.add(member, window)
        except NoEnd as error:
            samples.note = str(error)
        except DataError as error:
            samples.skip("", "damaged shard", str(error))
            samples.unread = size - samples.end
    return samples.index()


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[IO[bytes]]:
    """A file that can be read at any place. Raises DataError where it is a pipe or a device, and OSError where it cannot be opened."""
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb", buffering=0) as file:  # a pipe must not block
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise DataError(f"{path} is no regular file: a shard is read at any place")
        yield file


class _Samples:
    """The images and labels of a shard, gathered by key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.images: dict[str, Member] = {}
        self.labels: dict[str, int] = {}
        self.bad: dict[str, Skip] = {}
        """By key, "" for the shard: the first that is wrong with each."""
        self.end = 0
        """Where the last member ends."""
        self.unread = 0
        self.note = ""

    def skip(self, key: str, cause: str, message: str) -> None:
        self.bad.setdefault(key, Skip(str(self.path), key, cause, message))

    def add(self, member: Member, window: Window) -> None:
        """Take note of a member, if it is of a sample."""
        key, _, extension = member.name.rpartition(".")
        extension = extension.lower()
        self.end = member.offset + member.size
        if extension == "cls" and _wanted(key):
            if key in self.labels:
                self.skip(key, "two labels", f"{self.path}: key {key!r} has two labels: keep one {member.name!r}")
            self.labels[key] = self._label(window.read(min(member.size, _LONGEST_LABEL + 1), member.offset), key)
        elif extension in IMAGE_EXTENSIONS and _wanted(key):
            if key in self.images:
                names = f"{self.images[key].name!r} and {member.name!r}"
                self.skip(key, "two images", f"{self.path}: key {key!r} has two images, {names}: keep one")
            if member.size > _LARGEST_IMAGE:
                told = f"{self.path}: key {key!r} has an image of {member.size} bytes: more than 256 MiB is refused"
                self.skip(key, "image beyond 256 MiB", told)
            self.images[key] = member

    def _label(self, text: bytes, key: str) -> int:
        """A label of ASCII digits, white space around them allowed. (`int` would take other scripts' digits, signs and underscores.)"""
        digits = text.strip()
        if digits.isdigit() and len(digits) <= 9:
            return int(digits)
        shown = repr(text[:_LONGEST_LABEL])[1:]
        wanted = "a .cls member holds the class as plain digits, such as 7"
        self.skip(key, "bad label", f"{self.path}: key {key!r} has the label {shown}: {wanted}")
        return -1

    def index(self) -> TarIndex:
        """What can be used, and what cannot."""
        if "" not in self.bad:  # what is cut off may be the other half
            for key in self.labels.keys() - self.images.keys():
                told = f"{self.path}: key {key!r} has a label but no image: add its image or remove its .cls"
                self.skip(key, "label without image", told)
        if not (self.images or self.bad):
            extensions = ", ".join(sorted(IMAGE_EXTENSIONS))
            told = f"{self.path}: no image in this archive: a sample is <key>.png (or {extensions}) and <key>.cls"
            self.skip("", "no image in a shard", told)
        good = [key for key in self.images if key not in self.bad] if self.bad else list(self.images)
        found = [self.images[key] for key in good]
        return TarIndex(
            path=self.path,
            keys=Keys.of(good),
            offsets=np.array([member.offset for member in found], np.int64),
            sizes=np.array([member.size for member in found], np.int64),
            labels=np.array([self.labels.get(key, -1) for key in good], np.int64),
            skips=tuple(self.bad[key] for key in sorted(self.bad)),
            unread=self.unread,
            note=self.note,
        )


def _wanted(key: str) -> bool:
    """Whether a key can be that of a sample: a plain relative path to a file that is neither hidden nor metadata."""
    name = key.rpartition("/")[2]
    if not name or name.startswith((".", "__")):
        return False
    return not key.startswith("/") and (".." not in key or ".." not in key.replace("\\", "/").split("/"))
