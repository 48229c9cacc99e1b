"""The group of commands: help, errors, exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import click
import pytest
from click.testing import CliRunner

from cdmkit import __version__
from cdmkit.cli import COMMANDS, main
from cdmkit.errors import CdmkitError, CheckpointError, DataError, NumericsError, RecipeError, SetupError, Stopped, UsageError
from tests.cli.conftest import Call


def command_raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make `cdmkit validate` a command that raises."""

    @click.command()
    def raising() -> None:
        raise error

    monkeypatch.setattr("cdmkit.cli.validate.validate", raising)


def test_help_lists_every_command() -> None:
    """In the order of the table, with its line."""
    for option in ("-h", "--help"):
        result = CliRunner().invoke(main, [option])
        assert result.exit_code == 0
        words = result.stdout.split()
        assert all(name in words for name in COMMANDS)


def test_help_imports_nothing_heavy() -> None:
    """Neither torch nor plugins nor what finds plugins; so it is quick."""
    code = "import sys; from cdmkit.cli import main; main(['--help'], standalone_mode=False); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert not loaded & {"torch", "rich", "attrs", "attr", "cattrs", "pluggy", "numpy", "importlib.metadata", "cdmkit.plugins"}
    assert "cdmkit.cli" in loaded


def test_help_is_quick() -> None:
    """Under 0.15 s of processor time, interpreter included: the best of five."""
    spent = []
    for _ in range(5):
        before = os.times()
        subprocess.run([sys.executable, "-c", "from cdmkit.cli import main; main(['--help'])"], capture_output=True, check=True)
        after = os.times()
        spent.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(spent) < 0.15


def test_version() -> None:
    """The package's own."""
    assert CliRunner().invoke(main, ["--version"]).stdout == f"cdmkit, version {__version__}\n"


def test_a_misspelt_command_is_a_usage_error_with_the_nearest() -> None:
    """Exit code 2."""
    result = CliRunner().invoke(main, ["validat"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert 'no command "validat"; did you mean "validate"?' in result.stderr


def test_an_unknown_option_is_a_usage_error() -> None:
    """Of the group and of a command."""
    assert CliRunner().invoke(main, ["--nope"]).exit_code == 2
    assert CliRunner().invoke(main, ["schema", "--nope"]).exit_code == 2


@pytest.mark.parametrize(
    "kind",
    [CdmkitError, UsageError, RecipeError, SetupError, DataError, NumericsError, CheckpointError, Stopped],
    ids=lambda kind: str(kind.__name__),
)
def test_our_errors_are_their_message_and_their_exit_code(monkeypatch: pytest.MonkeyPatch, kind: type[CdmkitError]) -> None:
    """On stderr, alone."""
    command_raising(monkeypatch, kind("what is wrong\nand how to mend it"))
    result = CliRunner().invoke(main, ["validate"])
    assert (result.exit_code, result.stdout, result.stderr) == (kind.exit_code, "", "what is wrong\nand how to mend it\n")


def test_other_errors_are_defects_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """They ask to be reported."""
    command_raising(monkeypatch, KeyError("x"))
    result = CliRunner().invoke(main, ["validate"])
    assert result.exit_code == 1
    assert result.stderr == "a defect in cdmkit: KeyError: 'x'; run again with CDMKIT_TRACEBACK=1 and report it\n"


@pytest.mark.parametrize("error", [KeyError("x"), RecipeError("wrong")])
def test_tracebacks_are_shown_when_asked_for(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """With CDMKIT_TRACEBACK=1, before the message; the exit code stays."""
    monkeypatch.setenv("CDMKIT_TRACEBACK", "1")
    command_raising(monkeypatch, error)
    result = CliRunner().invoke(main, ["validate"])
    assert result.exit_code == getattr(error, "exit_code", 1)
    assert "Traceback" in result.stderr
    assert "in raising" in result.stderr


def test_ctrl_c_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a traceback."""
    command_raising(monkeypatch, KeyboardInterrupt())
    result = CliRunner().invoke(main, ["validate"])
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("arguments", [["schema"], ["components"]])
def test_a_closed_pipe_ends_quietly(arguments: list[str]) -> None:
    """As with `| head`: nothing on stderr."""
    code = f"from cdmkit.cli import main; main({arguments})"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    told = process.stderr.read()
    process.stderr.close()
    process.wait()
    assert told == ""


def test_validating_costs_little_beyond_torch(call: Call) -> None:
    """Once torch is there: under half a second for plugins, recipe and networks."""
    call("validate", "good.toml")
    before = time.process_time()
    assert call("validate", "good.toml").exit_code == 0
    assert time.process_time() - before < 0.5
