"""Grids of a stage's samples while it trains, and whether their colours drift."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import attrs
import torch
from torch import Tensor, nn

from cdmkit.cascade import Stage
from cdmkit.cascade.memory import out_of_memory
from cdmkit.cascade.sampling import Renderer, Tick, stop_at
from cdmkit.component import evolve
from cdmkit.data.grid import write_grid
from cdmkit.data.pixels import to_float
from cdmkit.data.resize import Resize
from cdmkit.errors import CheckpointError
from cdmkit.files import digest, replaced
from cdmkit.kinds import Skip, Source
from cdmkit.sampling import open_network, too_much, weights_of
from cdmkit.training.tensor_file import TensorFile, write

DRIFT = 0.05
"""The colour drift above which there is an alarm: 6 of 255 grey levels, beside each other plain to see."""

_EARLY = 0.1
"""The share of training in which any stage drifts."""

_FORGOTTEN = 0.01
"""The share of the first weights in the moving average below which it tells of what was learned."""

_KEY = "of"
"""Where a file of images says what they were made from."""


@attrs.frozen
class Shown:
    """What a grid shows."""

    count: int
    """Samples."""
    drift: float | None
    """See `cdmkit.events.SamplesWritten`."""


def drift_alarm(stage: Stage, step: int, drift: float) -> str | None:
    """What to warn of, if anything: nothing in the first tenth of training, nor while the average still remembers the first weights."""
    train = stage.train
    remembers = not train.ema_ramp and train.ema**step > _FORGOTTEN
    if drift <= DRIFT or step < _EARLY * train.steps or remembers:
        return None
    return (
        f"stage {stage.name!r}: at step {step} the colours of its samples are {drift:.3f} from those of the images that they enlarge "
        f"(means of channels, in units of [-1, 1]; warned of above {DRIFT}). Look at the grid: a stage that goes on learning comes nearer."
    )


class _Wanted(NamedTuple):
    """The images of a grid."""

    pixels: Tensor
    """[B, 3, S, S] in [-1, 1]: those of the data."""
    labels: Tensor
    positions: Tensor
    tick: Tick


@attrs.frozen(eq=False, kw_only=True)
class Previewer:
    """Draws grids of what the last stage of a lineage makes."""

    lineage: Sequence[Stage]
    """From a base stage to the one that trains."""
    stages: Path
    """The run's folder of stages, where those before it may have weights."""
    source: Source
    downsample: Resize
    classes: int
    """Labels of the data, 0 for none."""
    seed: int
    skipped: Callable[[Skip], None] = lambda _skip: None
    """Told of images that cannot be used."""
    columns: int = 8

    @property
    def stage(self) -> Stage:
        """The one that trains."""
        return self.lineage[-1]

    def __call__(self, network: nn.Module, path: Path | None, tick: Tick) -> Shown:
        """Write a grid of what `network` makes. Raises OSError where it cannot be written, SetupError where the device lacks memory, and
        CheckpointError where weights of the stages before are damaged.

        path: None where another process writes what all of them make. `tick` is told of each network call, and now and then while images
        do not come; what it raises ends the preview.

        A base stage: `columns` rows of images from noise, with the labels of real ones. A super-resolution stage: three rows, the first
        real images at low resolution, what `network` makes of them, and as they really are. Where all stages before it have weights, two
        more: the low resolution as the cascade samples it, with the same labels, and what `network` makes of that.
        """
        wanted, was_training = self._wanted(tick), network.training
        network.eval()
        try:
            with out_of_memory(too_much(len(wanted.pixels), self.stage, "Previews can be left out: train.sample_every = 0.")):
                rows, shown = self._rows(network, wanted, keeps=path is not None)
        finally:
            network.train(was_training)
        if path is not None:
            path.parent.mkdir(exist_ok=True)  # no parents: a run that was deleted is not made again
            write_grid(path, torch.cat([Resize.NEAREST(row, self.stage.resolution) for row in rows]), columns=self.columns)
        return shown

    def _wanted(self, tick: Tick) -> _Wanted:
        """The first images of the data."""
        count = self.columns if self.stage.enlarging else self.columns**2
        with self.source.open(count, 0, 1, self.seed, 0) as batches:
            images, labels, positions = batches.awaited(lambda: tick(self.stage.name))
            for skip in batches.skips():
                self.skipped(skip)
        return _Wanted(to_float(images), labels, positions, tick)

    def _rows(self, network: nn.Module, wanted: _Wanted, keeps: bool) -> tuple[list[Tensor], Shown]:
        """The rows of a grid, each [columns, 3, r, r] (all of them together for a base stage), and what they are."""
        stage, parent = self.stage, self._parent(len(self.lineage) - 1)
        enlarges = stage.enlarges(parent)
        if enlarges is None:
            made = self._made(stage, None, network, None, wanted)
            return [made], Shown(len(made), None)
        low_res = self.downsample(wanted.pixels, enlarges.resolution)
        made = self._made(stage.on_real_images(), parent, network, low_res, wanted)
        rows, drift = [low_res, made, self.downsample(wanted.pixels, stage.resolution)], drift_of(made, low_res)
        sampled = self._sampled_low_res(wanted, keeps)
        if sampled is None:
            return rows, Shown(len(made), drift)
        return [*rows, sampled, self._made(stage, parent, network, sampled, wanted)], Shown(2 * len(made), drift)

    def _parent(self, number: int) -> Stage | None:
        """The stage before that of a number."""
        return self.lineage[number - 1] if number else None

    def _made(self, stage: Stage, parent: Stage | None, network: nn.Module, low_res: Tensor | None, wanted: _Wanted, s: int = 0) -> Tensor:
        """What a stage makes of images or of noise, to x_0 or z_s, on the CPU. A network that guides it is not opened for a preview."""
        if stage.guidance is not None and stage.guidance.guide:
            stage = evolve(stage, guidance=None)
        sessions = {stage.name: stage.backend.start()}
        renderer = Renderer((stage,), {stage.name: network}, sessions, self.seed, wanted.tick, labeled=self.classes > 0)
        return renderer.stage(stage, parent, low_res, wanted.positions, wanted.labels, s).cpu()

    def _sampled_low_res(self, wanted: _Wanted, keeps: bool) -> Tensor | None:
        """What the stages before this one make for it, kept in a file while they are the same. None where one has no weights, or there are
        no stages before.
        """
        try:
            files = [weights_of(stage, self.stages) for stage in self.lineage[:-1]]
        except CheckpointError:
            return None
        if not files:
            return None
        told = [*map(repr, self.lineage), *map(digest, files), repr((self.seed, wanted.labels.tolist(), wanted.positions.tolist()))]
        if self.lineage[0].enlarging:  # real images, which `[data.val]` may change between two resumes
            told.append(hashlib.sha256(wanted.pixels.numpy().tobytes()).hexdigest())
        key, kept = hashlib.sha256("\n".join(told).encode()).hexdigest(), self.stages / self.stage.name / "samples" / "low-res.safetensors"
        images = _read_kept(kept, key)
        if images is None:
            images = self._sampled(files, wanted)
            if keeps:
                _keep(images, kept, key)
        return images

    def _sampled(self, files: Sequence[Path], wanted: _Wanted) -> Tensor:
        """The images of the last of the stages whose weights are in `files`. No more than one is open at a time."""
        root = self.lineage[0].low_res
        images = torch.empty(0) if root is None else self.downsample(wanted.pixels, root)
        for number, path in enumerate(files):
            stage, child = self.lineage[number : number + 2]
            network = open_network(stage, path, self.classes, stage.backend.start())
            images = self._made(stage, self._parent(number), network, images if stage.enlarging else None, wanted, stop_at(child))
            del network
        return images


def drift_of(made: Tensor, low_res: Tensor) -> float:
    """How far the channel means of images [B, 3, R, R] are from those of what they enlarge [B, 3, r, r]: the mean of all distances."""
    return float((made.mean((2, 3)) - low_res.mean((2, 3))).abs().mean())


def _keep(images: Tensor, path: Path, key: str) -> None:
    """Put images into a file. Where it cannot be written they are made anew next time: other processes, which write nothing, go on."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        with replaced(path) as beside:
            write(beside, {"images": images}, {_KEY: key})


def _read_kept(path: Path, key: str) -> Tensor | None:
    """The images in a file, where it is there and made from what `key` says."""
    try:
        file = TensorFile(path)
        return file["images"] if file.metadata.get(_KEY) == key else None
    except CheckpointError:
        return None
