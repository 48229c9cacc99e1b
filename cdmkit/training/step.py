"""What one stage learns from a batch: CDM Algorithm 1, with every draw keyed by an image's place in the order of training.

So an image gets the same noise whatever the batch size, the split into parts or the device, and nothing of chance needs to be saved.
"""

from __future__ import annotations

from typing import NamedTuple

import attrs
import torch
from torch import Tensor, nn

from cdmkit.cascade import Stage
from cdmkit.data.pixels import to_float
from cdmkit.data.resize import Resize
from cdmkit.diffusion import Condition, Denoiser, Network, Noised, Output, Process, between
from cdmkit.draws import Draw, Stream
from cdmkit.kinds import Batch, Session, Timesteps, key_dropout


@attrs.frozen(eq=False)
class Enlarged:
    """The images that a stage enlarges, while it trains."""

    resolution: int
    process: Process
    """The full chain that their augmentations count in, on the device."""


class Losses(NamedTuple):
    """How wrong the network is about each image of a batch."""

    weighted: Tensor
    """[B], float32: what training minimises."""
    t: Tensor
    """int64 [B]: the timesteps that they were noised to."""
    plain: Tensor
    """[B], without weights and gradients: what the density learns from."""


@attrs.frozen(eq=False)
class Objective:
    """The loss of one stage's network. But for the copy of its batch, calling it never makes the host wait for the device."""

    stage: Stage
    classes: int
    """Labels the network is told, 0 for none."""
    downsample: Resize
    seed: int
    session: Session
    denoiser: Denoiser
    process: Process
    timesteps: Timesteps
    enlarges: Enlarged | None

    @classmethod
    def of(
        cls,
        stage: Stage,
        parent: Stage | None,
        network: Network,
        timesteps: Timesteps,
        *,
        classes: int,
        downsample: Resize,
        seed: int,
        session: Session,
    ) -> Objective:
        """The objective of `network` as `stage`, conditioned on the images of `parent`. timesteps: its density at work, on the device."""
        device, low_res = session.device, stage.enlarges(parent)
        return cls(
            stage=stage,
            classes=stage.network_spec(classes).classes,
            downsample=downsample,
            seed=seed,
            session=session,
            denoiser=stage.denoiser(network),
            process=stage.process().to(device),
            timesteps=timesteps,
            enlarges=None if low_res is None else Enlarged(low_res.resolution, low_res.schedule.process().to(device)),
        )

    def __call__(self, batch: Batch) -> Losses:
        """The losses of a batch on any device."""
        images, labels, positions = map(self.session.put, batch)
        if self.stage.train.flip:
            mirrored = self._draw(positions, "flip").uniform() < 0.5
            images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
        pixels = to_float(images)
        t, weight = self.timesteps.draw(self._draw(positions, "timestep"))
        noised = self._noised(self.downsample(pixels, self.stage.resolution), t, positions)
        condition = self._condition(pixels, labels, positions)
        if isinstance(self.denoiser.network, nn.Module):
            key_dropout(self.denoiser.network, self._draw(positions, "dropout"))
        with self.session.autocast():
            output = self.denoiser.output(noised.x_t, noised.point, condition)
        exact = Output(output.value.float(), None if output.ranged is None else output.ranged.float())
        losses = self.stage.loss(exact, noised, self.stage.parameterization)
        return Losses(losses if weight is None else losses * weight, t, losses.detach())

    def _draw(self, positions: Tensor, *words: str | int) -> Draw:
        return Draw(Stream.of(self.seed, self.stage.name, *words), positions)

    def _noised(self, x0: Tensor, t: Tensor, positions: Tensor) -> Noised:
        """x_t at timesteps t, or at alpha_bars between those of t-1 and t where the network is told alpha_bar."""
        if self.stage.noise_input.continuous:
            point = between(self.process, t, self._draw(positions, "alpha-bar").uniform())
        else:
            point = self.process.point(t)
        return Noised.of(x0, self._draw(positions, "noise").normal(tuple(x0.shape[1:])), point)

    def _condition(self, pixels: Tensor, labels: Tensor, positions: Tensor) -> Condition:
        """The label and the low-resolution image, shrunk from the same pixels as x_0, augmented at low resolution, then enlarged."""
        label = labels if self.classes else None
        if label is not None and self.stage.label_dropout:
            withheld = self._draw(positions, "label").uniform() < self.stage.label_dropout
            label = torch.where(withheld, -1, label)
        if self.enlarges is None:
            return Condition(label)
        low_res = self.downsample(pixels, self.enlarges.resolution)
        levels = []
        for i, augmentation in enumerate(self.stage.augment):
            low_res, level = augmentation.train(low_res, self.enlarges.process, self._draw(positions, "augment", i))
            if level is not None:
                levels.append(level)
        enlarged = self.stage.upsample(low_res, self.stage.resolution)
        return Condition(label, enlarged, torch.stack(levels, dim=1) if levels else None)
