"""What a run does from end to end, and what going on with it does."""

from __future__ import annotations

import json
import shutil
import signal
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from cdmkit import pipeline
from cdmkit.builtin.shapes import Shapes
from cdmkit.builtin.webdataset import WebDataset
from cdmkit.data.writer import Sample, write_shards
from cdmkit.errors import Stopped
from cdmkit.events import Progress, Warned
from cdmkit.hookspecs import hookimpl
from cdmkit.log import read_metrics
from cdmkit.place import Place
from cdmkit.plugins import load_plugins
from cdmkit.recipe import read
from cdmkit.training.checkpoint import load, read_weights, save
from cdmkit.training.retention import Retention
from tests import tiny

SR = tiny.FINE.partition("\n")[2]
"""The keys of a stage that enlarges."""


def events(run: Path) -> list[tuple[str, str]]:
    """Name and stage of each logged event."""
    entries = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    return [(entry["event"], entry.get("stage", "")) for entry in entries]


def stored(folder: Path, count: int = 16, *, resolution: int = 8, label: int | None = 0) -> str:
    """Shapes in a shard, labelled from `label` on or not at all; the pattern of the shard."""
    images, labels = Shapes(resolution=resolution).render(torch.arange(count))
    samples = (Sample(image, None if label is None else label + int(n)) for image, n in zip(images, labels, strict=True))
    write_shards(samples, folder)
    return str(folder / "train-*.tar")


def on_shards(pattern: str, classes: int = 8) -> tuple[str, ...]:
    """The options that put the recipe on shards."""
    return ("--set", f'data.source={{ type = "webdataset", shards = "{pattern}" }}', "--set", f"data.classes={classes}")


def test_the_folder_of_a_run_is_as_documented(trained: Path) -> None:
    """Every file that there is, and no other."""
    files = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    checkpoint = {"weights.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"}
    stage = {"fingerprint", "done", "samples/step-00000002.png", "samples/step-00000004.png"}
    stage |= {f"ckpt/step-0000000{step}/{name}" for step in (2, 4) for name in checkpoint}
    top = {"run.json", "recipe.toml", "recipe.resolved.toml", "events.jsonl", "metrics.jsonl", "lock"}
    assert files == {
        *top,
        *(f"stages/{name}/{file}" for name in ("base", "fine") for file in stage),
        "stages/fine/samples/low-res.safetensors",
        *("samples/base.png", "samples/fine.png", "samples/fine-00000.tar"),
    }


def test_the_recipe_is_kept_as_given_and_as_it_is_meant(trained: Path) -> None:
    """The resolved one reads back as an equal recipe."""
    assert (trained / "recipe.toml").read_text() == tiny.RECIPE
    plugins = load_plugins()
    assert read(trained / "recipe.resolved.toml", plugins) == read(trained / "recipe.toml", plugins)
    facts = json.loads((trained / "run.json").read_text())
    assert (facts["name"], facts["seed"], facts["outcome"]) == ("tiny", 0, "finished")


def test_events_tell_all_that_happened_in_order(trained: Path) -> None:
    """Parents before children, samples last. A checkpoint is told of when it stands, some time after the step that it is of."""
    of_stage = ["stage_started", *("progress", "samples_written") * 2, "stage_finished"]
    trainings = [(event, stage) for stage in ("base", "fine") for event in of_stage]
    sampled = [("samples_written", "base"), ("samples_written", "fine")]
    told = events(trained)
    assert [event for event in told if event[0] != "checkpoint_saved"] == [("run_started", ""), *trainings, *sampled, ("run_finished", "")]
    for stage in ("base", "fine"):
        during = told[told.index(("stage_started", stage)) : told.index(("stage_finished", stage))]
        assert during.count(("checkpoint_saved", stage)) == 2


def test_metrics_are_numbers_of_every_report(trained: Path) -> None:
    """Stage, step, images seen, loss, gradient norm, learning rate and speed."""
    lines = read_metrics(trained / "metrics.jsonl")
    assert [(line["stage"], line["step"], line["steps"], line["images"]) for line in lines] == [
        (stage, step, 4, 4 * step) for stage in ("base", "fine") for step in (2, 4)
    ]
    assert all(0 < line["loss"] < 3 and line["grad_norm"] > 0 and line["lr"] > 0 and line["images_per_second"] > 0 for line in lines)


def test_samples_are_a_shard_that_can_be_trained_on(trained: Path) -> None:
    """Pictures of the last stage with labels in turn, each with what it was made from."""
    source = WebDataset(shards=str(trained / "samples" / "fine-*.tar"))
    card = source.card()
    assert (card.resolution, card.count, card.classes) == (8, 16, 8)
    with tarfile.open(trained / "samples" / "fine-00000.tar") as tar:
        members = {name: file.read() for name in tar.getnames() if (file := tar.extractfile(name))}
    for index in range(16):
        assert int(members[f"fine-{index:07d}.cls"]) == index % 8
        assert json.loads(members[f"fine-{index:07d}.json"]) == {"index": index, "seed": 0, "s": {"fine": 5}}


def test_grids_show_what_they_say(trained: Path) -> None:
    """Of samples a column for each label; of a stage in training 8 x 8, or low resolution, samples, originals, and sampled low resolution
    with its samples in five rows.
    """
    shapes = {"samples/fine.png": 2 / 8, "stages/base/samples/step-00000004.png": 1, "stages/fine/samples/step-00000004.png": 5 / 8}
    for name, ratio in shapes.items():
        with Image.open(trained / name) as grid:
            assert grid.height / grid.width == pytest.approx(ratio, rel=0.02)


def test_the_preview_of_a_stage_shows_training_images(trained: Path) -> None:
    """Its third row is the originals, pixel for pixel."""
    images = iter_batch(Shapes(resolution=8, count=32))
    with Image.open(trained / "stages" / "fine" / "samples" / "step-00000004.png") as grid:
        tile = (grid.width + 2) // 8
        shown = grid.crop((0, 2 * tile, tile - 2, 3 * tile - 2)).resize((8, 8), Image.Resampling.NEAREST)
    assert list(shown.tobytes()) == images[0].permute(1, 2, 0).flatten().tolist()


def iter_batch(source: Shapes) -> torch.Tensor:
    """The first training images with seed 0."""
    with source.open(8, 0, 1, 0, 0) as batches:
        return next(batches).images


def test_the_averaged_weights_carry_the_stage_they_are_of(trained: Path) -> None:
    """So that they are not sampled as another one."""
    _, metadata = read_weights(trained / "stages" / "fine" / "ckpt" / "step-00000004" / "ema.safetensors")
    assert (metadata["stage"], metadata["step"], metadata["table"]["resolution"]) == ("fine", 4, 8)
    assert metadata["parent"]["resolution"] == 4
    assert metadata["data"]["classes"] == 8


def test_samples_have_no_labels_where_no_stage_is_told_them(tmp_path: Path) -> None:
    """Though the data has; to ask for a class is a usage error."""
    run = tiny.run(tiny.write(tmp_path), "--set", "stage.base.labels=false", "--set", "stage.fine.labels=false")
    assert WebDataset(shards=str(run / "samples" / "fine-*.tar")).card().classes == 0
    result = tiny.call("sample", run, "--class", 1)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no class 1: no stage is told labels" in result.stderr


def test_every_last_stage_of_a_branching_cascade_is_sampled(tmp_path: Path) -> None:
    """Two children of one base, in a folder each; the first one's grid is the result."""
    other = "[stage.other]\n" + SR.replace("resolution = 8", "resolution = 12").replace("truncated", "non-truncated")
    recipe = tiny.write(tmp_path, tiny.RECIPE + other)
    result = tiny.call("run", recipe, "--runs", tmp_path, "--set", "data.source.resolution=24")
    assert result.exit_code == 0, result.stderr
    grid = Path(result.stdout.strip())
    assert grid.name == "fine.png"
    for leaf in ("fine", "other"):
        assert {path.name for path in (grid.parents[1] / leaf).iterdir()} == {"base.png", f"{leaf}.png", f"{leaf}-00000.tar"}
    shared = [grid.parents[1] / leaf / "base.png" for leaf in ("fine", "other")]
    assert shared[0].read_bytes() != shared[1].read_bytes(), "the truncated one takes over z_s"
    assert WebDataset(shards=str(grid.parents[1] / "other" / "other-*.tar")).card().resolution == 12


def test_three_stages_of_either_mode_without_classes(tmp_path: Path) -> None:
    """A truncated stage after one that is not; no labels anywhere."""
    text = (
        tiny.RECIPE.replace("classes = 8", "classes = 0")
        + "[stage.finest]\n"
        + SR.replace('"base"', '"fine"').replace("resolution = 8", "resolution = 16").replace('"truncated"', '"non-truncated"')
    )
    run = tiny.run(tiny.write(tmp_path, text), "--set", "data.source.resolution=16")
    card = WebDataset(shards=str(run / "samples" / "finest-*.tar")).card()
    assert (card.resolution, card.count, card.classes) == (16, 16, 0)
    assert {path.name for path in (run / "samples").glob("*.png")} == {"base.png", "fine.png", "finest.png"}


def test_a_truncated_parent_hands_over_noise(tmp_path: Path, trained: Path) -> None:
    """Its grid shows z_s, which is noisier than the image that a non-truncated one finishes."""
    finished = tmp_path / "finished"
    assert tiny.call("sample", trained, "--out", finished, "--set", 'stage.fine.condition.mode="non-truncated"').exit_code == 0
    assert (finished / "base.png").read_bytes() != (trained / "samples" / "base.png").read_bytes()


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """A finished run of one's own, at tmp_path/runs/tiny/..., with its recipe at tmp_path/tiny.toml."""
    tiny.write(tmp_path)
    target = tmp_path / "runs" / "tiny" / trained.name
    shutil.copytree(trained, target)
    return target


def resume(copy: Path, *arguments: str) -> Path:
    """Go on with the newest run of the recipe; it must be this one."""
    run = tiny.run(copy.parents[2] / "tiny.toml", "--resume", *arguments)
    assert run == copy
    return run


def test_resuming_a_finished_run_trains_nothing(copy: Path) -> None:
    """Stages that are done and unchanged are skipped, and sampled again with equal results."""
    before, pictures = tiny.weights(copy, "fine"), (copy / "samples" / "fine-00000.tar").read_bytes()
    told = len(events(copy))
    resume(copy)
    assert tiny.weights(copy, "fine") == before
    assert (copy / "samples" / "fine-00000.tar").read_bytes() == pictures
    assert events(copy)[told:][1:3] == [("stage_finished", "base"), ("stage_finished", "fine")]


def test_a_run_of_a_version_with_fewer_options_goes_on(copy: Path) -> None:
    """What its recipe does not say is at its default: no change, and nothing is trained anew. It can be sampled, too."""
    before, resolved = tiny.weights(copy), copy / "recipe.resolved.toml"
    text = resolved.read_text()
    resolved.write_text(text.replace("clip = true\n", "").replace('upsample = "bilinear"\n', ""))
    assert resolved.read_text() != text
    resume(copy)
    assert tiny.weights(copy) == before
    assert resolved.read_text() != text
    path = max((copy / "stages" / "fine" / "ckpt").iterdir())
    _, metadata = read_weights(path / "ema.safetensors")
    del metadata["table"]["upsample"]
    save(path.parent, load(path), metadata, Retention(newest=1))
    assert tiny.call("sample", copy, "--count", 1).exit_code == 0


def test_a_changed_stage_is_trained_anew_alone_when_allowed(copy: Path) -> None:
    """The other is skipped; what changed is noted."""
    base, fine = tiny.weights(copy), tiny.weights(copy, "fine")
    resume(copy, "--allow-recipe-change", "--set", "stage.fine.backbone.channels=12")
    assert tiny.weights(copy) == base
    assert tiny.weights(copy, "fine") != fine
    facts = json.loads((copy / "run.json").read_text())
    assert facts["recipe_changes"] == ["stage.fine.backbone.channels: 8 -> 12"]
    assert "channels = 12" in (copy / "recipe.resolved.toml").read_text()


def test_more_steps_go_on_where_training_ended(copy: Path, tmp_path: Path) -> None:
    """And end with the weights of a run that was as long from the start."""
    run = resume(copy, "--set", "stage.base.train.steps=6")
    assert ("stage_started", "fine") not in events(run)[events(run).index(("run_finished", "")) :]
    whole = tiny.run(tiny.write(tmp_path / "whole"), "--set", "stage.base.train.steps=6")
    assert tiny.weights(run) == tiny.weights(whole)


@pytest.mark.parametrize(
    "change",
    [
        'description="better"',
        "sample.count=3",
        "stage.base.train.log_every=1",
        "stage.base.train.sample_every=0",
        "stage.base.train.checkpoint_every=9",
        "stage.base.train.keep=1",
        "stage.base.train.keep_every=2",
        "stage.base.train.keep_best=1",
        "stage.base.train.accumulate=2",
        "stage.base.train.bad_steps=1",
        'stage.fine.backend.device="auto"',
    ],
)
def test_harmless_changes_need_no_permission(copy: Path, change: str) -> None:
    """What leaves the weights as they are."""
    before = tiny.weights(copy)
    resume(copy, "--set", change)
    assert tiny.weights(copy) == before


@pytest.mark.parametrize(
    "change", ["seed=1", "stage.base.train.batch=8", "stage.base.train.optimizer.lr=0.1", 'data.downsample="bicubic"', "data.classes=0"]
)
def test_changes_of_what_is_learned_are_refused(copy: Path, change: str) -> None:
    """Exit code 3 with the key, the old and the new value; the run is left as it is."""
    before = (copy / "run.json").read_bytes()
    result = tiny.call("run", copy.parents[2] / "tiny.toml", "--runs", copy.parents[1], "--resume", "--set", change)
    key, _, value = change.partition("=")
    assert (result.exit_code, result.stdout) == (3, "")
    assert any(line.startswith(f"  {key}: ") and line.endswith(f" -> {value}") for line in result.stderr.splitlines()), result.stderr
    assert "--allow-recipe-change" in result.stderr
    assert (copy / "run.json").read_bytes() == before


def test_images_may_move_but_not_change(tmp_path: Path) -> None:
    """A run goes on with the same images elsewhere; with others it is refused, and what it has learned stays."""
    recipe, pattern = tiny.write(tmp_path), stored(tmp_path / "here")
    run = tiny.run(recipe, *on_shards(pattern))
    before = tiny.weights(run)
    shutil.move(tmp_path / "here", tmp_path / "there")
    moved = on_shards(str(tmp_path / "there" / "train-*.tar"))
    assert tiny.run(recipe, *moved, "--resume") == run
    stored(tmp_path / "there", 24)
    result = tiny.call("run", recipe, "--runs", tmp_path / "runs", *moved, "--resume")
    assert result.exit_code == 3
    assert "  images: " in result.stderr
    assert tiny.weights(run) == before


def test_a_stage_whose_checkpoints_were_removed_is_trained_again(copy: Path) -> None:
    """Though it was noted as done; to the same weights."""
    before = tiny.weights(copy)
    shutil.rmtree(copy / "stages" / "base" / "ckpt")
    resume(copy)
    assert tiny.weights(copy) == before


@pytest.mark.parametrize(
    ("resolution", "label", "classes", "words"),
    [
        (12, 0, 8, "12 x 12 pixels, but the largest stage makes 8 x 8"),
        (4, 0, 8, "4 x 4 pixels, but the largest stage makes 8 x 8"),
        (8, 4, 8, ": set data.classes = 12, or 0"),
        (8, None, 8, "the images have no labels: set data.classes = 0"),
    ],
)
def test_data_that_does_not_fit_is_refused_before_a_run_is_made(
    tmp_path: Path, resolution: int, label: int | None, classes: int, words: str
) -> None:
    """Exit code 5, with both numbers and how to mend it."""
    pattern = stored(tmp_path / "data", resolution=resolution, label=label)
    result = tiny.call("run", tiny.write(tmp_path), "--runs", tmp_path / "runs", *on_shards(pattern, classes))
    assert (result.exit_code, result.stdout) == (5, "")
    assert words in result.stderr
    assert not (tmp_path / "runs").exists()


def test_data_may_have_fewer_labels_or_larger_images(tmp_path: Path) -> None:
    """Images are shrunk; classes that no image has are learned from none; labels may be ignored."""
    pattern = stored(tmp_path / "data", resolution=16)
    for classes in (0, 8, 9):
        run = tiny.run(tiny.write(tmp_path), *on_shards(pattern, classes))
        assert WebDataset(shards=str(run / "samples" / "fine-*.tar")).card().classes == classes


def test_nearest_cannot_shrink_images(tmp_path: Path) -> None:
    """A fault of the recipe, before a run is made."""
    result = tiny.call("run", tiny.write(tmp_path), "--runs", tmp_path / "runs", "--set", 'data.downsample="nearest"')
    assert (result.exit_code, result.stdout) == (3, "")
    assert 'data.downsample = "nearest" cannot shrink' in result.stderr
    assert not (tmp_path / "runs").exists()


def test_grids_that_cannot_be_written_do_not_end_training(tmp_path: Path) -> None:
    """A warning each; the run finishes and has its weights."""
    recipe = tiny.write(tmp_path)
    run = tiny.run(recipe)
    shutil.rmtree(run / "stages" / "base" / "samples")
    (run / "stages" / "base" / "samples").write_text("in the way")
    tiny.run(recipe, "--resume", "--set", "stage.base.train.steps=8")
    warnings = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines() if '"warned"' in line]
    assert ["no samples of step" in warning["message"] for warning in warnings] == [True, True]
    assert load(run / "stages" / "base" / "ckpt" / "step-00000008").step == 8


class Stops:
    """Someone who sends a signal at a report, just before a preview."""

    @hookimpl
    def cdmkit_progress(self) -> None:
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_ends_a_preview(tmp_path: Path) -> None:
    """Training stops at the step that is saved, and no picture of it is written."""
    with pytest.raises(Stopped, match=r"stopped by SIGTERM at step 2 of 4 of stage 'base'; all is saved"):
        pipeline.run(tiny.write(tmp_path), load_plugins(extra=[Stops()]), (), Place(root=tmp_path))
    assert [path.name for path in tmp_path.glob("tiny/*/stages/base/ckpt/*")] == ["step-00000002"]
    assert not list(tmp_path.rglob("*.png"))


class Breaks:
    """A tracker that lost its server, and cannot tell of that either."""

    @hookimpl
    def cdmkit_progress(self, event: Progress) -> None:
        raise ConnectionError(f"no route at step {event.step}")

    @hookimpl
    def cdmkit_warned(self) -> None:
        raise ConnectionError("no route")


class Listens:
    """A tracker that works, beside it."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.warnings: list[str] = []

    @hookimpl
    def cdmkit_progress(self, event: Progress) -> None:
        self.steps.append(event.step)

    @hookimpl
    def cdmkit_warned(self, event: Warned) -> None:
        self.warnings.append(event.message)


def test_a_failing_observer_does_not_end_the_run_nor_silence_others(tmp_path: Path) -> None:
    """It is warned of once, by name, to all that observe; others, before and after it, miss nothing."""
    first, last = Listens(), Listens()
    grid = pipeline.run(tiny.write(tmp_path), load_plugins(extra=[first, Breaks(), last]), (), Place(root=tmp_path))
    assert grid is not None
    warning = "plugin Breaks failed in cdmkit_progress: ConnectionError: no route at step 2. The work goes on."
    for observer in (first, last):
        assert (observer.steps, observer.warnings) == ([2, 4, 2, 4], [warning])
    run = grid.parents[1]
    assert len(read_metrics(run / "metrics.jsonl")) == 4
    assert events(run).count(("warned", "")) == 1


def test_another_seed_is_another_run(tmp_path: Path, trained: Path) -> None:
    """Other weights, other samples."""
    other = tiny.run(tiny.write(tmp_path), "--set", "seed=1")
    assert tiny.weights(other)["ckpt/step-00000004/weights.safetensors"] != tiny.weights(trained)["ckpt/step-00000004/weights.safetensors"]


def test_equal_recipes_are_equal_runs(tmp_path: Path, trained: Path) -> None:
    """Weights and pictures, byte for byte."""
    again = tiny.run(tiny.write(tmp_path))
    assert tiny.weights(again, "fine") == tiny.weights(trained, "fine")
    for name in ("base.png", "fine.png", "fine-00000.tar"):
        assert (again / "samples" / name).read_bytes() == (trained / "samples" / name).read_bytes()
