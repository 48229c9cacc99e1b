"""Stages that begin with what is given: real images to enlarge, weights of a file, a network that guides."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cdmkit.data.shards import open_shards
from tests import tiny

ALONE = (
    tiny.HEAD + '[stage.fine]\nlow_res = 4\nresolution = 8\naugment = [{ type = "gaussian-noise" }]\ncondition = { s = 5 }\n' + tiny.TRAIN
)
"""4 -> 8 on real images, 4 steps."""


def pixels(run: Path, stage: str = "fine", folder: str = "samples") -> Tensor:
    """All images of a run's samples."""
    shards = open_shards(str(run / folder / f"{stage}-*.tar"))
    return shards.read(torch.arange(len(shards)))[0]


def labels(run: Path, stage: str = "fine") -> list[int]:
    """The labels that its samples carry."""
    return open_shards(str(run / "samples" / f"{stage}-*.tar")).labels.tolist()


def ema(run: Path, stage: str, step: int = 4) -> Path:
    return run / "stages" / stage / "ckpt" / f"step-{step:08d}" / "ema.safetensors"


# Super-resolution alone


def test_a_stage_alone_enlarges_real_images(tmp_path: Path) -> None:
    """It trains, and at the end enlarges the first images of the data's order, each with its own label."""
    run = tiny.run(tiny.write(tmp_path, ALONE))
    made = pixels(run)
    assert made.shape == (16, 3, 8, 8)
    assert len(set(labels(run))) > 1
    with tarfile.open(run / "samples" / "fine-00000.tar") as tar:
        member = next(each for each in tar if each.name.endswith(".json"))
        file = tar.extractfile(member)
        assert file is not None
        assert json.load(file)["s"] == {"fine": 5}
    assert (run / "stages" / "fine" / "samples" / "step-00000004.png").is_file()


def test_what_it_enlarges_does_not_depend_on_the_batch(tmp_path: Path) -> None:
    """Image i is the i-th of the order, whatever the number at a time; s can be set when sampling."""
    run = tiny.run(tiny.write(tmp_path, ALONE))
    for batch in (3, 16):
        out = tmp_path / f"by-{batch}"
        result = tiny.call("sample", run, "--batch", batch, "--out", out)
        assert result.exit_code == 0, result.stderr
    by_three, by_sixteen = (pixels(tmp_path, folder=f"by-{batch}").int() for batch in (3, 16))
    assert int((by_three - by_sixteen).abs().max()) <= 1
    assert tiny.call("sample", run, "--s", 9, "--out", tmp_path / "nine").exit_code == 0
    assert not torch.equal(pixels(tmp_path, folder="nine").int(), by_three)


def test_a_class_cannot_be_chosen_for_real_images(tmp_path: Path) -> None:
    """They have labels of their own."""
    run = tiny.run(tiny.write(tmp_path, ALONE))
    result = tiny.call("sample", run, "--class", 3)
    assert (result.exit_code, "which have labels of their own" in result.stderr) == (2, True)


def test_its_graph_begins_with_real_images(tmp_path: Path) -> None:
    """As Mermaid text."""
    shown = tiny.call("show", tiny.write(tmp_path, ALONE), "--graph").stdout
    assert 's0r("real images<br/>4 x 4") -->|"x2 bilinear<br/>gaussian-noise<br/>non-truncated, s = 5"| s0' in shown


def test_a_regression_with_a_weighting_would_learn_nothing(tmp_path: Path) -> None:
    """Its only timestep would have a weight of 0: a fault of the recipe."""
    text = ALONE.replace('"cosine", timesteps = 20', '"regression"').replace('"epsilon"', '"x0"')
    text = text.replace('"gaussian-noise"', '"gaussian-blur"').replace("condition = { s = 5 }\n", "").replace("steps = 2 }", "steps = 1 }")
    assert tiny.call("validate", tiny.write(tmp_path, text)).exit_code == 0
    weighted = text.replace('type = "simple"', 'type = "simple", weighting = { type = "min-snr" }')
    result = tiny.call("validate", tiny.write(tmp_path, weighted))
    assert (result.exit_code, "loss: weighting gives every timestep of this schedule a weight of 0" in result.stderr) == (3, True)


def test_a_regression_told_alpha_bar_would_be_shown_the_image(tmp_path: Path) -> None:
    """Levels between its timestep and the clean image: a fault of the recipe."""
    text = ALONE.replace('"cosine", timesteps = 20', '"regression"').replace('"epsilon"', '"x0"\nnoise_input = "alpha-bar"')
    result = tiny.call("validate", tiny.write(tmp_path, text))
    assert (result.exit_code, "draws levels between timesteps" in result.stderr) == (3, True), result.stderr


def test_its_resolution_must_be_a_multiple(tmp_path: Path) -> None:
    """Of what it enlarges."""
    result = tiny.call("validate", tiny.write(tmp_path, ALONE.replace("low_res = 4", "low_res = 3")))
    assert (result.exit_code, "stage.fine.resolution: 8 is not 2, 3, 4, ... times 3, low_res" in result.stderr) == (3, True)


def test_a_model_trained_alone_can_stand_in_a_cascade(tmp_path: Path) -> None:
    """Its weights, after a parent of the resolution and schedule it was trained with."""
    alone = tiny.run(tiny.write(tmp_path / "alone", ALONE))
    fine = f'[stage.fine]\nafter = "base"\nresolution = 8\naugment = [{{ type = "gaussian-noise" }}]\nweights = "{ema(alone, "fine")}"\n'
    recipe = tiny.write(tmp_path / "cascade", tiny.HEAD + tiny.BASE + tiny.TRAIN.replace("defaults.stage", "stage.base") + fine)
    run = tiny.run(recipe)
    assert pixels(run).shape == (16, 3, 8, 8)
    assert not (run / "stages" / "fine" / "ckpt").exists()


# Weights of a file


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one trained stage, "base"."""
    return tiny.run(tiny.write(tmp_path_factory.mktemp("trained"), tiny.HEAD + tiny.BASE + tiny.TRAIN))


def with_weights(trained: Path, more: str = "") -> str:
    return f'{tiny.HEAD}{tiny.BASE}weights = "{ema(trained, "base")}"\n{more}'


def test_weights_are_sampled_as_they_came(trained: Path, tmp_path: Path) -> None:
    """No training, no look at the data, and the samples of the run that they are of."""
    recipe = tiny.write(
        tmp_path, with_weights(trained).replace('"shapes"', '"webdataset"').replace("resolution = 8, count = 32", 'shards = "no"')
    )
    run = tiny.run(recipe)
    assert torch.equal(pixels(run, "base"), pixels(trained, "base"))
    assert tiny.call("sample", run, "--seed", 7).exit_code == 0
    assert tiny.call("run", recipe, "--resume", "--runs", tmp_path / "runs").exit_code == 0


def test_training_begins_with_the_weights(trained: Path, tmp_path: Path) -> None:
    """With a learning rate of almost nothing they stay what they were; the average begins there, too."""
    training = tiny.TRAIN.replace("lr = 0.03", "lr = 1e-12").replace("defaults.stage", "stage.base")
    run = tiny.run(tiny.write(tmp_path, with_weights(trained, training)))
    before = load_file(ema(trained, "base"))
    for name, tensor in load_file(ema(run, "base")).items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-9)


def test_weights_that_are_not_trained_on_win_over_a_checkpoint(trained: Path, tmp_path: Path) -> None:
    """A trained stage that is then said to be sampled from a file, is; a file beside training steps is refused, not passed over."""
    training = tiny.TRAIN.replace("defaults.stage", "stage.base")
    recipe = tiny.write(tmp_path, tiny.HEAD + tiny.BASE + training.replace("lr = 0.03", "lr = 0.01"))
    run = tiny.run(recipe)
    other = f'stage.base.weights="{ema(trained, "base")}"'
    refused = tiny.call("sample", run, "--set", other)
    assert (refused.exit_code, "began with weights = None" in refused.stderr) == (7, True)
    result = tiny.call("sample", run, "--set", other, "--set", "stage.base.train.steps=0", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert torch.equal(pixels(tmp_path, "base", "out"), pixels(trained, "base"))


def test_a_run_knows_its_weights_by_content(trained: Path, tmp_path: Path) -> None:
    """The same file elsewhere is no change; another one under the same name is refused, as other images are."""
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(ema(trained, "base").read_bytes())
    training = tiny.TRAIN.replace("defaults.stage", "stage.base")
    text = f'{tiny.HEAD}{tiny.BASE}weights = "{copy}"\n{training}'
    recipe = tiny.write(tmp_path, text)
    tiny.run(recipe)
    moved = copy.rename(tmp_path / "moved.safetensors")
    resume = ("run", recipe, "--resume", "--runs", tmp_path / "runs")
    again = tiny.call(*resume, "--set", f'stage.base.weights="{moved}"')
    assert "trained already, unchanged" in again.stderr
    moved.write_bytes(ema(trained, "base", 2).read_bytes())
    other = tiny.call(*resume, "--set", f'stage.base.weights="{moved}"')
    assert other.exit_code == 3
    assert "weights.base: " in other.stderr


def test_what_binds_nothing_or_training_alone_may_change(tmp_path: Path) -> None:
    """Recomputing blocks, on resume; dropout, when training goes on from weights."""
    backbone = "stage.base.backbone"
    recipe = tiny.write(tmp_path, tiny.HEAD + tiny.BASE + tiny.TRAIN)
    run = tiny.run(recipe)
    again = tiny.call("run", recipe, "--resume", "--runs", tmp_path / "runs", "--set", f"{backbone}.checkpoint=true")
    assert (again.exit_code, "trained already, unchanged" in again.stderr) == (0, True), again.stderr
    refused = tiny.call("run", recipe, "--resume", "--runs", tmp_path / "runs", "--set", f"{backbone}.dropout=0.2")
    assert (refused.exit_code, "stage.base.backbone.dropout: 0.0 -> 0.2" in refused.stderr) == (3, True)
    weights = f'stage.base.weights="{ema(run, "base")}"'
    tuned = tiny.call("run", recipe, "--runs", tmp_path / "tuned", "--set", weights, "--set", f"{backbone}.dropout=0.2")
    assert tuned.exit_code == 0, tuned.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.unlink(), "or what `cdmkit import` makes of published ones"),
        (lambda path: path.write_bytes(b"<html>not found</html>"), "cannot be read as safetensors"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "cannot be read as safetensors"),
    ],
    ids=["missing", "html", "cut short"],
)
def test_weights_that_cannot_be_read_are_refused_before_anything_is_made(trained: Path, tmp_path: Path, change: Any, words: str) -> None:
    """Exit code 7, the file named, no run folder."""
    path = tmp_path / "copy.safetensors"
    path.write_bytes(ema(trained, "base").read_bytes())
    change(path)
    recipe = tiny.write(tmp_path, f'{tiny.HEAD}{tiny.BASE}weights = "{path}"\n')
    result = tiny.call("run", recipe, "--runs", tmp_path / "runs")
    assert (result.exit_code, words in result.stderr, str(path) in result.stderr) == (7, True, True)
    assert not (tmp_path / "runs").exists()


def test_weights_of_another_stage_are_refused(trained: Path, tmp_path: Path) -> None:
    """What differs is named: here what the network predicts."""
    recipe = tiny.write(tmp_path, with_weights(trained).replace('prediction = "epsilon"', 'prediction = "v"'))
    result = tiny.call("run", recipe, "--runs", tmp_path / "runs")
    assert result.exit_code == 7
    assert 'stage.base.prediction: "epsilon" -> "v"' in result.stderr


def test_a_stage_without_weights_must_be_trained(tmp_path: Path) -> None:
    """Neither steps nor a file is a fault of the recipe."""
    result = tiny.call("validate", tiny.write(tmp_path, tiny.HEAD + tiny.BASE))
    assert (result.exit_code, "train.steps is missing" in result.stderr) == (3, True)


# Guidance


GUIDED = tiny.HEAD + tiny.BASE + "label_dropout = 0.3\n" + tiny.TRAIN


def test_classifier_free_guidance_changes_samples_and_no_training(tmp_path: Path) -> None:
    """Scale 1 is the sample without it; more is another one; the trained stage stays what it was."""
    run = tiny.run(tiny.write(tmp_path, GUIDED))
    for scale in (1.0, 4.0):
        guidance = f'stage.base.guidance={{ type = "classifier-free", scale = {scale} }}'
        result = tiny.call("sample", run, "--set", guidance, "--out", tmp_path / str(scale))
        assert result.exit_code == 0, result.stderr
    plain, guided = (pixels(tmp_path, "base", folder) for folder in ("1.0", "4.0"))
    assert torch.equal(plain, pixels(run, "base"))
    assert not torch.equal(guided, plain)
    recipe = tiny.write(tmp_path, GUIDED.replace("label_dropout", 'guidance = { type = "classifier-free", scale = 2 }\nlabel_dropout'))
    again = tiny.call("run", recipe, "--resume", "--allow-recipe-change", "--runs", tmp_path / "runs")
    assert "trained already, unchanged" in again.stderr


def test_guidance_needs_labels_that_were_withheld(tmp_path: Path) -> None:
    """A fault of the recipe."""
    recipe = tiny.RECIPE.replace("resolution = 4\n", 'resolution = 4\nguidance = { type = "classifier-free", scale = 2 }\n')
    result = tiny.call("validate", tiny.write(tmp_path, recipe))
    assert (result.exit_code, "label_dropout, such as 0.1" in result.stderr) == (3, True)


def test_what_is_about_labels_needs_classes(tmp_path: Path) -> None:
    """Both keys are faults where the data has none: they would change nothing."""
    recipe = GUIDED.replace("classes = 8\n", "").replace(
        "label_dropout", 'guidance = { type = "classifier-free", scale = 2 }\nlabel_dropout'
    )
    result = tiny.call("validate", tiny.write(tmp_path, recipe))
    assert result.exit_code == 3
    for key in ("label_dropout", "guidance"):
        assert f"stage.base.{key}: this is about labels, but the data has none" in result.stderr


def test_an_earlier_checkpoint_guides(tmp_path: Path) -> None:
    """Autoguidance by the weights after two of four steps; by those of the same step it changes nothing but rounding."""
    run = tiny.run(tiny.write(tmp_path, tiny.HEAD + tiny.BASE + tiny.TRAIN))
    for step in (2, 4):
        guidance = f'stage.base.guidance={{ type = "autoguidance", scale = 3, weights = "{ema(run, "base", step)}" }}'
        result = tiny.call("sample", run, "--set", guidance, "--out", tmp_path / str(step))
        assert result.exit_code == 0, result.stderr
    earlier, same = (pixels(tmp_path, "base", folder).int() for folder in ("2", "4"))
    assert int((same - pixels(run, "base").int()).abs().max()) <= 1
    assert int((earlier - same).abs().max()) > 1


def test_a_smaller_network_guides(trained: Path, tmp_path: Path) -> None:
    """The file says what network it is of."""
    small = tiny.HEAD.replace("channels = 8", "channels = 4").replace('prediction = "epsilon"', 'prediction = "v"') + tiny.BASE + tiny.TRAIN
    weak = ema(tiny.run(tiny.write(tmp_path / "weak", small)), "base")
    guidance = f'stage.base.guidance={{ type = "autoguidance", scale = 2, weights = "{weak}" }}'
    result = tiny.call("sample", trained, "--set", guidance, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert not torch.equal(pixels(tmp_path, "base", "out"), pixels(trained, "base"))


def test_a_model_trained_alone_guides_one_in_a_cascade(tmp_path: Path) -> None:
    """What it is told is the same: images of that resolution, noised along that schedule."""
    weak = ema(tiny.run(tiny.write(tmp_path / "alone", ALONE)), "fine", 2)
    run = tiny.run(tiny.write(tmp_path / "cascade"))
    guidance = f'stage.fine.guidance={{ type = "autoguidance", scale = 2, weights = "{weak}" }}'
    result = tiny.call("sample", run, "--set", guidance, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert not torch.equal(pixels(tmp_path, "fine", "out"), pixels(run, "fine"))


def test_what_cannot_guide_is_refused(trained: Path, tmp_path: Path) -> None:
    """A network that is told other things, or no file at all."""
    alone = ema(tiny.run(tiny.write(tmp_path, ALONE)), "fine")
    longer = tiny.HEAD.replace("timesteps = 20", "timesteps = 200") + tiny.BASE + tiny.TRAIN
    other = ema(tiny.run(tiny.write(tmp_path / "longer", longer)), "base")
    for path, words in (
        (other, "it was trained with another schedule"),
        (alone, "it was trained with another resolution and enlarges and augment"),
        (tmp_path / "no", "there is no file"),
    ):
        guidance = f'stage.base.guidance={{ type = "autoguidance", scale = 2, weights = "{path}" }}'
        result = tiny.call("sample", trained, "--set", guidance, "--out", tmp_path / "out")
        assert (result.exit_code, words in result.stderr) == (7, True), result.stderr
