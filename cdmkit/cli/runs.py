"""`cdmkit runs`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import click

from cdmkit.cli.options import json_option, print_json, print_table, runs_option


@click.command()
@click.argument("name", metavar="[NAME|DIR]", required=False)
@runs_option
@json_option
def runs(name: str | None, runs: Path, as_json: bool) -> None:
    """List the runs (of the recipe NAME, or the one in DIR), the oldest first: their state, and the steps that each stage has saved of all
    it is to make.

    A run is running, finished, stopped (by a signal, after saving), failed, interrupted (it could not even note how it ended), or in
    parts: its stages were only trained one by one.
    """
    from cdmkit.errors import UsageError
    from cdmkit.runs import list_runs

    if name and (folder := Path(name)).is_dir():
        name, runs = None, folder
    elif name and not re.fullmatch("[A-Za-z0-9_-]+", name):
        raise UsageError(f'"{name}" is neither a folder nor the name of a recipe')
    found = [
        {
            "path": str(run.path),
            "recipe": run.facts.get("name", ""),
            "started": run.facts.get("started", ""),
            "state": run.state,
            "steps": run.steps(),
            "wanted": run.wanted(),
        }
        for run in list_runs(runs, name)
    ]
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo(f"no runs{f' of {name}' if name else ''} under {runs}", err=True)
        return
    rows = [(r["path"], r["state"], r["started"], _progress(r["steps"], r["wanted"])) for r in found]
    print_table(("run", "state", "started", "steps saved"), rows)


def _progress(saved: Mapping[str, int], wanted: Mapping[str, int]) -> str:
    """Each stage with its steps; not those that learn nothing."""
    stages = [stage for stage in wanted if wanted[stage]] or list(saved)
    return ", ".join(f"{stage} {saved.get(stage, 0)}" + (f"/{wanted[stage]}" if wanted else "") for stage in stages)
