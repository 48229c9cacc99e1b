"""`cdmkit ema`, and the way from an option of a recipe to a picture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cdmkit.training import read_weights
from tests import tiny

AVERAGES = 'averages = [{ type = "power", sigma_rel = 0.1 }, { type = "power", sigma_rel = 0.2 }]\nsnapshot_every = 2\n'
RECIPE = tiny.HEAD + tiny.BASE + tiny.TRAIN.replace("sample_every = 2\n", AVERAGES)


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with snapshots of steps 2 and 4: to look at, not to change."""
    return tiny.run(tiny.write(tmp_path_factory.mktemp("averaged"), RECIPE))


@pytest.fixture
def copy(averaged: Path, tmp_path: Path) -> Path:
    """A copy of it, to change."""
    shutil.copytree(averaged.parents[2], tmp_path, dirs_exist_ok=True)
    return tmp_path / averaged.relative_to(averaged.parents[2])


def test_an_average_is_made_and_sampled(averaged: Path, tmp_path: Path) -> None:
    """Its path is printed; the stage takes it as `weights`, and makes other pictures of it than of its own average."""
    result = tiny.call("ema", averaged, "--sigma", "0.15", "--out", tmp_path / "wide.safetensors")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{tmp_path / 'wide.safetensors'}\n"
    given = ("--set", f'stage.base.weights="{tmp_path / "wide.safetensors"}"', "--set", "stage.base.train.steps=0")
    pictures = []
    for number, options in enumerate((given, ())):
        made = tiny.call("sample", averaged, "--out", tmp_path / str(number), *options)
        assert made.exit_code == 0, made.stderr
        pictures.append((tmp_path / str(number) / "base.png").read_bytes())
    assert pictures[0] != pictures[1]


def test_inspect_tells_widths_and_damage(copy: Path) -> None:
    """Of a snapshot, of a checkpoint's average, of what was made; snapshots are looked at with a run's checkpoints."""
    stage = copy / "stages" / "base"
    made = tiny.call("ema", copy, "--sigma", "0.15").stdout.strip()
    snapshot = stage / "averages" / "step-00000002" / "average-2.safetensors"
    for path, width in ((snapshot, 0.2), (stage / "ckpt" / "step-00000004" / "average-1.safetensors", 0.1), (made, 0.15)):
        told = json.loads(tiny.call("inspect", path, "--json").stdout)
        assert (told["stage"], told["sigma_rel"], told["fault"]) == ("base", width, None)
    assert json.loads(tiny.call("inspect", snapshot.parent, "--json").stdout)["stage"] == "base"
    snapshot.write_bytes(snapshot.read_bytes()[:-1] + b"\x55")
    result = tiny.call("inspect", copy)
    assert result.exit_code == 7
    assert f"{snapshot} is damaged" in result.stderr


def test_it_lies_beside_the_snapshots(copy: Path) -> None:
    """With --json all that is known of it is printed; a file that can be sampled says what stage it is of."""
    result = tiny.call("ema", "tiny", "--runs", copy.parents[1], "--sigma", "0.15", "--step", "4", "--stage", "base", "--json")
    told = json.loads(result.stdout)
    path = copy / "stages" / "base" / "averages" / "sigma-0.150-step-00000004.safetensors"
    assert told == {"path": str(path), "sigma": 0.15, "step": 4, "snapshots": 4, "residual": pytest.approx(0.05, abs=0.05)}
    metadata = read_weights(path)[1]
    assert (metadata["stage"], metadata["table"]["resolution"], metadata["data"]["classes"]) == ("base", 4, 8)


def test_a_rough_average_is_warned_of(copy: Path) -> None:
    """Far from the widths that were tracked."""
    result = tiny.call("ema", copy, "--sigma", "0.01")
    assert result.exit_code == 0
    assert "warning: the snapshots make up sigma = 0.01 only roughly" in result.stderr
    assert "warning" not in tiny.call("ema", copy, "--sigma", "0.1").stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sigma", "0.3"), "sigma = 0.3 is out of range"),
        (("--sigma", "0.1", "--stage", "bsae"), 'no stage "bsae" in .*; did you mean "base"?; there are: base'),
        (("--sigma", "0.1", "--step", "400"), "no snapshot of step 400; there are 2, up to step 4"),
    ],
)
def test_usage_errors_say_what_there_is(averaged: Path, options: tuple[str, ...], message: str) -> None:
    """Exit code 2."""
    result = tiny.call("ema", averaged, *options)
    assert result.exit_code == 2
    for part in message.split(".*"):
        assert part in result.stderr


def test_a_run_without_snapshots_says_how_to_make_them(trained: Path) -> None:
    """Asked for a stage or not; nothing is written."""
    for options in ((), ("--stage", "fine")):
        result = tiny.call("ema", trained, "--sigma", "0.1", *options)
        assert result.exit_code == 2
        assert "train.snapshot_every" in result.stderr
    assert not (trained / "stages" / "fine" / "averages").exists()


def test_one_of_several_stages_is_to_be_named(copy: Path) -> None:
    """With those there are."""
    shutil.copytree(copy / "stages" / "base", copy / "stages" / "other")
    result = tiny.call("ema", copy, "--sigma", "0.1")
    assert result.exit_code == 2
    assert "--stage base or other" in result.stderr


def resume(copy: Path, *arguments: str) -> tuple[int, str]:
    result = tiny.call("run", copy.parents[2] / "tiny.toml", "--runs", copy.parents[1], "--resume", *arguments)
    return result.exit_code, result.stderr


@pytest.mark.parametrize(
    "change", ['lr_schedule={ type = "inverse-sqrt", after = 2 }', "averages=[]", 'averages=[{ type = "power", sigma_rel = 0.2 }]']
)
def test_another_schedule_or_average_is_another_training(copy: Path, change: str) -> None:
    """A resume with it is refused; where it is meant, the stage is trained anew, and the snapshots of before are gone."""
    changes = ("--set", f"stage.base.train.{change}", "--set", "stage.base.train.snapshot_every=0")
    code, told = resume(copy, *changes)
    assert code == 3
    assert f"stage.base.train.{change.partition('=')[0]}" in told
    code, told = resume(copy, "--allow-recipe-change", *changes)
    assert code == 0, told
    assert "it is trained anew" in told
    assert not (copy / "stages" / "base" / "averages").exists()


def test_how_often_snapshots_are_made_may_change(copy: Path) -> None:
    """It leaves what is learned as it is: a longer training goes on with it, and all snapshots stay."""
    code, told = resume(copy, "--set", "stage.base.train.snapshot_every=1", "--set", "stage.base.train.steps=6")
    assert code == 0, told
    assert {path.name for path in (copy / "stages" / "base" / "averages").iterdir()} == {f"step-{step:08d}" for step in (2, 4, 5, 6)}


@pytest.mark.parametrize("averages", ["[]", '[{ type = "ema" }]'])
def test_snapshots_of_nothing_are_a_fault_of_the_recipe(tmp_path: Path, averages: str) -> None:
    """With the way to mend it."""
    recipe = tiny.write(tmp_path, RECIPE.replace(AVERAGES, f"averages = {averages}\nsnapshot_every = 2\n"))
    result = tiny.call("validate", recipe)
    assert result.exit_code == 3
    assert 'add { type = "power", sigma_rel = 0.1 } to averages' in result.stderr + result.stdout
