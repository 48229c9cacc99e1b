"""`cdmkit run`: what it prints, where it goes and how it is called. What it does is tested with the pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tiny


def test_stdout_is_the_grid_and_nothing_else(tmp_path: Path) -> None:
    """By default in a new folder under `runs`, named by recipe and time; how it goes is told on stderr."""
    tiny.write(tmp_path)
    code, out, err = tiny.finish(tiny.start("run", "tiny.toml", cwd=tmp_path))
    assert code == 0, err
    (folder,) = (tmp_path / "runs" / "tiny").iterdir()
    assert out == f"runs/tiny/{folder.name}/samples/fine.png\n"
    assert (tmp_path / out.strip()).is_file()
    assert [line.partition(":")[0] for line in err.splitlines()] == [
        f"run runs/tiny/{folder.name}",
        *("base", "base", "base", "base"),
        *("fine", "fine", "fine"),
        *("base sampling", "fine sampling"),
    ]


def test_a_folder_may_be_chosen(tmp_path: Path) -> None:
    """And gone on with; it holds one run."""
    recipe, folder = tiny.write(tmp_path), tmp_path / "mine"
    first = tiny.call("run", recipe, "--run", folder)
    assert (first.exit_code, first.stdout) == (0, f"{folder}/samples/fine.png\n")
    again = tiny.call("run", recipe, "--run", folder)
    assert (again.exit_code, again.stdout) == (4, "")
    assert f"{folder} holds a run already: go on with it by --resume, or choose another folder" in again.stderr
    resumed = tiny.call("run", recipe, "--run", folder, "--resume")
    assert (resumed.exit_code, resumed.stdout) == (0, first.stdout)


def test_the_newest_run_is_gone_on_with(tmp_path: Path) -> None:
    """Of this recipe."""
    recipe = tiny.write(tmp_path)
    first, second = tiny.run(recipe), tiny.run(recipe)
    assert first != second
    assert tiny.run(recipe, "--resume") == second


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--resume",), "there is no run of 'tiny' under"),
        (("--resume", "--run", "gone"), "gone holds no run that can be gone on with"),
        (("--force",), "--allow-recipe-change and --force go with --resume"),
        (("--allow-recipe-change",), "--allow-recipe-change and --force go with --resume"),
        (("--resum",), "No such option"),
    ],
)
def test_wrong_calls_are_usage_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str) -> None:
    """Exit code 2; nothing is written."""
    monkeypatch.chdir(tmp_path)
    tiny.write(tmp_path)
    result = tiny.call("run", "tiny.toml", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.toml"]


def test_values_may_be_laid_on(tmp_path: Path) -> None:
    """And are in the run's resolved recipe."""
    run = tiny.run(tiny.write(tmp_path), "--set", "sample.count=3", "--set", "stage.fine.condition.s=7")
    resolved = (run / "recipe.resolved.toml").read_text()
    assert "count = 3" in resolved
    assert "s = 7" in resolved
