"""`cdmkit run`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from cdmkit.cli.options import loaded_plugins, overrides_option, place_options
from cdmkit.cli.starting import start, starting_options


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@overrides_option
@place_options
@click.option(
    "--stage", metavar="NAME", default="", help="Train this stage alone. Where --run holds a run already, it is joined, as with --resume."
)
@click.option("--allow-recipe-change", is_flag=True, help="With --resume: go on with a changed recipe; stages it changes are trained anew.")
@click.option("--force", is_flag=True, help="With --resume: take over the lock of a run that another machine seems to hold.")
@starting_options
def run(
    recipe: Path,
    overrides: tuple[str, ...],
    runs: Path,
    folder: Path | None,
    resume: bool,
    stage: str,
    allow_recipe_change: bool,
    force: bool,
    **_starting: Any,
) -> None:
    """Train every stage of RECIPE, then sample the cascade. Prints the path of the grid of samples, or of the stage trained alone.

    Ctrl-C (or SIGTERM) finishes the step, saves and exits with 75; `--resume` goes on from there, as it does after a crash. Stages that
    are trained and unchanged are skipped.
    """
    if (allow_recipe_change or force) and not (resume or stage):
        raise click.UsageError("--allow-recipe-change and --force go with --resume or --stage")
    begun = start()
    from cdmkit import pipeline
    from cdmkit.cli.watching import Watcher
    from cdmkit.place import Place

    place = Place(
        root=runs,
        folder=begun or folder,
        resume=resume or begun is not None,
        stage=stage,
        force=force,
        allow_recipe_change=allow_recipe_change,
        command=tuple(sys.argv),
    )
    with Watcher() as watcher:
        made = pipeline.run(recipe, loaded_plugins([watcher]), overrides, place)
    if made is not None:  # the first of several processes speaks for all
        click.echo(str(made))
