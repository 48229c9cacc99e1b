"""Checkpoints: folders of safetensors files and one JSON file, complete or not there.

    ckpt/step-00001000/weights.safetensors    the network
                       ema.safetensors        the network's moving average: what is sampled from
                       optimizer.safetensors  the optimizer's tensors
                       density.safetensors    what the density of timesteps learned from losses, if it learns
                       state.json             the rest, with the SHA-256 of every file

A folder is written beside its place, put on the disk and renamed: a crash leaves an older checkpoint and a leftover that nobody reads.
`state.json` is written last and removed first: a folder without it is no checkpoint. Nothing in a checkpoint is code. Files of weights
carry the stage's resolved table: what they were trained as.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

import cdmkit
from cdmkit.errors import CheckpointError
from cdmkit.files import digest, sync, write_json
from cdmkit.training.retention import Retention
from cdmkit.training.tensor_file import TensorFile, copy_into, outlines, write

FORMAT = 1
"""Grows when older versions of cdmkit could not read what is written."""

_METADATA = "cdmkit"
_VERSIONS = {"cdmkit": cdmkit.__version__, "torch": torch.__version__}
_STEP = re.compile(r"step-(\d{8})")
_FILE = re.compile(r"[a-z][a-z0-9-]*")
_WEIGHTS = re.compile(r"weights|ema|average-[a-z0-9-]+")
"""The files that a stage can be sampled from."""
_SHOWN = 5


@attrs.frozen(eq=False, kw_only=True)
class Checkpoint:
    """All that training needs to go on."""

    step: int
    """Optimizer steps done."""
    tensors: Mapping[str, Mapping[str, Tensor]]
    """The tensors of each file ("weights", "ema", "average-1", "optimizer", ...), on any device. Where there are none, there is no file."""
    state: Mapping[str, Any]
    """What is no tensor, as JSON values. `loss`, where it is there, decides which checkpoints are the best."""
    about: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    """What single files of weights say of themselves, beside what all of them do."""


class NewerFormat(CheckpointError):
    """A later version of cdmkit wrote a checkpoint: it is whole, but not to be read here."""


def save(folder: Path, checkpoint: Checkpoint, metadata: Mapping[str, Any], retention: Retention) -> Path:
    """Write a checkpoint under `folder`, then remove those that need not be kept and what crashed saves left.

    Raises CheckpointError where the folder is gone, and OSError where it cannot be written (then no trace is left of the attempt).
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"step {checkpoint.step} cannot be saved: {folder} is gone, though training began with it. Was the run deleted?"
        )
    final = place(folder, checkpoint.step)
    partial = folder / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write(partial, checkpoint, metadata)
        if final.exists():  # a damaged one, or it would have been resumed from
            _remove(final)
        partial.rename(final)
        sync(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _tidy(folder, checkpoint.step, retention)
    return final


def _write(partial: Path, checkpoint: Checkpoint, metadata: Mapping[str, Any]) -> None:
    partial.mkdir()
    digests = {}
    for name, tensors in checkpoint.tensors.items():
        if tensors:
            about = told({**metadata, **checkpoint.about.get(name, {})}, checkpoint.step) if _WEIGHTS.fullmatch(name) else {}
            digests[name] = write(partial / f"{name}.safetensors", tensors, about)
    state = {"format": FORMAT, "step": checkpoint.step, "versions": _VERSIONS, "state": dict(checkpoint.state), "digests": digests}
    write_json(partial / "state.json", {**state, "digest": _digest_of(state)})


def told(metadata: Mapping[str, Any], step: int) -> dict[str, str]:
    """What a file of weights says of itself, as safetensors has it: `metadata`, the step, and what wrote it."""
    return {_METADATA: json.dumps({**metadata, "step": step, "versions": _VERSIONS})}


def _tidy(folder: Path, step: int, retention: Retention) -> None:
    """Remove what need not be kept: beside old checkpoints those after `step`, too damaged to go on from, and what is no checkpoint."""
    losses = {at: _loss(path) for path in saved(folder) if (at := step_of(path)) <= step and is_complete(path)}
    kept = {place(folder, at) for at in retention.keeps(losses)}
    for path in {*saved(folder), *leftovers(folder)} - kept:
        _remove(path)


def _remove(path: Path) -> None:
    """Remove a checkpoint, beginning with what makes it one; where that cannot be removed all of it stays, and no harm is done."""
    with contextlib.suppress(OSError):
        (path / "state.json").unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)


def _loss(path: Path) -> float | None:
    """The loss noted in a checkpoint, None where there is none."""
    try:
        loss = read_state(path)["state"].get("loss")
    except CheckpointError:
        return None
    return loss if isinstance(loss, float) else None


def place(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step that the name of a checkpoint's folder tells."""
    found = _STEP.fullmatch(path.name)
    return int(found[1]) if found else 0


def saved(folder: Path) -> list[Path]:
    """The checkpoints under `folder`, damaged ones too, newest first. Chosen by number, since clocks jump."""
    return sorted((path for path in folder.glob("step-*") if _STEP.fullmatch(path.name)), reverse=True)


def leftovers(folder: Path) -> list[Path]:
    """What saves that were cut short left under `folder`."""
    return sorted(folder.glob(".step-*.partial"))


def is_complete(path: Path) -> bool:
    """Whether the folder of a checkpoint was written to its end."""
    return (path / "state.json").exists()


def latest(folder: Path) -> Path | None:
    """The newest checkpoint under `folder`, or None."""
    return next(filter(is_complete, saved(folder)), None)


def load_latest(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest undamaged checkpoint under `folder`; None where there is none at all.

    Tells `warn` of each damaged one that it passes over. Raises CheckpointError where all are damaged, and at one of a newer format, which
    going on from an older one would remove.
    """
    faults: list[str] = []
    for path in saved(folder):
        try:
            checkpoint = load(path)
        except NewerFormat:
            raise
        except CheckpointError as error:
            faults.append(str(error))
            continue
        for fault in faults:
            warn(f"{fault} Going on from step {checkpoint.step} instead.")
        return checkpoint
    if faults:
        raise CheckpointError(f"no checkpoint under {folder} can be used: {' '.join(faults)} Remove that folder to train the stage anew.")
    return None


def load(path: Path) -> Checkpoint:
    """A checkpoint, its files compared with their digests. Tensors are read onto the CPU when they are asked for, one at a time.

    Raises CheckpointError, naming the file, where it is damaged, incomplete or of a newer format.
    """
    state = read_state(path)
    tensors = {name: _undamaged(path / f"{name}.safetensors", wanted) for name, wanted in state["digests"].items()}
    return Checkpoint(step=state["step"], tensors=tensors, state=state["state"])


def read_weights(path: Path) -> tuple[TensorFile, dict[str, Any]]:
    """The tensors of a weights file, on the CPU, and its metadata (the stage's table, facts of the data, the step).

    Inside a checkpoint the file is compared with the digest noted there. Raises CheckpointError where it is missing, damaged or no
    safetensors file; nothing in it is executed.
    """
    noted = read_state(path.parent)["digests"] if is_complete(path.parent) else None
    tensors = TensorFile(path) if noted is None else _undamaged(path, noted.get(path.stem))
    return tensors, metadata_of(tensors)


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a weights file alone, without looking at its tensors. Raises CheckpointError where it is no safetensors file."""
    return metadata_of(TensorFile(path))


def _undamaged(path: Path, wanted: str | None) -> TensorFile:
    """A file of a checkpoint. Raises CheckpointError where its digest is not the one given."""
    try:
        found = digest(path)
    except OSError as error:
        raise CheckpointError(f"{path} is damaged: it cannot be read: {error.strerror}.") from error
    if found != wanted:
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one noted when it was saved.")
    return TensorFile(path)


def metadata_of(tensors: TensorFile) -> dict[str, Any]:
    """What cdmkit wrote beside the tensors of a file, empty where it did not. Raises CheckpointError where that is no table."""
    try:
        metadata = json.loads(tensors.metadata.get(_METADATA, "{}"))
        if not isinstance(metadata, dict):
            raise ValueError("its metadata is no table")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{tensors.path} cannot be read as safetensors of cdmkit: {error}.") from error
    return metadata


_STATE = {"format": int, "step": int, "versions": dict, "state": dict, "digests": dict}
"""What state.json holds, beside its own digest."""


def read_state(path: Path) -> dict[str, Any]:
    """The state.json of a checkpoint. Raises CheckpointError, naming it, where it is damaged, missing or of a newer format."""
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
        intact = state.pop("digest") == _digest_of(state)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path / 'state.json'} is damaged or missing: {error}.") from error
    if not intact:
        raise CheckpointError(f"{path / 'state.json'} is damaged: its digest does not match.")
    if strange := [key for key, kind in _STATE.items() if not isinstance(state.get(key), kind)]:
        raise CheckpointError(f"{path / 'state.json'} is not of cdmkit: {', '.join(strange)} is missing or of another type.")
    if state["format"] > FORMAT:
        written_by = f"cdmkit {state['versions'].get('cdmkit', 'of another version')}"
        raise NewerFormat(f"{path} was written by {written_by}, in a newer format: install that version or a later one.")
    if strange := [name for name in state["digests"] if not _FILE.fullmatch(name)]:
        raise CheckpointError(f"{path / 'state.json'} is not of cdmkit: {strange[0]!r} is no name of a file of tensors.")
    return state


def _digest_of(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def fit(module: nn.Module, tensors: Mapping[str, Tensor], source: Path | str) -> None:
    """Load weights into a module, a tensor at a time. Raises CheckpointError, naming the first tensors that differ, where they are not this
    network's; then nothing is read. A floating-point tensor may be of a dtype that the network's holds without loss.
    """
    own = module.state_dict()
    found = outlines(tensors)
    if differences := list(_differences(found, own)):
        more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        listed = "; ".join(differences[:_SHOWN])
        raise CheckpointError(f"{source} holds the weights of another network: {listed}{more}. Use the recipe that it was trained with.")
    for name, tensor in own.items():
        copy_into(tensor, tensors, name)


def _differences(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Iterator[str]:
    """What differs between the tensors of a file and those of a network, a clause for each."""
    for name in dict.fromkeys((*wanted, *found)):
        there, own = found.get(name), wanted.get(name)
        if there is None or own is None or there.shape != own.shape:
            shape, needed = (
                default if tensor is None else list(tensor.shape) for tensor, default in ((there, "missing"), (own, "no such tensor"))
            )
            yield f"{name} is {shape}, the network has {needed}"
        elif not _holds(own.dtype, there.dtype):
            yield f"{name} is {there.dtype}, the network has {own.dtype}"


def _holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
    """Whether every value of a dtype is one of another, too."""
    return wide == narrow or (wide.is_floating_point and narrow.is_floating_point and torch.promote_types(wide, narrow) == wide)
