"""Sampling jobs: what they make depends on seed, index and label alone; what they tell; what stops them."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from cdmkit.builtin.shapes import Shapes
from cdmkit.cascade import Mode, Stage
from cdmkit.component import evolve
from cdmkit.data.decode import decode
from cdmkit.data.resize import Resize
from cdmkit.errors import CheckpointError, SetupError, Stopped
from cdmkit.events import Event, SamplesWritten, SamplingProgress
from cdmkit.plugins import load_plugins
from cdmkit.recipe import read
from cdmkit.sampling import Job, Progress, obey, open_renderer, preview
from cdmkit.training import StopRequest


@pytest.fixture(scope="module")
def lineage(trained: Path) -> list[Stage]:
    """The stages of the tiny cascade."""
    return read(trained / "recipe.resolved.toml", load_plugins()).cascade.lineage("fine")


def quiet(_stage: str) -> None:
    """Told of network calls, tell nobody."""


def make(lineage: list[Stage], run: Path, folder: Path, count: int = 8, batch: int = 8, seed: int = 0) -> tuple[Tensor, list[Event]]:
    """Sample into `folder`: the images uint8 [count, 3, 8, 8] in order, and the events."""
    events: list[Event] = []
    job = Job(lineage=lineage, count=count, batch=batch, seed=seed, labels=range(8))
    grid = job.run(job.renderer(run / "stages", 8, Progress(events.append)), folder, events.append)
    assert grid == folder / f"{lineage[-1].name}.png"
    with tarfile.open(folder / f"{lineage[-1].name}-00000.tar") as tar:
        files = [file.read() for name in sorted(tar.getnames()) if name.endswith(".png") and (file := tar.extractfile(name))]
    return torch.stack([torch.from_numpy(decode(file)) for file in files]).permute(0, 3, 1, 2), events


def test_an_image_does_not_depend_on_the_batch_it_is_in(lineage: list[Stage], trained: Path, tmp_path: Path) -> None:
    """Up to rounding: at most one level of 255."""
    whole, _ = make(lineage, trained, tmp_path / "whole", count=7, batch=7)
    for batch in (1, 3, 100):
        parts, _ = make(lineage, trained, tmp_path / str(batch), count=7, batch=batch)
        assert (parts.int() - whole.int()).abs().max() <= 1
    more, _ = make(lineage, trained, tmp_path / "more", count=9, batch=9)
    assert (more[:7].int() - whole.int()).abs().max() <= 1


def test_seeds_decide(lineage: list[Stage], trained: Path, tmp_path: Path) -> None:
    """The same one makes the same files, another one other images."""
    first, _ = make(lineage, trained, tmp_path / "first", seed=3)
    make(lineage, trained, tmp_path / "again", seed=3)
    for name in ("fine.png", "base.png", "fine-00000.tar"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    other, _ = make(lineage, trained, tmp_path / "other", seed=4)
    assert (first != other).flatten(1).any(1).all()


def test_images_of_one_job_differ(lineage: list[Stage], trained: Path, tmp_path: Path) -> None:
    """Each has noise of its own."""
    images, _ = make(lineage, trained, tmp_path, count=9)
    assert len({image.numpy().tobytes() for image in images}) == 9


def test_progress_counts_the_network_calls_of_all_batches(lineage: list[Stage], trained: Path, tmp_path: Path) -> None:
    """Told at the end of each stage at the latest, and never beyond the total."""
    _, events = make(lineage, trained, tmp_path, count=8, batch=3)
    told = [event for event in events if isinstance(event, SamplingProgress)]
    last = {event.stage: event for event in told}
    # ddim in 2 steps; the base is stopped at s = 5, which it reaches in the first of them
    assert {stage: (event.done, event.total) for stage, event in last.items()} == {"base": (3, 3), "fine": (6, 6)}
    assert all(event.done <= event.total for event in told)
    assert [event.stage for event in events if isinstance(event, SamplesWritten)] == ["base", "fine"]


def test_grids_show_the_first_images_only(lineage: list[Stage], trained: Path, tmp_path: Path) -> None:
    """Sixty-four, however many there are."""
    make(lineage, trained, tmp_path, count=70, batch=30)
    with Image.open(tmp_path / "fine.png") as grid:
        assert grid.height == grid.width


def test_a_stage_without_checkpoint_is_said_and_nothing_is_written(lineage: list[Stage], tmp_path: Path) -> None:
    """With where it was looked for."""
    with pytest.raises(CheckpointError, match=r"stage 'base' has no checkpoint under .*base/ckpt") as caught:
        make(lineage, tmp_path, tmp_path / "out")
    assert caught.value.exit_code == 7
    assert not (tmp_path / "out").exists()


def test_damaged_weights_are_not_sampled(lineage: list[Stage], trained: Path, tmp_path: Path) -> None:
    """A flipped bit is seen by its digest."""
    shutil.copytree(trained / "stages", tmp_path / "stages")
    path = tmp_path / "stages" / "fine" / "ckpt" / "step-00000004" / "ema.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged"):
        make(lineage, tmp_path, tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_said(lineage: list[Stage], trained: Path, tmp_path: Path) -> None:
    """Not called a defect."""
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match=r"samples cannot be written into .*file/out"):
        make(lineage, trained, tmp_path / "file" / "out")


def test_a_stop_request_ends_sampling_without_half_a_shard(lineage: list[Stage], trained: Path, tmp_path: Path) -> None:
    """At the next network call."""
    stop = StopRequest()

    def ask(event: Event) -> None:
        if isinstance(event, SamplingProgress) and event.stage == "base":
            stop.request("SIGTERM")

    job = Job(lineage=lineage, count=8, batch=4, seed=0)
    renderer = job.renderer(trained / "stages", 8, Progress(ask, stop))
    with pytest.raises(Stopped, match="stopped by SIGTERM while stage 'fine' was sampled"):
        job.run(renderer, tmp_path / "out", ask)
    assert list((tmp_path / "out").iterdir()) == []


def test_samples_say_what_they_were_made_from(lineage: list[Stage], trained: Path, tmp_path: Path) -> None:
    """Index, seed and s of each stage; no label where there are no classes."""
    make(lineage, trained, tmp_path, count=2, seed=5)
    with tarfile.open(tmp_path / "fine-00000.tar") as tar:
        file = tar.extractfile("fine-0000001.json")
        assert file is not None
        assert json.loads(file.read()) == {"index": 1, "seed": 5, "s": {"fine": 5}}


def shown(path: Path, rows: int, columns: int, size: int) -> Tensor:
    """The pictures of a grid, uint8 [rows, columns, 3, size, size]."""
    with Image.open(io.BytesIO(path.read_bytes())) as grid:
        pixels = torch.tensor(list(grid.tobytes()), dtype=torch.uint8).view(grid.height, grid.width, 3)
    tile = (pixels.shape[1] + 2) // columns
    scale = (tile - 2) // size
    tiles = [
        [pixels[r * tile : (r + 1) * tile - 2 : scale, c * tile : (c + 1) * tile - 2 : scale] for c in range(columns)] for r in range(rows)
    ]
    return torch.stack([torch.stack(row) for row in tiles]).permute(0, 1, 4, 2, 3)


def test_a_preview_enlarges_training_images_and_leaves_the_network_as_it_was(lineage: list[Stage], trained: Path, tmp_path: Path) -> None:
    """Low resolution, samples and originals, a column each; training mode is given back."""
    base, fine = lineage
    renderer = open_renderer(lineage, trained / "stages", 8, 0, quiet)
    network = renderer.networks["fine"].train()
    (tmp_path / "stage").mkdir()
    path, source = tmp_path / "stage" / "samples" / "grid.png", Shapes(resolution=16, count=32)
    assert preview(fine, base, network=network, source=source, downsample=Resize.AREA, seed=0, path=path, tick=quiet, columns=4) == 4
    assert network.training
    low, made, real = shown(path, 3, 4, 8)
    with source.open(4, 0, 1, 0, 0) as batches:
        originals = next(batches).images.float()
    assert (real.float() - Resize.AREA(originals, 8)).abs().max() <= 1
    assert (low[:, :, ::2, ::2].float() - Resize.AREA(originals, 4)).abs().max() <= 1
    assert (made != real).any()


def test_a_preview_ends_at_the_network_call_at_which_it_is_told_to(lineage: list[Stage], trained: Path, tmp_path: Path) -> None:
    """Nothing is written, and the network is left as it was."""
    network = open_renderer(lineage, trained / "stages", 8, 0, quiet).networks["base"].train()
    stop = StopRequest()
    stop.request("SIGTERM")
    path, source = tmp_path / "grid.png", Shapes(resolution=8)
    with pytest.raises(Stopped, match="stopped by SIGTERM while stage 'base' was sampled"):
        preview(lineage[0], None, network=network, source=source, downsample=Resize.AREA, seed=0, path=path, tick=partial(obey, stop))
    assert network.training
    assert not path.exists()


def exhaust(*_: object) -> None:
    """What a device without memory does when a network is called."""
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_too_little_memory_is_said(lineage: list[Stage], trained: Path, tmp_path: Path) -> None:
    """Not called a defect: for samples a smaller batch is advised; a preview says what to leave out, and is not blamed on training."""
    job = Job(lineage=lineage, count=8, batch=4, seed=0)
    renderer = job.renderer(trained / "stages", 8, Progress(lambda event: None))
    network = renderer.networks["base"]
    network.register_forward_pre_hook(exhaust)
    with pytest.raises(SetupError, match=r"to sample 4 images up to stage 'fine' at once\. Lower sample\.batch \(--batch"):
        job.run(renderer, tmp_path, lambda event: None)
    path, source = tmp_path / "grid.png", Shapes(resolution=8)
    with pytest.raises(SetupError, match=r"64 images up to stage 'base' at once.*sample_every = 0"):
        preview(lineage[0], None, network=network, source=source, downsample=Resize.AREA, seed=0, path=path, tick=quiet)


def test_a_preview_noises_training_images_to_s_in_either_mode(lineage: list[Stage], trained: Path, tmp_path: Path) -> None:
    """A truncated stage's network expects z_s, which real images are not: they are noised to it, as a finished parent's would be."""
    base, fine = lineage
    network = open_renderer(lineage, trained / "stages", 8, 0, quiet).networks["fine"]

    def show(name: str, **condition: object) -> bytes:
        stage, path = evolve(fine, condition=evolve(fine.condition, **condition)), tmp_path / "samples" / name
        preview(stage, base, network=network, source=Shapes(resolution=8), downsample=Resize.AREA, seed=0, path=path, tick=quiet)
        return path.read_bytes()

    truncated, finished, clean = show("t", mode=Mode.TRUNCATED), show("n", mode=Mode.NON_TRUNCATED), show("c", s=0)
    assert truncated == finished != clean


def test_a_preview_does_not_make_a_deleted_run_again(lineage: list[Stage], trained: Path, tmp_path: Path) -> None:
    """It raises what the caller turns into a warning."""
    network = open_renderer(lineage[:1], trained / "stages", 8, 0, quiet).networks["base"]
    path = tmp_path / "gone" / "samples" / "grid.png"
    with pytest.raises(OSError, match="samples"):
        preview(lineage[0], None, network=network, source=Shapes(resolution=8), downsample=Resize.AREA, seed=0, path=path, tick=quiet)
    assert not (tmp_path / "gone").exists()
