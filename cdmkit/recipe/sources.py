"""Where a recipe's tables come from: its file, the files it extends, and `--set` options."""

from __future__ import annotations

from pathlib import Path

import tomli

from cdmkit.recipe.faults import Fault, Origin, failure
from cdmkit.recipe.positions import positions
from cdmkit.recipe.tree import Node, merge

_BOM = b"\xef\xbb\xbf"


def read_file(path: Path, chain: tuple[Path, ...] = ()) -> Node:
    """The tables of a file, laid on those of the file it `extends`. `chain`: the files that led here."""
    root = _parse(path)
    extends = root.step("extends")
    if extends is None:
        return root
    if not isinstance(extends.value, str):
        raise failure([Fault(extends.origin, ("extends",), "must be a string: the path of a recipe, from this file's folder")])
    parent = path.parent / extends.value
    files = (*chain, path)
    if any(_same(parent, file) for file in files):
        way = " -> ".join(str(file) for file in (*files, parent))
        raise failure([Fault(extends.origin, ("extends",), f"recipes extend each other in a circle: {way}")])
    if not parent.is_file():
        raise failure([Fault(extends.origin, ("extends",), f'no file "{parent}"')])
    return merge(read_file(parent, files), root.without("extends"))


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _parse(path: Path) -> Node:
    text = _text(path)
    try:
        values = tomli.loads(text)
        return Node.of(values, str(path), positions(text))
    except tomli.TOMLDecodeError as error:
        problem = f"this is not valid TOML: {error.msg[:1].lower()}{error.msg[1:]}"
        raise failure([Fault(Origin(str(path), error.lineno, error.colno), (), problem)]) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets hundreds deep
        raise failure([Fault(Origin(str(path), 1, 1), (), f"this cannot be read as TOML: {error}")]) from error


def _text(path: Path) -> str:
    """The file's text, which must be plain UTF-8."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise failure([Fault(Origin(str(path)), (), f"cannot be read: {error.strerror}")]) from error
    if data.startswith(_BOM):
        raise failure([Fault(Origin(str(path), 1, 1), (), "starts with a byte order mark: save it as UTF-8 without BOM")])
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start].decode()
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        problem = f"byte 0x{data[error.start]:02x} is not UTF-8: save the file as UTF-8"
        raise failure([Fault(Origin(str(path), line, column), (), problem)]) from error


def read_override(text: str) -> Node:
    """The table of one `--set key.path=value`."""
    key, equals, value = (part.strip() for part in text.partition("="))
    source = f"--set {key}"
    if not key or not equals or key.startswith("[") or "\n" in text:
        raise failure([Fault(Origin(source), (), "must be key.path=value, such as --set stage.base.train.steps=1000")])
    try:
        return Node.of(tomli.loads(f"{key} = {value}"), source, {})
    except (ValueError, RecursionError) as error:
        raise failure([Fault(Origin(source), (), _not_toml(key, value))]) from error


def _not_toml(key: str, value: str) -> str:
    try:
        tomli.loads(f"{key} = 0")
    except tomli.TOMLDecodeError:
        return f"{key} is not a key path: write it as in stage.base.train.steps"
    return f"""{value or "nothing"} is not a TOML value; a string needs quotes, kept from the shell: --set '{key}="{value}"'"""
