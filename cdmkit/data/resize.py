"""The named resizes. One of each name, the same in training and sampling, antialiased whenever an image shrinks."""

from __future__ import annotations

from enum import Enum

import torch.nn.functional as F
from torch import Tensor


class Resize(Enum):
    """A filter by name. Pixel centres never move (`align_corners=False`)."""

    AREA = "area"
    """Mean over each target pixel's area: what SR3 and Improved DDPM shrink with. Enlarges by repeating pixels."""
    BILINEAR = "bilinear"
    """Triangle filter, antialiased: what Improved DDPM enlarges with."""
    BICUBIC = "bicubic"
    """Cubic filter, antialiased: what SR3 enlarges with. May overshoot [-1, 1] at edges."""
    NEAREST = "nearest"
    """Repeat pixels. Enlarges only."""

    def __call__(self, images: Tensor, resolution: int) -> Tensor:
        """Resize float images [B, C, H, W] to [B, C, resolution, resolution]."""
        height, width = images.shape[-2:]
        if (height, width) == (resolution, resolution):
            return images
        size = (resolution, resolution)
        match self:
            case Resize.AREA:
                return F.interpolate(images, size, mode="area")
            case Resize.NEAREST:
                if resolution < max(height, width):
                    raise ValueError("nearest enlarges only: shrinking with it aliases")
                return F.interpolate(images, size, mode="nearest-exact")
            case _:
                shrinks = resolution < max(height, width)
                return F.interpolate(images, size, mode=self.value, align_corners=False, antialias=shrinks)
