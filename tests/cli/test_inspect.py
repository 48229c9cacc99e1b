"""`cdmkit inspect`."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import tomli
import torch
from safetensors.torch import save_file

import cdmkit
from tests import tiny
from tests.training.test_checkpoint import Canary, flip_a_bit


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A finished run, to be spoilt."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def newest(run: Path, stage: str = "fine") -> Path:
    return max((run / "stages" / stage / "ckpt").iterdir())


def words(text: str) -> dict[str, str]:
    """A printed table of two columns."""
    rows = (line.strip().partition("  ") for line in text.splitlines())
    return {key: value.strip() for key, _, value in rows}


def test_a_weights_file_says_what_it_is_of(run: Path) -> None:
    """For people and as JSON: the stage, its images, its tensors, what wrote it, and that it is what was saved."""
    path = newest(run) / "ema.safetensors"
    told = words(tiny.call("inspect", path).stdout)
    assert (told["file"], told["state"], told["stage"], told["step"], told["resolution"]) == (str(path), "complete", "fine", "4", "8")
    assert (told["classes"], told["downsample"], told["parent"]) == ("8", "area", "base: 4 x 4")
    assert told["versions"] == f"cdmkit {cdmkit.__version__}, torch {torch.__version__}"
    found = json.loads(tiny.call("inspect", path, "--json").stdout)
    assert (found["kind"], found["stage"], found["table"]["train"]["steps"], found["parent"]["resolution"]) == ("file", "fine", 4, 4)
    assert found["dtypes"] == {"float32": len(found["tensors"])}
    assert told["numbers"] == f"{found['numbers']:,} in {len(found['tensors'])} tensors"
    assert found["tensors"]["conv_out.bias"] == {"dtype": "float32", "shape": [3]}


def test_a_file_alone_has_nothing_to_be_compared_with(run: Path, tmp_path: Path) -> None:
    """It says the same of itself."""
    alone = Path(shutil.copy(newest(run) / "ema.safetensors", tmp_path / "alone.safetensors"))
    told = words(tiny.call("inspect", alone).stdout)
    assert (told["state"], told["stage"]) == ("alone", "fine")


@pytest.mark.parametrize("of", ["", "ema.safetensors"])
def test_the_resolved_stage_is_printed_as_a_recipe_has_it(run: Path, of: str) -> None:
    """With --recipe, of a checkpoint or a file of it; it is equal to that of the run's recipe."""
    found = tomli.loads(tiny.call("inspect", newest(run) / of, "--recipe").stdout)
    assert found["stage"]["fine"] == tomli.loads((run / "recipe.resolved.toml").read_text())["stage"]["fine"]


def test_a_checkpoint_is_told_of_as_a_whole(run: Path) -> None:
    """Its files, and the loss before it."""
    told = words(tiny.call("inspect", newest(run)).stdout)
    assert (told["checkpoint"], told["state"], told["stage"], told["step"]) == (str(newest(run)), "complete", "fine", "4")
    assert {"ema.safetensors", "weights.safetensors", "optimizer.safetensors"} < told.keys()
    assert 0 < float(told["loss"]) < 10


def test_the_checkpoints_of_a_run_are_listed_with_their_state(run: Path) -> None:
    """Complete ones, what a crash left, and damaged ones, at which this exits with 7 and names the file."""
    fine, base = newest(run), newest(run, "base")
    assert tiny.call("inspect", run).exit_code == 0
    fine.with_name(".step-00000006.partial").mkdir()
    (base / "state.json").unlink()
    assert tiny.call("inspect", run).exit_code == 0  # what nobody reads does no harm
    flip_a_bit(fine / "weights.safetensors")
    result = tiny.call("inspect", run, "--json")
    found = [(each["stage"], Path(each["path"]).name, each["state"]) for each in json.loads(result.stdout)["checkpoints"]]
    assert found == [
        ("base", "step-00000004", "incomplete"),
        ("base", "step-00000002", "complete"),
        ("fine", ".step-00000006.partial", "incomplete"),
        ("fine", "step-00000004", "damaged"),
        ("fine", "step-00000002", "complete"),
    ]
    assert result.exit_code == 7
    assert str(fine / "weights.safetensors") in result.stderr
    rows = [line.split() for line in tiny.call("inspect", run).stdout.splitlines()]
    assert ["fine", str(fine), "damaged", "4"] in [row[:4] for row in rows]


@pytest.mark.parametrize("file", ["ema.safetensors", ""])
def test_damage_is_told_with_what_can_still_be_read(run: Path, file: str) -> None:
    """Of a file and of a checkpoint; exit code 7."""
    path = newest(run) / "ema.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    result = tiny.call("inspect", newest(run) / file)
    told = words(result.stdout)
    assert (result.exit_code, told["state"], told["stage"]) == (7, "damaged", "fine")
    assert f"{path} is damaged: its SHA-256" in result.stderr


def test_files_of_other_tools_show_their_tensors(tmp_path: Path) -> None:
    """Which stage they are of they do not say, so that there is no recipe."""
    path = tmp_path / "other.safetensors"
    save_file({f"{number:02}": torch.zeros(number, dtype=torch.bfloat16) for number in range(12)}, path, metadata={"format": "pt"})
    result = tiny.call("inspect", path)
    told = words(result.stdout)
    assert (result.exit_code, told["dtypes"], told["03"]) == (0, "bfloat16 (12)", "bfloat16 [3]")
    assert "cdmkit did not write this file" in told["stage"]
    assert "and 2 more" in result.stdout
    result = tiny.call("inspect", path, "--recipe")
    assert result.exit_code == 7
    assert "does not say what stage it is of" in result.stderr


def test_names_do_not_steer_the_terminal(tmp_path: Path) -> None:
    """What a file says is printed, not obeyed."""
    path = tmp_path / "other.safetensors"
    save_file({"\x1b[2Jname": torch.zeros(1)}, path, metadata={"cdmkit": '{"step": "\\u001b]0;title"}'})
    printed = tiny.call("inspect", path).stdout
    assert "\x1b" not in printed
    assert r"\x1b[2Jname" in printed


def test_what_is_no_weights_file_is_refused_unexecuted(tmp_path: Path) -> None:
    """A pickle, an empty folder, and nothing at all: exit code 7."""
    canary = tmp_path / "canary"
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Canary(canary)))
    (tmp_path / "empty").mkdir()
    for name, message in (("pickle.pt", "cannot be read as safetensors"), ("empty", "is neither"), ("nowhere", "is neither")):
        result = tiny.call("inspect", tmp_path / name)
        assert (result.exit_code, result.stdout) == (7, "")
        assert message in result.stderr
    assert not canary.exists()


def test_only_one_form_can_be_asked_for(run: Path) -> None:
    """TOML or JSON."""
    assert tiny.call("inspect", newest(run), "--recipe", "--json").exit_code == 2
