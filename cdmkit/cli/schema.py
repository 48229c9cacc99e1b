"""`cdmkit schema`."""

from __future__ import annotations

import click

from cdmkit.cli.options import loaded_plugins, print_json


@click.command()
def schema() -> None:
    """Print the JSON Schema (draft 7) of recipes with the components installed here, for TOML editors."""
    from cdmkit.recipe.schema import recipe_schema

    print_json(recipe_schema(loaded_plugins().catalog))
