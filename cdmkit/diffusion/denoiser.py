"""One wrapper of network + meaning of its output, shared by the losses and the samplers."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import attrs
import torch
from torch import Tensor

from cdmkit.diffusion.parameterization import Parameterization, Variance
from cdmkit.diffusion.process import Point, add_noise


class Condition(NamedTuple):
    """What a network is told beside x_t and the noise level; None where the stage has no such input."""

    label: Tensor | None = None
    """int64 [B], the class; -1 for none, which a network must have been built for (`NetworkSpec.unlabeled`)."""
    low_res: Tensor | None = None
    """[B, 3, R, R] in about [-1, 1]: the low-resolution image, augmented, then resized to the stage's resolution."""
    levels: Tensor | None = None
    """[B, L] float: the level of each augmentation that tells one, in the stage's order."""

    def unlabeled(self) -> Condition:
        """The same without labels."""
        return self if self.label is None else self._replace(label=torch.full_like(self.label, -1))

    def joined(self, other: Condition) -> Condition:
        """A batch of both: this one's examples, then the other's. Both have the same inputs."""
        return Condition(*(None if a is None or b is None else torch.cat((a, b)) for a, b in zip(self, other, strict=True)))


Network = Callable[[Tensor, Tensor, Condition], Tensor]
"""(x_t [B, 3, R, R], noise level [B], condition) -> [B, 3 or 6, R, R]; 6 channels where the variance is learned."""


@attrs.frozen(eq=False)
class Noised:
    """A noised training batch: x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) epsilon."""

    x0: Tensor
    """[B, 3, R, R] in [-1, 1]."""
    epsilon: Tensor
    x_t: Tensor
    point: Point
    """Where each example is on its chain; between two timesteps where the noise input is continuous."""

    @classmethod
    def of(cls, x0: Tensor, epsilon: Tensor, point: Point) -> Noised:
        """Noise a batch."""
        return cls(x0, epsilon, add_noise(x0, epsilon, point), point)


class Output(NamedTuple):
    """What the network said."""

    value: Tensor
    """[B, 3, R, R]: epsilon, x0 or v."""
    ranged: Tensor | None
    """[B, 3, R, R]: the share of the variance range, about [-1, 1]; None where the variance is fixed."""


class Denoised(NamedTuple):
    """What a network's output at x_t means. Epsilon is whatever x_t and this x0 imply, so the two agree after thresholding too."""

    x0: Tensor
    """[B, 3, R, R]: the predicted clean image."""
    ranged: Tensor | None
    variance: Variance
    point: Point

    @property
    def log_variance(self) -> Tensor:
        """Log of the reverse step's variance, broadcastable to x_t."""
        return self.variance.log_variance(self.ranged, self.point)

    @property
    def deviation(self) -> Tensor:
        """The reverse step's deviation, broadcastable to x_t."""
        return self.variance.deviation(self.ranged, self.point)


Denoise = Callable[[Tensor, Point], Denoised]
"""(x_t [B, 3, R, R], where on the chain it is) -> Denoised: what samplers call."""

Threshold = Callable[[Tensor], Tensor]
"""x_0 [B, 3, R, R] -> the same, kept within what images are."""


def clip(x0: Tensor) -> Tensor:
    """Static thresholding: x_0 kept within [-1, 1] (DDPM's code)."""
    return x0.clamp(-1, 1)


@attrs.frozen(eq=False)
class Denoiser:
    """A network and the meaning of its output. `threshold` is for sampling, and None leaves what is predicted as it is."""

    network: Network
    parameterization: Parameterization
    threshold: Threshold | None = clip

    def output(self, x_t: Tensor, point: Point, condition: Condition) -> Output:
        """Ask the network; what it says in half precision is taken on in x_t's."""
        level = self.parameterization.noise_input.level(point).expand(x_t.shape[0])
        said = self.network(x_t, level, condition).type_as(x_t)
        if not self.parameterization.variance.learned:
            return Output(said, None)
        value, ranged = said.chunk(2, dim=1)
        return Output(value, ranged)

    def meaning(self, output: Output, x_t: Tensor, point: Point) -> Denoised:
        """What an output at x_t means, before any thresholding."""
        x0 = self.parameterization.prediction.x0(output.value, x_t, point)
        return Denoised(x0, output.ranged, self.parameterization.variance, point)

    def predict(self, x_t: Tensor, point: Point, condition: Condition) -> Denoised:
        """Denoise x_t, before any thresholding: what guidance compares."""
        return self.meaning(self.output(x_t, point, condition), x_t, point)

    def denoise(self, x_t: Tensor, point: Point, condition: Condition) -> Denoised:
        """Denoise x_t."""
        return self.bind(condition)(x_t, point)

    def bind(self, condition: Condition, predict: Denoise | None = None) -> Denoise:
        """`denoise` with the condition filled in: what a sampler calls. predict: a guided prediction in place of this network's own."""

        def denoise(x_t: Tensor, point: Point) -> Denoised:
            said = self.predict(x_t, point, condition) if predict is None else predict(x_t, point)
            return said if self.threshold is None else Denoised(self.threshold(said.x0), *said[1:])

        return denoise
