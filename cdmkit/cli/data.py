"""`cdmkit data`: commands about data sets, imported when they are called."""

from __future__ import annotations

import click

from cdmkit.cli import Commands

DATA_COMMANDS: dict[str, tuple[str, str]] = {
    "prepare": ("cdmkit.cli.preparing:prepare", "Make shards of images from whatever they are in."),
}
"""Where each command is, and its line of help."""


@click.group(cls=Commands, table=DATA_COMMANDS)
def data() -> None:
    """Prepare data sets: from images to shards."""
