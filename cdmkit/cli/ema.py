"""`cdmkit ema`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cdmkit.cli.options import json_option, print_json, runs_option

if TYPE_CHECKING:
    from cdmkit.runs import Run


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--sigma", type=float, required=True, help="Width of the average, sigma_rel: its standard deviation as a share of training.")
@click.option("--stage", "stage_name", help="The stage; by default the only one with snapshots.")
@click.option("--step", type=click.IntRange(min=1), help="The snapshot to end at; by default the newest.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="File to write; by default one beside the snapshots.")
@json_option
@runs_option
def ema(run: str, sigma: float, stage_name: str | None, step: int | None, out: Path | None, as_json: bool, runs: Path) -> None:
    """Make an average of a stage's weights that was not kept while it was trained, of the snapshots of RUN: a run's folder, or a recipe's
    name for its newest run.

    Writes a weights file, to be sampled by `cdmkit sample`, and prints its path. Snapshots are made where a stage has train.snapshot_every.
    """
    from cdmkit.cli.sample import find_run
    from cdmkit.training.posthoc import LARGE_RESIDUAL, reconstruct

    found = find_run(run, runs)
    made = reconstruct(found.stage(_stage(found, stage_name)) / "averages", sigma, step, out)
    if made.residual > LARGE_RESIDUAL:
        click.echo(
            f"warning: the snapshots make up sigma = {sigma:g} only roughly (relative residual {made.residual:.2f}): "
            "choose one nearer to the sigma_rel that were tracked, or train with smaller snapshot_every",
            err=True,
        )
    if as_json:
        print_json(made.table())
    else:
        click.echo(str(made.path))


def _stage(run: Run, name: str | None) -> str:
    """The stage to work on: the one asked for, or the only one with snapshots."""
    from cdmkit.errors import UsageError
    from cdmkit.nearest import did_you_mean

    stages = list(run.steps())
    if name is not None and name not in stages:
        raise UsageError(f'no stage "{name}" in {run.path}{did_you_mean(name, stages)}; there are: {", ".join(stages)}')
    averaged = [stage for stage in stages if (run.stage(stage) / "averages").is_dir()]
    if name is None and len(averaged) > 1:
        raise UsageError(f"several stages have snapshots: choose one by --stage {' or '.join(averaged)}")
    chosen = name or next(iter(averaged), None)
    if chosen is None:
        raise UsageError(f"{run.path} has no snapshots: train with a power average in train.averages, and train.snapshot_every")
    return chosen
