"""Copies of tensors in the host's memory, made while training waits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Staging:
    """Room for one copy of all that is saved. It is taken at the first copy, and used again by those that follow."""

    def __init__(self) -> None:
        self._rooms: dict[tuple[str, str], Tensor] = {}

    def copy(self, files: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """What `files` hold now, on the CPU, by file and name: complete when this returns, and valid until the next copy."""
        copies = {
            file: {name: self._room(file, name, tensor).copy_(tensor, non_blocking=tensor.is_cuda) for name, tensor in tensors.items()}
            for file, tensors in files.items()
        }
        for device in {tensor.device for tensors in files.values() for tensor in tensors.values() if tensor.is_cuda}:
            torch.cuda.synchronize(device)
        return copies

    def _room(self, file: str, name: str, tensor: Tensor) -> Tensor:
        """A tensor like another one, in its layout, too, so that memory is copied as it lies; page-locked where a GPU writes to it."""
        room = self._rooms.get((file, name))
        if room is None or (room.shape, room.dtype) != (tensor.shape, tensor.dtype):
            room = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda, requires_grad=False)
            self._rooms[file, name] = room
        return room
