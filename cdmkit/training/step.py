"""What one stage learns from a batch: CDM Algorithm 1, with every draw keyed by an image's place in the order of training.

So an image gets the same noise whatever the batch size, the split into parts or the device, and nothing of chance needs to be saved.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from cdmkit.cascade import Stage
from cdmkit.data.pixels import to_float
from cdmkit.data.resize import Resize
from cdmkit.diffusion import Condition, Denoiser, Noised, NoiseInput, Output, Process
from cdmkit.diffusion.denoiser import Network, drawn_alpha_bar
from cdmkit.diffusion.process import add_noise
from cdmkit.draws import Draw, Stream
from cdmkit.kinds import Batch, Session


@attrs.frozen(eq=False)
class Parent:
    """What a stage needs to know, while it trains, of the stage that will make its low-resolution images."""

    resolution: int
    process: Process
    """The parent's full chain, on the device."""


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
    parent: Parent | None

    @classmethod
    def of(
        cls, stage: Stage, parent: Stage | None, network: Network, *, classes: int, downsample: Resize, seed: int, session: Session
    ) -> Objective:
        """The objective of `network` as `stage`, conditioned on the images of `parent`."""
        device = session.device
        return cls(
            stage=stage,
            classes=stage.network_spec(classes).classes,
            downsample=downsample,
            seed=seed,
            session=session,
            denoiser=stage.denoiser(network),
            process=stage.schedule.process().to(device),
            parent=None if parent is None else Parent(parent.resolution, parent.schedule.process().to(device)),
        )

    def __call__(self, batch: Batch) -> Tensor:
        """The loss of each image of a batch on any device: [B], float32."""
        images, labels, positions = (tensor.to(self.session.device, non_blocking=True) for tensor in batch)
        if self.stage.train.flip:
            mirrored = self._draw(positions, "flip").uniform() < 0.5
            images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
        pixels = to_float(images)
        noised = self._noised(self.downsample(pixels, self.stage.resolution), positions)
        condition = self._condition(pixels, labels, positions)
        with self.session.autocast():
            output = self.denoiser.output(noised.x_t, noised.t, noised.alpha_bar.flatten(), condition)
        exact = Output(output.value.float(), None if output.ranged is None else output.ranged.float())
        return self.stage.loss(exact, noised, self.stage.parameterization, self.process)

    def _draw(self, positions: Tensor, *words: str | int) -> Draw:
        return Draw(Stream.of(self.seed, self.stage.name, *words), positions)

    def _noised(self, x0: Tensor, positions: Tensor) -> Noised:
        """x_t at t ~ U{1..T}, or at an alpha_bar between those of t-1 and t where the network is told alpha_bar."""
        t = self._draw(positions, "timestep").integers(1, self.process.steps)
        if self.stage.noise_input is NoiseInput.ALPHA_BAR:
            alpha_bar = drawn_alpha_bar(self.process, t, self._draw(positions, "alpha-bar").uniform())
        else:
            alpha_bar = self.process.alpha_bars[t]
        alpha_bar = alpha_bar.view(-1, 1, 1, 1)
        epsilon = self._draw(positions, "noise").normal(tuple(x0.shape[1:]))
        return Noised(x0=x0, epsilon=epsilon, x_t=add_noise(x0, epsilon, alpha_bar), t=t, alpha_bar=alpha_bar)

    def _condition(self, pixels: Tensor, labels: Tensor, positions: Tensor) -> Condition:
        """The label and the low-resolution image, shrunk from the same pixels as x_0, augmented at low resolution, then enlarged."""
        label = labels if self.classes else None
        if self.parent is None:
            return Condition(label)
        low_res = self.downsample(pixels, self.parent.resolution)
        levels = []
        for i, augmentation in enumerate(self.stage.augment):
            low_res, level = augmentation.train(low_res, self.parent.process, self._draw(positions, "augment", i))
            if level is not None:
                levels.append(level)
        enlarged = self.stage.upsample(low_res, self.stage.resolution)
        return Condition(label, enlarged, torch.stack(levels, dim=1) if levels else None)
