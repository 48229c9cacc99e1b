"""From a file to a Recipe: read, merge, fill in, structure, check. Every fault is reported, all at once where that is possible."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from cdmkit.cascade import Stage
from cdmkit.catalog import Catalog
from cdmkit.nearest import did_you_mean
from cdmkit.plugins import Plugins
from cdmkit.recipe.checks import check_cascade, check_names, check_networks, check_requires
from cdmkit.recipe.env import Environment
from cdmkit.recipe.faults import Fault, Faults, Origin, Problem, failure, redacted
from cdmkit.recipe.model import SCHEMA, Recipe, Requires
from cdmkit.recipe.sources import read_file, read_override
from cdmkit.recipe.structure import structure
from cdmkit.recipe.tree import Node, merge

DEFAULTS = Path(__file__).with_name("defaults.toml")
"""What is laid under every recipe."""


def read(path: Path | str, plugins: Plugins, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of a file, with `overrides` ("stage.base.train.steps=100") laid on it.

    Raises RecipeError with every fault, or SetupError where only what is installed is at fault.
    """
    root = merge(read_file(DEFAULTS), read_file(Path(path)))
    known = root.plain().get("stage")
    for text in overrides:
        laid = read_override(text)
        _check_stages(laid, known)
        root = merge(root, laid)
    environment = Environment(os.environ)
    root, found = _with_defaults(root)
    root = environment.expand(root)
    found += environment.faults
    try:
        return _recipe(root, found, plugins.catalog)
    except Faults as error:
        raise failure(attrs.evolve(fault, text=redacted(fault.text, environment.secrets())) for fault in error.faults) from None


def read_stage(metadata: Mapping[str, Any], catalog: Catalog) -> Stage | None:
    """The stage that a weights file says it is of; None where it says nothing. Raises as `read` does where this cdmkit cannot make it."""
    if not isinstance(metadata.get("table"), dict):
        return None
    made = structure({**metadata["table"], "name": str(metadata.get("stage"))}, Stage, catalog)
    if isinstance(made, list):
        raise failure(Fault(Origin("the weights file's stage"), problem.path, problem.text, problem.setup) for problem in made)
    return made


def _check_stages(laid: Node, known: Any) -> None:
    """Raise where `--set` names a stage that the recipe has not: half a stage would be the result."""
    stages = laid.step("stage")
    if stages is None or not stages.is_table or not isinstance(known, dict):
        return
    for name, stage in stages.value.items():
        if name not in known:
            raise failure([Fault(stage.origin, ("stage", name), f'there is no stage "{name}"{did_you_mean(name, known)}')])


def _with_defaults(root: Node) -> tuple[Node, list[Fault]]:
    """The tables with `[defaults.stage]` laid under every stage and each stage's name written into it."""
    faults: list[Fault] = []
    defaults, stages = root.step("defaults"), root.step("stage")
    under = defaults.step("stage") if defaults else None
    if defaults and (not defaults.is_table or set(defaults.value) - {"stage"} or (under and not under.is_table)):
        faults.append(Fault(defaults.origin, ("defaults",), "must hold one table, [defaults.stage], and nothing else"))
    if stages is not None and stages.is_table:
        named = {}
        for name, stage in stages.value.items():
            if stage.is_table:
                if key := stage.step("name"):
                    faults.append(Fault(key.origin, key.origin.path, "unknown key: a stage is named by its table"))
                stage = merge(under, stage) if under else stage
                stage = attrs.evolve(stage, value={**stage.value, "name": Node(name, stage.origin)})
            named[name] = stage
        root = attrs.evolve(root, value={**root.value, "stage": attrs.evolve(stages, value=named)})
    return root.without("defaults"), faults


def _recipe(root: Node, found: list[Fault], catalog: Catalog) -> Recipe:
    """The recipe of the merged tables; raises with all that was `found` before and is found here."""
    tables = root.plain()
    found += _check_early(root, tables, catalog)
    made = structure(tables, Recipe, catalog)
    problems = [*(made if isinstance(made, list) else ()), *check_names(tables)]
    if isinstance(made, Recipe) and not problems:
        problems = [*check_cascade(made), *check_networks(made)]
    unread = {fault.origin for fault in found}
    faults = [*found, *(fault for fault in map(root.fault, problems) if fault.origin not in unread)]
    if faults or not isinstance(made, Recipe):
        raise failure(faults)
    return made


def _check_early(root: Node, tables: dict[str, Any], catalog: Catalog) -> list[Fault]:
    """What makes the rest unreadable is raised alone: another schema, or missing distributions. Returns what else is wrong with these."""
    schema = tables.get("schema", SCHEMA)
    if isinstance(schema, int) and schema != SCHEMA:
        text = f"this cdmkit reads recipes of schema {SCHEMA}, not {schema}: install the cdmkit that the recipe was written for"
        raise failure([root.fault(Problem(("schema",), text))])
    requires = structure(tables.get("requires", {}), Requires, catalog)
    faults = [root.fault(problem) for problem in check_requires(requires)] if isinstance(requires, Requires) else []
    if unmet := [fault for fault in faults if fault.setup]:
        raise failure(unmet)
    return faults
