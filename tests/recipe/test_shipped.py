"""The recipes that come with cdmkit: each can be read, is planned, and is right by the schema that editors use."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tomli

from cdmkit.plugins import Plugins, load_plugins
from cdmkit.recipe import read
from cdmkit.recipe.schema import recipe_schema
from tests import tiny

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


@pytest.fixture(scope="module")
def all_plugins() -> Plugins:
    """Those that are installed."""
    return load_plugins()


@pytest.fixture(scope="module")
def schema(all_plugins: Plugins) -> dict[str, Any]:
    """The schema of recipes with what is installed."""
    return recipe_schema(all_plugins.catalog)


def test_recipes_are_found() -> None:
    """Those that the README names among them."""
    assert {"imagenet64", "imagenet128", "imagenet256", "quickstart"} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.stem))
def test_it_validates_under_its_own_name(path: Path, all_plugins: Plugins) -> None:
    """Name and file agree."""
    assert tiny.call("validate", path).exit_code == 0
    assert read(path, all_plugins).name == path.stem


@functools.cache
def planned(path: Path) -> list[dict[str, Any]]:
    """What `cdmkit plan` says of a recipe."""
    plans: list[dict[str, Any]] = json.loads(tiny.call("plan", "--json", path).stdout)
    return plans


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.stem))
def test_it_is_planned(path: Path, all_plugins: Plugins) -> None:
    """Every stage has parameters, work and memory."""
    plans = planned(path)
    assert [each["stage"] for each in plans] == [stage.name for stage in read(path, all_plugins).cascade]
    counts = ("parameters", "images_seen", "macs_per_call", "training_flops", "sampling_calls", "state_bytes", "activation_bytes")
    assert all(each[count] > 0 for each in plans for count in counts)


def test_the_papers_cascade_is_planned() -> None:
    """Images seen are steps times batch (CDM appendix B); the base's parameters are our own count: the paper gives none."""
    base, sr64, sr256 = planned(next(path for path in RECIPES if path.stem == "imagenet256"))
    assert (base["stage"], sr64["after"], sr256["after"]) == ("base", "base", "sr64")
    assert base["parameters"] == pytest.approx(792.3e6, rel=1e-4)
    assert [each["images_seen"] for each in (base, sr64, sr256)] == [1_433_600_000, 819_200_000, 512_000_000]
    assert [each["sampling_calls"] for each in (base, sr64, sr256)] == [4000, 4000, 100]


def faults(schema: dict[str, Any], table: dict[str, Any]) -> list[str]:
    """What the schema finds wrong."""
    return [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(table)]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.stem))
def test_it_is_right_by_the_schema(path: Path, schema: dict[str, Any]) -> None:
    """As it stands in the file."""
    assert faults(schema, tomli.loads(path.read_text())) == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.stem))
@pytest.mark.parametrize("place", ["", "data", "data.source", "stage.*", "stage.*.backbone"])
def test_a_key_too_many_is_not(path: Path, schema: dict[str, Any], place: str) -> None:
    """In whatever table."""
    root = tomli.loads(path.read_text())
    table = root
    for part in place.split(".") if place else ():
        table = next(reversed(table.values())) if part == "*" else table.setdefault(part, {})
    table["surplus"] = 1
    assert faults(schema, root) != []
