"""`cdmkit components`."""

from __future__ import annotations

import inspect
import types
from enum import Enum
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

import click

from cdmkit.cli.options import json_option, loaded_plugins, print_json, print_table
from cdmkit.errors import UsageError
from cdmkit.nearest import did_you_mean

if TYPE_CHECKING:
    from cdmkit.catalog import Catalog, Offer


@click.command()
@click.argument("kind", required=False)
@click.argument("name", required=False)
@json_option
def components(kind: str | None, name: str | None, as_json: bool) -> None:
    """List what recipes can name: all of it, the components of a KIND, or the options of the component NAME."""
    catalog = loaded_plugins().catalog
    if kind is not None and kind not in catalog.offers:
        raise UsageError(f'no kind "{kind}"{did_you_mean(kind, catalog.offers)} (kinds: {", ".join(catalog.offers)})')
    if kind is None or name is None:
        rows = [_summary(offer) for each in catalog.offers if kind in (None, each) for offer in _offers(catalog, each)]
        print_json(rows) if as_json else print_table(("kind", "name", "what it is", "from"), (row.values() for row in rows))
        return
    if name not in catalog.offers[kind]:
        raise UsageError(f'no {kind} "{name}"{did_you_mean(name, catalog.names(kind))} (known: {", ".join(catalog.names(kind))})')
    for offer in catalog.offers[kind][name]:
        _print_component(offer, as_json)


def _offers(catalog: Catalog, kind: str) -> list[Offer]:
    return [offer for name in catalog.names(kind) for offer in catalog.offers[kind][name]]


def _summary(offer: Offer) -> dict[str, str]:
    text = inspect.getdoc(offer.component) or ""
    return {"kind": offer.component.kind, "name": offer.component.type_name, "help": text.partition("\n")[0], "owner": offer.owner}


def _print_component(offer: Offer, as_json: bool) -> None:
    """Everything known of one component."""
    options = _options(offer.component)
    text = inspect.getdoc(offer.component) or ""
    if as_json:
        print_json({**_summary(offer), "doc": text, "options": options})
        return
    click.echo(f'{offer.component.kind} "{offer.component.type_name}", from {offer.owner}\n\n{text}')
    if options:
        print_table(("option", "type", "default", "range", "meaning"), (row.values() for row in options))


def _options(component: type[Any]) -> list[dict[str, str]]:
    """Each option's name, type, default (empty where it must be given), range and meaning."""
    import attrs

    from cdmkit.component import option_of
    from cdmkit.recipe.schema import default_of
    from cdmkit.recipe.write import as_toml, to_table

    rows = []
    for field in attrs.fields(attrs.resolve_types(component)):
        if known := option_of(field):
            default = default_of(field)
            missing = "required" if field.default is attrs.NOTHING else "none"
            shown = missing if default is None else as_toml(to_table(default))
            rows.append({"name": field.name, "type": type_words(field.type), "default": shown, "range": known.range, "help": known.help})
    return rows


def type_words(cls: Any) -> str:
    """The type of an option in words."""
    scalars = {bool: "true or false", int: "integer", float: "number", str: "string"}
    if cls in scalars:
        return scalars[cls]
    if get_origin(cls) is tuple:
        return f"list of {type_words(get_args(cls)[0])}"
    if get_origin(cls) in (Union, types.UnionType):
        return type_words(next(member for member in get_args(cls) if member is not type(None)))
    if issubclass(cls, Enum):
        return " | ".join(f'"{member.value}"' for member in cls)
    return str(getattr(cls, "kind", "table"))
