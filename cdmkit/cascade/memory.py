"""What to do where a device lacks memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from cdmkit.errors import SetupError


@contextlib.contextmanager
def out_of_memory(message: str) -> Iterator[None]:
    """Raise SetupError with `message`, which says how to need less, where the work inside does not fit the memory of its device."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise SetupError(message) from error
