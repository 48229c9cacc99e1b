"""Conditioning augmentation (CDM, arXiv:2106.15282, section 3): what makes a cascade work."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from cdmkit.component import Component, component, option
from cdmkit.diffusion import Process
from cdmkit.draws import Draw
from cdmkit.hookspecs import hookimpl
from cdmkit.kinds import Augmentation, Augmented, Schedule


@lru_cache(maxsize=16)
def _process(schedule: Schedule, device: torch.device, dtype: torch.dtype) -> Process:
    return schedule.process().to(device, dtype)


@component("gaussian-noise")
class GaussianNoise(Augmentation):
    """Noise the low-resolution image to a random timestep s of its own process, and tell the network s (CDM, Algorithm 1).

    It stays on when sampling, at the s of the stage's `condition`: truncated, the parent's chain stops there; non-truncated, its finished
    sample is noised to there (Algorithm 2). s = 0 is no noise.
    """

    tells_level = True
    noises = True

    schedule: Schedule | None = option(None, help="the schedule that s counts in; default: the parent's, which truncated sampling needs")
    max_s: int | None = option(None, help="the largest s drawn in training; default T of the schedule", ge=1)

    def noise_schedule(self, parent: Schedule) -> Schedule:
        """Its own, where it has one."""
        return self.schedule or parent

    def check(self, parent: Schedule, resolution: int, s: int) -> None:
        """`max_s` must be a timestep, and training must have seen s."""
        steps = self.noise_schedule(parent).process().steps
        if self.max_s is not None and self.max_s > steps:
            raise ValueError(f"max_s = {self.max_s} is beyond {steps}, the last timestep of the schedule it counts in")
        if self.max_s is not None and s > self.max_s:
            raise ValueError(f"condition.s = {s} is beyond max_s = {self.max_s}, the largest that the network is trained on")

    def _along(self, low_res: Tensor, parent: Process) -> Process:
        return parent if self.schedule is None else _process(self.schedule, low_res.device, low_res.dtype)

    def _noised(self, low_res: Tensor, s: Tensor, process: Process, draw: Draw) -> Augmented:
        epsilon = draw.normal(tuple(low_res.shape[1:]), step=1).to(low_res.dtype)
        return Augmented(process.noise(low_res, epsilon, s), s.to(low_res.dtype))

    def train(self, low_res: Tensor, parent: Process, draw: Draw) -> Augmented:
        """z_s = sqrt(alpha_bar_s) z_0 + sqrt(1 - alpha_bar_s) epsilon with s ~ U{0..T}, or U{0..max_s}, drawn for each example."""
        process = self._along(low_res, parent)
        return self._noised(low_res, draw.integers(0, self.max_s or process.steps), process, draw)

    def sample(self, low_res: Tensor, parent: Process, draw: Draw, s: int, truncated: bool) -> Augmented:
        """Noise a finished sample to s; a truncated parent's output is z_s already."""
        timestep = torch.full((len(low_res),), s, device=low_res.device)
        if truncated:
            return Augmented(low_res, timestep.to(low_res.dtype))
        return self._noised(low_res, timestep, self._along(low_res, parent), draw)


@component("gaussian-blur")
class GaussianBlur(Augmentation):
    """Blur a share of the low-resolution images, in training only (CDM section 3: 3x3, sigma ~ U(0.4, 0.6), half the examples)."""

    probability: float = option(0.5, help="share of examples that are blurred", ge=0, le=1)
    min_sigma: float = option(0.4, help="smallest standard deviation, in pixels of the low-resolution image", gt=0)
    max_sigma: float = option(0.6, help="largest standard deviation, in pixels of the low-resolution image", gt=0)
    size: int = option(3, help="width of the kernel in pixels, odd", ge=3)

    def __attrs_post_init__(self) -> None:
        if self.size % 2 == 0:
            raise ValueError(f"size = {self.size} must be odd, so that the kernel has a centre")
        if self.min_sigma > self.max_sigma:
            raise ValueError(f"min_sigma = {self.min_sigma:g} is above max_sigma = {self.max_sigma:g}")

    def check(self, parent: Schedule, resolution: int, s: int) -> None:
        """The kernel may reach no further than the image is mirrored at its edges."""
        if self.size // 2 >= resolution:
            raise ValueError(f"size = {self.size} is too wide for images of {resolution} pixels: it must be below {2 * resolution}")

    def train(self, low_res: Tensor, parent: Process, draw: Draw) -> Augmented:
        """Each example is blurred with its own sigma, or left as it is."""
        sigma = draw.uniform(self.min_sigma, self.max_sigma, step=0)
        blurred = draw.uniform(step=1) < self.probability
        return Augmented(torch.where(blurred.view(-1, 1, 1, 1), _blur(low_res, sigma, self.size), low_res), None)


def _blur(images: Tensor, sigma: Tensor, size: int) -> Tensor:
    """Convolve each image [B, C, H, W] with a normalised Gaussian of its own sigma [B], edges reflected."""
    batch, channels, height, width = images.shape
    offsets = torch.arange(size, device=images.device, dtype=images.dtype) - size // 2
    kernel = torch.exp(-0.5 * (offsets / sigma.to(images.dtype).unsqueeze(1)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, dim=0)
    margin = size // 2
    flat = F.pad(images, (margin,) * 4, mode="reflect").reshape(1, batch * channels, height + 2 * margin, width + 2 * margin)
    rows = F.conv2d(flat, kernel[:, None, None, :], groups=batch * channels)
    return F.conv2d(rows, kernel[:, None, :, None], groups=batch * channels).reshape(images.shape)


@hookimpl
def cdmkit_components() -> list[type[Component]]:
    """The conditioning augmentations."""
    return [GaussianNoise, GaussianBlur]
