"""`cdmkit show`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from cdmkit.cli.options import loaded_plugins, overrides_option

if TYPE_CHECKING:
    from cdmkit.cascade import Cascade, LowRes, Stage


@click.command()
@click.argument("recipe")
@click.option("--graph", is_flag=True, help="Print the cascade as a Mermaid flowchart instead.")
@overrides_option
def show(recipe: str, graph: bool, overrides: tuple[str, ...]) -> None:
    """Print a recipe with `extends`, defaults and variables filled in and every option spelled out."""
    from cdmkit.recipe import read, to_toml

    found = read(recipe, loaded_plugins(), overrides)
    click.echo("\n".join(mermaid(found.cascade)) if graph else to_toml(found).rstrip())


def mermaid(cascade: Cascade) -> Iterator[str]:
    """The lines of a Mermaid flowchart: stages with their resolutions, edges with what happens between two."""
    yield "flowchart LR"
    numbers = {stage.name: f"s{number}" for number, stage in enumerate(cascade)}
    for stage in cascade:
        yield f'    {numbers[stage.name]}["{stage.name}<br/>{stage.resolution} x {stage.resolution}"]'
    for stage in cascade:
        parent = cascade.parent(stage)
        enlarges = stage.enlarges(parent)
        if enlarges is None:
            continue
        low_res = f'{numbers[stage.name]}r("real images<br/>{enlarges.resolution} x {enlarges.resolution}")'
        yield f'    {numbers[parent.name] if parent else low_res} -->|"{_between(enlarges, stage)}"| {numbers[stage.name]}'


def _between(enlarges: LowRes, stage: Stage) -> str:
    parts = [f"x{stage.resolution // enlarges.resolution} {stage.upsample.value}"]
    parts += [augmentation.type_name for augmentation in stage.augment]
    parts += [f"{stage.condition.mode.value}, s = {stage.condition.s}"]
    return "<br/>".join(parts)
