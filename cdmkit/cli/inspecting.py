"""`cdmkit data inspect`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cdmkit.cli.options import json_option, loaded_plugins, overrides_option, print_json, print_table

if TYPE_CHECKING:
    from cdmkit.inspecting import Inspected

_BARS = 40
"""Letters of the longest bar of a histogram."""

_MOST_CLASSES = 30
"""Classes that have a bar each."""


@click.command()
@click.argument("data")
@click.option("--split", default="", help="The part of a list of shards to look at; by default each.")
@click.option("--out", type=click.Path(path_type=Path), default="inspected", show_default=True, help="Folder for the grids of pictures.")
@overrides_option
@json_option
def inspect(data: str, split: str, out: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Look at DATA: a folder that `cdmkit data prepare` made, a list or a pattern of shards; or a recipe, for what its stages see.

    Of shards: counts, sizes, images of each class, and a grid of 4 x 4 pictures. Of a recipe: a grid of each stage's images and, where a
    stage augments, of images before and after.
    """
    if data.endswith(".toml"):
        if split:
            raise click.UsageError("--split goes with shards, not with a recipe")
        _of_recipe(Path(data), overrides, out, as_json)
        return
    if overrides:
        raise click.UsageError("--set goes with a recipe")
    from cdmkit.data.shards import open_shards
    from cdmkit.data.skips import Damaged, Tolerance
    from cdmkit.inspecting import inspect, splits_of

    told = {}
    for each in splits_of(data, split):
        shards, grid = open_shards(each.pattern, each.split, Tolerance(Damaged.SKIP, most=1)), out / f"{each.name}.png"
        found = inspect(shards, grid)
        told[each.name] = {**found.table(), "classes": each.classes, "grid": str(grid)}
        for skip in shards.skips.take():
            click.echo(f"warning: {skip.message}", err=True)
        if not as_json:
            _print(each.name, found, each.classes)
            click.echo(str(grid))
    if as_json:
        print_json(told)


def _of_recipe(file: Path, overrides: tuple[str, ...], out: Path, as_json: bool) -> None:
    from cdmkit.inspecting import show_images
    from cdmkit.preflight import look_at_data
    from cdmkit.recipe import read

    recipe = read(file, loaded_plugins(), overrides)
    card = look_at_data(recipe).train
    grids = show_images(recipe, out)
    if as_json:
        facts = {"images": card.count, "resolution": card.resolution, "classes": card.classes, "crop": card.crop}
        print_json({**facts, "grids": {name: str(path) for name, path in grids.items()}})
        return
    click.echo(f"{card.count:,} images of {card.resolution} x {card.resolution}, {card.classes:,} classes")
    print_table(("what", "grid"), ((name, str(path)) for name, path in grids.items()))


def _print(name: str, found: Inspected, names: Sequence[str]) -> None:
    """Facts, and a bar for each class where they are few."""
    smallest, median, largest = found.file_bytes
    sizes = ", ".join(f"{size} ({count:,})" for size, count in sorted(found.sizes.items(), key=lambda item: -item[1])[:5])
    images, shards = (f"{count:,} {word}{'s' if count > 1 else ''}" for count, word in ((found.images, "image"), (found.shards, "shard")))
    click.echo(f"{name}: {images} in {shards}, {found.bytes / 1e6:,.1f} MB")
    click.echo(f"sizes of {sum(found.sizes.values()) + found.broken:,} looked at: {sizes}; {found.broken:,} broken")
    click.echo(f"bytes of an image: {smallest:,} to {largest:,}, median {median:,}")
    counts = found.per_class
    if not counts:
        click.echo("no labels")
    elif len(counts) <= _MOST_CLASSES:
        most = max(counts)
        labels = [f"{label} {names[label]}" if label < len(names) else str(label) for label in range(len(counts))]
        bars = ((label, f"{count:,}", "#" * round(_BARS * count / most)) for label, count in zip(labels, counts, strict=True))
        print_table(("class", "images", ""), bars)
    else:
        few, many = min(counts), max(counts)
        told = f"{few:,} (class {counts.index(few)}) to {many:,} (class {counts.index(many)})"
        click.echo(f"{len(counts):,} classes of {told} images; {list(counts).count(0):,} are empty")
