"""Sampling jobs: from a run's checkpoints to pictures on disk."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs
import torch
from torch import Tensor, nn

from cdmkit.cascade import Stage
from cdmkit.cascade.memory import out_of_memory
from cdmkit.cascade.sampling import Renderer, Tick
from cdmkit.data.grid import write_grid
from cdmkit.data.pixels import to_float, to_uint8
from cdmkit.data.resize import Resize
from cdmkit.data.writer import Sample, write_shards
from cdmkit.errors import CheckpointError, SetupError, Stopped
from cdmkit.events import Emit, SamplesWritten, SamplingProgress
from cdmkit.kinds import Session, Source
from cdmkit.training import StopRequest, fit, latest, read_weights

SHOWN = 64
"""Pictures in a grid, at most."""

PAUSE = 0.5
"""Seconds between two events of progress."""


@attrs.frozen(kw_only=True)
class Job:
    """What to sample."""

    lineage: Sequence[Stage]
    """From a base stage to the one wanted."""
    count: int
    batch: int
    seed: int
    labels: Sequence[int] = ()
    """Image i gets label i modulo their number, unless it enlarges a real one; empty where the data has no classes."""
    reals: Reals | None = None
    """The images that the first stage enlarges, where it does."""
    guides: Mapping[str, Stage] = attrs.field(factory=dict)
    """By the name of the stage that it guides: what the weights file of its guidance holds."""

    def renderer(self, stages: Path, classes: int, progress: Progress) -> Renderer:
        """The stages with their weights, those of runs from under `stages`/<name>/ckpt, told of by `progress`.

        Raises CheckpointError where a stage has no checkpoint, or one of another network.
        """
        renderer = open_renderer(self.lineage, stages, classes, self.seed, progress, self.guides)
        batches = -(-self.count // self.batch)
        progress.total = {stage: batches * calls for stage, calls in renderer.calls().items()}
        return renderer

    def run(self, renderer: Renderer, folder: Path, emit: Emit) -> Path:
        """Sample into `folder`; returns the grid of the last stage. Raises SetupError where `folder` cannot be written or the device
        lacks memory.

        Writes `<stage>.png`, a grid of each stage's first images, and `<stage>-00000.tar`, ...: all of the last stage.
        """
        shown: dict[str, list[Tensor]] = {stage.name: [] for stage in self.lineage}
        last = self.lineage[-1].name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):  # before the work, not after it
                raise PermissionError("it cannot be written to")
            write_shards(self._samples(renderer, shown, emit), folder, prefix=last)
            for stage, images in shown.items():
                path = folder / f"{stage}.png"
                write_grid(path, torch.cat(images), columns=self._columns())
                emit(SamplesWritten(stage=stage, path=path, count=self.count))
        except OSError as error:
            raise SetupError(f"samples cannot be written into {folder}: {error}. Make room there, or choose another folder.") from error
        return folder / f"{last}.png"

    def _samples(self, renderer: Renderer, shown: Mapping[str, list[Tensor]], emit: Emit) -> Iterator[Sample]:
        """The last stage's images one by one; the first of every stage's are kept in `shown`."""
        for indices, labels, low_res in self._told(emit):
            with out_of_memory(too_much(len(indices), self.lineage[-1], "Lower sample.batch (--batch of `cdmkit sample`).")):
                made = {name: to_uint8(images) for name, images in renderer(indices, labels, low_res).items()}
            for name, images in made.items():
                shown[name].append(images[: max(0, SHOWN - int(indices[0]))])
            for index, label, image in zip(indices.tolist(), labels.tolist(), made[self.lineage[-1].name], strict=True):
                info = {
                    "index": index,
                    "seed": self.seed,
                    "s": {stage.name: stage.condition.s for stage in self.lineage if stage.enlarging},
                }
                yield Sample(image, label if self.labels else None, info)

    def _told(self, emit: Emit) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Numbers, labels and real images of each batch."""
        starts = (torch.arange(start, min(start + self.batch, self.count)) for start in range(0, self.count, self.batch))
        if self.reals is None:
            labels = torch.tensor(self.labels or (0,))
            yield from ((indices, labels[indices % len(labels)], None) for indices in starts)
            return
        with self.reals.source.open(self.batch, 0, 1, self.seed, 0) as batches:
            for indices, (images, found, _) in zip(starts, batches, strict=False):
                yield indices, found[: len(indices)], self.reals.shrunk(images[: len(indices)])
            for skip in batches.skips():
                emit(skip.event())

    def _columns(self) -> int | None:
        """A column for each label where that makes a good grid."""
        return len(self.labels) if 4 <= len(self.labels) <= 16 else None


@attrs.frozen
class Reals:
    """Real images at the resolution that a stage enlarges from, the first ones of the data's order."""

    source: Source
    downsample: Resize
    resolution: int

    def shrunk(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] of the source -> [B, 3, r, r] in [-1, 1]."""
        return self.downsample(to_float(images), self.resolution)


class Progress:
    """Counts network calls and tells of them, now and then. `total`: those of the whole job, by stage."""

    def __init__(self, emit: Emit, stop: StopRequest | None = None, total: Mapping[str, int] | None = None) -> None:
        self.emit = emit
        self.stop = stop or StopRequest()
        self.total: Mapping[str, int] = total or {}
        self._done: dict[str, int] = {}
        self._told = 0.0

    def __call__(self, stage: str) -> None:
        """One more call of a stage's network. Raises Stopped where that was asked for: what is trained is saved already."""
        obey(self.stop, stage)
        self._done[stage] = self._done.get(stage, 0) + 1
        done, total, now = self._done[stage], self.total[stage], time.monotonic()
        if done == total or now - self._told >= PAUSE:
            self._told = now
            self.emit(SamplingProgress(stage=stage, done=done, total=total))


def too_much(count: int, stage: Stage, mend: str) -> str:
    """What to say where the device has not enough memory to sample."""
    return f"the device has not enough memory to sample {count} images up to stage {stage.name!r} at once. {mend}"


def obey(stop: StopRequest, stage: str) -> None:
    """Raise Stopped where that was asked for, while `stage` is sampled."""
    if stop.requested:
        raise Stopped(f"stopped by {stop.reason} while stage {stage!r} was sampled. Go on with the same command and --resume")


def open_renderer(
    lineage: Sequence[Stage], stages: Path, classes: int, seed: int, tick: Tick, guides: Mapping[str, Stage] | None = None
) -> Renderer:
    """The stages with their newest averaged weights under `stages`/<name>/ckpt, or the `weights` of those that are not trained, each on its
    backend's device.

    guides: the networks that the stages' guidance names. Raises CheckpointError where a stage has no weights, or those of another network.
    """
    opened = {backend: backend.start() for backend in {stage.backend for stage in lineage}}
    sessions = {stage.name: opened[stage.backend] for stage in lineage}
    networks = {stage.name: open_network(stage, weights_of(stage, stages), classes, sessions[stage.name]) for stage in lineage}
    guiding = {
        stage.name: guide.denoiser(open_network(guide, Path(stage.guidance.guide), classes, sessions[stage.name]))
        for stage in lineage
        if stage.guidance and stage.guidance.guide and (guide := (guides or {}).get(stage.name))
    }
    return Renderer(lineage, networks, sessions, seed, tick, guiding, labeled=classes > 0)


def weights_of(stage: Stage, stages: Path) -> Path:
    """The file that a stage is sampled with: `weights` where it is not trained, else its newest checkpoint's. Raises CheckpointError where
    there is none.
    """
    if stage.weights is not None and not stage.train.steps:
        return Path(stage.weights)
    folder = stages / stage.name / "ckpt"
    path = latest(folder)
    if path is None:
        raise CheckpointError(f"stage {stage.name!r} has no checkpoint under {folder}: train it first with `cdmkit run`")
    return path / "ema.safetensors"


def open_network(stage: Stage, path: Path, classes: int, session: Session) -> nn.Module:
    """A stage's network with the weights of a file, on a device. Raises CheckpointError where they are another network's."""
    network = stage.backbone.build(stage.network_spec(classes))
    tensors, _ = read_weights(path)
    fit(network, tensors, path)
    return session.prepare(network).eval()
