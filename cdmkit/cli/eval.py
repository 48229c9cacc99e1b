"""`cdmkit eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cdmkit.cli.options import json_option, loaded_plugins, overrides_option, print_json, print_table, runs_option
from cdmkit.cli.sample import find_run, find_stage

if TYPE_CHECKING:
    from cdmkit.evaluation.bpd import Result

_ROWS = 10


@click.command("eval")
@click.argument("run", metavar="RUN")
@click.option("--metrics", default="bpd", show_default=True, help="What to measure, separated by commas: bpd, bits per dimension.")
@click.option("--stage", "stage_name", help="The stage to measure; by default every one.")
@click.option(
    "--count", type=click.IntRange(min=1), default=64, show_default=True, help="Real images; each costs as many network calls as --steps."
)
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Images at a time.")
@click.option(
    "--steps", type=click.IntRange(min=1), help="Points of a respaced chain, whose bound is another one, mostly looser; by default all T."
)
@click.option("--units", type=click.Choice(["bits", "nats"]), default="bits", show_default=True, help="Bits or nats per dimension.")
@click.option(
    "--split", type=click.Choice(["train", "val"]), help="Images to measure on; by default those of [data.val], where the recipe has it."
)
@click.option("--seed", type=click.IntRange(min=0), help="Decides the images' order and their noise; by default the recipe's.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write to; by default the run's eval/.")
@overrides_option
@json_option
@runs_option
def evaluate(
    run: str,
    metrics: str,
    stage_name: str | None,
    count: int,
    batch: int,
    steps: int | None,
    units: str,
    split: str | None,
    seed: int | None,
    out: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
    runs: Path,
) -> None:
    """Measure the trained stages of RUN: a run's folder, or a recipe's name for its newest run.

    bpd is the variational bound on real images, in bits per dimension, with its curve over timesteps. Writes bpd-<stage>.json, .csv and
    .png, and prints the numbers.
    """
    _check_metrics(metrics)
    from cdmkit import pipeline
    from cdmkit.cli.watching import Watcher
    from cdmkit.diffusion import Units
    from cdmkit.recipe import read

    with Watcher() as watcher:
        plugins = loaded_plugins([watcher])
        found = find_run(run, runs)
        recipe = read(found.path / "recipe.resolved.toml", plugins, overrides)
        stages = list(recipe.cascade) if stage_name is None else [recipe.stage[find_stage(recipe, stage_name)]]
        results = pipeline.measure_bpd(
            recipe,
            found,
            stages,
            pipeline.teller(plugins),
            out,
            count=count,
            batch=batch,
            steps=steps,
            units=Units(units),
            seed=recipe.seed if seed is None else seed,
            split=split,
        )
    if as_json:
        print_json([result.table() for result in results])
        return
    for result in results:
        _print(result)


def _check_metrics(metrics: str) -> None:
    from cdmkit.evaluation import METRICS
    from cdmkit.nearest import did_you_mean

    for name in metrics.split(","):
        if name.strip() not in METRICS:
            known = did_you_mean(name.strip(), METRICS) or f"; there is: {', '.join(METRICS)}"
            raise click.BadParameter(f'no metric "{name.strip()}"{known}', param_hint="--metrics")


def _print(result: Result) -> None:
    """A line of sums, and some rows of the curve."""
    respaced = "" if result.calls == result.chain else f" (of a respaced chain, not of all {result.chain} timesteps)"
    error, plural = (f" +- {result.error:.4f}", "s") if result.images > 1 else ("", "")
    kind = {"train": "training", "val": "validation"}[result.split]
    click.echo(
        f"{result.stage} {result.resolution} x {result.resolution}: {result.total:.4f}{error} {result.units}, "
        f"{result.images} {kind} image{plural}, {result.calls} points{respaced}; prior {result.prior:.2g}"
    )
    points = len(result.terms)  # shown at equal ratios: most of the sum is at the first of them
    shown = sorted({round(points ** (row / (_ROWS - 1))) - 1 for row in range(_ROWS)})
    rows = [_row(result, index) for index in shown]
    print_table(("timestep", "term", "sum up to here", "error of x0", "error of epsilon"), rows)


def _row(result: Result, index: int) -> list[Any]:
    numbers = (result.terms[index], sum(result.terms[: index + 1]), result.x0_error[index], result.epsilon_error[index])
    return [str(result.timesteps[index]), *(f"{number:.4g}" for number in numbers)]
