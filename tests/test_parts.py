"""A run whose stages are trained one by one, by one process or by several at a time, and sampled at the end."""

from __future__ import annotations

import json
from pathlib import Path

from cdmkit.log import read_metrics
from cdmkit.runs import Run
from tests import tiny


def alone(recipe: Path, folder: Path, stage: str, *arguments: str) -> list[str]:
    """The command that trains one stage in a folder."""
    return ["run", str(recipe), "--run", str(folder), "--stage", stage, *arguments]


def test_stages_trained_alone_make_the_run_that_all_together_make(tmp_path: Path) -> None:
    """In any order; each has logs of its own; then the whole recipe has only to be sampled."""
    recipe, folder = tiny.write(tmp_path), tmp_path / "parts"
    for stage in ("fine", "base"):
        result = tiny.call(*alone(recipe, folder, stage))
        assert (result.exit_code, result.stdout) == (0, f"{folder / 'stages' / stage}\n"), result.stderr
        assert [line["step"] for line in read_metrics(folder / "stages" / stage / "metrics.jsonl")] == [2, 4]
        assert Run(folder).state == "in parts"
    assert not (folder / "samples").exists()
    result = tiny.call("run", recipe, "--run", folder, "--resume")
    assert result.exit_code == 0, result.stderr
    assert Run(folder).state == "finished"
    whole = tiny.run(recipe)
    for stage in ("base", "fine"):
        assert tiny.weights(folder, stage) == tiny.weights(whole, stage)
    assert (folder / "samples" / "fine.png").read_bytes() == (whole / "samples" / "fine.png").read_bytes()


def test_processes_may_begin_on_one_run_at_the_same_time(tmp_path: Path) -> None:
    """One makes the folder, the other joins it."""
    recipe, folder = tiny.write(tmp_path), tmp_path / "parts"
    processes = [tiny.start(*alone(recipe, folder, stage)) for stage in ("base", "fine")]
    ends = [tiny.finish(process) for process in processes]
    assert [end[0] for end in ends] == [0, 0], ends
    assert {stage for stage, step in Run(folder).steps().items() if step == 4} == {"base", "fine"}


def test_a_stage_joins_only_a_run_of_its_recipe(tmp_path: Path) -> None:
    """A change of what is learned is refused as it is on resuming."""
    recipe, folder = tiny.write(tmp_path), tmp_path / "parts"
    assert tiny.call(*alone(recipe, folder, "base")).exit_code == 0
    refused = tiny.call(*alone(recipe, folder, "fine", "--set", "seed=1"))
    assert refused.exit_code == 3
    assert "seed: 0 -> 1" in refused.stderr
    assert json.loads((folder / "run.json").read_text())["seed"] == 0


def test_an_unknown_stage_is_a_usage_error(tmp_path: Path) -> None:
    """With the nearest name, before anything is made."""
    result = tiny.call(*alone(tiny.write(tmp_path), tmp_path / "parts", "fin"))
    assert result.exit_code == 2
    assert 'no stage "fin"; did you mean "fine"?' in result.stderr
    assert not (tmp_path / "parts").exists()
