"""The two ranges of a pixel: uint8 at the borders, [-1, 1] within."""

from __future__ import annotations

import torch
from torch import Tensor

from cdmkit.errors import NumericsError


def to_float(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 of any shape to [-1, 1]: x / 127.5 - 1."""
    return images.to(dtype) / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] of any shape to uint8, rounded to the nearest and clamped. Raises NumericsError at NaN or infinity."""
    if not images.isfinite().all():
        broken = int((~images.isfinite()).sum())
        raise NumericsError(f"{broken} of {images.numel()} pixel values are NaN or infinite: no picture can be made of them")
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
