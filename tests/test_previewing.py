"""Grids of samples while a stage trains: what they show, what ends them, and when colours are warned of."""

from __future__ import annotations

import io
import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cdmkit.builtin.shapes import Shapes
from cdmkit.cascade import Mode, Stage
from cdmkit.cascade.sampling import Renderer
from cdmkit.component import evolve
from cdmkit.data.pixels import to_uint8
from cdmkit.data.resize import Resize
from cdmkit.errors import CheckpointError, SetupError, Stopped
from cdmkit.plugins import load_plugins
from cdmkit.previewing import DRIFT, Previewer, drift_alarm, drift_of
from cdmkit.recipe import read
from cdmkit.sampling import obey, open_renderer
from cdmkit.training import StopRequest
from tests import tiny

SHAPES = Shapes(resolution=8, count=32)


def quiet(_stage: str) -> None:
    """Told of network calls, tell nobody."""


@pytest.fixture(scope="module")
def lineage(trained: Path) -> list[Stage]:
    """The stages of the tiny cascade."""
    return read(trained / "recipe.resolved.toml", load_plugins()).cascade.lineage("fine")


@pytest.fixture(scope="module")
def renderer(lineage: list[Stage], trained: Path) -> Renderer:
    """Their trained networks."""
    return open_renderer(lineage, trained / "stages", 8, 0, quiet)


@pytest.fixture
def stages(tmp_path: Path) -> Path:
    """A folder of stages in which nothing is trained yet."""
    (tmp_path / "stages" / "base").mkdir(parents=True)
    (tmp_path / "stages" / "fine").mkdir()
    return tmp_path / "stages"


def previewer(stages: Path, *lineage: Stage, source: Shapes = SHAPES, columns: int = 8) -> Previewer:
    """One of the last stage of a lineage."""
    return Previewer(lineage=lineage, stages=stages, source=source, downsample=Resize.AREA, classes=8, seed=0, columns=columns)


def shown(path: Path, rows: int, columns: int, size: int) -> Tensor:
    """The pictures of a grid, uint8 [rows, columns, 3, size, size]."""
    with Image.open(io.BytesIO(path.read_bytes())) as grid:
        pixels = torch.tensor(list(grid.tobytes()), dtype=torch.uint8).view(grid.height, grid.width, 3)
    tile = (pixels.shape[1] + 2) // columns
    scale = (tile - 2) // size
    assert (grid.height + 2) // tile == rows
    tiles = [
        [pixels[r * tile : (r + 1) * tile - 2 : scale, c * tile : (c + 1) * tile - 2 : scale] for c in range(columns)] for r in range(rows)
    ]
    return torch.stack([torch.stack(row) for row in tiles]).permute(0, 1, 4, 2, 3)


def test_real_images_are_enlarged_and_the_network_is_left_as_it_was(lineage: list[Stage], renderer: Renderer, stages: Path) -> None:
    """Low resolution, samples and originals, a column each; training mode is given back."""
    network = renderer.networks["fine"].train()
    path, source = stages / "fine" / "samples" / "grid.png", Shapes(resolution=16, count=32)
    told = previewer(stages, *lineage, source=source, columns=4)(network, path, quiet)
    assert network.training
    low, made, real = shown(path, 3, 4, 8)
    with source.open(4, 0, 1, 0, 0) as batches:
        originals = next(batches).images.float()
    assert (real.float() - Resize.AREA(originals, 8)).abs().max() <= 1
    assert (low[:, :, ::2, ::2].float() - Resize.AREA(originals, 4)).abs().max() <= 1
    assert (made != real).any()
    means = (made.float() / 127.5).mean((2, 3)) - (low.float() / 127.5).mean((2, 3))
    assert told.count == 4
    assert told.drift == pytest.approx(float(means.abs().mean()), abs=0.01)


def test_a_base_stage_has_no_drift(lineage: list[Stage], renderer: Renderer, stages: Path) -> None:
    """It enlarges nothing, and has 8 x 8 samples."""
    told = previewer(stages, lineage[0])(renderer.networks["base"], stages / "base" / "grid.png", quiet)
    assert (told.count, told.drift) == (64, None)


def test_it_ends_at_the_network_call_at_which_it_is_told_to(lineage: list[Stage], renderer: Renderer, stages: Path) -> None:
    """Nothing is written, and the network is left as it was."""
    network = renderer.networks["base"].train()
    stop = StopRequest()
    stop.request("SIGTERM")
    path = stages / "base" / "grid.png"
    with pytest.raises(Stopped, match="stopped by SIGTERM while stage 'base' was sampled"):
        previewer(stages, lineage[0])(network, path, partial(obey, stop))
    assert network.training
    assert not path.exists()


def test_too_little_memory_is_said(lineage: list[Stage], stages: Path) -> None:
    """With what to leave out; training is not blamed."""
    network = nn.Identity()
    network.register_forward_pre_hook(exhaust)
    with pytest.raises(SetupError, match=r"64 images up to stage 'base' at once.*sample_every = 0"):
        previewer(stages, lineage[0])(network, None, quiet)


def exhaust(*_: object) -> None:
    """What a device without memory does when a network is called."""
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_real_images_are_noised_to_s_in_either_mode(lineage: list[Stage], renderer: Renderer, stages: Path) -> None:
    """A truncated stage's network expects z_s, which real images are not: they are noised to it, as a finished parent's would be."""
    base, fine = lineage

    def show(name: str, **condition: object) -> bytes:
        stage, path = evolve(fine, condition=evolve(fine.condition, **condition)), stages / "fine" / "samples" / name
        previewer(stages, base, stage)(renderer.networks["fine"], path, quiet)
        return path.read_bytes()

    truncated, finished, clean = show("t", mode=Mode.TRUNCATED), show("n", mode=Mode.NON_TRUNCATED), show("c", s=0)
    assert truncated == finished != clean


def test_a_deleted_run_is_not_made_again(lineage: list[Stage], renderer: Renderer, tmp_path: Path) -> None:
    """It raises what the caller turns into a warning."""
    path = tmp_path / "gone" / "samples" / "grid.png"
    with pytest.raises(OSError, match="samples"):
        previewer(tmp_path, lineage[0])(renderer.networks["base"], path, quiet)
    assert not (tmp_path / "gone").exists()


# The low resolution as the cascade samples it


@pytest.mark.parametrize("mode", list(Mode))
def test_sampled_low_resolution_is_what_the_cascade_samples(mode: Mode, lineage: list[Stage], trained: Path, stages: Path) -> None:
    """Where the stage before has weights: to z_s or x_0, with the labels of the real images; and so is what becomes of it."""
    base, fine = lineage
    fine = evolve(fine, condition=evolve(fine.condition, mode=mode))
    shutil.copytree(trained / "stages" / "base", stages / "base", dirs_exist_ok=True)
    path = stages / "fine" / "samples" / "grid.png"
    whole = open_renderer((base, fine), trained / "stages", 8, 0, quiet)
    assert previewer(stages, base, fine)(whole.networks["fine"], path, quiet).count == 16
    with SHAPES.open(8, 0, 1, 0, 0) as batches:
        _, labels, positions = next(batches)
    cascade = whole(positions, labels)
    *_, low, made = shown(path, 5, 8, 8)
    assert (low[:, :, ::2, ::2].int() - to_uint8(cascade["base"]).int()).abs().max() <= 1
    assert (made.int() - to_uint8(cascade["fine"]).int()).abs().max() <= 1


def test_it_is_sampled_once(lineage: list[Stage], renderer: Renderer, trained: Path, stages: Path) -> None:
    """While the weights before are the same: also by a resumed run. With others, and where the file is damaged, it is sampled anew."""
    shutil.copytree(trained / "stages" / "base", stages / "base", dirs_exist_ok=True)
    folder = stages / "fine" / "samples"

    def calls(name: str) -> int:
        counted: list[str] = []
        previewer(stages, *lineage)(renderer.networks["fine"], folder / name, counted.append)
        return counted.count("base")

    assert (calls("first"), calls("second")) == (1, 0)
    assert (folder / "first").read_bytes() == (folder / "second").read_bytes()
    (folder / "low-res.safetensors").write_bytes(b"damaged")
    assert (calls("third"), calls("fourth")) == (1, 0)
    shutil.rmtree(stages / "base" / "ckpt" / "step-00000004")
    assert (calls("earlier weights"), calls("again")) == (1, 0)
    shutil.rmtree(stages / "base" / "ckpt")
    previewer(stages, *lineage)(renderer.networks["fine"], folder / "without", quiet)
    shown(folder / "without", 3, 8, 8)


def test_it_is_shown_where_it_cannot_be_kept(lineage: list[Stage], renderer: Renderer, trained: Path, stages: Path) -> None:
    """Processes that keep nothing go on with it, so that one that cannot must."""
    shutil.copytree(trained / "stages" / "base", stages / "base", dirs_exist_ok=True)
    (stages / "fine" / "samples" / "low-res.safetensors").mkdir(parents=True)
    path = stages / "fine" / "samples" / "grid.png"
    assert previewer(stages, *lineage)(renderer.networks["fine"], path, quiet).count == 16
    shown(path, 5, 8, 8)


def test_it_is_sampled_anew_from_other_images(tmp_path: Path) -> None:
    """Where the first stage enlarges real ones, and `[data.val]` is another between two resumes."""
    run = tiny.run(tiny.write(tmp_path), "--set", "stage.base.low_res=2", "--set", "defaults.stage.train.sample_every=0")
    lineage = read(run / "recipe.resolved.toml", load_plugins()).cascade.lineage("fine")
    network, folder = open_renderer(lineage, run / "stages", 8, 0, quiet).networks["fine"], run / "stages" / "fine" / "samples"
    rows = []
    for name, source in (("one", SHAPES), ("other", evolve(SHAPES, colours=2))):
        previewer(run / "stages", *lineage, source=source)(network, folder / name, quiet)
        rows.append(shown(folder / name, 5, 8, 8)[3])
    assert not torch.equal(*rows)


def test_damaged_weights_of_the_stage_before_are_said(lineage: list[Stage], renderer: Renderer, trained: Path, stages: Path) -> None:
    """Not taken for none."""
    shutil.copytree(trained / "stages" / "base", stages / "base", dirs_exist_ok=True)
    (stages / "base" / "ckpt" / "step-00000004" / "ema.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="is damaged"):
        previewer(stages, *lineage)(renderer.networks["fine"], None, quiet)


def test_only_the_process_that_writes_keeps_anything(lineage: list[Stage], renderer: Renderer, trained: Path, stages: Path) -> None:
    """The others make the same images."""
    shutil.copytree(trained / "stages" / "base", stages / "base", dirs_exist_ok=True)
    told = previewer(stages, *lineage)(renderer.networks["fine"], None, quiet)
    assert not (stages / "fine" / "samples").exists()
    assert told == previewer(stages, *lineage)(renderer.networks["fine"], stages / "fine" / "samples" / "grid.png", quiet)


def test_samples_that_are_not_finite_end_no_training(tmp_path: Path) -> None:
    """Each grid that cannot be shown is warned of; that the samples of the trained stage are not finite is an error, after training."""
    recipe = tiny.write(tmp_path, tiny.HEAD + tiny.BASE + tiny.TRAIN)
    wild = ("label_dropout=0.5", 'threshold.type="none"', 'guidance={ type = "classifier-free", scale = 1e38 }')
    result = tiny.call("run", recipe, "--run", tmp_path / "run", *(part for each in wild for part in ("--set", f"stage.base.{each}")))
    assert (result.exit_code, result.stdout) == (6, "")
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    warned = [event["message"] for event in events if event["event"] == "warned"]
    assert [
        f"no samples of step {step}: stage 'base': 64 of 64 samples are not finite" in each
        for step, each in zip((2, 4), warned, strict=True)
    ] == [True, True]
    assert [event["step"] for event in events if event["event"] == "stage_finished"] == [4]


# Colours


def test_drift_is_of_channel_means() -> None:
    """Whatever the resolutions, and whatever the sign."""
    low = torch.zeros(2, 3, 4, 4)
    made = torch.zeros(2, 3, 8, 8)
    made[0, 0] = 0.3
    made[1, 2, :4] = -0.3
    assert drift_of(made, low) == pytest.approx((0.3 + 0.15) / 6)


@pytest.mark.parametrize(
    ("train", "step", "drift", "warned"),
    [
        ({"ema": 0.9}, 500, 2 * DRIFT, True),
        ({"ema": 0.9}, 500, DRIFT / 2, False),
        ({"ema": 0.9}, 99, 2 * DRIFT, False),
        ({"ema": 0.9999}, 1000, 2 * DRIFT, False),
        ({"ema": 0.9999, "ema_ramp": True}, 1000, 2 * DRIFT, True),
    ],
)
def test_a_trained_network_that_drifts_is_warned_of(
    lineage: list[Stage], train: dict[str, object], step: int, drift: float, warned: bool
) -> None:
    """Not one that has just begun, nor an average that still holds the weights it began with."""
    stage = evolve(lineage[1], train=evolve(lineage[1].train, **{"steps": 1000, "ema": 0.9, "ema_ramp": False, **train}))
    alarm = drift_alarm(stage, step, drift)
    assert (alarm is not None) == warned
    assert alarm is None or (f"at step {step} " in alarm and f"{drift:.3f}" in alarm)


def test_a_run_tells_of_drift(tmp_path: Path) -> None:
    """At each grid of a stage that enlarges, with a warning once its network counts as trained; of others nothing."""
    run = tiny.run(tiny.write(tmp_path), "--set", "defaults.stage.train.ema=0.0")
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    grids = [event for event in events if event["event"] == "samples_written" and "step-" in event["path"]]
    assert [event["drift"] is not None for event in grids] == [event["stage"] == "fine" for event in grids]
    drifts = [event["drift"] for event in grids if event["stage"] == "fine"]
    warned = [event["message"] for event in events if event["event"] == "warned"]
    assert len(drifts) == 2
    assert [f"stage 'fine': at step {step} the colours" in message for step, message in zip((2, 4), warned, strict=True)] == [True, True]
    assert min(drifts) > DRIFT
