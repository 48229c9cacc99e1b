"""`cdmkit import`."""

from __future__ import annotations

from pathlib import Path

import click

from cdmkit.cli.options import loaded_plugins


@click.command("import")
@click.argument("origin")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--flags", metavar="TEXT", help='The flags that the origin\'s scripts are given, such as "--image_size 64 --class_cond True".'
)
@click.option("--name", help="Name of the recipe and of its files; by default that of PATH.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", default=".", show_default=True, help="The folder to write into.")
def import_(origin: str, path: Path, flags: str | None, name: str | None, out: Path) -> None:
    """Take over published weights: write DIR/NAME.safetensors and DIR/NAME.toml, a recipe that samples them. Prints the recipe's path.

    ORIGIN is guided-diffusion or improved-diffusion (OpenAI's; PATH is a .pt file, and --flags are those that its README gives for it), or
    diffusers (PATH is the folder of a UNet2DModel or of a pipeline with one). Files are read as tensors alone: nothing in them is run.
    """
    from cdmkit.importing import import_weights

    made = import_weights(origin, path, flags, name, out, loaded_plugins())
    for note in made.notes:
        click.echo(f"warning: {note}", err=True)
    click.echo(str(made.recipe))
