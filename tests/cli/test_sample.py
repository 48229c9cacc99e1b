"""`cdmkit sample`."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from click.testing import Result
from safetensors.torch import save_file

from tests import tiny


def sample(run: Path, out: Path, *arguments: object) -> Path:
    """Sample into `out`, which must work; the path that is printed."""
    result = tiny.call("sample", run, "--out", out, *arguments)
    assert result.exit_code == 0, result.stderr
    path = Path(result.stdout.removesuffix("\n"))
    assert path.is_file()
    return path


def labels(shard: Path) -> list[int]:
    """The labels in a shard, in order."""
    with tarfile.open(shard) as tar:
        return [int(file.read()) for name in sorted(tar.getnames()) if name.endswith(".cls") and (file := tar.extractfile(name))]


def test_everything_is_as_the_recipe_says_by_default(trained: Path, tmp_path: Path) -> None:
    """The same as at the end of the run, byte for byte."""
    assert sample(trained, tmp_path) == tmp_path / "fine.png"
    assert {path.name for path in tmp_path.iterdir()} == {"base.png", "fine.png", "fine-00000.tar"}
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (trained / "samples" / path.name).read_bytes()


def test_samples_go_to_a_new_folder_of_the_run_by_default(trained: Path, tmp_path: Path) -> None:
    """Each time another."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    grids = [Path(tiny.call("sample", run, "--count", 1).stdout.strip()) for _ in range(2)]
    assert len(set(grids)) == 2
    assert all(grid.is_file() and grid.parents[1] == run / "samples" for grid in grids)


def test_count_and_classes_and_their_order(trained: Path, tmp_path: Path) -> None:
    """Labels are made in turn, as given."""
    sample(trained, tmp_path, "--count", 5, "--class", 6, "--class", 1, "--batch", 2)
    assert labels(tmp_path / "fine-00000.tar") == [6, 1, 6, 1, 6]


def test_seeds_and_classes_change_images(trained: Path, tmp_path: Path) -> None:
    """The same ones do not."""
    given = {"plain": (), "seed": ("--seed", 1), "class": ("--class", 3), "again": ("--seed", 0)}
    made = {name: sample(trained, tmp_path / name, "--count", 4, *arguments).read_bytes() for name, arguments in given.items()}
    assert made["again"] == made["plain"]
    assert len(set(made.values())) == 3


def test_a_stage_may_be_the_last(trained: Path, tmp_path: Path) -> None:
    """Its children are not needed; it is finished, though one of them is truncated."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    shutil.rmtree(run / "stages" / "fine")
    assert sample(run, tmp_path / "out", "--stage", "base") == tmp_path / "out" / "base.png"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"base.png", "base-00000.tar"}
    assert (tmp_path / "out" / "base.png").read_bytes() != (run / "samples" / "base.png").read_bytes()


@pytest.mark.parametrize(
    ("short", "long"),
    [
        (("--s", "9"), ("--set", "stage.fine.condition.s=9")),
        (("--s", "fine=9"), ("--set", "stage.fine.condition.s=9")),
        (("--steps", "4"), ("--set", "stage.base.sampler.steps=4", "--set", "stage.fine.sampler.steps=4")),
        (("--steps", "fine=5"), ("--set", "stage.fine.sampler.steps=5")),
        (("--steps", "3", "--steps", "fine=5"), ("--set", "stage.base.sampler.steps=3", "--set", "stage.fine.sampler.steps=5")),
    ],
)
def test_s_and_steps_stand_for_values_of_the_recipe(trained: Path, tmp_path: Path, short: tuple[str, ...], long: tuple[str, ...]) -> None:
    """Of one stage, of the last, or of every one; later ones win."""
    one = sample(trained, tmp_path / "short", *short).read_bytes()
    assert one == sample(trained, tmp_path / "long", *long).read_bytes()
    assert one != (trained / "samples" / "fine.png").read_bytes()


def test_another_sampler_may_be_laid_on(trained: Path, tmp_path: Path) -> None:
    """Any value of the recipe may; `--steps` comes after it."""
    other = ("--set", 'stage.fine.sampler={ type = "ancestral", steps = 2 }')
    two = sample(trained, tmp_path / "two", *other).read_bytes()
    three = sample(trained, tmp_path / "three", *other, "--steps", "fine=3").read_bytes()
    assert len({two, three, (trained / "samples" / "fine.png").read_bytes()}) == 3


def test_a_run_may_be_named_by_its_recipe(trained: Path, tmp_path: Path) -> None:
    """The newest under --runs is taken."""
    for name in ("20200101-000000", "20300101-000000"):
        shutil.copytree(trained, tmp_path / "runs" / "tiny" / name)
    result = tiny.call("sample", "tiny", "--runs", tmp_path / "runs", "--count", 1)
    assert Path(result.stdout).is_relative_to(tmp_path / "runs" / "tiny" / "20300101-000000")


def refused(trained: Path, code: int, *arguments: object) -> Result:
    """Sample, which must fail with this code, say so on stderr alone and leave no folder in the run."""
    before = sorted(trained.rglob("*"))
    result = tiny.call("sample", trained, *arguments)
    assert (result.exit_code, result.stdout) == (code, ""), result.stderr
    assert sorted(trained.rglob("*")) == before
    return result


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--count", "0"), "0 is not in the range x>=1"),
        (("--class", "8"), "no class 8: labels are 0 to 7"),
        (("--class", "-1", "--class", "9"), "no class -1, 9: labels are 0 to 7"),
        (("--class", "cat"), "'cat' is not a valid integer"),
        (("--seed", "-1"), "-1 is not in the range x>=0"),
        (("--stage", "fin"), 'no stage "fin"; did you mean "fine"? (stages: base, fine)'),
        (("--s", "many"), '"many" is not [STAGE=]N with a whole number N'),
        (("--s", "-3"), '"-3" is not [STAGE=]N with a whole number N'),
        (("--s", "base=3"), '"base=3": STAGE can be fine'),
        (("--s", "3", "--stage", "base"), '"3": base is sampled from noise alone'),
        (("--steps", "bass=3"), '"bass=3": STAGE can be base, fine'),
    ],
)
def test_wrong_options_are_usage_errors(trained: Path, arguments: tuple[str, ...], words: str) -> None:
    """Exit code 2, with what is allowed."""
    assert words in refused(trained, 2, *arguments).stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--s", "21"), "s = 21 is beyond 20, the last timestep"),
        (("--steps", "21"), "21"),
        (("--set", "stage.fine.samplr=1"), 'did you mean "sampler"?'),
    ],
)
def test_values_that_do_not_fit_the_recipe_are_its_faults(trained: Path, arguments: tuple[str, ...], words: str) -> None:
    """Exit code 3."""
    assert words in refused(trained, 3, *arguments).stderr


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("stage.fine.backbone.channels=12", "stage.fine.backbone.channels: 8 -> 12"),
        ('stage.base.prediction="x0"', 'stage.base.prediction: "epsilon" -> "x0"'),
        ("stage.base.schedule.timesteps=30", "stage.base.schedule.timesteps: 20 -> 30"),
        ('stage.fine.upsample="nearest"', 'stage.fine.upsample: "bilinear" -> "nearest"'),
    ],
)
def test_what_contradicts_the_trained_weights_is_said(trained: Path, value: str, line: str) -> None:
    """Exit code 7, with what a stage was trained as; also where the weights would fit the network."""
    error = refused(trained, 7, "--set", value).stderr
    assert "was trained as another one" in error
    assert f"  {line}\n" in error


def test_weights_of_another_network_are_said(trained: Path, tmp_path: Path) -> None:
    """Exit code 7, with the tensors that differ, where the weights themselves do not say what they are."""
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    others = ("--set", f'stage.fine.weights="{tmp_path / "other.safetensors"}"', "--set", "stage.fine.train.steps=0")
    assert "holds the weights of another network" in refused(trained, 7, *others).stderr


def test_a_stage_that_is_not_trained_is_said(trained: Path, tmp_path: Path) -> None:
    """Exit code 7."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    shutil.rmtree(run / "stages" / "fine")
    assert "stage 'fine' has no checkpoint" in refused(run, 7).stderr


def test_several_last_stages_need_a_choice(trained: Path, tmp_path: Path) -> None:
    """A usage error that names them."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    resolved = (run / "recipe.resolved.toml").read_text()
    fine = resolved[resolved.index("[stage.fine]") : resolved.index("[sample]")]
    (run / "recipe.resolved.toml").write_text(resolved + fine.replace("stage.fine", "stage.other"))
    assert "choose one by --stage fine or other" in refused(run, 2).stderr
    sample(run, tmp_path / "out", "--stage", "fine", "--count", 1)


@pytest.mark.parametrize("name", ["tinny", "gone/run", "."])
def test_a_run_that_is_not_there_is_a_usage_error(trained: Path, name: str) -> None:
    """With the nearest name there is."""
    result = tiny.call("sample", name, "--runs", trained.parents[1])
    assert (result.exit_code, result.stdout) == (2, "")
    assert f'no run "{name}": it is neither the folder of a run nor a recipe with runs under' in result.stderr
    assert ('did you mean "tiny"?' in result.stderr) == (name == "tinny")
