"""The JSON Schema of recipes."""

from __future__ import annotations

from typing import Any

import pytest
import tomli
from jsonschema import Draft7Validator

from cdmkit.catalog import Catalog
from cdmkit.plugins import Plugins
from cdmkit.recipe import to_toml
from cdmkit.recipe.schema import recipe_schema
from tests.recipe.conftest import BASE, DEFAULTS, FINE, HEAD, TWO, Faulty, Read

PLAIN = HEAD + DEFAULTS.replace("defaults.stage", "stage.base") + "resolution = 8\n"
"""A recipe that stands alone."""


@pytest.fixture(scope="module")
def schema(plugins: Plugins) -> dict[str, Any]:
    """The schema with the small components."""
    return recipe_schema(plugins.catalog)


def valid(schema: dict[str, Any], text: str) -> bool:
    """Whether a recipe's text is valid."""
    return bool(Draft7Validator(schema).is_valid(tomli.loads(text)))


def test_it_is_a_schema_whatever_is_installed(schema: dict[str, Any]) -> None:
    """Of draft 7, also with no component at all."""
    Draft7Validator.check_schema(schema)
    Draft7Validator.check_schema(recipe_schema(Catalog.of(())))


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        TWO,
        HEAD + DEFAULTS + FINE + BASE,
        'extends = "other.toml"\n',
        'extends = "other.toml"\n[stage.base.sampler]\nsteps = 3\n',
        PLAIN + 'upsample = "${env:UP:-area}"\n',
        PLAIN.replace("steps = 100", "steps = 1e3"),
        PLAIN + 'augment = [{ type = "noise", schedule = { type = "curve" } }]\n',
    ],
)
def test_recipes_are_valid(schema: dict[str, Any], text: str) -> None:
    """Whole ones, and ones that others complete."""
    assert valid(schema, text)


def test_written_recipes_are_valid(schema: dict[str, Any], reading: Read) -> None:
    """With every option spelled out."""
    assert valid(schema, to_toml(reading(TWO)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("schema = 1", "schema = 2"),
        ("schema = 1\n", ""),
        ('name = "two"', "name = 2"),
        ("steps = 100", "steps = 1.5"),
        ("steps = 100", "steps = -1"),
        ("steps = 100", "step = 100"),
        ('backbone = { type = "tiny" }\n', ""),
        ("steps = 100", 'steps = "${env:STEPS}"'),
        ('{ type = "line" }', '"line"'),
        ('{ type = "line" }', '{ type = "line", end = 1 }'),
        ('{ type = "line" }', '{ type = "walk", steps = 3 }'),
        ('{ type = "distance" }', '{ type = "distance", weights = [-1] }'),
        ('{ type = "distance" }', '{ type = "distance", norm = "none" }'),
        ("[stage.base]", '[stage."a b"]'),
        ("[stage.base]", "[stages.base]"),
        ("resolution = 8\n", ""),
        ("resolution = 8\n", 'resolution = 8\nname = "x"\n'),
        ("resolution = 8\n", "resolution = 8\n[defaults]\nextra = 1\n"),
    ],
)
def test_wrong_recipes_are_not(schema: dict[str, Any], faulty: Faulty, old: str, new: str) -> None:
    """What the schema refuses, reading refuses too."""
    assert old in PLAIN
    text = PLAIN.replace(old, new)
    assert not valid(schema, text)
    if "${env" not in text:
        faulty(text)


def test_options_say_what_they_mean(schema: dict[str, Any]) -> None:
    """Meaning, default, range and choices, for editors to show."""
    definitions = schema["definitions"]
    assert definitions["schedule-line"]["properties"]["end"] == {
        "type": "number",
        "exclusiveMaximum": 1,
        "description": "the last alpha_bar",
        "default": 0.01,
    }
    norm = definitions["loss-distance"]["properties"]["norm"]
    assert (norm["anyOf"][0]["enum"], norm["default"]) == (["absolute", "squared"], "squared")
    assert definitions["schedule-line"]["description"] == "alpha_bars on a line."
    assert "required" not in definitions["sampler-walk"]  # [defaults.stage] may hold the rest
    assert schema["properties"]["sample"]["default"] == {"count": 64, "batch": 64}
