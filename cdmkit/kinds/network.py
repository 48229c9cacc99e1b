"""The kind of networks, and what a stage asks of one."""

from __future__ import annotations

from abc import abstractmethod

import attrs
from torch import nn

from cdmkit.component import Component


@attrs.frozen
class NetworkSpec:
    """The network a stage needs."""

    resolution: int
    """R: height and width of x_t."""
    out_channels: int
    """3, or 6 where the variance is learned."""
    classes: int = 0
    """Number of labels the network is told, 0 if none."""
    unlabeled: bool = False
    """Whether it can also be told no label, as -1."""
    low_res: bool = False
    """Whether a low-resolution image is a condition."""
    levels: int = 0
    """How many augmentation levels it is told."""
    image_channels: int = 3


class Backbone(Component):
    """A network architecture."""

    kind = "backbone"

    @abstractmethod
    def build(self, spec: NetworkSpec) -> nn.Module:
        """A new module: forward(x_t [B, 3, R, R], noise level [B], Condition) -> [B, spec.out_channels, R, R].

        Raises ValueError, saying why, where its options do not suit the spec.
        """
