"""Recipes written back: to tables, to text, and compared."""

from __future__ import annotations

import pytest
import tomli

from cdmkit.recipe import diff, to_table, to_toml
from tests.recipe.conftest import TWO, Read

LONG = ", ".join(f'{{ type = "noise", low = 0.{digit} }}' for digit in range(1, 6))


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("seed=9223372036854775807",),
        ('description="""two\nlines, \\"quoted\\" \\\\ \\u007f \\u0001 é 😀"""'.replace("\n", "\\n"),),
        ("stage.base.train.ema=1e-300", "stage.base.train.clip_grad=1e22", "stage.base.train.steps=1e15"),
        ('data.source.path="$${env:HOME} $$$${x} $"',),
        ("stage.fine.augment=[]", "stage.fine.condition.s=0"),
        (f"stage.fine.augment=[{LONG}]",),
        ("stage.base.loss.weights=[0, 1.5, 1e-9]",),
        ('stage.fine.condition.mode="truncated"', 'stage.fine.augment=[{ type = "noise", schedule = { type = "line" } }]'),
        ('stage.base.noise_input="alpha-bar"', 'stage.base.sampling_schedule={ type = "curve" }'),
        ('requires.cdmkit=">0"', 'requires.plugins=["attrs>1"]'),
    ],
)
def test_a_recipe_written_reads_back_equal(reading: Read, overrides: tuple[str, ...]) -> None:
    """And is written the same again: every option is there, nothing is rounded, nothing is filled in twice."""
    recipe = reading(TWO, *overrides)
    text = to_toml(recipe)
    again = reading(text)
    assert again == recipe
    assert to_toml(again) == text
    assert max(map(len, text.splitlines())) <= 140


def test_short_tables_are_written_inline_and_long_ones_under_headers(reading: Read) -> None:
    """Readable text."""
    lines = to_toml(reading(TWO)).splitlines()
    assert lines[:2] == ["schema = 1", 'name = "two"']
    assert {"[data]", "[stage.base]", "[stage.base.train]", 'schedule = { type = "line", timesteps = 100, end = 0.01 }'} <= set(lines)
    assert "[stage]" not in lines


def test_a_table_says_every_option_that_is_set(reading: Read) -> None:
    """Types by name, choices by value, tuples as lists; no None and no stage's name."""
    stage = to_table(reading(TWO))["stage"]["fine"]
    assert stage["schedule"] == {"type": "line", "timesteps": 100, "end": 0.01}
    assert stage["loss"] == {"type": "distance", "norm": "squared", "weights": []}
    assert stage["augment"] == [{"type": "noise", "low": 0.0, "high": 1.0}]
    assert "name" not in stage
    assert "sampling_schedule" not in stage
    assert list(stage)[:2] == ["resolution", "after"]


def test_a_table_may_leave_out_what_is_as_it_would_be_anyway(reading: Read) -> None:
    """At any depth; a component's type is always said, and the rest reads back as the same stage."""
    stage = to_table(reading(TWO), defaults=False)["stage"]["fine"]
    assert stage["loss"]["type"] == "distance"
    assert "weights" not in stage["loss"]
    assert "clip" not in stage


def test_options_that_are_new_and_at_their_default_are_no_change() -> None:
    """Another value of them is."""
    assert diff({"a": 1}, {"a": 1, "b": 2}, lean={"a": 1}) == []
    assert diff({"a": 1}, {"a": 1, "b": 3}, lean={"a": 1, "b": 3}) == ["b: nothing -> 3"]
    assert diff({"a": 2}, {"a": 1}, lean={}) == ["a: 2 -> 1"]


def test_what_changed_between_two_recipes(reading: Read) -> None:
    """A line for each value, by its dotted key; nothing where nothing changed."""
    old = to_table(reading(TWO))
    new = to_table(reading(TWO, "stage.base.train.steps=7", "stage.fine.augment=[]", "stage.fine.condition.s=0", 'name="b"'))
    assert diff(old, old) == []
    assert diff(old, new) == [
        'name: "two" -> "b"',
        "stage.base.train.steps: 100 -> 7",
        'stage.fine.augment[0].type: "noise" -> nothing',
        "stage.fine.augment[0].low: 0.0 -> nothing",
        "stage.fine.augment[0].high: 1.0 -> nothing",
        "stage.fine.condition.s: 5 -> 0",
        "stage.fine.augment: nothing -> []",
    ]


def test_the_text_is_the_table(reading: Read) -> None:
    """TOML readers other than ours see the same values."""
    recipe = reading(TWO)
    assert tomli.loads(to_toml(recipe)) == to_table(recipe)
