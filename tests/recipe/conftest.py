"""What tests of recipes share: the plugin with small components, and a way to write and read recipes."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from cdmkit.plugins import BUILTIN, Plugins, load_plugins
from cdmkit.recipe import Fault, Faults, Recipe, read

HEAD = """\
schema = 1
name = "two"
[data]
source = { type = "nothing" }
"""
DEFAULTS = """\
[defaults.stage]
schedule = { type = "line" }
loss = { type = "distance" }
backbone = { type = "tiny" }
sampler = { type = "walk", steps = 10 }
backend = { type = "here" }
train = { batch = 8, steps = 100, optimizer = { type = "descent" } }
"""
BASE = "[stage.base]\nresolution = 8\n"
FINE = '[stage.fine]\nafter = "base"\nresolution = 16\naugment = [{ type = "noise" }]\ncondition = { s = 5 }\n'
TWO = HEAD + DEFAULTS + BASE + FINE
"""A recipe of two stages. Line 5 is [defaults.stage], 12 [stage.base], 14 [stage.fine]."""

Write = Callable[..., Path]
Read = Callable[..., Recipe]
Faulty = Callable[..., list[str]]


@pytest.fixture(scope="session")
def plugins() -> Plugins:
    """The small components beside the built-in ones."""
    return load_plugins(builtin=(*BUILTIN, "tests.recipe.components"))


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a recipe to a file of the current folder, an empty one."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "r.toml") -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(textwrap.dedent(text).encode())
        return path

    return write


@pytest.fixture
def reading(write: Write, plugins: Plugins) -> Read:
    """The recipe of a text and overrides."""

    def reading(text: str, *overrides: str) -> Recipe:
        return read(write(text), plugins, overrides)

    return reading


@pytest.fixture
def faulty(write: Write, plugins: Plugins) -> Faulty:
    """The lines of the faults of a text and overrides; they must make the exit code `code`."""

    def faulty(text: str, *overrides: str, code: int = 3) -> list[str]:
        with pytest.raises(Faults) as caught:
            read(write(text), plugins, overrides)
        assert caught.value.exit_code == code
        assert all(isinstance(fault, Fault) for fault in caught.value.faults)
        return str(caught.value).splitlines()

    return faulty
