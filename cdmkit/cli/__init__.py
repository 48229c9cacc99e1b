"""The command line. Commands are imported when they are called, so that `cdmkit --help` costs nothing but click."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

from cdmkit import __version__
from cdmkit.errors import CdmkitError, FirstFailed, Stopped
from cdmkit.nearest import did_you_mean

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("cdmkit.cli.run:run", "Train every stage of a recipe, then sample the cascade."),
    "launch": ("cdmkit.cli.launch:launch", "Train a recipe on a cluster with Slurm."),
    "sample": ("cdmkit.cli.sample:sample", "Sample a trained cascade."),
    "ema": ("cdmkit.cli.ema:ema", "Make another average of a trained stage's weights."),
    "eval": ("cdmkit.cli.eval:evaluate", "Measure trained stages: bits per dimension."),
    "import": ("cdmkit.cli.importing:import_", "Bring in published weights as a stage of a cascade."),
    "data": ("cdmkit.cli.data:data", "Prepare data sets: from images to shards."),
    "plan": ("cdmkit.cli.plan:plan", "Tell what a run would do: parameters, calls, images; train nothing."),
    "bench": ("cdmkit.cli.bench:bench", "Measure the speed of a recipe's stages on this machine."),
    "validate": ("cdmkit.cli.validate:validate", "Check recipes and report every fault."),
    "show": ("cdmkit.cli.show:show", "Print a recipe with everything filled in, or its graph."),
    "plugins": ("cdmkit.cli.plugins:plugins", "List plugins, working and broken."),
    "components": ("cdmkit.cli.components:components", "List what recipes can name, or the options of one component."),
    "schema": ("cdmkit.cli.schema:schema", "Print the JSON Schema of recipes, for editors."),
    "inspect": ("cdmkit.cli.inspect:inspect", "Tell what a weights file, a checkpoint or a run's checkpoints are."),
    "runs": ("cdmkit.cli.runs:runs", "List runs: their state, and the steps that are saved."),
}
"""Where each command is, and its line of help."""

_INTERRUPTED = 130


class Commands(click.Group):
    """The commands of a table such as `COMMANDS`, and what becomes of the errors they raise."""

    def __init__(self, *args: Any, table: Mapping[str, tuple[str, str]], **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self._table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of the table."""
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in self._table:
            return None
        module, _, attribute = self._table[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of the first argument, or a usage error that says the nearest one."""
        if args[0] not in self._table and not args[0].startswith("-"):
            ctx.fail(f'no command "{args[0]}"{did_you_mean(args[0], self._table)}')
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The help lines, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self._table.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; errors end it with their message and exit code."""
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException, BrokenPipeError):
            raise
        except (Exception, KeyboardInterrupt) as error:
            if os.environ.get("CDMKIT_TRACEBACK") == "1":
                import traceback

                traceback.print_exception(error)
            message, code = _told(error)
            if not _told_by_the_first(error):
                click.echo(message, err=True)
            _leave_if_held(code)
            raise click.exceptions.Exit(code) from error


def _leave_if_held(code: int) -> None:
    """End the process now where threads still wait for a silent server: Python would wait for them, and all that matters is written."""
    loader = sys.modules.get("cdmkit.data.loader")  # not imported for this: where nothing was read, nothing waits
    if loader is not None and any(thread.name.startswith(loader.THREADS) for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _told_by_the_first(error: BaseException) -> bool:
    """Whether the first of several processes tells people of it: not each need repeat it."""
    return isinstance(error, FirstFailed) or (isinstance(error, Stopped) and os.environ.get("RANK", "0") != "0")


def _told(error: BaseException) -> tuple[str, int]:
    """What people are told of an error, and the exit code."""
    match error:
        case CdmkitError():
            return str(error), error.exit_code
        case KeyboardInterrupt() | click.Abort():
            return "interrupted", _INTERRUPTED
        case _:
            return f"a defect in cdmkit: {type(error).__name__}: {error}; run again with CDMKIT_TRACEBACK=1 and report it", 1


@click.group(cls=Commands, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cdmkit")
def main() -> None:
    """Cascaded diffusion models from a recipe.

    Exit codes: 0 ok, 1 failed otherwise, 2 usage, 3 recipe, 4 plugin or environment, 5 data, 6 numerics, 7 checkpoint, 75 stopped after
    saving, 130 stopped by a second signal.
    """
