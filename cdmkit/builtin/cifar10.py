"""CIFAR-10, in its binary or its Python version. Of the pickles of the latter, which could run any code, only data are taken."""

from __future__ import annotations

import io
import os
import pickletools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from cdmkit.component import Component, component
from cdmkit.data.originals import bytes_of, check_there, in_order, kept, members_of_archive, shown, stated
from cdmkit.errors import DataError
from cdmkit.hookspecs import hookimpl
from cdmkit.kinds import Original, Originals, Preparer

_SPLITS = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "val": ("test_batch",)}
_BATCHES = (*_SPLITS["train"], *_SPLITS["val"])
_BINARY, _PYTHON = (*(f"{batch}.bin" for batch in _BATCHES), "batches.meta.txt"), (*_BATCHES, "batches.meta")
"""The files of either version, that of the classes' names last."""
_PUBLISHED = ("cifar-10-batches-bin", "cifar-10-batches-py", "cifar-10-binary.tar.gz", "cifar-10-python.tar.gz")
_ROWS, _PIXELS, _CLASSES = 10_000, 3 * 32 * 32, 10
_AGAIN = "copy or download it again"

R = TypeVar("R")


class _Batch(NamedTuple):
    """A file of images."""

    pixels: npt.NDArray[np.uint8]
    """[10000, 3072]: the rows of the red, then the green, then the blue plane."""
    labels: Sequence[int]


class _Place(NamedTuple):
    """Where an image lies."""

    path: str
    """The archive, or the folder of the batches."""
    batch: str
    row: int

    def version(self) -> tuple[int, ...]:
        """What differs where the pixels do: the row, and size and time of change of the archive or the batch."""
        return (self.row, *stated(_file(self.path, self.batch)))


@kept(2 * len(_BATCHES))
def _file(path: str, batch: str) -> str:
    """The file that a batch lies in: of a folder its own, or else the archive."""
    own = (os.path.join(path, name) for name in (f"{batch}.bin", batch))
    return next((file for file in own if os.path.isfile(file)), path)


class _Cifar(NamedTuple):
    """All of it, about 180 MB."""

    batches: Mapping[str, _Batch]
    classes: Sequence[str]


@component("cifar10")
class Cifar10(Preparer):
    """CIFAR-10 (Krizhevsky 2009): `cifar-10-binary.tar.gz`, `cifar-10-python.tar.gz`, the folder that either unpacks to, or a folder that
    holds one of these, of which the first is taken in the order bin, py, binary, python.

    The five batches are `train` (50,000 images), the test batch is `val` (10,000), labels and classes are those that the files tell, and
    images become lossless PNG. Nothing is unpickled: the Python version is parsed, and refused if it holds anything but what it should.
    Other files are not looked at.
    """

    def look(self, path: Path) -> Originals:
        """Read the labels. Raises DataError where files are missing or have another size than they should."""
        check_there(path)
        place = str(_find(path.absolute()))
        cifar = _loaded(place)
        splits = {
            split: in_order(
                (
                    Original(f"{batch}/{row:04d}", label, _Place(place, batch, row))
                    for batch in batches
                    for row, label in enumerate(cifar.batches[batch].labels)
                ),
                path,
            )
            for split, batches in _SPLITS.items()
        }
        return Originals(splits=splits, classes=cifar.classes)

    def read(self, original: Original) -> bytes:
        """The pixels as PNG."""
        place, batch, row = original.place
        planes = _loaded(place).batches[batch].pixels[row].reshape(3, 32, 32)
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0))).save(file, format="PNG", compress_level=1)
        return file.getvalue()


def _find(path: Path) -> Path:
    """The archive, or the folder of the batches."""
    if path.is_file() or any((path / name).is_file() for name in (*_BINARY, *_PYTHON)):
        return path
    for name in _PUBLISHED:
        if (path / name).exists():
            return path / name
    raise DataError(f"no CIFAR-10 in {path}: looked for {', '.join(_PUBLISHED)}, and for data_batch_1.bin and data_batch_1 themselves")


@kept(1)
def _loaded(place: str) -> _Cifar:
    """All batches of an archive or a folder."""
    path, wanted = Path(place), (*_BINARY, *_PYTHON)
    members = members_of_archive(path, wanted) if path.is_file() else None
    there = [name for name in wanted if (path / name).is_file()] if members is None else members
    binary = any(name in there for name in _BINARY)
    names = _BINARY if binary else _PYTHON
    missing = [name for name in names if name not in there]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}: {_AGAIN}")

    def parsed(name: str, parse: Callable[[bytes, str], R]) -> R:
        where = f"{path}: {name}"
        return parse(bytes_of(path / name) if members is None else members.pop(name), where)

    batches = {batch: parsed(name, _binary if binary else _python) for batch, name in zip(_BATCHES, names, strict=False)}
    return _Cifar(batches, parsed(names[-1], _binary_names if binary else _python_names))


def _binary(data: bytes, where: str) -> _Batch:
    """Of each image a byte of label, then its pixels."""
    if len(data) != _ROWS * (1 + _PIXELS):
        raise DataError(f"{where} has {len(data)} bytes, not {_ROWS * (1 + _PIXELS)}: {_AGAIN}")
    rows = np.frombuffer(data, np.uint8).reshape(_ROWS, 1 + _PIXELS)
    return _Batch(rows[:, 1:], _checked_labels(rows[:, 0].tolist(), where))


def _binary_names(data: bytes, where: str) -> Sequence[str]:
    return _checked_names(data.decode("utf-8", "replace").split(), where)


def _python(data: bytes, where: str) -> _Batch:
    """A pickle of {"data": uint8 [10000, 3072], "labels": list of int, ...}."""
    told = _plain(data, where)
    return _Batch(_array(told.get("data"), where), _checked_labels(told.get("labels"), where))


def _python_names(data: bytes, where: str) -> Sequence[str]:
    names = _plain(data, where).get("label_names")
    if not (isinstance(names, list) and all(isinstance(name, (str, bytes)) for name in names)):
        names = []
    return _checked_names([_text(name) for name in names], where)


def _checked_labels(labels: Any, where: str) -> list[int]:
    if not (isinstance(labels, list) and len(labels) == _ROWS and all(type(label) is int and 0 <= label < _CLASSES for label in labels)):
        raise DataError(f"{where}: no list of {_ROWS} labels from 0 to {_CLASSES - 1}: {_AGAIN}")
    return labels


def _checked_names(names: Sequence[str], where: str) -> Sequence[str]:
    if len(set(names)) != _CLASSES or len(names) != _CLASSES:
        raise DataError(f"{where}: no names of {_CLASSES} classes: {_AGAIN}")
    return tuple(shown(name.encode("utf-8", "backslashreplace")) for name in names)


def _array(value: Any, where: str) -> npt.NDArray[np.uint8]:
    """The array that a call of numpy's would restore."""
    match value:
        case _Call(name=name, state=(1, (rows, columns), _Call(name="numpy dtype", arguments=("u1", *_)), False, pixels)) if (
            name in _RESTORERS and (rows, columns) == (_ROWS, _PIXELS) and isinstance(pixels, (str, bytes))
        ):
            data = _latin(pixels)
            if len(data) == _ROWS * _PIXELS:
                return np.frombuffer(data, np.uint8).reshape(_ROWS, _PIXELS)
    raise DataError(f"{where}: no array of {_ROWS} x {_PIXELS} bytes: {_AGAIN}")


# Pickles as data. A pickle is a program for a small stack machine, which can import and call anything. Here that program runs without these
# two abilities: what it would import or call is noted by its name, and refused if CIFAR-10 has no need of it.

_RESTORERS = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
_ENCODE = "_codecs encode"
_KNOWN = frozenset({*_RESTORERS, _ENCODE, "numpy ndarray", "numpy dtype"})
_MARK = object()


class _Name(str):
    """Something that the pickle would import: "module name"."""

    __slots__ = ()


class _Call:
    """Something that the pickle would call."""

    def __init__(self, name: str, arguments: tuple[Any, ...]) -> None:
        self.name = name
        self.arguments = arguments
        self.state: Any = None


class _Machine:
    """The stack machine."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        """What the pickle makes. Raises ValueError, LookupError or TypeError where it does anything that is not foreseen."""
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return self.stack.pop()
            if opcode.name in _PUSHED:
                self.stack.append(argument)
            elif opcode.name not in _STEPS:
                raise ValueError(f"opcode {opcode.name}")
            else:
                _STEPS[opcode.name](self, argument)
        raise ValueError("no end")

    def taken(self, count: int) -> tuple[Any, ...]:
        items = tuple(self.stack.pop() for _ in range(count))
        return items[::-1]

    def marked(self) -> list[Any]:
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def push(self, item: Any) -> None:
        self.stack.append(item)

    def extend(self, items: Sequence[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise TypeError("items for what is no list")
        self.stack[-1].extend(items)

    def update(self, items: Sequence[Any]) -> None:
        if not isinstance(self.stack[-1], dict):
            raise TypeError("entries for what is no dict")
        self.stack[-1].update((_text(key), value) for key, value in zip(items[::2], items[1::2], strict=True))

    def new(self, items: Sequence[Any]) -> None:
        self.stack.append({})
        self.update(items)

    def name(self, name: str) -> None:
        if name not in _KNOWN:
            raise ValueError(f"it would import {name!r}")
        self.stack.append(_Name(name))

    def call(self, function: Any, arguments: Any) -> None:
        if not (isinstance(function, _Name) and isinstance(arguments, tuple)):
            raise TypeError("a call of what is no function")
        if function == _ENCODE:  # how Python 3 writes bytes in the protocol of Python 2
            self.stack.append(_latin(arguments[0]))
        else:
            self.stack.append(_Call(function, arguments))

    def build(self, call: Any, state: Any) -> None:
        if not isinstance(call, _Call):
            raise TypeError("a state for what is no object")
        call.state = state
        self.stack.append(call)

    def remember(self, number: int | None) -> None:
        self.memo[len(self.memo) if number is None else number] = self.stack[-1]


def _latin(text: str | bytes) -> bytes:
    """Bytes, which pickles of Python 2 hold as a str."""
    return text.encode("latin-1") if isinstance(text, str) else text


def _text(key: Any) -> str:
    """A key, which is bytes or str as the version of Python has it."""
    if isinstance(key, bytes):
        return key.decode("latin-1")
    if type(key) is not str:
        raise TypeError(f"the key {key!r}")
    return key


_PUSHED = frozenset(
    {"INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "STRING", "BINSTRING", "SHORT_BINSTRING"}
    | {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES"}
)
"""Opcodes that put their argument on the stack."""

_STEPS: Mapping[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), lambda machine, number: machine.remember(number)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, number: machine.push(machine.memo[number])),
    "MARK": lambda machine, _: machine.push(_MARK),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE1": lambda machine, _: machine.push(machine.taken(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.taken(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.taken(3)),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.marked())),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "LIST": lambda machine, _: machine.push(machine.marked()),
    "APPEND": lambda machine, _: machine.extend(machine.taken(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.marked()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "DICT": lambda machine, _: machine.new(machine.marked()),
    "SETITEM": lambda machine, _: machine.update(machine.taken(2)),
    "SETITEMS": lambda machine, _: machine.update(machine.marked()),
    "GLOBAL": lambda machine, name: machine.name(name),
    "STACK_GLOBAL": lambda machine, _: machine.name(" ".join(machine.taken(2))),
    "REDUCE": lambda machine, _: machine.call(*machine.taken(2)),
    "BUILD": lambda machine, _: machine.build(*machine.taken(2)),
}


def _plain(data: bytes, where: str) -> Mapping[str, Any]:
    """The dict that a pickle makes."""
    try:
        made = _Machine().run(data)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(f"{where} is not the pickle that CIFAR-10 has ({error}), so it is not read: {_AGAIN}") from None
    if not isinstance(made, dict):
        raise DataError(f"{where}: no dict: {_AGAIN}")
    return made


@hookimpl
def cdmkit_components() -> list[type[Component]]:
    """The preparer of CIFAR-10."""
    return [Cifar10]
