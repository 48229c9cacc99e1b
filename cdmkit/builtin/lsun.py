"""LSUN: scenes and objects in LMDB databases."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cdmkit.component import Component, component, option
from cdmkit.data.originals import check_there, folders_in, in_order, kept, shown, stated, unknown
from cdmkit.errors import DataError, SetupError
from cdmkit.hookspecs import hookimpl
from cdmkit.kinds import Original, Originals, Preparer

_NAME = re.compile(r"(?:(?P<category>.+)_)?(?P<split>train|val|test)_lmdb")
_OPEN_DATABASES = 32


@component("lsun")
class Lsun(Preparer):
    """LSUN (Yu et al., arXiv:1506.03365): a folder `<category>_<split>_lmdb` with its `data.mdb`, or a folder that holds several.

    The name tells category and split (train, val or test); that of another folder with a `data.mdb` (`cat`, as the object sets are called)
    is its category, and all of it `train`. Images have labels only if asked for: then a label is the rank of the category's name among
    those that are there, or that `categories` chooses, and `test_lmdb`, whose categories are secret, is passed over. So are folders
    without a `data.mdb`, and categories that are not chosen.
    """

    categories: tuple[str, ...] = option((), help="those to take, such as church_outdoor; all that are there if empty")
    labels: bool = option(False, help="whether an image's category is its label; if not, images have no labels")

    def look(self, path: Path) -> Originals:
        """List all keys. Raises DataError where there is no database, one is damaged, or a category is not there."""
        check_there(path)
        passed_over = Counter[str]()
        databases = self._chosen(path, list(_databases(path.absolute(), passed_over)), passed_over)
        classes = sorted({database.category for database in databases}) if self.labels else []
        splits: dict[str, list[Original]] = {}
        for database in databases:
            label = classes.index(database.category) if self.labels else -1
            splits.setdefault(database.split, []).extend(database.originals(label))
        if not any(splits.values()):
            raise DataError(f"no images in the databases of {path}: download them again")
        ordered = {split: in_order(splits[split], path) for split in ("train", "val", "test") if splits.get(split)}
        return Originals(splits=ordered, classes=tuple(map(shown, classes)), passed_over=dict(+passed_over))

    def read(self, original: Original) -> bytes:
        """The value of a key."""
        folder, key = original.place
        lmdb = _lmdb()
        try:
            with _opened(folder).begin() as transaction:
                value: bytes | None = transaction.get(key)
        except lmdb.Error as error:
            raise DataError(f"damaged database: {error}") from None
        if value is None:
            raise DataError("its key is not in the database any more: do not change data in use")
        return value

    def _chosen(self, path: Path, databases: Sequence[_Database], passed_over: Counter[str]) -> Sequence[_Database]:
        """The databases of the categories that are asked for."""
        known = sorted({database.category for database in databases} - {""})
        for category in self.categories:
            if category not in known:
                raise DataError(f"{path}: no category {unknown(category, known)}")
        chosen = []
        for database in databases:
            if self.categories and database.category not in self.categories:
                passed_over["database of a category that is not chosen"] += 1
            elif self.labels and not database.category:
                passed_over["database without a category"] += 1
            else:
                chosen.append(database)
        if not chosen:
            raise DataError(f"{path}: no images with labels, only test_lmdb: set labels = false")
        return chosen


class _Place(NamedTuple):
    """Where an image lies: in which database, under which key."""

    folder: str
    key: bytes

    def version(self) -> tuple[int, ...]:
        """What differs where images do: size and time of change of the database."""
        return stated(os.path.join(self.folder, "data.mdb"))


class _Database(NamedTuple):
    """A folder with a `data.mdb`."""

    folder: Path
    category: str
    """Empty for `test_lmdb`."""
    split: str

    @classmethod
    def of(cls, folder: Path) -> _Database:
        match = _NAME.fullmatch(folder.name)
        if match is None:
            return cls(folder, folder.name.removesuffix("_lmdb"), "train")
        return cls(folder, match["category"] or "", match["split"])

    def originals(self, label: int) -> Iterator[Original]:
        """Its images. Raises DataError where it is damaged."""
        lmdb, place = _lmdb(), str(self.folder)
        try:
            with _opened(place).begin() as transaction, transaction.cursor() as cursor:
                for key in cursor.iternext(keys=True, values=False):
                    yield Original(shown(os.fsencode(f"{self.folder.name}/") + key), label, _Place(place, key))
        except lmdb.Error as error:
            raise DataError(f"{place} is damaged: {error}: copy or download it again") from None


def _databases(path: Path, passed_over: Counter[str]) -> Iterator[_Database]:
    """The databases at or in a folder, by name."""
    if (path / "data.mdb").is_file():
        yield _Database.of(path)
        return
    names = folders_in(path) if path.is_dir() else []
    there = [name for name in names if (path / name / "data.mdb").is_file()]
    if not there:
        raise DataError(
            f"no LSUN at {path}: looked for data.mdb there and in its folders. Give a folder such as church_outdoor_train_lmdb, or one "
            "that holds several; unzip what was downloaded first"
        )
    passed_over["folder without data.mdb"] += len(names) - len(there)
    yield from (_Database.of(path / name) for name in there)


def _lmdb() -> Any:
    try:
        import lmdb
    except ImportError:
        raise SetupError("LSUN lies in LMDB databases, and lmdb reads them: pip install 'cdmkit[lsun]'") from None
    return lmdb


@kept(_OPEN_DATABASES)
def _opened(folder: str) -> Any:
    """The LMDB environment of a folder: read only, without a lock file, so that read-only disks will do."""
    lmdb, file = _lmdb(), Path(folder) / "data.mdb"
    try:
        environment = lmdb.open(folder, readonly=True, lock=False, readahead=False, meminit=False, max_readers=1, create=False)
        needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    except lmdb.Error as error:
        raise DataError(f"{file} cannot be read: {error}: copy or download it again") from None
    if file.stat().st_size < needed:  # to read beyond the end would end the process
        environment.close()
        raise DataError(f"{file} is truncated: it has {file.stat().st_size} of {needed} bytes: copy or download it again")
    return environment


@hookimpl
def cdmkit_components() -> list[type[Component]]:
    """The preparer of LSUN."""
    return [Lsun]
