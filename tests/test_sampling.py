"""Sampling jobs: what they make depends on seed, index and label alone; what they tell; what stops them."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from cdmkit.cascade import Stage
from cdmkit.data.decode import decode
from cdmkit.errors import CheckpointError, SetupError, Stopped
from cdmkit.events import Event, SamplesWritten, SamplingProgress
from cdmkit.plugins import load_plugins
from cdmkit.recipe import read
from cdmkit.sampling import Job, Progress
from cdmkit.training import StopRequest


@pytest.fixture(scope="module")
def lineage(trained: Path) -> list[Stage]:
    """The stages of the tiny cascade."""
    return read(trained / "recipe.resolved.toml", load_plugins()).cascade.lineage("fine")


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


def exhaust(*_: object) -> None:
    """What a device without memory does when a network is called."""
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_too_little_memory_is_said(lineage: list[Stage], trained: Path, tmp_path: Path) -> None:
    """Not called a defect: a smaller batch is advised."""
    job = Job(lineage=lineage, count=8, batch=4, seed=0)
    renderer = job.renderer(trained / "stages", 8, Progress(lambda event: None))
    network = renderer.networks["base"]
    network.register_forward_pre_hook(exhaust)
    with pytest.raises(SetupError, match=r"to sample 4 images up to stage 'fine' at once\. Lower sample\.batch \(--batch"):
        job.run(renderer, tmp_path, lambda event: None)
