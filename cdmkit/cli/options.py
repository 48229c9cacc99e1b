"""What several commands share: options, and loading plugins."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from cdmkit.plugins import Plugins

F = TypeVar("F", bound=Callable[..., Any])


def overrides_option(command: F) -> F:
    """`--set key.path=value`, any number of times; the parameter `overrides: tuple[str, ...]`."""
    text = "Lay a value on the recipe, such as stage.base.train.steps=100. The value is TOML: strings need quotes."
    return click.option("--set", "overrides", metavar="KEY.PATH=VALUE", multiple=True, help=text)(command)


def json_option(command: F) -> F:
    """`--json`; the parameter `as_json: bool`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def runs_option(command: F) -> F:
    """`--runs DIR`; the parameter `runs: Path`."""
    text = "The folder that holds the runs."
    return click.option("--runs", "runs", type=click.Path(path_type=Path), default="runs", show_default=True, help=text)(command)


def place_options(command: F) -> F:
    """`--runs DIR`, `--run DIR` and `--resume`, where a run goes; the parameters `runs: Path`, `folder: Path | None`, `resume: bool`."""
    new = click.option(
        "--run", "folder", type=click.Path(path_type=Path), metavar="DIR", help="The run's folder, instead of a new one under --runs."
    )
    old = click.option("--resume", is_flag=True, help="Go on with the run in --run, or with the newest run of this recipe.")
    return runs_option(new(old(command)))


def loaded_plugins(extra: Iterable[object] = ()) -> Plugins:
    """All plugins; each broken one is a warning on stderr."""
    from cdmkit.plugins import load_plugins

    plugins = load_plugins(extra=extra)
    for fault in plugins.faults:
        click.echo(f"warning: {fault} (`cdmkit plugins --json` has its traceback)", err=True)
    return plugins


def print_json(value: Any) -> None:
    """Print a result as JSON."""
    import json

    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a result as a table: folded to the width of a terminal, a line per row elsewhere."""
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=Measurement.get(console, console.options.update(width=10_000), table).maximum)
    console.print(table)
