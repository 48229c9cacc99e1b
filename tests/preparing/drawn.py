"""A source of small drawn images, some of them broken, for tests of what is made of images."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cdmkit.component import Component, component, option
from cdmkit.data.encode import Encoding
from cdmkit.errors import DataError
from cdmkit.hookspecs import hookimpl
from cdmkit.kinds import Original, Originals, Preparer


class Place(NamedTuple):
    """Where an image is."""

    split: str
    number: int
    folder: str

    def version(self) -> tuple[str, int, str]:
        """What is in the file `version` of the source tells the pictures apart."""
        path = Path(self.folder, "version")
        return self.split, self.number, path.read_text() if path.exists() else ""


@component("drawn")
class Drawn(Preparer):
    """Noise of different sizes, in three classes and two splits. A file `slow` in the source holds the seconds it takes to read one."""

    count: int = option(20, help="images of `train`")
    held: int = option(5, help="images of `val`")
    classes: int = option(3, help="0: no labels")
    side: int = option(12, help="the least side; most are larger")
    square: bool = option(False, help="all of them side x side")
    broken: tuple[int, ...] = option((), help="which of `train` are no images")
    lost: tuple[int, ...] = option((), help="which of `train` cannot be read while there is no file `found` in the source")
    deadly: tuple[int, ...] = option((), help="which of `train` end the process that reads them")
    huge: tuple[int, ...] = option((), help="which of `train` are too much for memory")

    def look(self, path: Path) -> Originals:
        """All of them."""
        if not path.is_dir():
            raise DataError(f"{path} is no folder")
        names = tuple(f"class {label}" for label in range(self.classes))
        splits = {
            split: [
                Original(f"{split}/{number}\tü.png", number % self.classes if self.classes else -1, Place(split, number, str(path)))
                for number in range(count)
            ]
            for split, count in (("train", self.count), ("val", self.held))
        }
        return Originals(splits=splits, classes=names, passed_over={"hidden file": 2})

    def read(self, original: Original) -> bytes:
        """Drawn from its number."""
        split, number, folder = original.place
        if Path(folder, "slow").exists():
            time.sleep(float(Path(folder, "slow").read_text()))
        if split == "train":
            if number in self.broken:
                return b"no image"
            if number in self.lost and not Path(folder, "found").exists():
                raise OSError(errno.EIO, os.strerror(errno.EIO), folder)
            if number in self.deadly:
                os._exit(1)
            if number in self.huge:
                raise MemoryError
        generator = np.random.default_rng([number, len(split)])
        height, width = (self.side, self.side) if self.square else generator.integers(self.side, 3 * self.side, 2)
        return Encoding.PNG(generator.integers(0, 256, (height, width, 3), np.uint8))


@hookimpl
def cdmkit_components() -> list[type[Component]]:
    """It, as a plugin."""
    return [Drawn]
