"""Reading weights that others wrote: tensors by name, never code."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cdmkit.errors import CheckpointError

_STRANGERS = {
    b"<": "is a web page, not weights: the download was answered with something else",
    b"version https://git-lfs": "is a pointer of Git LFS, not the weights: `git lfs pull` fetches them",
}
"""What files that are no weights begin with, and what they are."""

_WANTED = re.compile(r"GLOBAL ([\w.]+)")
"""What torch says of a pickle that names something else than tensors."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of one that torch.save wrote, on the CPU, as they are stored; large ones are mapped, not read.

    The second kind is a pickle, and is read by torch's reader of weights alone, which makes tensors and calls nothing that a file names.
    Raises CheckpointError, saying what the file is instead, where it is not a flat table of tensors of floating-point numbers.
    """
    head = _head(path)
    found = _safetensors(path) if head[8:9] == b"{" else _pickled(path)
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{path} holds a {type(found).__name__}, not a table of tensors by name.")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path} is no flat table of tensors: its entry {name!r} is a {type(value).__name__}. "
                "It may be a checkpoint of training: save the network's state_dict alone."
            )
        if value.layout is not torch.strided or value.device.type != "cpu" or not value.is_floating_point():
            raise CheckpointError(f"{path}: {name} is not a plain tensor of floating-point numbers ({value.dtype}, {value.layout}).")
    return dict(found)


def _head(path: Path) -> bytes:
    """The first bytes of a file. Raises CheckpointError where there is no file, or one that begins as no weights do."""
    try:
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder, not a file of weights.")
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    if not head:
        raise CheckpointError(f"{path} is empty.")
    for sign, words in _STRANGERS.items():
        if head.lstrip().startswith(sign):
            raise CheckpointError(f"{path} {words}.")
    return head


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}.") from error


def _pickled(path: Path) -> Any:
    """What torch.save wrote, where that is no more than tensors and plain containers."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats that torch has left behind
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        wanted = _WANTED.search(str(error))
        if wanted:
            raise CheckpointError(
                f"{path} is refused: it asks for {wanted[1]} when it is read, which is no tensor and could run code. Nothing was run."
            ) from error
        raise CheckpointError(f"{path} is no file of weights, or a damaged one.") from error
    except Exception as error:  # what a damaged or hostile file makes torch raise is anything
        raise CheckpointError(f"{path} is damaged or cut off, or no file of weights ({type(error).__name__}).") from error
