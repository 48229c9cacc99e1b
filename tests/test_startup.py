"""What commands import, since that is what people wait for. Seconds are measured in benchmarks/startup.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny

CALL = """
import sys
from cdmkit.cli import main
main(sys.argv[1:], standalone_mode=False)
sys.stderr.write(" ".join(sys.modules))
"""


def imported(*arguments: object) -> set[str]:
    """The modules that a process has imported at the end of a command."""
    command = [sys.executable, "-c", CALL, *map(str, arguments)]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stderr.split())


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("run", "--help")], ids=" ".join)
def test_help_imports_next_to_nothing(arguments: tuple[str, ...]) -> None:
    """Neither torch nor plugins nor what finds and shows them."""
    loaded = imported(*arguments)
    assert "cdmkit.cli" in loaded
    assert not loaded & {"torch", "numpy", "rich", "attrs", "attr", "cattrs", "pluggy", "tomli", "PIL", "cdmkit.plugins", "cdmkit.recipe"}


def test_validating_imports_torch_and_little_else(tmp_path: Path) -> None:
    """Not what only training, sampling, logs or shards need; torch's compiler would cost another second."""
    loaded = imported("validate", tiny.write(tmp_path))
    assert "torch" in loaded
    heavy = {
        "torch._dynamo",
        "torch._inductor",
        "sympy",
        "webdataset",
        "structlog",
        "rich.progress",
        "safetensors",
        "packaging.requirements",
    }
    assert not loaded & heavy


@pytest.mark.parametrize("command", ["plugins", "runs"])
def test_listings_import_neither_compiler_nor_loop(command: str, tmp_path: Path) -> None:
    """They are called often."""
    loaded = imported(command, "--json")
    assert not loaded & {"torch._dynamo", "sympy", "webdataset", "cdmkit.training", "cdmkit.pipeline"}
