"""A folder of images, sorted into folders by class or not."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from cdmkit.component import Component, component, option
from cdmkit.data.originals import (
    SPLITS,
    Piece,
    check_there,
    entries,
    folders_in,
    in_order,
    is_folder,
    is_hidden,
    is_like_a_split,
    shown,
    splits_in,
    unknown,
    walk,
    why_left_out,
)
from cdmkit.errors import DataError
from cdmkit.hookspecs import hookimpl
from cdmkit.kinds import Original, Originals, Preparer

_MEND = "sort all images into a folder per class, or set labels = false"


@component("folder")
class Folder(Preparer):
    """Images in folders: `{train,val,test}/<class>/**/image`, `<class>/**/image`, or images without classes.

    If there is a folder `train` (or `training`), then it, `val` (or `valid`, `validation`, `dev`) and `test` (or `testing`), in any case,
    are the splits, and images beside them are passed over; if not, all is `train`. A class is a folder of the first level below, and its
    label the rank of its name among those of `train`; other splits have no further classes. A split holds either folders or images, not
    both; deeper folders mean nothing.

    Taken are files called jpg, jpeg, png, webp or bmp, in any case, and those without an extension that begin as such files do. Passed
    over and counted are all others, hidden files (`.x`, `__x`, `Thumbs.db`, `desktop.ini`), what is not a regular file, and class folders
    without images. Links are followed, to each folder once.
    """

    labels: bool = option(True, help="whether folders are classes; if not, images have no labels")

    def look(self, path: Path) -> Originals:
        """List all files. Raises DataError where there are no images, folders and images are mixed, or a split has classes of its own."""
        check_there(path)
        root, passed_over = path.absolute(), Counter[str]()
        folders = _splits(root)
        found = {split: walk(root / folder, passed_over) for split, folder in folders.items()}
        if not found["train"]:
            raise DataError(_no_images(root / folders["train"], passed_over))
        if folders["train"]:
            self._look_beside(root, folders.values(), found["train"], passed_over)
        else:
            _check_no_splits(root, found["train"])
        classes = _classes(root, folders, found, passed_over) if self.labels else []
        rank = {name: number for number, name in enumerate(classes)}
        splits = {}
        for split, names in found.items():
            if not names:
                passed_over["split without images"] += 1
                continue
            place, prefix = str(root / folders[split]), f"{folders[split]}/" if folders[split] else ""
            images = (Original(shown(prefix + name), rank.get(name.partition("/")[0], -1), Piece(place, name)) for name in names)
            splits[split] = in_order(images, root)
        return Originals(splits=splits, classes=tuple(map(shown, classes)), passed_over=dict(+passed_over))

    def read(self, original: Original) -> bytes:
        """The file."""
        piece: Piece = original.place
        return piece.read()

    def _look_beside(self, root: Path, splits: Collection[str], train: Sequence[str], passed_over: Counter[str]) -> None:
        """Count the images beside the splits. Raises DataError where `train` seems to be one class of many."""
        for entry in entries(root):
            if not is_folder(entry):
                passed_over["image beside the splits"] += not why_left_out(entry)
            elif entry.name not in splits and not is_hidden(entry.name):
                images = len(walk(root / entry.name, Counter()))
                where = f", in {shown(entry.name)}: is it a split?" if is_like_a_split(entry.name) else ""
                passed_over["image beside the splits" + where] += images
                if images and self.labels and not any("/" in name for name in train):
                    raise DataError(
                        f"{root} holds images in the folders train and {entry.name}: if train is a class, call its folder trains, "
                        f"for example; if it is the split, move {entry.name} away, or set labels = false"
                    )


def _splits(root: Path) -> dict[str, str]:
    """The folder of each split, `train` first; "" for all of `root`."""
    if not root.is_dir():
        raise DataError(f"{root} is a file: give the folder that holds the images")
    found: dict[str, list[str]] = {split: [] for split in SPLITS.values()}
    for name in folders_in(root):
        if name.lower() in SPLITS:
            found[SPLITS[name.lower()]].append(name)
    if not found["train"]:
        return {"train": ""}
    same = next((names for names in found.values() if len(names) > 1), None)
    if same:
        raise DataError(f"{root} holds both {' and '.join(same)}, which are the same split: keep one")
    return {split: names[0] for split, names in found.items() if names}


def _check_no_splits(root: Path, names: Sequence[str]) -> None:
    """Raise DataError where all images lie in folders that are called like splits, for then these are no classes."""
    folders = sorted({name.partition("/")[0] if "/" in name else "" for name in names})
    if all(splits_in(folder) for folder in folders):
        raise DataError(
            f"{root} holds {' and '.join(map(shown, folders))}, but no train: rename them to train, val and test, "
            f"or give {root / folders[0]} itself"
        )


def _classes(root: Path, folders: Mapping[str, str], found: Mapping[str, Sequence[str]], passed_over: Counter[str]) -> Sequence[str]:
    """The classes of `train`, sorted; none where its images lie in no folders."""
    own = {split: _own_classes(root / folders[split], names, passed_over) for split, names in found.items()}
    known = own["train"]
    for split in (split for split, names in found.items() if names):
        if bool(own[split]) != bool(known):
            with_classes, without = ("train", split) if known else (split, "train")
            raise DataError(f"{root}: {with_classes} has class folders, but {without} has none: {_MEND}")
        if aliens := sorted(set(own[split]) - set(known), key=os.fsencode):
            raise DataError(f"{root / folders[split]}: train has no class {unknown(aliens[0], known)}")
    return known


def _own_classes(folder: Path, names: Sequence[str], passed_over: Counter[str]) -> Sequence[str]:
    """The classes that a split has images of, sorted."""
    flat = next((name for name in names if "/" not in name), None)
    deep = next((name for name in names if "/" in name), None)
    if flat and deep:
        raise DataError(f"{folder} holds both images ({shown(flat)}) and class folders ({shown(deep)}): {_MEND}")
    own = {name.partition("/")[0] for name in names} if deep else set()
    passed_over["empty class folder"] += len(set(folders_in(folder)) - own)
    return sorted(own, key=os.fsencode)


def _no_images(folder: Path, passed_over: Mapping[str, int]) -> str:
    others = ", ".join(f"{count} x {reason}" for reason, count in passed_over.items())
    return f"no images under {folder}: looked for *.jpg, jpeg, png, webp and bmp, in its folders too; passed over: {others or 'nothing'}"


@hookimpl
def cdmkit_components() -> list[type[Component]]:
    """The preparer of any images."""
    return [Folder]
