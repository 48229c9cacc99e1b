"""`cdmkit data`: commands about data sets, imported when they are called."""

from __future__ import annotations

import click

from cdmkit.cli import Commands

DATA_COMMANDS: dict[str, tuple[str, str]] = {
    "prepare": ("cdmkit.cli.preparing:prepare", "Make shards of images from whatever they are in."),
    "inspect": ("cdmkit.cli.inspecting:inspect", "Look at a data set, or at what the stages of a recipe see."),
    "verify": ("cdmkit.cli.verifying:verify", "Check every byte and every image of a data set."),
}
"""Where each command is, and its line of help."""


@click.group(cls=Commands, table=DATA_COMMANDS)
def data() -> None:
    """Data sets: prepare shards of images, look at them, verify them."""
