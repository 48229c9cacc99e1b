"""The core stands without any of its built-in modules: each can be left out, or replaced by another distribution's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from cdmkit.plugins import BUILTIN, Plugins, load_plugins

WITHOUT = """
import importlib, pkgutil, sys
import cdmkit
from cdmkit.plugins import BUILTIN

names = ["cdmkit", *(module.name for module in pkgutil.walk_packages(cdmkit.__path__, "cdmkit."))]
names = [name for name in names if not name.startswith("cdmkit.builtin") and name != "cdmkit.__main__"]
for missing in BUILTIN:
    for name in [name for name in sys.modules if name.partition(".")[0] == "cdmkit"]:
        del sys.modules[name]
    sys.modules[missing] = None  # an import of it fails
    for name in names:
        importlib.import_module(name)
    faults = sys.modules["cdmkit.plugins"].load_plugins().faults
    print(missing, len(names), *(fault.identity.name for fault in faults))
    del sys.modules[missing]
"""


def offered(plugins: Plugins) -> Iterator[tuple[str, str]]:
    """Kind and name of every component."""
    return ((kind, name) for kind in plugins.catalog.offers for name in plugins.catalog.names(kind))


@pytest.mark.parametrize("module", BUILTIN)
def test_removing_a_module_removes_its_components_and_no_other(module: str) -> None:
    """What stays is the rest, and it works."""
    everything = load_plugins()
    own = {
        (component.kind, component.type_name)
        for plugin in everything.loaded
        if plugin.identity.name == module
        for component in plugin.components
    }
    rest = load_plugins(builtin=[name for name in BUILTIN if name != module])
    assert own
    assert rest.faults == everything.faults
    assert set(offered(rest)) == set(offered(everything)) - own


def test_nothing_else_needs_a_built_in_module_to_be_imported() -> None:
    """With each made impossible to import in turn: it is a recorded fault, and every other module imports."""
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [(line[0], line[2:]) for line in lines] == [(module, [module]) for module in BUILTIN]
    assert all(int(line[1]) > 50 for line in lines)
