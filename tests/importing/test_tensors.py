"""Files of weights that others wrote: what is read, what is refused, and that nothing in them is run."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cdmkit.errors import CheckpointError
from cdmkit.importing.tensors import read_tensors

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.tensor([0.5, -1.0], dtype=torch.float16)}


def legacy(value: Any, path: Path) -> None:
    """As torch before 1.6 saved: what Improved DDPM's weights may be."""
    torch.save(value, path, _use_new_zipfile_serialization=False)


def ordered(value: dict[str, Tensor], path: Path) -> None:
    """As a module's state_dict is saved: ordered, with notes on the side."""
    found = OrderedDict(value)
    found._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    torch.save(found, path)


def parameters(value: dict[str, Tensor], path: Path) -> None:
    """As parameters instead of tensors."""
    torch.save({name: nn.Parameter(tensor) for name, tensor in value.items()}, path)


@pytest.mark.parametrize("write", [torch.save, legacy, ordered, parameters, save_file], ids=lambda write: write.__name__)
def test_tensors_are_read_as_they_are_stored(write: Callable[[Any, Path], None], tmp_path: Path) -> None:
    """In each format, whatever the file is called."""
    write(TENSORS, tmp_path / "weights")
    found = read_tensors(tmp_path / "weights")
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype is tensor.dtype
        assert torch.equal(found[name], tensor)


class Harmful:
    """Runs a command when it is unpickled the common way."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize(
    "write", [torch.save, legacy, lambda value, path: path.write_bytes(pickle.dumps(value))], ids=["zip", "legacy", "bare"]
)
@pytest.mark.parametrize("trust", ["0", "1"])
def test_code_in_a_pickle_is_refused_and_not_run(
    write: Callable[[Any, Path], None], trust: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each format, also where the environment asks torch to trust files."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", trust)
    marker, path = tmp_path / "was-run", tmp_path / "weights.pt"
    write({**TENSORS, "b": Harmful(marker)}, path)
    with pytest.raises(CheckpointError, match=r"asks for posix\.system .* Nothing was run|no file of weights"):
        read_tensors(path)
    assert not marker.exists()
    with contextlib.suppress(Exception):
        torch.load(path, weights_only=False)
    assert marker.exists()  # so it is harmful, where it is trusted


def saved(value: object, path: Path) -> None:
    """A file of something else."""
    torch.save(value, path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>404</html>", "is a web page"),
        (b"\n  <html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is a pointer of Git LFS"),
        (b"PK\x03\x04 and then nothing of the kind", "is damaged or cut off|no file of weights"),
        (b"\x80\x02}q\x00", "no file of weights|damaged"),
        (b"hello, this is a text about weights", "no file of weights|damaged"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{broken header}", "cannot be read as safetensors"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f{" + b" " * 50, "cannot be read as safetensors"),
    ],
)
def test_files_that_are_no_weights_are_said(content: bytes, words: str, tmp_path: Path) -> None:
    """Each with what it is."""
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as raised:
        read_tensors(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("write", [torch.save, legacy, save_file], ids=["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_off_is_said(write: Callable[[Any, Path], None], share: float, tmp_path: Path) -> None:
    """At any place."""
    path = tmp_path / "weights.pt"
    write({name: torch.ones(64, 64) for name in "abc"}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"weights\.pt"):
        read_tensors(path)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([torch.ones(2)], "holds a list"),
        (torch.ones(2), "holds a Tensor"),
        ({}, "not a table of tensors"),
        ({"model": {"a": torch.ones(2)}, "step": 3}, "no flat table of tensors: its entry 'model' is a dict"),
        ({"a": torch.ones(2), "epoch": 3}, "its entry 'epoch' is a int"),
        ({1: torch.ones(2)}, "its entry 1 is a Tensor"),
        ({"a": torch.arange(3)}, "a is not a plain tensor of floating-point numbers"),
        ({"a": torch.ones(2, 2).to_sparse()}, "a is not a plain tensor"),
        ({"a": torch.ones(2, device="meta")}, "a is not a plain tensor"),
    ],
)
def test_only_a_flat_table_of_numbers_is_taken(value: object, words: str, tmp_path: Path) -> None:
    """What else torch can save is said."""
    saved(value, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=words):
        read_tensors(tmp_path / "weights.pt")


def test_what_is_no_file_is_said(tmp_path: Path) -> None:
    """Missing, or a folder."""
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        read_tensors(tmp_path / "gone.pt")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_tensors(tmp_path)
