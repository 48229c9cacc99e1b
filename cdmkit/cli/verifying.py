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
    every image. Prints what is wrong, and then exits with 5.
    """
    from cdmkit.cli.bars import Bars
    from cdmkit.errors import DataError
    from cdmkit.preparing import usable_cores
    from cdmkit.preparing.verify import verify

    with Bars() as bars:
        found = verify(data, workers or usable_cores(), lambda done, total: bars.advance("verifying", done, total, "shards"))
    if as_json:
        print_json({"images": found.images, "shards": found.shards, "faults": [fault._asdict() for fault in found.faults]})
    elif found.faults:
        print_table(("cause", "what is wrong"), ((fault.cause, fault.message) for fault in found.faults[:_SHOWN]))
    else:
        click.echo(f"{found.images:,} images in {found.shards:,} shard{'s' if found.shards > 1 else ''}: all is well")
    if found.faults:
        count = len(found.faults)
        raise DataError(f"{count:,} fault{'s' if count > 1 else ''} among {found.images:,} images: mend the data, or prepare them again")
