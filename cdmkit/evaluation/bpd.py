"""Bits per dimension: the variational bound (DDPM, arXiv:2006.11239, eq. 5) of real images under a stage, and its curve over timesteps."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from cdmkit.cascade import Stage
from cdmkit.cascade.memory import out_of_memory
from cdmkit.cascade.sampling import condition
from cdmkit.data.pixels import to_float
from cdmkit.data.resize import Resize
from cdmkit.diffusion import Bound, Denoise, Denoised, Point, Process, Units, full_bound
from cdmkit.draws import Draw, Stream
from cdmkit.errors import NumericsError, SetupError
from cdmkit.evaluation.curve import write_curve
from cdmkit.files import write_json, write_text
from cdmkit.kinds import Batch, Session, Skip, Source


@attrs.frozen(kw_only=True)
class Result:
    """The bound of a stage, a mean over images. Terms and errors are one for each point of the chain, from the cleanest."""

    stage: str
    resolution: int
    images: int
    split: str
    """Which images: "train", or "val", those of [data.val]."""
    units: str
    """Of all terms: bits or nats per dimension."""
    calls: int
    """Network calls for each image: the points of the chain."""
    chain: int
    """T of the full chain; a respaced one, with fewer calls, has a bound of its own, mostly looser."""
    total: float
    error: float
    """Standard error of the mean over images; NaN for one image."""
    prior: float
    """L_T, which no network can change."""
    timesteps: list[int]
    terms: list[float]
    """The first is the decoder's, L_0."""
    x0_error: list[float]
    epsilon_error: list[float]

    def table(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {name: None if value != value else value for name, value in attrs.asdict(self).items()}

    def write(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Write bpd-<stage>.json, with `facts` on how it was measured, and the curve as .csv and as a picture, .png.

        Raises SetupError where `folder` cannot be written.
        """
        stem = folder / f"bpd-{self.stage}"
        columns = (self.timesteps, self.terms, self.x0_error, self.epsilon_error)
        lines = ["timestep,term,x0_error,epsilon_error", *(",".join(map(repr, row)) for row in zip(*columns, strict=True))]
        title = f"{self.stage}: {self.total:.3f} {self.units}, by timestep"
        open_folder(folder)
        with _writing(folder):
            write_json(stem.with_suffix(".json"), {**self.table(), **facts})
            write_text(stem.with_suffix(".csv"), "\n".join(lines) + "\n")
            write_curve(stem.with_suffix(".png"), self.timesteps, self.terms, title, "timestep")


def open_folder(folder: Path) -> None:
    """Make a folder for results: before the work, not after it. Raises SetupError where it cannot be written to."""
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError("it cannot be written to")


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Raise SetupError, with what to do, where `folder` cannot be written to."""
    try:
        yield
    except OSError as error:
        raise SetupError(f"results cannot be written into {folder}: {error}. Make room there, or choose another by --out.") from error


@attrs.frozen(eq=False, kw_only=True)
class Measurement:
    """What is measured, and on which images: the first of the source's order for a seed."""

    source: Source
    downsample: Resize
    count: int
    batch: int
    seed: int
    split: str = "train"
    """What of the data they are, for the record."""
    skipped: Callable[[Skip], None] = lambda _skip: None
    """Told of images that cannot be used."""
    steps: int | None = None
    """Points of a respaced chain, equally spaced (Improved DDPM section 4); None for all of them."""
    units: Units = Units.BITS
    labeled: bool = True
    """Whether the data has classes."""

    @torch.inference_mode()
    def __call__(self, stage: Stage, parent: Stage | None, network: nn.Module, session: Session, tick: Callable[[str], None]) -> Result:
        """The bound of `network` as `stage`. `tick` is told the stage's name after each network call.

        Predictions are thresholded as when sampling, and not guided. A stage that enlarges is told the real low-resolution image, noised
        to its s. The noise of image i depends on (seed, stage, i) and the point alone. Raises NumericsError where the bound is not
        finite, and SetupError where the device lacks memory.
        """
        chain = stage.process() if self.steps is None else stage.process().respace(self.steps)
        bounds = []
        with out_of_memory(f"the device has not enough memory for {self.batch} images of stage {stage.name!r} at once. Lower --batch."):
            for batch in self._batches():
                images, labels, positions = (each.to(session.device) for each in batch)
                pixels = to_float(images)
                x0 = self.downsample(pixels, stage.resolution)  # not under autocast: as a product of matrices it would be in bf16
                denoise = self._denoise(stage, parent, network, session, pixels, labels, positions, tick)
                with session.autocast():
                    bound = full_bound(denoise, x0, chain, self._noise(stage, positions), self.units)
                bounds.append(Bound(*(part.cpu().double() for part in bound)))  # in this order: MPS has no float64
        return self._result(stage, chain, Bound(*(torch.cat(parts) for parts in zip(*bounds, strict=True))))

    def calls(self, stage: Stage) -> int:
        """Network calls to measure a stage."""
        return (self.steps or stage.process().steps) * math.ceil(self.count / self.batch)

    def _batches(self) -> Iterator[Batch]:
        """The images, the last batch cut to what is left."""
        with self.source.open(self.batch, 0, 1, self.seed, 0) as batches:
            for start in range(0, self.count, self.batch):
                yield Batch(*(part[: self.count - start] for part in next(batches)))
            for skip in batches.skips():
                self.skipped(skip)

    def _noise(self, stage: Stage, positions: Tensor) -> Callable[[int], Tensor]:
        stream = Stream.of(self.seed, stage.name, "bound", "noise")
        return lambda k: stream.normal(positions, (3, stage.resolution, stage.resolution), step=k)

    def _denoise(
        self,
        stage: Stage,
        parent: Stage | None,
        network: nn.Module,
        session: Session,
        pixels: Tensor,
        labels: Tensor,
        positions: Tensor,
        tick: Callable[[str], None],
    ) -> Denoise:
        """The network told of the images' labels and low-resolution versions; counts its calls."""
        enlarges = stage.enlarges(parent)
        told = condition(
            stage.on_real_images(),
            labels if self.labeled else None,
            low_res=None if enlarges is None else self.downsample(pixels, enlarges.resolution),
            enlarges=enlarges,
            draws=lambda number: Draw(Stream.of(self.seed, stage.name, "bound", "augment", number), positions),
        )
        denoise = stage.denoiser(network).bind(told)

        def counted(x_t: Tensor, point: Point) -> Denoised:
            denoised = denoise(x_t, point)
            session.boundary()
            tick(stage.name)
            return denoised

        return counted

    def _result(self, stage: Stage, chain: Process, bound: Bound) -> Result:
        total = bound.total
        if not bool(total.isfinite().all()):
            bad = int((~total.isfinite()).sum())
            raise NumericsError(f"stage {stage.name!r}: the bound of {bad} of {len(total)} images is not finite: its weights are at fault")
        return Result(
            stage=stage.name,
            resolution=stage.resolution,
            images=len(total),
            split=self.split,
            units=f"{self.units.value} per dimension",
            calls=chain.steps,
            chain=chain.total,
            total=float(total.mean()),
            error=float(total.std() / math.sqrt(len(total))) if len(total) > 1 else math.nan,
            prior=float(bound.prior.mean()),
            timesteps=chain.timesteps[1:].tolist(),
            terms=bound.terms.mean(0).tolist(),
            x0_error=bound.x0_error.mean(0).tolist(),
            epsilon_error=bound.epsilon_error.mean(0).tolist(),
        )
