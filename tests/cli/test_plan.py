"""`cdmkit plan`."""

from __future__ import annotations

from pathlib import Path

from tests import tiny


def test_a_table_for_people(tmp_path: Path) -> None:
    """A row for each stage, numbers shortened."""
    result = tiny.call("plan", tiny.write(tmp_path), "--set", "stage.base.train.steps=700_000")
    assert (result.exit_code, result.stderr) == (0, "")
    base, fine = (line.split() for line in result.stdout.splitlines() if line.lstrip().startswith(("base", "fine")))
    assert base[base.index("700,000") :][:3] == ["700,000", "2.8", "M"]
    assert fine[:5] == ["fine", "base", "8", "x", "8"]


def test_a_faulty_recipe_is_not_planned(tmp_path: Path) -> None:
    """Exit code 3."""
    result = tiny.call("plan", tiny.write(tmp_path), "--set", "stage.base.resolution=3")
    assert (result.exit_code, result.stdout) == (3, "")
