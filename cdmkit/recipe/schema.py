"""The JSON Schema of recipes, for editors: every table, component and option with its meaning, default and range."""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping
from enum import Enum
from typing import Any, Union, cast, get_args, get_origin

import attrs
import tomli

from cdmkit.cascade import Stage
from cdmkit.catalog import Catalog
from cdmkit.component import Component, Option, option_of
from cdmkit.kinds import KINDS
from cdmkit.recipe.model import SLUG, Recipe
from cdmkit.recipe.reading import DEFAULTS
from cdmkit.recipe.write import to_table

Schema = dict[str, Any]

_SCALARS: dict[Any, str] = {bool: "boolean", int: "integer", float: "number", str: "string"}


def recipe_schema(catalog: Catalog) -> Schema:
    """A draft-07 JSON Schema of recipe files that use the components of `catalog`.

    Options that another file, `[defaults.stage]` or cdmkit's own defaults may complete are not required: `cdmkit validate` sees the whole.
    """
    definitions: Schema = {}
    writer = _Writer(catalog, definitions)
    root = writer.table(Recipe)
    root["properties"] |= {
        "extends": {"type": "string", "description": "a recipe, from this file's folder, that this one is laid on"},
        "defaults": {
            "type": "object",
            "description": "what is laid under every stage",
            "properties": {"stage": writer.of(Stage)},
            "additionalProperties": False,
        },
    }
    given = tomli.loads(DEFAULTS.read_text(encoding="utf-8"))
    alone = {"required": [key for key in required(Recipe) if key not in given]}
    stage = {"required": [key for key in required(Stage) if key not in given["defaults"]["stage"]]}
    root["allOf"] = [
        {"if": {"required": ["extends"]}, "else": alone},
        {
            "if": {"anyOf": [{"required": ["extends"]}, {"required": ["defaults"]}]},
            "else": {"properties": {"stage": {"additionalProperties": stage}}},
        },
    ]
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "cdmkit recipe", **root, "definitions": definitions}


@attrs.frozen
class _Writer:
    """Writes schemas of types; classes go to `definitions` and are referred to. Nothing is required of a single table."""

    catalog: Catalog
    definitions: Schema

    def of(self, cls: Any) -> Schema:
        """The schema of an option's type."""
        if cls in _SCALARS:
            return {"type": _SCALARS[cls]}
        if get_origin(cls) is tuple:
            return {"type": "array", "items": self.of(get_args(cls)[0])}
        if get_origin(cls) is Mapping:
            return {"type": "object", "propertyNames": {"pattern": f"^{SLUG}$"}, "additionalProperties": self.of(get_args(cls)[1])}
        if get_origin(cls) in (Union, types.UnionType):
            return self.of(next(member for member in get_args(cls) if member is not type(None)))
        if issubclass(cls, Enum):
            return {"type": "string", "anyOf": [{"enum": [member.value for member in cls]}, {"pattern": r"\$\{env:"}]}
        return self._reference(cls)

    def _reference(self, cls: type[Any]) -> Schema:
        """A reference to the definition of a kind, component or table, which is written on first use."""
        name = _name(cls)
        if name not in self.definitions:
            self.definitions[name] = {}  # stands in while components that hold components of their own kind are written
            self.definitions[name] = self._choice(cls.kind) if cls in KINDS.values() else self.table(cls)
        return {"$ref": f"#/definitions/{name}"}

    def _choice(self, kind: str) -> Schema:
        """Any component of a kind."""
        offers = [offers[0] for _, offers in sorted(self.catalog.offers[kind].items())]
        choices = [self._reference(offer.component) for offer in offers]
        return {"type": "object", "anyOf": choices} if choices else {"type": "object"}

    def table(self, cls: type[Any]) -> Schema:
        """A table of options, with `type` where it is a component's."""
        fields = attrs.fields(attrs.resolve_types(cls))
        properties = {field.name: self._option(field, known) for field in fields if (known := option_of(field))}
        if issubclass(cls, Component):
            properties = {"type": {"const": cls.type_name}, **properties}
        text = inspect.getdoc(cls) or ""
        return {"type": "object", "description": text, "properties": properties, "additionalProperties": False}

    def _option(self, field: attrs.Attribute[Any], known: Option) -> Schema:
        schema = self.of(field.type)
        ranged = schema["items"] if schema.get("type") == "array" else schema
        bounds = {"minimum": known.ge, "exclusiveMinimum": known.gt, "maximum": known.le, "exclusiveMaximum": known.lt}
        ranged |= {word: bound for word, bound in bounds.items() if bound is not None}
        default = default_of(field)
        shown = {} if default is None else {"default": to_table(default)}
        if "$ref" in schema:
            schema = {"allOf": [schema]}  # what stands beside a reference is ignored in draft 07
        return {**schema, "description": known.help, **shown}


def default_of(field: attrs.Attribute[Any]) -> Any:
    """The value of an option that is not given; None also where it must be given."""
    if field.default is attrs.NOTHING:
        return None
    return cast(Any, field.default).factory() if isinstance(field.default, attrs.Factory) else field.default  # type: ignore[arg-type]


def required(cls: type[Any]) -> list[str]:
    """The options of a class that have no default."""
    return [field.name for field in attrs.fields(cls) if option_of(field) and field.default is attrs.NOTHING]


def _name(cls: type[Any]) -> str:
    if issubclass(cls, Component):
        return cls.kind if cls in KINDS.values() else f"{cls.kind}-{cls.type_name}"
    return cls.__name__
