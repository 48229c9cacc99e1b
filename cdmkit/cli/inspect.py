"""`cdmkit inspect`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from cdmkit.cli.options import json_option, print_json, print_table

_SHOWN = 10
"""Tensors that are listed of a file that says nothing of itself."""


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--recipe", is_flag=True, help="Print the resolved options of the stage that it is of, as in a recipe, and nothing else.")
@json_option
def inspect(path: Path, recipe: bool, as_json: bool) -> None:
    """Tell what PATH is: a file of weights (safetensors), a checkpoint's folder, or a run's, for the state of all its checkpoints.

    All that has a digest is compared with it; where anything is damaged, this exits with 7. Nothing is unpickled or executed.
    """
    from cdmkit.contents import faults, look, stage_table
    from cdmkit.errors import CheckpointError

    if recipe and as_json:
        raise click.UsageError("--recipe prints TOML, and --json holds the same as `table`: choose one")
    if recipe:
        from cdmkit.recipe import table_to_toml

        click.echo(table_to_toml(stage_table(path)).rstrip())
        return
    found = look(path)
    if as_json:
        print_json(found)
    elif found["kind"] == "run":
        print_table(("stage", "checkpoint", "state", "step", "loss", "MB"), map(_row, found["checkpoints"]))
    else:
        print_table(("what", "value"), (map(_plain, line) for line in _lines(found)))
    if damaged := faults(found):
        raise CheckpointError(" ".join(damaged))


def _plain(text: str) -> str:
    """Text of a file as it may be shown: what terminals would obey, such as moving the cursor, is written out."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def _row(found: dict[str, Any]) -> tuple[str, ...]:
    """A checkpoint of a run."""
    loss = "" if found["loss"] is None else f"{found['loss']:.5g}"
    return found["stage"], found["path"], found["state"], f"{found['step']:,}", loss, _megabytes(found["bytes"])


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """All that is known of a file or a checkpoint, in words."""
    yield found["kind"], found["path"]
    yield "state", found["state"]
    if found.get("stage") is None:
        yield "stage", "not told: cdmkit did not write this file, or it holds no weights"
    for key in ("stage", "step", "resolution", "classes", "images", "crop", "downsample", "sigma_rel", "loss"):
        if found.get(key) not in (None, ""):
            yield key, str(found[key])
    for key in ("versions", "origin"):
        if found.get(key):
            yield key, ", ".join(f"{name} {value}" for name, value in found[key].items())
    if parent := found.get("parent"):
        yield "parent", f"{found['table'].get('after')}: {parent.get('resolution')} x {parent.get('resolution')}"
    for name, size in found.get("files", {}).items():
        yield name, f"{_megabytes(size)} MB"
    if "tensors" in found:
        yield from _of_tensors(found)


def _of_tensors(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    tensors = found["tensors"]
    yield "numbers", f"{found['numbers']:,} in {len(tensors):,} tensors"
    yield "dtypes", ", ".join(f"{dtype} ({count:,})" for dtype, count in found["dtypes"].items())
    yield "MB", _megabytes(found["bytes"])
    if found["stage"] is None:
        yield from ((name, f"{each['dtype']} {each['shape']}") for name, each in list(tensors.items())[:_SHOWN])
        if len(tensors) > _SHOWN:
            yield "", f"and {len(tensors) - _SHOWN:,} more: --json lists all"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f}"
