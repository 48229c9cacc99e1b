"""`cdmkit data verify`."""

from __future__ import annotations

import click

from cdmkit.cli.options import json_option, print_json, print_table

_SHOWN = 50
"""Faults that are printed; JSON has them all."""


@click.command()
@click.argument("data")
@click.option("--workers", type=click.IntRange(1, 1024), metavar="N", help="Threads that decode images; by default one per core.")
@json_option
def verify(data: str, workers: int | None, as_json: bool) -> None:
    """Check DATA: a folder that `cdmkit data prepare` made, a list of shards, or a pattern of them.

    Compares sizes, SHA-256, counts and labels with what the list says, and every file beside the shards with what was written; decodes
    every image. Prints what is wrong, and then exits with 5. What is odd but does no harm is told on stderr.
    """
    from cdmkit.cli.bars import Bars
    from cdmkit.errors import DataError
    from cdmkit.preparing import usable_cores
    from cdmkit.preparing.rejects import counted
    from cdmkit.preparing.verify import verify

    with Bars() as bars:
        found = verify(data, workers or usable_cores(), lambda done, total: bars.advance("verifying", done, total, "shards"))
    count, shards = counted(found.images, "image"), counted(found.shards, "shard")
    for note in found.notes[:_SHOWN]:
        click.echo(f"note: {note}", err=True)
    if as_json:
        table = {"images": found.images, "shards": found.shards, "faults": [fault._asdict() for fault in found.faults]}
        print_json({**table, "notes": found.notes})
    elif found.faults:
        print_table(("cause", "what is wrong"), ((fault.cause, fault.message) for fault in found.faults[:_SHOWN]))
        if len(found.faults) > _SHOWN:
            click.echo(f"and {len(found.faults) - _SHOWN:,} more: --json prints all")
    else:
        click.echo(f"{count} in {shards}: all is well")
    if found.faults:
        raise DataError(f"{counted(len(found.faults), 'fault')} among {count}: {found.advice}")
