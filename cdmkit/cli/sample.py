"""`cdmkit sample`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cdmkit.cli.options import loaded_plugins, overrides_option, runs_option

if TYPE_CHECKING:
    from cdmkit.recipe import Recipe
    from cdmkit.runs import Run


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--count", type=click.IntRange(min=1), help="Images to make; by default as the recipe says.")
@click.option(
    "--class", "labels", type=int, multiple=True, help="A class to make, by number; may be given several times. By default all, in turn."
)
@click.option("--seed", type=click.IntRange(min=0), help="Image i depends on this and i alone; by default the recipe's.")
@click.option("--stage", "stage_name", help="The stage to stop at; by default the last one.")
@click.option(
    "--s",
    "s",
    metavar="[STAGE=]N",
    multiple=True,
    help="Truncation step s at which STAGE (by default the last) takes over its parent's sample.",
)
@click.option("--steps", metavar="[STAGE=]N", multiple=True, help="Timesteps that the sampler visits, of STAGE or of every stage.")
@click.option("--batch", type=click.IntRange(min=1), help="Images at a time; by default as the recipe says.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write to; by default a new one in the run's samples/.")
@overrides_option
@runs_option
def sample(
    run: str,
    count: int | None,
    labels: tuple[int, ...],
    seed: int | None,
    stage_name: str | None,
    s: tuple[str, ...],
    steps: tuple[str, ...],
    batch: int | None,
    out: Path | None,
    overrides: tuple[str, ...],
    runs: Path,
) -> None:
    """Sample the trained cascade of RUN: a run's folder, or a recipe's name for its newest run.

    Writes a PNG grid of each stage and shards of all images; prints the path of the last stage's grid. --set lays any other value on the
    run's recipe, such as another sampler.
    """
    from cdmkit import pipeline
    from cdmkit.cli.watching import Watcher
    from cdmkit.recipe import read

    with Watcher() as watcher:
        plugins = loaded_plugins([watcher])
        found = find_run(run, runs)
        file = found.path / "recipe.resolved.toml"
        recipe = read(file, plugins, overrides)
        stage = find_stage(recipe, stage_name)
        lineage = [each.name for each in recipe.cascade.lineage(stage)]
        enlarging = [name for name in lineage if recipe.stage[name].enlarging]
        more = [*_values("s", s, lineage[-1:], enlarging, "condition.s"), *_values("steps", steps, lineage, lineage, "sampler.steps")]
        if more:
            recipe = read(file, plugins, [*overrides, *more])
        emit = pipeline.teller(plugins)
        grid = pipeline.sample_stage(
            recipe, found, recipe.stage[stage], plugins, emit, out, count=count, batch=batch, seed=seed, labels=labels
        )
    click.echo(str(grid))


def find_run(name: str, runs: Path) -> Run:
    """The run of a folder or of a recipe's name."""
    from cdmkit.errors import UsageError
    from cdmkit.nearest import did_you_mean
    from cdmkit.runs import Run, latest_run, list_runs

    folder = Path(name)
    found = Run(folder) if (folder / "run.json").is_file() else latest_run(runs, name) if folder.name == name else None
    if found is None:
        known = {each.path.parent.name for each in list_runs(runs)}
        raise UsageError(
            f'no run "{name}": it is neither the folder of a run nor a recipe with runs under {runs}{did_you_mean(name, known)}'
        )
    return found


def find_stage(recipe: Recipe, name: str | None) -> str:
    """The stage to stop at."""
    from cdmkit.errors import UsageError

    leaves = [leaf.name for leaf in recipe.cascade.leaves()]
    if name is None and len(leaves) > 1:
        raise UsageError(f"the cascade has several last stages: choose one by --stage {' or '.join(leaves)}")
    return leaves[0] if name is None else recipe.cascade.named(name).name


def _values(option: str, given: tuple[str, ...], every: list[str], known: list[str], key: str) -> Iterator[str]:
    """`[STAGE=]N` as values to lay on the recipe; without STAGE it is for the stages `every`."""
    for text in given:
        stage, _, number = text.rpartition("=")
        if not number.isdecimal() or not number.isascii():
            raise click.BadParameter(f'"{text}" is not [STAGE=]N with a whole number N', param_hint=f"--{option}")
        stages = [stage] if stage else every
        if not known or not set(stages) <= set(known):
            choice = f"STAGE can be {', '.join(known)}" if known else f"{every[-1]} is sampled from noise alone"
            raise click.BadParameter(f'"{text}": {choice}', param_hint=f"--{option}")
        for name in stages:
            yield f"stage.{name}.{key}={number}"
