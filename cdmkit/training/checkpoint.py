"""Checkpoints: folders of safetensors files and one JSON file, complete or not there.

    ckpt/step-00001000/weights.safetensors    the network
                       ema.safetensors        the network's moving average: what is sampled from
                       optimizer.safetensors  the optimizer's tensors
                       density.safetensors    what the density of timesteps learned from losses, if it learns
                       state.json             the rest, with the SHA-256 of every file

A folder is written beside its place, put on the disk and renamed: a crash leaves an older checkpoint and a leftover that nobody reads.
Nothing in a checkpoint is code. `weights` and `ema` carry the stage's resolved table: what they were trained as.
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
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import cdmkit
from cdmkit.errors import CheckpointError
from cdmkit.files import digest, sync, write_json

FORMAT = 1
"""Grows when older versions of cdmkit could not read what is written."""

FILES = ("weights", "ema", "optimizer", "density")
_METADATA = "cdmkit"
_NAME = re.compile(r"step-\d{8}")
_SHOWN = 5


@attrs.frozen(eq=False, kw_only=True)
class Checkpoint:
    """All that training needs to go on."""

    step: int
    """Optimizer steps done."""
    tensors: Mapping[str, Mapping[str, Tensor]]
    """The tensors of each of `FILES`, on any device. Where there are none, there is no file."""
    state: Mapping[str, Any]
    """What is no tensor, as JSON values."""


def save(folder: Path, checkpoint: Checkpoint, metadata: Mapping[str, Any], keep: int) -> Path:
    """Write a checkpoint under `folder`, then remove all but the newest `keep` and what crashed saves left.

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
            shutil.rmtree(final)
        partial.rename(final)
        sync(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _tidy(folder, checkpoint.step, keep)
    return final


def _write(partial: Path, checkpoint: Checkpoint, metadata: Mapping[str, Any]) -> None:
    partial.mkdir()
    header = {_METADATA: json.dumps({**metadata, "step": checkpoint.step}, sort_keys=True)}
    digests = {}
    for name in filter(checkpoint.tensors.get, FILES):
        path = partial / f"{name}.safetensors"
        # One copy each, in standard layout: safetensors knows no other, and no two names may share memory.
        tensors = {
            key: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for key, tensor in checkpoint.tensors[name].items()
        }
        try:
            save_file(tensors, path, metadata=header)
        except SafetensorError as error:
            raise OSError(f"{path}: {error}") from error
        sync(path)
        digests[name] = digest(path)
    versions = {"cdmkit": cdmkit.__version__, "torch": torch.__version__}
    state = {"format": FORMAT, "step": checkpoint.step, "versions": versions, "state": dict(checkpoint.state), "digests": digests}
    write_json(partial / "state.json", {**state, "digest": _digest_of(state)})


def _tidy(folder: Path, step: int, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints up to `step`: later ones were too damaged to go on from."""
    kept = [path for path in _saved(folder) if path.name <= place(folder, step).name][:keep]
    for path in {*_saved(folder), *folder.glob(".step-*.partial")} - set(kept):
        shutil.rmtree(path, ignore_errors=True)


def place(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:08d}"


def _saved(folder: Path) -> list[Path]:
    """The checkpoints under `folder`, newest first. Chosen by number, since clocks jump."""
    return sorted((path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)), reverse=True)


def latest(folder: Path) -> Path | None:
    """The newest checkpoint under `folder`, or None."""
    return next(iter(_saved(folder)), None)


def load_latest(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest undamaged checkpoint under `folder`; None where there is none at all.

    Tells `warn` of each damaged one that it passes over. Raises CheckpointError where all are damaged.
    """
    faults: list[str] = []
    for path in _saved(folder):
        try:
            checkpoint = load(path)
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
    """Read one checkpoint onto the CPU. Raises CheckpointError, naming the file, where it is damaged, incomplete or of a newer format."""
    state = _read_state(path)
    tensors = {name: read_weights(path / f"{name}.safetensors")[0] if name in state["digests"] else {} for name in FILES}
    return Checkpoint(step=state["step"], tensors=tensors, state=state["state"])


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a weights file, on the CPU, and its metadata (the stage's table, facts of the data, the step).

    Inside a checkpoint the file is checked against the digest noted there. Raises CheckpointError where it is missing, damaged or no
    safetensors file; nothing in it is executed.
    """
    if (path.parent / "state.json").exists():
        wanted = _read_state(path.parent)["digests"].get(path.stem)
        if not path.exists() or digest(path) != wanted:
            raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one noted when it was saved.")
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, _metadata(file)  # noqa: SIM118  (no mapping)


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a weights file alone, without looking at its tensors. Raises CheckpointError where it is no safetensors file."""
    with _opened(path) as file:
        return _metadata(file)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}.") from error


def _metadata(file: Any) -> dict[str, Any]:
    """What was written beside the tensors. Raises ValueError where that is no JSON object."""
    metadata = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
    if not isinstance(metadata, dict):
        raise ValueError("its metadata is no table")
    return metadata


_STATE = {"format": int, "step": int, "versions": dict, "state": dict, "digests": dict}
"""What state.json holds, beside its own digest."""


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
        intact = state.pop("digest") == _digest_of(state)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / 'state.json'} is damaged or missing: {error}.") from error
    if not intact:
        raise CheckpointError(f"{path / 'state.json'} is damaged: its digest does not match.")
    if strange := [key for key, kind in _STATE.items() if not isinstance(state.get(key), kind)]:
        raise CheckpointError(f"{path / 'state.json'} is not of cdmkit: {', '.join(strange)} is missing or of another type.")
    if state["format"] > FORMAT:
        written_by = f"cdmkit {state['versions'].get('cdmkit', 'of another version')}"
        raise CheckpointError(f"{path} was written by {written_by}, in a newer format: install that version or a later one.")
    return state


def _digest_of(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def fit(module: nn.Module, tensors: Mapping[str, Tensor], source: Path | str) -> None:
    """Load weights into a module. Raises CheckpointError, naming the first tensors that differ, where they are not this network's."""
    wanted = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in tensors.items()}
    differences = [
        f"{name} is {found.get(name, 'missing')}, the network has {wanted.get(name, 'no such tensor')}"
        for name in wanted | found
        if wanted.get(name) != found.get(name)
    ]
    if differences:
        more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        listed = "; ".join(differences[:_SHOWN])
        raise CheckpointError(f"{source} holds the weights of another network: {listed}{more}. Use the recipe that it was trained with.")
    module.load_state_dict(dict(tensors))
