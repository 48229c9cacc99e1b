"""Guidance: a prediction pushed away from that of a worse model. Both predict x_0, so the network may predict anything.

For any two predictions of x_0 the mix bad + scale (good - bad) is the same as that of their epsilons or scores at the same x_t.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cdmkit.component import Component, component, option, table
from cdmkit.diffusion import Condition, Denoise, Denoised, Denoiser, Point
from cdmkit.hookspecs import hookimpl
from cdmkit.kinds import Guidance


@table
class Scaled(Guidance):
    """Guidance of some strength, within an interval of noise levels (Kynkaanniemi et al., arXiv:2404.07724); outside it costs nothing."""

    scale: float = option(help="how strong: 1 is no guidance, larger pushes further", ge=0)
    min_sigma: float = option(0.0, help="guide only where noise / signal is above this", ge=0)
    max_sigma: float | None = option(None, help="guide only where noise / signal is at most this; default: no bound", gt=0)

    def __attrs_post_init__(self) -> None:
        if self.max_sigma is not None and self.min_sigma >= self.max_sigma:
            raise ValueError(f"min_sigma = {self.min_sigma:g} is not below max_sigma = {self.max_sigma:g}: it would never guide")

    def _guides(self, point: Point) -> bool:
        """Whether it acts at a place."""
        upper = math.inf if self.max_sigma is None else self.max_sigma
        return self.scale != 1 and self.min_sigma < point.sigma <= upper

    def _mixed(self, good: Denoised, bad: Tensor) -> Denoised:
        """Bad + scale (good - bad); the variance stays that of the good one."""
        return good._replace(x0=torch.lerp(bad, good.x0, self.scale))


@component("classifier-free")
class ClassifierFree(Scaled):
    """Classifier-free guidance: away from what the same network predicts without the label (Ho & Salimans, arXiv:2207.12598, eq. 6).

    `scale` is 1 + w of that paper. The stage must have been trained with `label_dropout`. Both predictions are made in one call.
    """

    needs_unlabeled = True

    def __call__(self, denoiser: Denoiser, condition: Condition, guide: Denoiser | None) -> Denoise:
        """The guided prediction; the network's own where no label is told."""
        both = condition.joined(condition.unlabeled())

        def predict(x_t: Tensor, point: Point) -> Denoised:
            if condition.label is None or not self._guides(point):
                return denoiser.predict(x_t, point, condition)
            said = denoiser.predict(torch.cat((x_t, x_t)), point, both)
            (good, bad), ranged = said.x0.chunk(2), None if said.ranged is None else said.ranged.chunk(2)[0]
            return self._mixed(said._replace(x0=good, ranged=ranged), bad)

        return predict


@component("autoguidance")
class Autoguidance(Scaled):
    """Autoguidance: away from what a worse version of the network predicts (Karras et al., arXiv:2406.02507, eq. 4).

    The worse one is a checkpoint of the same stage after fewer steps, or of a smaller network: any weights file that cdmkit wrote.
    """

    weights: str = option(help="the weights file of the guiding network, such as ema.safetensors of an earlier checkpoint")

    @property
    def guide(self) -> str | None:
        """Its weights."""
        return self.weights

    def __call__(self, denoiser: Denoiser, condition: Condition, guide: Denoiser | None) -> Denoise:
        """The guided prediction."""
        if guide is None:
            raise ValueError("autoguidance needs the network that guides")

        def predict(x_t: Tensor, point: Point) -> Denoised:
            good = denoiser.predict(x_t, point, condition)
            return self._mixed(good, guide.predict(x_t, point, condition).x0) if self._guides(point) else good

        return predict


@hookimpl
def cdmkit_components() -> list[type[Component]]:
    """The ways to guide."""
    return [ClassifierFree, Autoguidance]
