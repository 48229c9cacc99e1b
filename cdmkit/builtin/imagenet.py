"""ImageNet (ILSVRC2012): the archives as they are published, unpacked folders, or Kaggle's."""

from __future__ import annotations

import io
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import attrs

from cdmkit.component import Component, component, option
from cdmkit.data.headers import Member, Window, members
from cdmkit.data.originals import (
    SPLITS,
    Piece,
    bytes_of,
    check_there,
    entries,
    folders_in,
    in_order,
    is_folder,
    members_of_archive,
    shown,
    splits_in,
    utf8,
    walk,
    why_left_out,
    why_no_image,
)
from cdmkit.errors import DataError, SetupError
from cdmkit.hookspecs import hookimpl
from cdmkit.kinds import Original, Originals, Preparer

_SPLITS = ("train", "val")
_KAGGLE = Path("ILSVRC/Data/CLS-LOC")
_TRUTH, _META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
_LABELS = (
    "LOC_val_solution.csv",
    "imagenet_2012_validation_synset_labels.txt",
    "val_labels.txt",
    "ILSVRC2012_devkit_t12",
    "ILSVRC2012_devkit_t12.tar.gz",
)
"""What the labels of val are looked for as, in this order."""
_CLASSES = 1000


class _Image(NamedTuple):
    """An image whose label is not told yet."""

    wnid: str
    """Empty for those of a flat val."""
    name: str
    piece: Piece
    split: str = ""
    """What a folder in its archive tells."""


@attrs.frozen
class _Told:
    """What tells the labels of a flat val."""

    where: Path
    wnids: Mapping[str, str]
    """By an image's name without its extension."""


@component("imagenet")
class ImageNet(Preparer):
    """ImageNet, ILSVRC2012 (Russakovsky et al., arXiv:1409.0575), or a part of it. `train`, `val` or both lie

    - in `ILSVRC2012_img_train.tar` and `ILSVRC2012_img_val.tar`, which are read in place, never unpacked: their folder, or one of them,
      or another tar, of a `<wnid>.tar` for each class or of class folders, in folders `train` and `val` or not;
    - in folders: `train/<wnid>/*.JPEG`, and `val/<wnid>/*.JPEG` or `val/*.JPEG`; `<wnid>/*.JPEG` is train;
    - as Kaggle has it: in `ILSVRC/Data/CLS-LOC/{train,val}`, with `LOC_val_solution.csv` beside `ILSVRC`.

    A label is the rank of its WNID among the sorted ones of train, or of val where there is no train. The labels of a val without folders
    are looked for beside it, and beside Kaggle's `ILSVRC`: `LOC_val_solution.csv`, `imagenet_2012_validation_synset_labels.txt`,
    `val_labels.txt`, or the development kit, `ILSVRC2012_devkit_t12` or its `.tar.gz`.

    Passed over and counted are hidden files, files that are no images by their names, class folders without images, folders whose name is
    no WNID, and an archive beside the folder of its images. Names are `<wnid>/<file>` wherever an image lies, or `<file>` in a flat val.
    """

    val_labels: str = option(
        "",
        help="what tells the labels of a val without folders: lines of WNIDs in the order of the images' names, or of names and WNIDs; "
        "LOC_val_solution.csv; or the development kit. Looked for beside the images if empty",
    )

    def look(self, path: Path) -> Originals:
        """List all images. Raises DataError where there are none, or labels cannot be told or do not fit; SetupError where the development
        kit is to be read without scipy.
        """
        check_there(path)
        if self.val_labels and not Path(self.val_labels).expanduser().exists():
            raise DataError(f"val_labels = {self.val_labels!r} does not exist")
        passed_over = Counter[str]()
        root, splits = _find(path.absolute(), passed_over)
        if self.val_labels and ("val" not in splits or splits["val"][0].wnid):
            have = "val in a folder per class, which tells them" if "val" in splits else "no val"
            raise DataError(f"val_labels = {self.val_labels!r} is for a val without class folders, but {root} has {have}: leave it empty")
        if "train" in splits and not splits["train"][0].wnid:
            raise DataError(f"{root}: train has no classes: its archive holds images themselves, not a <wnid>.tar or folder for each class")
        if "val" in splits and not splits["val"][0].wnid:
            _check_stems(splits["val"], root)
            told = self._told(root, sorted(image.name for image in splits["val"]))
            splits["val"] = _labelled(splits["val"], told)
            val_wnids = set(told.wnids.values())
        else:
            val_wnids = {image.wnid for image in splits.get("val", ())}
        classes = sorted({image.wnid for image in splits["train"]} if "train" in splits else val_wnids)
        rank = {wnid: number for number, wnid in enumerate(classes)}
        alien = next((image for image in splits.get("val", ()) if image.wnid not in rank), None)
        if alien is not None:
            raise DataError(f"{root}: val has {alien.name} of the class {alien.wnid}, which is not one of the {len(classes)} of train")
        ordered = {
            split: in_order((Original(image.name, rank[image.wnid], image.piece) for image in images), root)
            for split, images in splits.items()
        }
        return Originals(splits=ordered, classes=tuple(classes), passed_over=dict(+passed_over))

    def read(self, original: Original) -> bytes:
        """The file, or the part of an archive."""
        piece: Piece = original.place
        return piece.read()

    def _told(self, root: Path, names: Sequence[str]) -> _Told:
        """The labels of a flat val."""
        if self.val_labels:
            return _read_labels(Path(self.val_labels).expanduser(), names)
        folders = [root, root / "val", *(root.parents[:3] if root.name == "CLS-LOC" else ())]
        for where in (folder / name for folder in folders for name in _LABELS):
            if where.exists():
                return _read_labels(where, names)
        raise DataError(
            f"no labels for the {len(names)} images of val: looked in {', '.join(map(str, folders))} for {', '.join(_LABELS)}; "
            "put one of them there, or set val_labels to its path"
        )


def _find(path: Path, passed_over: Counter[str]) -> tuple[Path, dict[str, list[_Image]]]:
    """The images of each split, and the folder they are in. Raises DataError where there are none."""
    if path.is_file():
        return path.parent, _in_one_archive(path, passed_over)
    for root in (path, path / "CLS-LOC", path / "Data" / "CLS-LOC", path / _KAGGLE):
        there = {split: place for split in _SPLITS if (place := _place(root, split, passed_over))}
        if there:
            return root, {split: _listed(place, split, passed_over) for split, place in there.items()}
    if any(map(_is_wnid, folders_in(path))):
        return path, {"train": _listed(path, "train", passed_over)}
    raise DataError(
        f"no ImageNet in {path}: looked for ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, train/<wnid>, val, {_KAGGLE}/train and "
        "<wnid>, where a <wnid> is a name such as n01440764; other folders of images are for the preparer `folder`"
    )


def _place(root: Path, split: str, passed_over: Counter[str]) -> Path | None:
    """Where a split is: its folder, or else its archive."""
    folder, archive = root / split, root / f"ILSVRC2012_img_{split}.tar"
    if folder.is_dir() and any(_is_wnid(entry.name) or (split == "val" and _is_flat_image(entry)) for entry in entries(folder)):
        passed_over["archive beside the folder of its images"] += archive.is_file()
        return folder
    return archive if archive.is_file() else None


def _is_wnid(name: str) -> bool:
    return re.fullmatch("n[0-9]{8}", name) is not None


def _is_flat_image(entry: os.DirEntry[str]) -> bool:
    return not is_folder(entry) and not why_left_out(entry)


def _listed(place: Path, split: str, passed_over: Counter[str]) -> list[_Image]:
    """The images of a split, all with a WNID or all without. Raises DataError where there are none."""
    images = list(_in_folder(place, passed_over) if place.is_dir() else _in_archive(place, passed_over))
    foreign = next((image for image in images if image.split not in ("", split)), None)
    if foreign is not None:
        raise DataError(f"{place} is {split} by its name, but holds {foreign.name} in a folder {foreign.split}: give the archive itself")
    return _checked(images, place)


def _in_one_archive(archive: Path, passed_over: Counter[str]) -> dict[str, list[_Image]]:
    """The images of each split of an archive: told by its folders, or else by its name, or else by whether there are classes."""
    groups: dict[str, list[_Image]] = defaultdict(list)
    for image in _in_archive(archive, passed_over):
        groups[image.split].append(image)
    by_name = splits_in(archive.stem)
    splits: dict[str, list[_Image]] = defaultdict(list)
    for told, images in groups.items():
        guessed = "train" if images[0].wnid else "val"
        splits[told or (min(by_name) if len(by_name) == 1 else guessed)] += images
    if len(splits) > 1:
        passed_over["image of test, whose labels are secret"] += len(splits.pop("test", ()))
    if not splits or "test" in splits:
        raise DataError(f"{archive} holds no images{' but those of test' if splits else ''}: unpack, copy or download it again")
    return {split: _checked(images, archive) for split, images in splits.items()}


def _checked(images: list[_Image], place: Path) -> list[_Image]:
    """These images, if there are any, and either all have a class or none has."""
    flat = next((image for image in images if not image.wnid), None)
    classed = next((image for image in images if image.wnid), None)
    if flat and classed:
        raise DataError(f"{place} holds images both with a class ({classed.name}) and without ({flat.name}): sort all of them, or none")
    if not images:
        raise DataError(f"{place} holds no images: unpack, copy or download it again")
    return images


def _in_folder(folder: Path, passed_over: Counter[str]) -> Iterator[_Image]:
    found: set[str] = set()
    for name in walk(folder, passed_over):
        wnid, slash, _ = name.partition("/")
        if slash and not _is_wnid(wnid):
            passed_over["image in a folder whose name is no WNID"] += 1
            continue
        found.add(wnid)
        yield _Image(wnid if slash else "", shown(name), Piece(str(folder), name))
    passed_over["empty class folder"] += len({name for name in folders_in(folder) if _is_wnid(name)} - found)


def _in_archive(archive: Path, passed_over: Counter[str]) -> Iterator[_Image]:
    """Images that lie in a tar, in its class folders or not, or in a <wnid>.tar in it."""
    try:
        with archive.open("rb", buffering=0) as file:
            window = Window(file.fileno())
            for outer in members(window, archive, 0, os.fstat(file.fileno()).st_size):
                path = PurePosixPath(outer.name)
                if path.suffix != ".tar" or not _is_wnid(path.stem):
                    yield from _member(archive, path, outer, window, passed_over)
                    continue
                for inner in members(window, archive / path.name, outer.offset, outer.offset + outer.size):
                    file_in_class = path.with_suffix("") / PurePosixPath(inner.name).name
                    yield from _member(archive, file_in_class, inner, window, passed_over)
    except OSError as error:
        raise DataError(f"{archive} cannot be read: {error.strerror}") from error


def _member(archive: Path, path: PurePosixPath, member: Member, window: Window, passed_over: Counter[str]) -> Iterator[_Image]:
    """A member of an archive, if it is an image. `path`: where it lies, with the folder of its class, if it has one."""
    if reason := why_no_image(path.name, lambda: window.read(min(member.size, 16), member.offset)):
        passed_over[reason] += 1
        return
    folders = path.parts[:-1]
    depth = next((depth for depth, folder in enumerate(folders) if _is_wnid(folder)), len(folders))
    split = next((SPLITS[folder.lower()] for folder in reversed(folders[:depth]) if folder.lower() in SPLITS), "")
    wnid = "".join(folders[depth : depth + 1])
    name = "/".join(path.parts[depth:])
    yield _Image(wnid, shown(utf8(name)), Piece(str(archive.parent), archive.name, member.offset, member.size), split)


def _check_stems(images: Sequence[_Image], root: Path) -> None:
    """Raise DataError where lists of labels, which leave out extensions, could not tell images of a flat val apart."""
    names: dict[str, str] = {}
    for image in images:
        other = names.setdefault(_stem(image.name), image.name)
        if other != image.name:
            raise DataError(f"{root}: val has {other} and {image.name}, whose labels cannot be told apart: rename or remove one")


def _labelled(images: Sequence[_Image], told: _Told) -> list[_Image]:
    """Images with the WNIDs that are told of them."""
    unknown = next((image.name for image in images if _stem(image.name) not in told.wnids), None)
    if unknown is not None:
        raise DataError(f"{told.where} does not tell the label of {unknown}: take the labels of the same images")
    return [image._replace(wnid=told.wnids[_stem(image.name)]) for image in images]


def _stem(name: str) -> str:
    return PurePosixPath(name).stem


def _read_labels(where: Path, names: Sequence[str]) -> _Told:
    """What a file or development kit tells of the images `names`, which are sorted."""
    if where.name == _TRUTH:
        where = where.parent
    if where.is_dir():
        return _in_turn(where, _from_devkit(where, {file: _bytes(where, file) for file in (_TRUTH, _META)}), names)
    if where.suffix in (".gz", ".tgz", ".tar"):
        return _in_turn(where, _from_devkit(where, members_of_archive(where, (_TRUTH, _META))), names)
    rows = _rows(_bytes(where.parent, where.name), where)
    if all(len(row) == 1 for _, row in rows):
        return _in_turn(where, [_wnid(row[0], where, line) for line, row in rows], names)
    wnids: dict[str, str] = {}
    for line, row in rows:
        if len(row) == 1:
            raise DataError(f"{where}, line {line}: {row[0]!r} stands alone, but other lines have a name and a WNID: mend it")
        wnid = _wnid(row[1], where, line)
        before = wnids.setdefault(_stem(row[0]), wnid)
        if before != wnid:
            raise DataError(f"{where}, line {line}: {row[0]!r} is of the class {wnid}, but a line above says {before}: keep one")
    return _Told(where, wnids)


def _bytes(folder: Path, file: str) -> bytes:
    """A file of the development kit, or another that tells labels."""
    return bytes_of(next((path for path in (folder / file, folder / "data" / file) if path.is_file()), folder / file))


def _rows(data: bytes, where: Path) -> list[tuple[int, list[str]]]:
    """The words of each line that has any, with its number; a CSV file's header is none."""
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is no text in UTF-8: {error}") from None
    rows = [(number, line.replace(",", " ").split()) for number, line in enumerate(lines, 1)]
    return [(number, row) for number, row in rows if row and row[0] != "ImageId"]


def _wnid(word: str, where: Path, line: int) -> str:
    if not _is_wnid(word):
        raise DataError(f"{where}, line {line}: {word!r} is no WNID, which looks like n01440764")
    return word


def _in_turn(where: Path, wnids: Sequence[str], names: Sequence[str]) -> _Told:
    """Labels that stand in the order of names."""
    if len(wnids) != len(names):
        raise DataError(f"{where} has {len(wnids)} labels, but val has {len(names)} images: take the labels of the same images")
    return _Told(where, dict(zip(map(_stem, names), wnids, strict=True)))


def _from_devkit(where: Path, files: Mapping[str, bytes]) -> list[str]:
    """The WNIDs of val, in the order of its images. The kit numbers classes in an order of its own, which `meta.mat` resolves."""
    missing = [file for file in (_TRUTH, _META) if file not in files]
    if missing:
        raise DataError(f"{where} holds no {' and no '.join(missing)}: it is not the development kit, or not all of it")
    synsets = _synsets(files[_META], where)
    wnids = []
    for line, (number, *_) in _rows(files[_TRUTH], where):
        wnid = synsets.get(number)
        if wnid is None:
            raise DataError(f"{where}: line {line} of {_TRUTH} says {number!r}, which is not the number of a class in {_META}")
        wnids.append(wnid)
    return wnids


def _synsets(meta: bytes, where: Path) -> dict[str, str]:
    """WNID by ILSVRC2012_ID, as text, of the 1000 classes that have images."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise SetupError(f"{where} tells labels in a MATLAB file, and scipy reads it: pip install 'cdmkit[imagenet]'") from None
    try:
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True, variable_names=["synsets"])["synsets"]
        numbered = [(int(number), str(wnid)) for number, wnid in zip(synsets["ILSVRC2012_ID"].flat, synsets["WNID"].flat, strict=True)]
    except Exception as error:  # whatever scipy stumbles over in damaged files
        raise DataError(f"{where}: {_META} cannot be read ({type(error).__name__}: {error}): download it again") from None
    return {str(number): wnid for number, wnid in numbered if 1 <= number <= _CLASSES and _is_wnid(wnid)}


@hookimpl
def cdmkit_components() -> list[type[Component]]:
    """The preparer of ImageNet."""
    return [ImageNet]
