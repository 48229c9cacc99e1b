"""`cdmkit plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cdmkit.cli.options import json_option, loaded_plugins, overrides_option, print_json, print_table

if TYPE_CHECKING:
    from cdmkit.planning import StagePlan


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@overrides_option
@json_option
def plan(recipe: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Tell what a run of RECIPE would take, stage by stage, without data, device or training.

    Memory is for one device: weights, gradients, moving average and optimizer state ("state"), and what the backward pass keeps
    ("activations"); libraries need more on top.
    """
    import attrs

    from cdmkit import planning
    from cdmkit.recipe import read

    found = read(recipe, loaded_plugins(), overrides)
    plans = list(planning.plan(found.cascade, found.data.classes))
    if as_json:
        print_json([{**attrs.asdict(stage), "training_bytes": stage.training_bytes} for stage in plans])
        return
    heads = (
        "stage",
        "after",
        "size",
        "parameters",
        "steps",
        "images seen",
        "GMAC/call",
        "training FLOPs",
        "calls/sample",
        "state",
        "activations",
    )
    print_table(heads, [_row(stage) for stage in plans])


def _row(stage: StagePlan) -> list[str]:
    return [
        stage.stage,
        stage.after or "",
        f"{stage.resolution} x {stage.resolution}",
        _short(stage.parameters),
        f"{stage.steps:,}",
        _short(stage.images_seen),
        f"{stage.macs_per_call / 1e9:.3g}",
        f"{stage.training_flops:.2g}",
        f"{stage.sampling_calls:,}",
        f"{stage.state_bytes / 2**30:.3g} GiB",
        f"{stage.activation_bytes / 2**30:.3g} GiB",
    ]


def _short(count: int) -> str:
    """1,433,600,000 as 1.434 B."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return str(count)
