"""`cdmkit run`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cdmkit.cli.options import loaded_plugins, overrides_option, runs_option


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@overrides_option
@runs_option
@click.option(
    "--run", "folder", type=click.Path(path_type=Path), metavar="DIR", help="The run's folder, instead of a new one under --runs."
)
@click.option("--resume", is_flag=True, help="Go on with the run in --run, or with the newest run of this recipe.")
@click.option("--allow-recipe-change", is_flag=True, help="With --resume: go on with a changed recipe; stages it changes are trained anew.")
@click.option("--force", is_flag=True, help="With --resume: take over the lock of a run that another machine seems to hold.")
def run(
    recipe: Path, overrides: tuple[str, ...], runs: Path, folder: Path | None, resume: bool, allow_recipe_change: bool, force: bool
) -> None:
    """Train every stage of RECIPE, then sample the cascade. Prints the path of the grid of samples.

    Ctrl-C (or SIGTERM) finishes the step, saves and exits with 75; `--resume` goes on from there, as it does after a crash. Stages that
    are trained and unchanged are skipped.
    """
    if (allow_recipe_change or force) and not resume:
        raise click.UsageError("--allow-recipe-change and --force go with --resume")
    from cdmkit import pipeline
    from cdmkit.cli.watching import Watcher
    from cdmkit.place import Place

    place = Place(root=runs, folder=folder, resume=resume, force=force, allow_recipe_change=allow_recipe_change, command=tuple(sys.argv))
    with Watcher() as watcher:
        grid = pipeline.run(recipe, loaded_plugins([watcher]), overrides, place)
    click.echo(str(grid))
