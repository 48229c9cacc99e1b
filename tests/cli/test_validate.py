"""`cdmkit validate`."""

from __future__ import annotations

import json

from tests.cli.conftest import Call


def test_good_recipes_are_ok_on_stdout(call: Call) -> None:
    """A line each, with the stages."""
    result = call("validate", "good.toml", "good.toml")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "good.toml: ok (base 8, fine 32)\n" * 2


def test_every_file_is_checked_and_faults_go_to_stderr(call: Call) -> None:
    """Exit code 3; the faults of all."""
    result = call("validate", "bad.toml", "good.toml", "gone.toml")
    assert (result.exit_code, result.stdout) == (3, "good.toml: ok (base 8, fine 32)\n")
    assert result.stderr.splitlines() == [
        "bad.toml:15:8: stage.fine.resolution: is missing",
        'bad.toml:17:1: stage.fine.resolutoin: unknown key; did you mean "resolution"?',
        "gone.toml: cannot be read: No such file or directory",
    ]


def test_what_is_not_installed_is_exit_code_4(call: Call) -> None:
    """3 where another recipe is at fault."""
    assert call("validate", "elsewhere.toml").exit_code == 4
    assert call("validate", "elsewhere.toml", "good.toml").exit_code == 4
    assert call("validate", "elsewhere.toml", "bad.toml").exit_code == 3


def test_overrides_are_validated_too(call: Call) -> None:
    """They may mend a recipe or break one."""
    assert call("validate", "good.toml", "--set", "stage.fine.resolution=12").exit_code == 3
    assert call("validate", "elsewhere.toml", "--set", 'defaults.stage.schedule={ type = "linear" }').exit_code == 0


def test_json_has_every_fault_in_parts(call: Call) -> None:
    """For editors and CI."""
    result = call("validate", "--json", "good.toml", "bad.toml")
    assert (result.exit_code, result.stderr) == (3, "")
    good, bad = json.loads(result.stdout)
    assert good == {"recipe": "good.toml", "ok": True, "faults": []}
    assert bad["faults"][1] == {
        "file": "bad.toml",
        "line": 17,
        "column": 1,
        "key": "stage.fine.resolutoin",
        "fault": 'unknown key; did you mean "resolution"?',
    }


def test_a_recipe_is_needed(call: Call) -> None:
    """A usage error."""
    assert call("validate").exit_code == 2
