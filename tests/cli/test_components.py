"""`cdmkit components`, `cdmkit plugins` and `cdmkit schema`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cdmkit import __version__
from cdmkit.cli.components import type_words
from cdmkit.kinds import KINDS, Schedule
from cdmkit.plugins import BUILTIN
from tests.cli.conftest import Call
from tests.distribution import write_distribution
from tests.recipe.components import Norm


def test_all_components_are_listed_with_their_owner(call: Call) -> None:
    """In the order of the kinds."""
    rows = json.loads(call("components", "--json").stdout)
    kinds = [row["kind"] for row in rows]
    assert sorted(set(kinds), key=list(KINDS).index) == list(dict.fromkeys(kinds))
    cosine = next(row for row in rows if row["name"] == "cosine")
    assert cosine["owner"] == f"cdmkit {__version__}"
    assert cosine["help"]


def test_a_kind_lists_its_own(call: Call) -> None:
    """And nothing else; a line per component where there is no terminal to fit."""
    rows = json.loads(call("components", "sampler", "--json").stdout)
    assert {row["kind"] for row in rows} == {"sampler"}
    lines = call("components", "sampler").stdout.splitlines()
    assert sum(" ddim " in line for line in lines) == 1


def test_a_component_is_told_in_full(call: Call) -> None:
    """Every option with type, default, range and meaning."""
    told = json.loads(call("components", "augmentation", "gaussian-blur", "--json").stdout)
    assert told["doc"].startswith(told["help"])
    probability = next(option for option in told["options"] if option["name"] == "probability")
    assert probability == {
        "name": "probability",
        "type": "number",
        "default": "0.5",
        "range": ">= 0 and <= 1",
        "help": "share of examples that are blurred",
    }
    text = call("components", "augmentation", "gaussian-blur").stdout
    assert all(word in text for word in ("probability", "0.5", ">= 0 and <= 1", told["doc"]))


def test_required_and_absent_defaults_differ(call: Call) -> None:
    """`steps` must be given; no `schedule` means the parent's."""
    (steps, *_) = json.loads(call("components", "sampler", "ancestral", "--json").stdout)["options"]
    (schedule, *_) = json.loads(call("components", "augmentation", "gaussian-noise", "--json").stdout)["options"]
    assert (steps["default"], schedule["default"], schedule["type"]) == ("required", "none", "schedule")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("los",), 'no kind "los"; did you mean "loss"?'), (("loss", "simpel"), 'no loss "simpel"; did you mean "simple"?')],
)
def test_misspelt_names_are_usage_errors(call: Call, arguments: tuple[str, ...], message: str) -> None:
    """With the nearest name, and all of them."""
    result = call("components", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (int, "integer"),
        (bool, "true or false"),
        (float | None, "number"),
        (tuple[str, ...], "list of string"),
        (Norm, '"absolute" | "squared"'),
        (Schedule, "schedule"),
    ],
)
def test_types_in_words(cls: Any, words: str) -> None:
    """As recipes know them."""
    assert type_words(cls) == words


def test_plugins_are_listed_with_distribution_and_version(call: Call) -> None:
    """Built-in ones come first."""
    loaded = json.loads(call("plugins", "--json").stdout)["loaded"]
    assert [row["plugin"] for row in loaded][: len(BUILTIN)] == list(BUILTIN)
    assert (loaded[0]["distribution"], loaded[0]["version"]) == ("cdmkit", __version__)
    assert "schedule cosine" in loaded[0]["components"]
    assert "cdmkit.builtin.schedules" in call("plugins").stdout


@pytest.fixture
def broken(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Calls with a plugin installed that cannot be imported."""
    monkeypatch.syspath_prepend(tmp_path)
    write_distribution(tmp_path, "cdmkit-bad", "raise RuntimeError('boom')")
    return call


def test_broken_plugins_are_listed_with_what_is_wrong(broken: Call) -> None:
    """The traceback only in JSON."""
    (fault,) = json.loads(broken("plugins", "--json").stdout)["broken"]
    assert fault["fault"] == "RuntimeError: boom"
    assert fault["traceback"].startswith("Traceback")
    text = broken("plugins").stdout
    assert fault["fault"] in text
    assert "Traceback" not in text


def test_a_broken_plugin_is_a_warning_where_it_is_not_needed(broken: Call) -> None:
    """And part of the error where it may be."""
    good = broken("validate", "good.toml")
    assert (good.exit_code, good.stdout) == (0, "good.toml: ok (base 8, fine 32)\n")
    assert good.stderr.startswith('warning: plugin "cdmkit-bad-plugin" of cdmkit-bad 1.0: RuntimeError: boom')
    result = broken("validate", "elsewhere.toml")
    assert result.exit_code == 4
    assert 'no working plugin offers schedule "of-a-plugin"; it may be of a broken one: plugin "cdmkit-bad-plugin"' in result.stderr


def test_the_schema_is_printed_as_json(call: Call) -> None:
    """With the components installed here."""
    schema = json.loads(call("schema").stdout)
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    assert "schedule-cosine" in schema["definitions"]


@pytest.mark.parametrize("arguments", [("components",), ("plugins",), ("components", "backbone", "unet")])
def test_tables_have_no_colours_where_there_is_no_terminal(call: Call, arguments: tuple[str, ...]) -> None:
    """Nor with NO_COLOR."""
    assert "\x1b" not in call(*arguments).stdout
