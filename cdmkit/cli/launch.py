"""`cdmkit launch`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cdmkit.cli.options import json_option, loaded_plugins, overrides_option, place_options, print_json, print_table

if TYPE_CHECKING:
    from cdmkit.launching.slurm import Job

_OPTION = re.compile(r"[a-z][a-z-]*")


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@overrides_option
@place_options
@click.option("--stage", "stages", metavar="NAME", multiple=True, help="Train this stage; can be repeated. By default all, then sample.")
@click.option("--devices", type=click.IntRange(min=1), default=1, show_default=True, help="GPUs of each node.")
@click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True, help="Nodes for each stage.")
@click.option("--restarts", type=click.IntRange(min=0), default=3, show_default=True, help="How often a job starts again after a crash.")
@click.option("--partition", help="Where the jobs queue.")
@click.option("--account", help="Who is charged.")
@click.option(
    "--time", "limit", metavar="TIME", help="Time limit of each job as Slurm writes it, such as 12:00:00. At its end a job queues anew."
)
@click.option("--slurm", "more", metavar="KEY[=VALUE]", multiple=True, help="Any other option of sbatch, by its long name.")
@click.option("--dry-run", is_flag=True, help="Print the scripts; submit nothing.")
@json_option
def launch(
    recipe: Path,
    overrides: tuple[str, ...],
    runs: Path,
    folder: Path | None,
    resume: bool,
    stages: tuple[str, ...],
    devices: int,
    nodes: int,
    restarts: int,
    partition: str | None,
    account: str | None,
    limit: str | None,
    more: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train RECIPE on a cluster with Slurm: a job for each stage, and a last one that samples. Prints the jobs' ids.

    The jobs keep to the recipe as it is now, with everything filled in: the file may be changed while they wait. A job whose time is nearly
    over saves and queues anew. All options are for each job of a stage; the last job has one GPU.
    """
    from cdmkit.launching import slurm
    from cdmkit.launching.place import place_for
    from cdmkit.recipe import read, to_toml

    given = {"partition": partition, "account": account, "time": limit}
    options = {key: value for key, value in given.items() if value is not None} | dict(map(_option, more))
    found = read(recipe, loaded_plugins(), overrides)
    names = [found.cascade.named(name).name for name in stages] or [stage.name for stage in found.cascade if stage.train.steps]
    if not names:
        raise click.UsageError(f"no stage is trained: sample the cascade by `cdmkit run {recipe}`")
    place = place_for(runs, found.name, folder, resume=resume).absolute()
    wishes = slurm.Wishes(devices=devices, nodes=nodes, restarts=restarts, options=options)
    jobs = slurm.jobs(found.name, place, names, wishes, sample=not stages)
    if dry_run:
        _print_scripts(jobs, as_json)
        return
    slurm.keep(to_toml(found), slurm.recipe_for(place))
    ids = slurm.submit(jobs)
    click.echo(f"run {place}", err=True)
    rows = [{"job": job.name, "id": number, "log": job.log(number)} for job, number in zip(jobs, ids, strict=True)]
    if as_json:
        print_json({"run": str(place), "jobs": rows})
    else:
        print_table(("job", "id", "log"), [tuple(row.values()) for row in rows])


def _print_scripts(jobs: Sequence[Job], as_json: bool) -> None:
    """What would be submitted, and how."""
    from cdmkit.launching.slurm import sbatch

    ids = [f"<id of {job.name}>" for job in jobs if not job.last]
    if as_json:
        print_json([{"job": job.name, "command": sbatch(job, ids), "script": job.script} for job in jobs])
    else:
        click.echo("\n".join(f"# {' '.join(sbatch(job, ids))}\n{job.script}" for job in jobs), nl=False)


def _option(text: str) -> tuple[str, str | None]:
    """KEY=VALUE, or KEY alone."""
    key, equals, value = text.partition("=")
    if not _OPTION.fullmatch(key) or "\n" in value:
        raise click.BadParameter(f"{text!r} is not KEY or KEY=VALUE with the long name of an option of sbatch", param_hint="--slurm")
    return key, value if equals else None
