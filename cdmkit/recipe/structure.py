"""From plain tables to typed, frozen objects in one pass, with every problem found on the way.

Strict, where cattrs by itself is not: nothing is converted but whole floats (`1e4`) to integers and integers to floats, and unknown keys
are problems. Ranges are checked value by value here, since in `__init__` the first bad one would hide the others.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Iterator
from enum import Enum
from functools import partial
from typing import Any, TypeVar, cast, get_origin

import attrs
from cattrs import BaseValidationError, Converter, ForbiddenExtraKeysError, StructureHandlerNotFoundError
from cattrs.cols import homogenous_tuple_structure_factory, is_mapping, mapping_structure_factory
from cattrs.errors import AttributeValidationNote, IterableValidationNote
from cattrs.gen import make_dict_structure_fn, override

from cdmkit.catalog import Catalog
from cdmkit.component import Component, option_of
from cdmkit.errors import RecipeError, SetupError
from cdmkit.kinds import KINDS
from cdmkit.nearest import did_you_mean
from cdmkit.recipe.faults import KeyPath, Problem

T = TypeVar("T")
Hook = Callable[[Any, Any], Any]

NO_CODE = 'recipes cannot import code: choose a component by its name, type = "..."'
_CODE_KEYS = frozenset({"_target_", "_component_", "target", "class_name", "class_path", "class", "import", "module"})


def structure(plain: Any, cls: type[T], catalog: Catalog) -> T | list[Problem]:
    """The object of type `cls` that plain tables describe, or all that is wrong with them."""
    try:
        return _converter(catalog).structure(plain, cls)
    except Exception as error:  # cattrs raises what hooks raise, alone or in groups
        return list(_problems(error, ()))


def _converter(catalog: Catalog) -> Converter:
    converter = Converter(detailed_validation=True, forbid_extra_keys=True)
    for scalar, hook in ((bool, _boolean), (int, _integer), (float, _number), (str, _text), (Enum, _choice)):
        converter.register_structure_hook(scalar, hook)
    factories: tuple[tuple[Callable[[Any], bool], Any], ...] = (
        (_is_tuple, _tuple_hook),
        (is_mapping, _mapping_hook),
        (attrs.has, _table_hook),
    )
    for predicate, factory in factories:
        converter.register_structure_hook_factory(predicate, factory)
    for kind in KINDS.values():
        # The exact class: a component's class is a subclass of its kind, and is structured as a table.
        converter.register_structure_hook_func(partial(operator.is_, kind), _component_hook(kind, catalog, converter))
    return converter


def _boolean(value: Any, _: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError(f"must be true or false, not {_shown(value)}")


def _integer(value: Any, _: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise ValueError(f"must be an integer, not {_shown(value)}")


def _number(value: Any, _: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
        raise ValueError("must be a finite number")
    raise ValueError(f"must be a number, not {_shown(value)}")


def _text(value: Any, _: Any) -> str:
    if isinstance(value, str):
        return value
    raise ValueError(f"must be a string, not {_shown(value)}")


def _choice(value: Any, enum: type[Enum]) -> Enum:
    names = {str(member.value): member for member in enum}
    if isinstance(value, str) and value in names:
        return names[value]
    raise ValueError(f"must be one of {', '.join(map(json.dumps, names))}, not {_shown(value)}{did_you_mean(str(value), names)}")


def _is_tuple(cls: Any) -> bool:
    return get_origin(cls) is tuple


def _tuple_hook(cls: Any, converter: Converter) -> Hook:
    return _only(list, "a list", homogenous_tuple_structure_factory(cls, converter))


def _mapping_hook(cls: Any, converter: Converter) -> Hook:
    return _only(dict, "a table", mapping_structure_factory(cls, converter))


def _table_hook(cls: Any, converter: Converter) -> Hook:
    """Structure a table of options, each checked by itself, so that every wrong one is found."""
    options = [field for field in attrs.fields(attrs.resolve_types(cls)) if option_of(field)]
    checked: dict[str, Any] = {field.name: override(struct_hook=_option_hook(field, converter)) for field in options}
    return _only(dict, "a table", make_dict_structure_fn(cls, converter, **checked))


def _option_hook(field: attrs.Attribute[Any], converter: Converter) -> Hook:
    known = option_of(field)

    def hook(value: Any, _: Any) -> Any:
        made = converter.structure(value, cast(Any, field.type))
        if known:
            known.check(made)
        return made

    return hook


def _only(wanted: type, words: str, structured: Hook) -> Hook:
    """Refuse what is not of the wanted type before a hook that would take any iterable."""

    def hook(value: Any, cls: Any) -> Any:
        if not isinstance(value, wanted):
            raise ValueError(f"must be {words}, not {_shown(value)}")
        return structured(value, cls)

    return hook


def _component_hook(kind: type[Component], catalog: Catalog, converter: Converter) -> Hook:
    """Structure a table whose `type` names a component of `kind`."""

    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, dict):
            example = json.dumps(value if isinstance(value, str) else "...")
            raise ValueError(f"must be a table that names a {kind.kind}, such as {{ type = {example} }}, not {_shown(value)}")
        if "type" not in value:
            names = ", ".join(catalog.names(kind.kind))
            raise ValueError(NO_CODE if _CODE_KEYS & value.keys() else f'needs type = "..."; one of: {names}')
        try:
            cls = _found(kind.kind, _text(value["type"], str), catalog)
        except Exception as error:
            error.__notes__ = [AttributeValidationNote("", "type", str)]
            raise
        return converter.structure({key: item for key, item in value.items() if key != "type"}, cls)

    return hook


def _found(kind: str, name: str, catalog: Catalog) -> type[Component]:
    if any(mark in name for mark in ".:/\\"):
        raise RecipeError(f'"{name}" is no name: {NO_CODE}')
    return catalog.find(kind, name)


def _problems(error: BaseException, path: KeyPath) -> Iterator[Problem]:
    """All that an error of the pass says, each with its key path."""
    notes = [note for note in getattr(error, "__notes__", ()) if isinstance(note, AttributeValidationNote | IterableValidationNote)]
    steps = (note.name if isinstance(note, AttributeValidationNote) else note.index for note in reversed(notes))
    path = (*path, *steps)
    match error:
        case BaseValidationError():
            for inner in error.exceptions:
                yield from _problems(inner, path)
        case ForbiddenExtraKeysError():
            for key in error.extra_fields:
                yield Problem((*path, key), _unknown(key, error.cl))
        case KeyError() if notes:
            yield Problem(path, "is missing")
        case StructureHandlerNotFoundError():
            yield Problem(path, f"is of type {error.type_}, which a recipe cannot hold: a defect of the component")
        case _:
            yield Problem(path, str(error), setup=isinstance(error, SetupError))


def _unknown(key: str, cls: type[Any]) -> str:
    known = [field.name for field in attrs.fields(cls) if option_of(field)]
    if key in _CODE_KEYS:
        return NO_CODE
    return f"unknown key{did_you_mean(key, known) or '; known: ' + ', '.join(known)}"


def _shown(value: Any) -> str:
    match value:
        case bool():
            return json.dumps(value)
        case int() | float():
            return repr(value)
        case str():
            return f"the string {json.dumps(value, ensure_ascii=False)}"
        case dict():
            return "a table"
        case list():
            return "a list"
        case _:
            return f"a {type(value).__name__}"
