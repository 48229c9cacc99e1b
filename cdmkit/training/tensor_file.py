"""Files of tensors in the safetensors format (https://github.com/huggingface/safetensors#format): written once, read one tensor at a time.

The library's own functions would do, but for time and memory: a checkpoint is hashed while it is written, so that it is not read again,
and read without its pages staying mapped beside the tensors that they are copied to. What a header may say is left to the library.
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cdmkit.errors import CheckpointError
from cdmkit.training.together import own_part

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
"""The dtypes of the format in its order: the last come first in a file, so that each tensor lies at a multiple of its item's size."""

_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_PIECE = 1 << 20
"""Bytes that are hashed, then written: as many as a processor's cache holds."""


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Write CPU tensors to a file and put it on the disk. Returns its SHA-256, in hex. The same tensors and metadata make the same bytes.

    Tensors may share memory and lie in any layout: they are written by value, row by row. The interpreter's lock is let go while large
    pieces are hashed and written. Raises OSError where the file cannot be written, and CheckpointError at a dtype that the format has not.
    """
    if strange := [f"{name} ({tensor.dtype})" for name, tensor in tensors.items() if tensor.dtype not in _NAMES]:
        raise CheckpointError(f"{path}: the safetensors format has no dtype for {', '.join(strange)}")
    ranks = {dtype: rank for rank, dtype in enumerate(_DTYPES.values())}
    ordered = dict(sorted(tensors.items(), key=lambda item: (-ranks[item[1].dtype], item[0])))
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in _pieces(ordered, metadata):
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _pieces(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """The bytes of a file: its header, then each tensor."""
    ends = list(accumulate((tensor.nbytes for tensor in tensors.values()), initial=0))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for (name, tensor), start, end in zip(tensors.items(), ends, ends[1:], strict=False):
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    scratch = _Scratch(tensor.nbytes for tensor in tensors.values() if not tensor.is_contiguous())
    for tensor in tensors.values():
        rows = tensor if tensor.is_contiguous() else scratch.room(tensor.dtype, tensor.shape).copy_(tensor)
        values = _bytes_of(rows)
        yield from (values[start : start + _PIECE] for start in range(0, len(values), _PIECE))


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor. Torch runs on little-endian processors alone, as the format is."""
    return tensor.detach().view(-1).view(torch.uint8).numpy().data


class _Scratch:
    """Memory for the largest of some tensors, used for one after another: allocators leave holes where large ones come and go."""

    def __init__(self, sizes: Iterable[int]) -> None:
        self._bytes = torch.empty(max(sizes, default=0), dtype=torch.uint8)

    def room(self, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
        """A contiguous tensor, valid until the next one is asked for."""
        return self._bytes[: prod(shape) * dtype.itemsize].view(dtype).view(shape)


class TensorFile(Mapping[str, Tensor]):
    """The tensors of a safetensors file, on the CPU. Each is read when it is asked for, and belongs to whoever asked.

    What is in the file is known when this is made: names, shapes, dtypes and `metadata`; nothing in it is executed. The file is held open,
    so that it can be read to its end though it be removed. Raises CheckpointError, naming the file, where it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, framework="pt"):  # checks that the tensors fill the file to its last byte, without gap or overlap
                self._file = path.open("rb", buffering=0)
            weakref.finalize(self, self._file.close)
            length = int.from_bytes(self._file.read(8), "little")
            header: dict[str, Any] = json.loads(self._file.read(length))
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read as safetensors: {error}.") from error
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        if strange := {entry["dtype"] for entry in header.values()} - _DTYPES.keys():
            raise CheckpointError(f"{path} cannot be read: it has tensors of type {', '.join(sorted(strange))}.")
        try:
            self.outlines = {
                name: torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]], device="meta") for name, entry in header.items()
            }
            """The tensors without their values: on torch's meta device, which takes no memory."""
        except (TypeError, RuntimeError) as error:
            raise CheckpointError(f"{path} cannot be read: it has tensors of shapes that torch has not.") from error
        self._starts = {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items()}
        self._scratch: _Scratch | None = None

    def __iter__(self) -> Iterator[str]:
        return iter(self.outlines)

    def __len__(self) -> int:
        return len(self.outlines)

    def __getitem__(self, name: str) -> Tensor:
        return self._read(name, torch.empty_like(self.outlines[name], device="cpu"))

    def read_into(self, target: Tensor, name: str) -> None:
        """Read a tensor into another one of its shape, on any device, in any layout and of any dtype."""
        outline = self.outlines[name]
        if target.device.type == "cpu" and target.is_contiguous() and target.dtype == outline.dtype:
            self._read(name, target)
            return
        if self._scratch is None:
            self._scratch = _Scratch(each.nbytes for each in self.outlines.values())
        target.copy_(self._read(name, self._scratch.room(outline.dtype, outline.shape)))

    def _read(self, name: str, tensor: Tensor) -> Tensor:
        """Fill a contiguous CPU tensor of the right dtype."""
        unread = _bytes_of(tensor)
        try:
            self._file.seek(self._starts[name])
            while unread:
                count = self._file.readinto(unread)
                if not count:
                    raise OSError("it has become shorter")
                unread = unread[count:]
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error}.") from error
        return tensor

    @property
    def nbytes(self) -> int:
        """How many bytes the tensors have."""
        return sum(each.nbytes for each in self.outlines.values())


def outlines(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Tensors of the same names, shapes and dtypes, without reading any."""
    return tensors.outlines if isinstance(tensors, TensorFile) else tensors


def copy_into(target: Tensor, tensors: Mapping[str, Tensor], name: str) -> None:
    """Give a tensor the values of one of others, in its own place, dtype and layout; what of them it holds, where it is split among
    processes.
    """
    if isinstance(tensors, TensorFile) and not hasattr(target, "full_tensor"):
        tensors.read_into(target, name)
    else:
        target.copy_(own_part(tensors[name], target))
