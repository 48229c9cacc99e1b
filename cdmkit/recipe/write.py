"""A recipe, or any part of one, back to plain tables and to text."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from typing import Any, cast

import attrs

from cdmkit.component import Binds, Component, option_of
from cdmkit.kinds import Source
from cdmkit.recipe.env import escaped
from cdmkit.recipe.model import Recipe

_WIDTH = 100
"""Tables that fit a line of this many characters are written inline."""


def to_table(value: Any, defaults: bool = True) -> Any:
    """Plain dicts, lists and scalars that read back as `value`: every option that is not None, and each component's `type`.

    defaults: whether to write options that are as they would be anyway. Without them a table stays equal when its class gets new options.
    """
    if attrs.has(type(value)):
        named = {"type": value.type_name} if isinstance(value, Component) else {}
        options = {field: getattr(value, field.name) for field in attrs.fields(type(value)) if option_of(field)}
        written = {field.name: item for field, item in options.items() if item is not None and (defaults or item != _default(field))}
        return named | {name: to_table(item, defaults) for name, item in written.items()}
    if isinstance(value, Mapping):
        return {key: to_table(item, defaults) for key, item in value.items()}
    if isinstance(value, tuple):
        return [to_table(item, defaults) for item in value]
    return value.value if isinstance(value, Enum) else value


def _default(field: attrs.Attribute[Any]) -> Any:
    """What an option is where a table does not say."""
    default: Any = field.default
    return default.factory() if hasattr(default, "factory") else default


def loose(value: Any, least: Binds, path: str = "") -> Iterator[str]:
    """The keys within a component or table, such as "backbone.dropout", of the options that bind less than `least`."""
    if isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from loose(item, least, f"{path}[{index}]")
    if not attrs.has(type(value)):
        return
    for field in attrs.fields(type(value)):
        known, key = option_of(field), f"{path}.{field.name}".removeprefix(".")
        if known and known.binds < least:
            yield key
        elif known:
            yield from loose(getattr(value, field.name), least, key)


def ordering(source: Source) -> dict[str, Any]:
    """The options of a source that decide in which order its images are learned from (`Binds.TRAINING`), as plain values.

    Everything else about a source is in the fingerprint of its images.
    """
    fields = {
        field.name for field in attrs.fields(cast(Any, type(source))) if (known := option_of(field)) and known.binds is Binds.TRAINING
    }
    return {name: to_table(getattr(source, name)) for name in sorted(fields)}


def without(table: Any, keys: Collection[str], path: str = "") -> Any:
    """A plain table without some keys, each as `loose` gives it."""
    if isinstance(table, Mapping):
        inner = {name: f"{path}.{name}".removeprefix(".") for name in table}
        return {name: without(table[name], keys, key) for name, key in inner.items() if key not in keys}
    if isinstance(table, list):
        return [without(item, keys, f"{path}[{index}]") for index, item in enumerate(table)]
    return table


def to_toml(recipe: Recipe) -> str:
    """The resolved recipe as a TOML text that reads back as an equal recipe."""
    return table_to_toml(to_table(recipe))


def table_to_toml(table: Mapping[str, Any]) -> str:
    """A plain table as a TOML text."""
    return "\n".join(_table(table, ())).strip() + "\n"


def _table(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """The lines of a table: what fits a line first, then the larger tables under headers of their own."""
    large = {key: value for key, value in table.items() if isinstance(value, dict) and (not path or len(_assignment(key, value)) > _WIDTH)}
    small = {key: value for key, value in table.items() if key not in large}
    if path and (small or not table):
        yield f"\n[{'.'.join(map(_key, path))}]"
    for key, value in small.items():
        yield from _lines(key, value)
    for key, value in large.items():
        yield from _table(value, (*path, key))


def _lines(key: str, value: Any) -> Iterator[str]:
    line = _assignment(key, value)
    if len(line) <= _WIDTH or not isinstance(value, list):
        yield line
    else:
        yield f"{_key(key)} = ["
        yield from (f"    {as_toml(item)}," for item in value)
        yield "]"


def _assignment(key: str, value: Any) -> str:
    return f"{_key(key)} = {as_toml(value)}"


def _key(key: str) -> str:
    return key if re.fullmatch("[A-Za-z0-9_-]+", key) else _string(key)


def as_toml(value: Any) -> str:
    """A plain value as TOML, in one line."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return _string(escaped(value))
        case dict():
            return "{ " + ", ".join(_assignment(key, item) for key, item in value.items()) + " }" if value else "{}"
        case list():
            return "[" + ", ".join(map(as_toml, value)) + "]"
        case _:
            return repr(value)


def _string(text: str) -> str:
    """A TOML basic string: JSON's, but for the one control character that JSON leaves as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def diff(old: Mapping[str, Any], new: Mapping[str, Any], lean: Mapping[str, Any] | None = None) -> list[str]:
    """What changed between two plain tables, a line for each value: `stage.base.train.steps: 100 -> 200`.

    lean: `new` without defaults. Only what is in it can be new: `old` may be of a version that had fewer options.
    """
    before, after = dict(_leaves(old, "")), dict(_leaves(new, ""))
    comparable = before | dict(_leaves(new if lean is None else lean, ""))
    changed = [key for key in comparable if before.get(key) != after.get(key)]
    return [f"{key}: {before.get(key, 'nothing')} -> {after.get(key, 'nothing')}" for key in changed]


def _leaves(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Every scalar and list of scalars by dotted key, as TOML."""
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{_key(name)}" if key else _key(name))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{key}[{index}]")
    else:
        yield key, as_toml(value)
