"""The named resizes. One of each name, the same in training and sampling, antialiased whenever an image shrinks."""

from __future__ import annotations

from enum import Enum
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


class Resize(Enum):
    """A filter by name. Pixel centres never move (`align_corners=False`)."""

    AREA = "area"
    """Mean over each target pixel's area: what SR3 and Improved DDPM shrink with. Enlarges whole times by repeating pixels."""
    BILINEAR = "bilinear"
    """Triangle filter, antialiased: what Improved DDPM enlarges with."""
    BICUBIC = "bicubic"
    """Keys' cubic filter with a = -0.5, as in PIL, antialiased: what SR3 enlarges with. May overshoot [-1, 1] at edges."""
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
                return _area(images, resolution)
            case Resize.NEAREST:
                if resolution < max(height, width):
                    raise ValueError("nearest enlarges only: shrinking with it aliases")
                return F.interpolate(images, size, mode="nearest-exact")
            case Resize.BILINEAR:
                shrinks = resolution < max(height, width)
                return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=shrinks)
            case Resize.BICUBIC:  # without antialias, which changes nothing else where it enlarges, torch takes a = -0.75
                return F.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True)


def _area(images: Tensor, resolution: int) -> Tensor:
    """The mean over each target pixel. torch's own is exact for whole factors alone: its windows else overlap."""
    height, width = images.shape[-2:]
    if height % resolution == 0 and width % resolution == 0:
        return F.interpolate(images, (resolution, resolution), mode="area")
    rows, columns = (_shares(source, resolution, images.device, images.dtype) for source in (height, width))
    return rows @ images @ columns.T


@lru_cache(maxsize=16)
def _shares(source: int, target: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[target, source]: how much of each target pixel each source pixel covers; rows sum to 1."""
    edges = torch.arange(target + 1, dtype=torch.float64) * source / target
    pixels = torch.arange(source, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    return (overlap.clamp(min=0) * target / source).to(device, dtype)
