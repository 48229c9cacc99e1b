"""The house rules that a machine can check: which way imports run, and how long things may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "cdmkit").rglob("*.py"))

LAYERS = (
    {"__main__"},
    {"cli"},
    {"pipeline"},
    {"benching", "previewing"},
    {
        "contents",
        "evaluation",
        "importing",
        "inspecting",
        "launching",
        "place",
        "planning",
        "preflight",
        "preparing",
        "sampling",
        "weights",
    },
    {"recipe", "training"},
    {"log", "plugins", "ranks", "runs"},
    {"catalog"},
    {"cascade"},
    {"data"},
    {"kinds", "hookspecs"},
    {"diffusion"},
    {"component", "draws", "errors", "events", "files", "nearest", "redact"},
)
"""From the edge to the algebra: a package imports from itself and from the layers below its own."""

BUILTIN_MAY_IMPORT = {"builtin", "component", "data", "diffusion", "draws", "errors", "files", "hookspecs", "kinds"}

MODULE_LINES, FUNCTION_LINES = 400, 60


def package(name: str) -> str:
    """`cdmkit.data.resize` -> `data`, `cdmkit` -> ``."""
    return name.partition(".")[2].partition(".")[0]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """The modules of cdmkit that a file imports from, also inside functions and for type checking, as `package` gives them."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (package(name) for name in names if name.startswith("cdmkit.") and not package(name).startswith("__"))


def layer(name: str) -> int:
    """The place of a package in LAYERS, 0 at the edge."""
    places = [place for place, packages in enumerate(LAYERS) if name in packages]
    assert len(places) == 1, f"cdmkit.{name} has no layer: name it once in LAYERS"
    return places[0]


@pytest.mark.parametrize("path", [p for p in SOURCES if package(module_name(p)) not in ("", "builtin")], ids=module_name)
def test_imports_run_one_way(path: Path) -> None:
    """From the edge to the algebra."""
    own = package(module_name(path))
    wrong = {name for name in imports(path) if name != own and layer(name) <= layer(own)}
    assert not wrong, f"{module_name(path)} imports from {sorted(wrong)}, which stand above it or beside it"


@pytest.mark.parametrize("path", [p for p in SOURCES if package(module_name(p)) == "builtin"], ids=module_name)
def test_built_in_components_see_what_a_plugin_sees(path: Path) -> None:
    """Kinds and what they are made of; neither the recipe nor the loop."""
    assert set(imports(path)) <= BUILTIN_MAY_IMPORT


def test_nobody_imports_the_built_in_components() -> None:
    """They are named as strings, and found as plugins are."""
    assert [module_name(path) for path in SOURCES if package(module_name(path)) != "builtin" and "builtin" in imports(path)] == []


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_modules_fit_a_sitting_and_functions_a_screen(path: Path) -> None:
    """Lines of a file, and of any function with its docstring."""
    text = path.read_text()
    assert text.count("\n") <= MODULE_LINES
    functions = (node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))
    long = {node.name: length for node in functions if (length := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES}
    assert not long


def test_the_algebra_needs_no_more_than_torch() -> None:
    """`cdmkit.diffusion` imports nothing else of cdmkit: pure functions of tensors."""
    outside = {name for path in SOURCES if package(module_name(path)) == "diffusion" for name in imports(path)}
    assert outside == {"diffusion"}
