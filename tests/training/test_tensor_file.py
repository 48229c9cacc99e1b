"""Files of tensors, beside the library whose format they are of."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from cdmkit.errors import CheckpointError
from cdmkit.training.tensor_file import TensorFile, copy_into, outlines, write

DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2),
]


def every_dtype() -> dict[str, Tensor]:
    """A tensor of each dtype, scalars, empty ones and a name that is not ASCII."""
    values = torch.arange(-6, 6).view(3, 4)
    return {
        **{f"größe.{dtype}": values.to(dtype) for dtype in DTYPES},
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0),
        "empty too": torch.zeros(3, 0, 2, dtype=torch.bfloat16),
    }


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Names, dtypes, shapes and bits."""
    return one.keys() == other.keys() and all(
        (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(bits(a), bits(b)) for a, b in ((one[name], other[name]) for name in one)
    )


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


@pytest.mark.parametrize("metadata", [{}, {"cdmkit": '{"a": "größe \\" \x07"}'}])
def test_bytes_are_those_of_the_library(tmp_path: Path, metadata: dict[str, str]) -> None:
    """The same file as safetensors writes, whose SHA-256 is given."""
    digest = write(tmp_path / "ours", every_dtype(), metadata)
    save_file(every_dtype(), tmp_path / "theirs", metadata=metadata or None)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert digest == hashlib.sha256((tmp_path / "ours").read_bytes()).hexdigest()
    assert equal(load_file(tmp_path / "ours"), every_dtype())


def test_any_layout_is_written_by_value(tmp_path: Path) -> None:
    """Strided and shared tensors, those of channels last, and large ones."""
    large = torch.arange(3 << 18, dtype=torch.float32)
    images = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    tensors = {"large": large, "strided": large[::2], "same": large, "images": images, "expanded": torch.ones(1).expand(5)}
    write(tmp_path / "file", tensors, {})
    assert equal(load_file(tmp_path / "file"), tensors)
    assert equal(TensorFile(tmp_path / "file"), tensors)


def test_tensors_are_read_one_at_a_time(tmp_path: Path) -> None:
    """What is there is known without reading: names, shapes, dtypes, bytes. Reading one needs no memory for the others."""
    tensors = {f"{number}": torch.full((1 << 18,), float(number)) for number in range(8)}
    save_file(tensors, tmp_path / "file", metadata={"a": "b"})
    found = TensorFile(tmp_path / "file")
    assert (found.metadata, found.nbytes, len(found)) == ({"a": "b"}, 8 << 20, 8)
    assert {name: (each.shape, each.dtype, each.device.type) for name, each in outlines(found).items()} == {
        name: (each.shape, each.dtype, "meta") for name, each in tensors.items()
    }
    tracemalloc.start()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
    with pytest.raises(KeyError):
        found["8"]


def test_tensors_are_read_into_others(tmp_path: Path) -> None:
    """Of any layout and dtype, and from tensors in memory alike."""
    images = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    tensors = {"images": images, "scalar": torch.tensor(2.0), "empty": torch.zeros(0)}
    write(tmp_path / "file", tensors, {})
    for source in (tensors, TensorFile(tmp_path / "file")):
        for target in (torch.empty(2, 3, 4, 4), torch.empty(2, 3, 4, 4).to(memory_format=torch.channels_last), images.double()):
            layout = target.stride()
            copy_into(target.zero_(), source, "images")
            assert torch.equal(target.float(), images)
            assert target.stride() == layout
        for name in ("scalar", "empty"):
            target = torch.ones_like(tensors[name])
            copy_into(target, source, name)
            assert torch.equal(target, tensors[name])


def test_a_removed_file_is_read_to_its_end(tmp_path: Path) -> None:
    """Whoever opened it has it."""
    write(tmp_path / "file", {"a": torch.ones(3)}, {})
    found = TensorFile(tmp_path / "file")
    (tmp_path / "file").unlink()
    assert torch.equal(found["a"], torch.ones(3))


def test_a_file_that_shrinks_is_an_error(tmp_path: Path) -> None:
    """And no signal that ends the process."""
    write(tmp_path / "file", {"a": torch.ones(1 << 16)}, {})
    found = TensorFile(tmp_path / "file")
    (tmp_path / "file").write_bytes((tmp_path / "file").read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="file cannot be read: it has become shorter"):
        found["a"]


@pytest.mark.parametrize("damage", ["cut", "longer", "header", "empty"])
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, damage: str) -> None:
    """Before any tensor is read."""
    path = tmp_path / "file"
    write(path, {"a": torch.ones(3)}, {})
    good = path.read_bytes()
    path.write_bytes({"cut": good[:-1], "longer": good + b"\0", "header": b"\xff" * 8 + good[8:], "empty": b""}[damage])
    with pytest.raises(CheckpointError, match="file cannot be read as safetensors"):
        TensorFile(path)


def test_unknown_dtypes_are_refused(tmp_path: Path) -> None:
    """Those that the format has not when writing, those that torch's tensors here have not when reading."""
    with pytest.raises(CheckpointError, match=r"no dtype for a \(torch\.complex128\)"):
        write(tmp_path / "file", {"a": torch.zeros(1, dtype=torch.complex128)}, {})
    header = b'{"a":{"dtype":"F8_E8M0","shape":[8],"data_offsets":[0,8]}}'
    (tmp_path / "file").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with safe_open(tmp_path / "file", framework="pt") as file:
        assert list(file.keys()) == ["a"]
    with pytest.raises(CheckpointError, match="tensors of type F8_E8M0"):
        TensorFile(tmp_path / "file")


def test_empty_tensors_of_no_size_that_torch_has_are_refused(tmp_path: Path) -> None:
    """The library lets any shape pass whose product is 0."""
    header = b'{"a":{"dtype":"F32","shape":[0,9223372036854775808],"data_offsets":[0,0]}}'
    (tmp_path / "file").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match="shapes that torch has not"):
        TensorFile(tmp_path / "file")
