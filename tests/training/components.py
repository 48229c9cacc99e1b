"""Small real components that make training tests fast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdmkit.builtin.augmentations import GaussianNoise
from cdmkit.builtin.backends import Device, Precision, Torch
from cdmkit.builtin.densities import Uniform
from cdmkit.builtin.losses import Simple
from cdmkit.builtin.optimizers import Adam
from cdmkit.builtin.samplers import Ddim
from cdmkit.builtin.schedules import Cosine
from cdmkit.builtin.thresholds import Static
from cdmkit.cascade import Stage, Training
from cdmkit.component import component, option
from cdmkit.data.resize import Resize
from cdmkit.diffusion import Condition
from cdmkit.draws import Stream
from cdmkit.events import Emit, Event
from cdmkit.kinds import Backbone, Batch, Batches, DataCard, Dropout, NetworkSpec, Source
from cdmkit.training import StopRequest, train
from cdmkit.training.loop import SampleGrid

CLASSES = 3


class TinyNetwork(nn.Module):
    """Two convolutions that see every condition, with a norm and dropout between. Its output is NaN at the calls `nan_calls`, from 1."""

    def __init__(self, spec: NetworkSpec, dropout: float, nan_calls: tuple[int, ...]) -> None:
        super().__init__()
        self.first = nn.Conv2d(6 if spec.low_res else 3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.told = nn.Linear(1 + spec.levels, 8)
        self.label = nn.Embedding(max(spec.classes, 1), 8)
        self.dropout = Dropout(dropout)
        self.last = nn.Conv2d(8, spec.out_channels, 3, padding=1)
        self.nan_calls = nan_calls
        self.calls = 0

    def forward(self, x_t: Tensor, level: Tensor, condition: Condition) -> Tensor:
        self.calls += 1
        told = level.unsqueeze(1) if condition.levels is None else torch.cat((level.unsqueeze(1), condition.levels), dim=1)
        inputs = x_t if condition.low_res is None else torch.cat((x_t, condition.low_res), dim=1)
        embedding = self.told(told / 1000)
        if condition.label is not None:
            embedding = embedding + self.label(condition.label)
        hidden = F.silu(self.norm(self.first(inputs)) + embedding.view(-1, 8, 1, 1))
        output: Tensor = self.last(self.dropout(hidden))
        return output * float("nan") if self.calls in self.nan_calls else output


@component("tiny")
class Tiny(Backbone):
    """A network of about a thousand weights."""

    dropout: float = option(0.1, help="share of features left out")
    nan_calls: tuple[int, ...] = option((), help="calls at which the output is NaN")

    def build(self, spec: NetworkSpec) -> nn.Module:
        return TinyNetwork(spec, self.dropout, self.nan_calls)


@component("random-images")
class RandomImages(Source):
    """Endless images, each a function of its position."""

    resolution: int = option(8, help="height and width")

    def card(self) -> DataCard:
        return DataCard(resolution=self.resolution, count=1000, classes=CLASSES, fingerprint="random")

    def open(self, batch: int, rank: int, world: int, seed: int, position: int) -> Batches:
        return RandomBatches(self.resolution, batch, rank, world, seed, position)


@attrs.define
class RandomBatches(Batches):
    """The stream of `RandomImages`."""

    resolution: int
    batch: int
    rank: int
    world: int
    seed: int
    position: int

    def __next__(self) -> Batch:
        positions = self.position + self.rank + self.world * torch.arange(self.batch)
        self.position += self.batch * self.world
        return random_batch(positions, self.resolution, self.seed)

    def close(self) -> None:
        """Nothing is open."""


def random_batch(positions: Tensor, resolution: int = 8, seed: int = 0) -> Batch:
    """The images at some positions: smooth enough that shrinking them leaves something."""
    coarse = Stream.of(seed, "images").uniform(positions, 3 * 4 * 4).view(-1, 3, 4, 4)
    images = (F.interpolate(coarse, (resolution, resolution), mode="bilinear") * 255).to(torch.uint8)
    return Batch(images, Stream.of(seed, "labels").integers(positions, 0, CLASSES - 1), positions)


def make_stage(train: dict[str, Any] | None = None, **changes: Any) -> Stage:
    """A base stage of 8 x 8 pixels; `train` changes its training, `changes` anything else."""
    fields: dict[str, Any] = {
        "name": "base",
        "resolution": 8,
        "schedule": Cosine(timesteps=100),
        "density": Uniform(),
        "loss": Simple(),
        "backbone": Tiny(),
        "sampler": Ddim(steps=4),
        "threshold": Static(),
        "backend": Torch(device=Device.CPU, precision=Precision.FP32),
        "train": Training(**{"batch": 4, "steps": 6, "optimizer": Adam(lr=1e-2), "ema": 0.9, "checkpoint_every": 3, **(train or {})}),
    }
    return Stage(**{**fields, **changes})


def make_sr_stage(train: dict[str, Any] | None = None, **changes: Any) -> Stage:
    """A stage that enlarges 4 x 4 to 8 x 8."""
    return make_stage(train, **{"name": "sr", "after": "base", "augment": (GaussianNoise(),), **changes})


def run(
    stage: Stage,
    folder: Path,
    *,
    parent: Stage | None = None,
    emit: Emit | None = None,
    stop: StopRequest | None = None,
    sample: SampleGrid | None = None,
    seed: int = 0,
    classes: int = CLASSES,
) -> tuple[Path, list[Event]]:
    """Train on random images; gives the last checkpoint and the events."""
    events: list[Event] = []

    def tell(event: Event) -> None:
        events.append(event)
        if emit:
            emit(event)

    path = train(
        stage,
        parent,
        source=RandomImages(),
        downsample=Resize.AREA,
        classes=classes,
        seed=seed,
        folder=folder,
        metadata={"stage": {"name": stage.name}},
        emit=tell,
        stop=stop or StopRequest(),
        sample=sample,
    )
    return path, events


def contents(checkpoint: Path) -> dict[str, bytes]:
    """Every file of a checkpoint."""
    return {path.name: path.read_bytes() for path in sorted(checkpoint.iterdir())}
