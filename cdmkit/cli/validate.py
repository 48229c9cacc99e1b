"""`cdmkit validate`."""

from __future__ import annotations

import click

from cdmkit.cli.options import json_option, loaded_plugins, overrides_option, print_json


@click.command()
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@overrides_option
@json_option
@click.pass_context
def validate(ctx: click.Context, recipes: tuple[str, ...], overrides: tuple[str, ...], as_json: bool) -> None:
    """Check recipes and report every fault with its file, line and column.

    Nothing is trained, no data is opened. Exits with 3 where a recipe is at fault, with 4 where only a plugin or a distribution is missing.
    """
    from cdmkit.recipe import Faults, dotted, read

    plugins = loaded_plugins()
    results, codes = [], set()
    for path in recipes:
        try:
            recipe = read(path, plugins, overrides)
        except Faults as error:
            codes.add(error.exit_code)
            results.append(
                {
                    "recipe": path,
                    "ok": False,
                    "faults": [
                        {
                            "file": fault.origin.source,
                            "line": fault.origin.line,
                            "column": fault.origin.column,
                            "key": dotted(fault.path),
                            "fault": fault.text,
                        }
                        for fault in error.faults
                    ],
                }
            )
            if not as_json:
                click.echo(str(error), err=True)
        else:
            results.append({"recipe": path, "ok": True, "faults": []})
            if not as_json:
                click.echo(f"{path}: ok ({', '.join(f'{stage.name} {stage.resolution}' for stage in recipe.cascade)})")
    if as_json:
        print_json(results)
    ctx.exit(min(codes, default=0))
