"""`cdmkit show`."""

from __future__ import annotations

from pathlib import Path

import tomli

from tests.cli.conftest import Call


def test_the_resolved_recipe_is_a_recipe(call: Call) -> None:
    """Overrides in it, every option spelled out, no defaults left; shown again it is the same."""
    result = call("show", "good.toml", "--set", "seed=5")
    table = tomli.loads(result.stdout)
    assert (table["seed"], table["stage"]["fine"]["train"]["ema"]) == (5, 0.9999)
    assert "defaults" not in table
    Path("again.toml").write_text(result.stdout)
    assert call("show", "again.toml").stdout == result.stdout


def test_the_graph_names_stages_and_what_is_between_them(call: Call) -> None:
    """Mermaid's flowchart."""
    assert call("show", "--graph", "good.toml").stdout.splitlines() == [
        "flowchart LR",
        '    s0["base<br/>8 x 8"]',
        '    s1["fine<br/>32 x 32"]',
        '    s0 -->|"x4 bilinear<br/>gaussian-noise<br/>truncated, s = 20"| s1',
    ]


def test_a_faulty_recipe_is_not_shown(call: Call) -> None:
    """Its faults are told."""
    result = call("show", "bad.toml")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "bad.toml:17:1" in result.stderr
