"""`cdmkit runs`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cdmkit.runs import Run
from tests import tiny


@pytest.fixture
def root(trained: Path, tmp_path: Path) -> Path:
    """A folder with a finished run, one that could not note its end, and one of another recipe."""
    for name, outcome in (("tiny/20260101-000000", "finished"), ("tiny/20260102-000000", None), ("other/20250101-000000", "stopped")):
        shutil.copytree(trained, tmp_path / name)
        facts = json.loads((tmp_path / name / "run.json").read_text())
        (tmp_path / name / "run.json").write_text(json.dumps({**facts, "name": name.partition("/")[0], "outcome": outcome}))
    shutil.rmtree(tmp_path / "tiny/20260102-000000/stages/fine")
    return tmp_path


def test_runs_are_listed_the_oldest_first(root: Path) -> None:
    """With state and steps saved."""
    runs = json.loads(tiny.call("runs", "--runs", root, "--json").stdout)
    assert [(run["recipe"], Path(run["path"]).name, run["state"], run["steps"]) for run in runs] == [
        ("other", "20250101-000000", "stopped", {"base": 4, "fine": 4}),
        ("tiny", "20260101-000000", "finished", {"base": 4, "fine": 4}),
        ("tiny", "20260102-000000", "interrupted", {"base": 4}),
    ]
    assert all(run["started"].endswith("+00:00") for run in runs)


def test_those_of_one_recipe_may_be_asked_for(root: Path) -> None:
    """A row each in the table for people, too."""
    result = tiny.call("runs", "tiny", "--runs", root)
    rows = [line.split() for line in result.stdout.splitlines() if str(root) in line]
    assert [(row[0], row[1], row[3:]) for row in rows] == [
        (f"{root}/tiny/20260101-000000", "finished", ["base", "4/4,", "fine", "4/4"]),
        (f"{root}/tiny/20260102-000000", "interrupted", ["base", "4/4,", "fine", "0/4"]),
    ]


def test_progress_is_steps_saved_of_steps_wanted(root: Path) -> None:
    """In the recipe's order; what is saved alone where the recipe cannot be read."""
    recipe = root / "other/20250101-000000/recipe.resolved.toml"
    recipe.write_text(recipe.read_text().replace("steps = 4", "steps = 9"))
    (root / "tiny/20260101-000000/recipe.resolved.toml").write_text("[[")
    other, broken, _ = json.loads(tiny.call("runs", "--runs", root, "--json").stdout)
    assert (other["wanted"], broken["wanted"]) == ({"base": 9, "fine": 9}, {})
    table = tiny.call("runs", "--runs", root).stdout
    assert "base 4/9, fine 4/9" in table
    assert "base 4, fine 4\n" in "\n".join(line.rstrip() for line in table.splitlines()) + "\n"


@pytest.mark.parametrize(("arguments", "what"), [((), "no runs"), (("other",), "no runs of other")])
def test_none_is_no_error(tmp_path: Path, arguments: tuple[str, ...], what: str) -> None:
    """An empty list; for people a line on stderr."""
    result = tiny.call("runs", *arguments, "--runs", tmp_path / "gone")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", f"{what} under {tmp_path}/gone\n")
    assert json.loads(tiny.call("runs", *arguments, "--runs", tmp_path / "gone", "--json").stdout) == []


@pytest.mark.parametrize("name", ["/data/runs", "a/b", "*"])
def test_a_name_is_no_pattern(name: str) -> None:
    """What is neither a folder nor may be a recipe's name is a usage error."""
    result = tiny.call("runs", name)
    assert (result.exit_code, "neither a folder nor the name of a recipe" in result.stderr) == (2, True)


def test_runs_in_folders_of_peoples_choice_are_found(tmp_path: Path) -> None:
    """Beside those in folders of their recipe, by their recipe's name and by their own folder."""

    def made(name: str, folder: Path | None = None) -> str:
        return str(Run.create(tmp_path, name, folder, recipe=("", f'name = "{name}"'), facts={}).path)

    mine, dated, other = made("tiny", tmp_path / "mine"), made("tiny"), made("other")

    def listed(*arguments: object) -> set[str]:
        return {run["path"] for run in json.loads(tiny.call("runs", *arguments, "--json").stdout)}

    assert listed("--runs", tmp_path) == {mine, dated, other}
    assert listed("tiny", "--runs", tmp_path) == {mine, dated}
    assert listed(mine) == {mine}
