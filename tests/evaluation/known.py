"""Images whose bound is known, networks that know it, and how to measure them."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor, nn

from cdmkit.cascade import Stage
from cdmkit.component import component, option
from cdmkit.data.resize import Resize
from cdmkit.diffusion import Condition, Process
from cdmkit.draws import Stream
from cdmkit.evaluation.bpd import Measurement, Result
from cdmkit.kinds import Batch, Batches, DataCard, Source
from tests.training.components import CLASSES, RandomImages, make_stage, random_batch

PARENT = make_stage(resolution=4)


def measured(stage: Stage, network: nn.Module | None = None, parent: Stage | None = None, **options: Any) -> Result:
    """On random images; a network of random weights unless one is given."""
    session = stage.backend.start()
    if network is None:
        torch.manual_seed(0)
        network = stage.backbone.build(stage.network_spec(CLASSES)).eval()
    defaults: dict[str, Any] = {"source": RandomImages(), "downsample": Resize.AREA, "count": 6, "batch": 6, "seed": 0}
    return Measurement(**(defaults | options))(stage, parent, network, session, lambda _stage: None)


class Mean(nn.Module):
    """Predicts the same grey everywhere: x_0 = value."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x_t: Tensor, _level: Tensor, _condition: Condition) -> Tensor:
        return torch.full_like(x_t, self.value)


@component("grey")
class Grey(Source):
    """Images of one grey, 8-bit level `level`."""

    level: int = option(204, help="of all pixels")

    def card(self) -> DataCard:
        return DataCard(resolution=8, count=100, classes=0, fingerprint="grey")

    def open(self, batch: int, rank: int, world: int, seed: int, position: int) -> Batches:
        return GreyBatches(self.level, batch)


@attrs.define
class GreyBatches(Batches):
    """The stream of `Grey`."""

    level: int
    batch: int

    def __next__(self) -> Batch:
        images = torch.full((self.batch, 3, 8, 8), self.level, dtype=torch.uint8)
        return Batch(images, torch.zeros(self.batch, dtype=torch.int64), torch.arange(self.batch))

    def close(self) -> None:
        """Nothing is open."""


@attrs.define
class Given(Batches):
    """One batch, over and over."""

    batch: Batch

    def __next__(self) -> Batch:
        return self.batch

    def close(self) -> None:
        """Nothing is open."""


@component("given")
class GivenImages(Source):
    """The first images of `RandomImages`, in `order`; or, with `normal`, images whose every pixel is a draw from N(MEAN, DEVIATION^2)."""

    order: tuple[int, ...] = option((), help="positions of the images")
    normal: bool = option(False, help="normal pixels")

    def card(self) -> DataCard:
        return DataCard(resolution=8, count=len(self.order), classes=CLASSES, fingerprint="given")

    def open(self, batch: int, rank: int, world: int, seed: int, position: int) -> Batches:
        positions = torch.tensor(self.order)
        if not self.normal:
            return Given(random_batch(positions))
        pixels = MEAN + DEVIATION * Stream.of(1, "pixels").normal(positions, (3, 8, 8))
        return Given(Batch(((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8), torch.zeros_like(positions), positions))


MEAN, DEVIATION = 0.1, 0.2


class Exact(nn.Module):
    """E[x_0 | x_t] where pixels are draws from N(MEAN, DEVIATION^2)."""

    def __init__(self, chain: Process) -> None:
        super().__init__()
        self.alpha_bars = chain.alpha_bars.float()

    def forward(self, x_t: Tensor, level: Tensor, _condition: Condition) -> Tensor:
        ab = self.alpha_bars[level.long()].view(-1, 1, 1, 1)
        return MEAN + ab.sqrt() * DEVIATION**2 / (ab * DEVIATION**2 + 1 - ab) * (x_t - ab.sqrt() * MEAN)


class Same(nn.Module):
    """Predicts x_t. Nothing is multiplied, so it says the same in every precision."""

    def forward(self, x_t: Tensor, _level: Tensor, _condition: Condition) -> Tensor:
        return x_t


class Watching(nn.Module):
    """Predicts x_t, and keeps what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []
        self.labels: list[Tensor | None] = []

    def forward(self, x_t: Tensor, _level: Tensor, condition: Condition) -> Tensor:
        self.inputs.append(x_t.clone())
        self.labels.append(condition.label)
        return x_t


class Hungry(nn.Module):
    """Needs more memory than its device has."""

    def forward(self, x_t: Tensor, _level: Tensor, _condition: Condition) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")
