"""Checkpoints on disk, whole and damaged."""

from __future__ import annotations

import hashlib
import json
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import cdmkit
from cdmkit.errors import CheckpointError
from cdmkit.training.checkpoint import Checkpoint, fit, latest, load, load_latest, read_metadata, read_weights, save
from cdmkit.training.retention import Retention

FILES = ("weights", "ema", "average-1", "optimizer", "density")

METADATA = {"stage": {"resolution": 8}, "data": {"downsample": "area"}}


def make_checkpoint(step: int) -> Checkpoint:
    tensors = {name: {"a.weight": torch.full((2, 3), float(step)), "count": torch.tensor(step)} for name in FILES}
    return Checkpoint(step=step, tensors=tensors, state={"images": 4 * step})


def save_steps(folder: Path, *steps: int, keep: int = 9) -> list[Path]:
    return [save(folder, make_checkpoint(step), METADATA, Retention(newest=keep)) for step in steps]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refuse(message: str) -> None:
    """What is called where no warning is expected."""
    pytest.fail(message)


@contextmanager
def full_disk(_folder: Path | None = None) -> Iterator[None]:
    """Files can only grow to 100 bytes, wherever they are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    """Tensors, step and state come back equal; a path with spaces and umlauts is no obstacle."""
    folder = tmp_path / "Größe 64 – ckpt"
    folder.mkdir()
    save_steps(folder, 7)
    loaded = load_latest(folder, refuse)
    assert loaded is not None
    assert (loaded.step, loaded.state) == (7, {"images": 28})
    for name in FILES:
        assert torch.equal(loaded.tensors[name]["a.weight"], torch.full((2, 3), 7.0))
        assert torch.equal(loaded.tensors[name]["count"], torch.tensor(7))


def test_tied_and_strided_tensors_are_saved(tmp_path: Path) -> None:
    """Tensors that share memory or lie in channels-last layout are saved by value."""
    tied = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    checkpoint = Checkpoint(step=1, tensors={name: {"a": tied, "b": tied} for name in FILES}, state={})
    tensors, _ = read_weights(save(tmp_path, checkpoint, METADATA, Retention(newest=1)) / "weights.safetensors")
    assert torch.equal(tensors["a"], tied)
    assert torch.equal(tensors["b"], tied)


def test_weights_carry_metadata(tmp_path: Path) -> None:
    """A weights file alone, copied elsewhere, says what it is of and what wrote it; other files say nothing."""
    (path,) = save_steps(tmp_path, 5)
    alone = tmp_path / "alone.safetensors"
    versions = {"cdmkit": cdmkit.__version__, "torch": torch.__version__}
    for name in FILES:
        alone.write_bytes((path / f"{name}.safetensors").read_bytes())
        _, metadata = read_weights(alone)
        sampled = name in ("weights", "ema", "average-1")
        assert metadata == ({**METADATA, "step": 5, "versions": versions} if sampled else {})


def test_newest_are_kept(tmp_path: Path) -> None:
    """`keep` checkpoints stay, the newest by step."""
    save_steps(tmp_path, 8, 9, 10, 100, keep=2)
    assert names(tmp_path) == ["step-00000010", "step-00000100"]
    assert latest(tmp_path) == tmp_path / "step-00000100"


def test_a_folder_without_its_state_is_no_checkpoint(tmp_path: Path) -> None:
    """It is not the latest, and the next save removes it, though it is among the newest."""
    first, second = save_steps(tmp_path, 1, 2)
    (second / "state.json").unlink()
    assert latest(tmp_path) == first
    save_steps(tmp_path, 3)
    assert names(tmp_path) == ["step-00000001", "step-00000003"]


def test_the_best_are_kept_by_their_losses(tmp_path: Path) -> None:
    """Beside the newest and the regular ones those of the lowest loss stay, also where one has no loss to compare."""
    for step, loss in enumerate((3.0, 1.0, None, 2.0, 4.0, 5.0), start=1):
        checkpoint = attrs.evolve(make_checkpoint(step), state={"loss": loss})
        save(tmp_path, checkpoint, METADATA, Retention(newest=1, every=5, best=2))
    assert names(tmp_path) == [f"step-0000000{step}" for step in (2, 4, 5, 6)]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    """An empty or missing folder has no checkpoint, which is no error."""
    assert load_latest(tmp_path, refuse) is None
    assert latest(tmp_path / "missing") is None


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, Path.unlink])
@pytest.mark.parametrize("file", [*(f"{name}.safetensors" for name in FILES), "state.json"])
def test_damaged_checkpoint_is_passed_over(tmp_path: Path, file: str, damage: Any) -> None:
    """A flipped bit, a cut or a missing file in the newest checkpoint: the one before is used, with a warning that names the file."""
    _, newest = save_steps(tmp_path, 1, 2)
    damage(newest / file)
    warnings: list[str] = []
    loaded = load_latest(tmp_path, warnings.append)
    assert loaded is not None
    assert loaded.step == 1
    assert len(warnings) == 1
    assert str(newest / file) in warnings[0]


def test_all_damaged_is_an_error(tmp_path: Path) -> None:
    """Where no checkpoint is left, the error names each and says what to do."""
    for path in save_steps(tmp_path, 1, 2):
        truncate(path / "ema.safetensors")
    with pytest.raises(CheckpointError, match=r"step-00000002.*step-00000001.*Remove that folder"):
        load_latest(tmp_path, refuse)


def test_save_after_damage_removes_the_damaged(tmp_path: Path) -> None:
    """A damaged checkpoint of a later step does not push out the good ones that training goes on from."""
    _, newest = save_steps(tmp_path, 1, 3)
    truncate(newest / "weights.safetensors")
    save_steps(tmp_path, 2, keep=1)
    assert names(tmp_path) == ["step-00000002"]


def test_damaged_checkpoint_is_replaced_by_its_own_step(tmp_path: Path) -> None:
    """Coming to the damaged step again writes it anew."""
    (path,) = save_steps(tmp_path, 3)
    truncate(path / "weights.safetensors")
    save_steps(tmp_path, 3)
    assert load(path).step == 3


def test_leftovers_of_a_crash_are_ignored_then_removed(tmp_path: Path) -> None:
    """A half-written checkpoint is not loaded, and the next save clears it away."""
    save_steps(tmp_path, 1)
    leftover = tmp_path / ".step-00000002.partial"
    leftover.mkdir()
    (leftover / "weights.safetensors").write_bytes(b"half")
    loaded = load_latest(tmp_path, refuse)
    assert loaded is not None
    assert loaded.step == 1
    save_steps(tmp_path, 3)
    assert names(tmp_path) == ["step-00000001", "step-00000003"]


class Canary:
    """Touches a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickle_is_refused_unexecuted(tmp_path: Path) -> None:
    """A pickle in place of weights, even with its digest put right, is an error and is not run."""
    canary = tmp_path / "canary"
    (path,) = save_steps(tmp_path, 1)
    payload = pickle.dumps(Canary(canary))
    (path / "ema.safetensors").write_bytes(payload)
    state = json.loads((path / "state.json").read_text())
    del state["digest"]
    state["digests"]["ema"] = hashlib.sha256(payload).hexdigest()
    digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
    (path / "state.json").write_text(json.dumps({**state, "digest": digest}))
    with pytest.raises(CheckpointError, match=r"ema\.safetensors cannot be read as safetensors"):
        load(path)
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(payload)
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        read_weights(alone)
    assert not canary.exists()


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    """Weights that are not there are a CheckpointError with the path."""
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors"):
        read_weights(tmp_path / "nowhere.safetensors")


def test_newer_format_names_the_version(tmp_path: Path) -> None:
    """A checkpoint in a format of the future says which cdmkit wrote it, and is not passed over: it would be removed then."""
    _, path = save_steps(tmp_path, 1, 2)
    state = json.loads((path / "state.json").read_text())
    del state["digest"]
    state = {**state, "format": 99, "versions": {"cdmkit": "9.9"}}
    digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
    (path / "state.json").write_text(json.dumps({**state, "digest": digest}))
    with pytest.raises(CheckpointError, match=r"written by cdmkit 9\.9, in a newer format"):
        load(path)
    with pytest.raises(CheckpointError, match=r"written by cdmkit 9\.9, in a newer format"):
        load_latest(tmp_path, refuse)


def test_what_cannot_be_removed_spoils_no_save(tmp_path: Path) -> None:
    """A save whose checkpoint stands has not failed, though an old one stays, whole."""
    old, *_ = save_steps(tmp_path, 1)
    (old / "state.json").unlink()
    (old / "state.json").mkdir()  # what nobody can unlink
    (path,) = save_steps(tmp_path, 2, keep=1)
    assert load(path).step == 2
    assert names(old) == [
        "average-1.safetensors",
        "density.safetensors",
        "ema.safetensors",
        "optimizer.safetensors",
        "state.json",
        "weights.safetensors",
    ]


def test_lists_in_lists_without_end_are_refused(tmp_path: Path) -> None:
    """JSON that is nested too deep to be read, in a checkpoint's state and in a file's metadata."""
    (path,) = save_steps(tmp_path, 1)
    (path / "state.json").write_text("[" * 200_000)
    with pytest.raises(CheckpointError, match=r"state\.json is damaged"):
        load(path)
    save_file({"a": torch.zeros(1)}, tmp_path / "deep.safetensors", metadata={"cdmkit": "[" * 200_000})
    with pytest.raises(CheckpointError, match=r"deep\.safetensors cannot be read"):
        read_metadata(tmp_path / "deep.safetensors")


def test_full_disk_leaves_no_trace(tmp_path: Path) -> None:
    """A save that fails raises OSError, removes what it wrote, and leaves the checkpoint before it intact."""
    save_steps(tmp_path, 1)
    with full_disk(), pytest.raises(OSError, match="too large"):
        save_steps(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001"]
    assert load(tmp_path / "step-00000001").step == 1


def test_deleted_folder_is_said(tmp_path: Path) -> None:
    """Saving into a folder that was deleted while training ran is a CheckpointError that says so, and the folder is not made again."""
    with pytest.raises(CheckpointError, match="is gone"):
        save_steps(tmp_path / "deleted", 1)
    assert not (tmp_path / "deleted").exists()


def test_weights_of_another_network_are_refused() -> None:
    """The first tensors that differ are named with both shapes, and nothing is loaded."""
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    before = network.get_parameter("0.weight").detach().clone()
    tensors = {"0.weight": torch.zeros(3, 2), "0.bias": torch.zeros(4), "1.weight": torch.zeros(1, 3), "extra": torch.zeros(1)}
    with pytest.raises(CheckpointError) as caught:
        fit(network, tensors, "file.safetensors")
    message = str(caught.value)
    assert "file.safetensors" in message
    assert "0.bias is [4], the network has [3]" in message
    assert "1.bias is missing, the network has [1]" in message
    assert "extra is [1], the network has no such tensor" in message
    assert torch.equal(network.get_parameter("0.weight"), before)


def test_only_what_a_dtype_holds_is_loaded_into_it() -> None:
    """Weights of half precision fit a network of single precision, but not those of double precision or whole numbers."""
    network = nn.Linear(2, 1, bias=False)
    fit(network, {"weight": torch.full((1, 2), 0.5, dtype=torch.bfloat16)}, "file")
    assert network.weight.tolist() == [[0.5, 0.5]]
    for dtype in (torch.float64, torch.int32):
        with pytest.raises(CheckpointError, match=rf"weight is {dtype}, the network has torch\.float32"):
            fit(network, {"weight": torch.zeros(1, 2, dtype=dtype)}, "file")


def test_long_differences_are_cut_short() -> None:
    """Of many differing tensors the first five are named and the rest counted."""
    network = nn.Sequential(*[nn.Linear(1, 1) for _ in range(4)])
    with pytest.raises(CheckpointError, match="and 3 more"):
        fit(network, {}, "file")


@pytest.mark.parametrize(
    "foreign",
    [
        [],
        {"digests": None},
        {"format": "x"},
        {"step": "2"},
        {"versions": []},
        {"digests": {"../weights": "0" * 64}},
        {"state": 1},
    ],
)
def test_a_foreign_state_is_passed_over(tmp_path: Path, foreign: Any) -> None:
    """A state.json whose digest is right but whose values are not: the checkpoint before is used, with a warning that names the file."""
    _, newest = save_steps(tmp_path, 1, 2)
    path = newest / "state.json"
    state = foreign if isinstance(foreign, list) else {**json.loads(path.read_text()), **foreign}
    if isinstance(state, dict):
        del state["digest"]
        state["digest"] = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(state))
    warnings: list[str] = []
    loaded = load_latest(tmp_path, warnings.append)
    assert loaded is not None
    assert loaded.step == 1
    assert [str(path) in warning for warning in warnings] == [True]


def test_metadata_that_is_no_table_is_refused(tmp_path: Path) -> None:
    """A weights file of someone else, with a list where the stage's table would be."""
    path = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={"cdmkit": "[1]"})
    for read in (read_weights, read_metadata):
        with pytest.raises(CheckpointError, match=r"foreign\.safetensors cannot be read.*no table"):
            read(path)
