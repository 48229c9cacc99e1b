"""The options of `cdmkit run` that make it start others of itself, instead of working or before it does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from cdmkit.cli.options import F, loaded_plugins

_OPTIONS = (
    click.option("--devices", type=click.IntRange(min=1), metavar="N", help="Work on N devices of this machine, with a process for each."),
    click.option(
        "--nodes", type=click.IntRange(min=1), metavar="N", help="With --devices: srun starts this command on N nodes of a Slurm job."
    ),
    click.option(
        "--restarts",
        type=click.IntRange(min=0),
        metavar="N",
        help="With --devices: start all processes again after a crash, at most N times; by default 3, with --nodes none.",
    ),
    click.option(
        "--parallel-stages", is_flag=True, help="Train all stages at the same time, each on its share of the devices; then sample."
    ),
)


def starting_options(command: F) -> F:
    """`--devices`, `--nodes`, `--restarts` and `--parallel-stages`; `start` finds them in the context."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def start() -> Path | None:
    """Start what the options ask for. Gives the run to go on with here, where its stages are trained; None where nothing was to be started.

    Leaves with the exit code of what was started, unless there is something left to do.
    """
    ctx = click.get_current_context()
    _check(ctx.params)
    if ctx.params["parallel_stages"]:
        return _train_stages(ctx)
    if ctx.params["devices"]:
        ctx.exit(_run_on_devices(ctx))
    return None


def _run_on_devices(ctx: click.Context) -> int:
    """A process for each device; gives the exit code of all."""
    from cdmkit.launching.devices import Node, run_on_devices
    from cdmkit.launching.group import cdmkit

    nodes, restarts = ctx.params["nodes"] or 1, ctx.params["restarts"]
    if restarts is None:
        restarts = 3 if nodes == 1 else 0
    command = cdmkit("run", *arguments(ctx, devices=None, nodes=None, restarts=None))
    return run_on_devices(command, ctx.params["devices"], restarts=restarts, node=Node.of_slurm(nodes) if nodes > 1 else Node())


def _check(given: dict[str, Any]) -> None:
    """Raise click.UsageError where options do not go together."""
    devices, stages = given["devices"], given["parallel_stages"]
    if (given["nodes"] is not None or given["restarts"] is not None) and not devices:
        raise click.UsageError("--nodes and --restarts go with --devices")
    if stages and (given["stage"] or given["nodes"]):
        raise click.UsageError("--parallel-stages goes with neither --stage nor --nodes")
    if given["restarts"] and (given["nodes"] or 1) > 1:
        raise click.UsageError("--restarts goes without --nodes: all nodes must start again together, which the job's script sees to")
    if (devices or stages) and "RANK" in os.environ:
        raise click.UsageError("this is one of several processes already (RANK is set): leave out --devices and --parallel-stages")


def _train_stages(ctx: click.Context) -> Path | None:
    """Train all stages of the recipe at the same time. Leaves with the exit code of the first that failed."""
    from cdmkit.launching.group import cdmkit, say
    from cdmkit.launching.place import place_for
    from cdmkit.launching.stages import cuda_devices, shares, train_together
    from cdmkit.recipe import read

    given = ctx.params
    recipe = read(given["recipe"], loaded_plugins(), given["overrides"])
    stages = [stage.name for stage in recipe.cascade if stage.train.steps]
    if not stages:
        return None
    folder = place_for(given["runs"], recipe.name, given["folder"], resume=given["resume"])
    cards = cuda_devices()[: given["devices"]]
    own = max(1, (given["devices"] or len(cards)) // len(stages))
    say(f"run {folder}: {', '.join(stages)} at the same time")
    changes = {"folder": folder, "parallel_stages": False, "devices": own if given["devices"] or own > 1 else None}
    commands = {stage: cdmkit("run", *arguments(ctx, **changes, stage=stage)) for stage in stages}
    if code := train_together(commands, shares(stages, own, cards)):
        ctx.exit(code)
    return folder


def arguments(ctx: click.Context, **changes: Any) -> list[str]:
    """The words of a command line that gives the context's command the parameters that it has here, but for `changes`."""
    words: list[str] = []
    for parameter in ctx.command.params:
        value = {**ctx.params, **changes}.get(parameter.name or "")
        option = parameter.opts[0] if isinstance(parameter, click.Option) else None
        for each in value if isinstance(value, tuple) else (value,):
            if option is None or each is True:
                words.append(option or str(each))
            elif each is not None and each is not False and each != "":
                words += [option, str(each)]
    return words
