"""Thresholds: how a predicted image is kept within [-1, 1] while sampling."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cdmkit.component import Component, component, option
from cdmkit.diffusion import clip
from cdmkit.hookspecs import hookimpl
from cdmkit.kinds import Threshold


@component("static")
class Static(Threshold):
    """Clip the predicted image to [-1, 1] (DDPM's code)."""

    def __call__(self, x0: Tensor) -> Tensor:
        """Clip."""
        return clip(x0)


@component("dynamic")
class Dynamic(Threshold):
    """Dynamic thresholding, against the saturated colours of strong guidance (Imagen, arXiv:2205.11487, section 2.3).

    Each image is clipped to [-q, q] and divided by q, where q is the given percentile of its absolute values, but at least 1.
    """

    percentile: float = option(0.995, help="share of an image's values that is left as it is", gt=0, le=1)
    largest: float | None = option(None, help="q grows no further than this; default: no bound", ge=1)

    def __call__(self, x0: Tensor) -> Tensor:
        """Clip and divide each image by itself."""
        q = _quantile(x0.abs().flatten(1), self.percentile).clamp(1, self.largest).view(-1, *[1] * (x0.ndim - 1))
        return x0.clamp(-q, q) / q


def _quantile(values: Tensor, share: float) -> Tensor:
    """The quantile of each row, linear between its neighbours, as torch.quantile's, which sorts whole rows: [B, N] -> [B]."""
    place = share * (values.shape[1] - 1)
    below = math.floor(place)
    top = values.topk(values.shape[1] - below, dim=1).values
    return torch.lerp(top[:, -1], top[:, max(-2, -top.shape[1])], place - below)


@component("none")
class Unthresholded(Threshold):
    """Leave the predicted image as it is."""

    def __call__(self, x0: Tensor) -> Tensor:
        """The same tensor."""
        return x0


@hookimpl
def cdmkit_components() -> list[type[Component]]:
    """The thresholds."""
    return [Static, Dynamic, Unthresholded]
