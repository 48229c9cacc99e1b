"""What a file of weights, a checkpoint or a run holds, and whether it is whole. Nothing is built and nothing is executed."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cdmkit.errors import CheckpointError
from cdmkit.training import checkpoint
from cdmkit.training.tensor_file import TensorFile

Facts = dict[str, Any]
"""JSON values."""


def look(path: Path) -> Facts:
    """What is at a path; `kind` says which of the three it is: "file", "checkpoint" or "run".

    All that has a digest is compared with it. What is damaged or incomplete is told by `state`: of a checkpoint "complete", "incomplete"
    (a save was cut short: nobody reads it) or "damaged"; of a file also "alone", where no checkpoint notes its digest. Raises
    CheckpointError where there is nothing of the kind.
    """
    if path.is_file():
        return _file(path)
    if (path / "stages").is_dir():
        return {"kind": "run", "path": str(path), "checkpoints": list(_checkpoints(path))}
    if any((path / name).exists() for name in ("state.json", "ema.safetensors", "weights.safetensors")):
        return _checkpoint(path)
    raise CheckpointError(f"{path} is neither a file of weights nor a folder of a checkpoint or a run.")


def faults(found: Facts) -> list[str]:
    """What is damaged of what `look` found."""
    return [each["fault"] for each in found.get("checkpoints", [found]) if each["state"] == "damaged"]


def stage_table(path: Path) -> dict[str, Any]:
    """The resolved options of the stage that a file or a checkpoint is of, as they stand in a recipe.

    Raises CheckpointError where they are not told.
    """
    told = look(path)
    if not told.get("table"):
        raise CheckpointError(f"{path} does not say what stage it is of: files of weights that cdmkit wrote do.")
    return {"stage": {str(told["stage"]): told["table"]}}


def _file(path: Path) -> Facts:
    """Of a safetensors file: what it says of itself, its tensors, and whether they are those that were saved."""
    file = TensorFile(path)
    tensors = file.outlines
    state, fault = ("complete" if checkpoint.is_complete(path.parent) else "alone"), None
    try:
        checkpoint.read_weights(path)
    except CheckpointError as error:
        state, fault = "damaged", str(error)
    return {
        "kind": "file",
        "path": str(path),
        "state": state,
        "fault": fault,
        **_told(file),
        "sigma_rel": _table(checkpoint.metadata_of(file), "average").get("sigma_rel"),
        "numbers": sum(tensor.numel() for tensor in tensors.values()),
        "dtypes": dict(Counter(_dtype(tensor) for tensor in tensors.values())),
        "bytes": path.stat().st_size,
        "tensors": {name: {"dtype": _dtype(tensor), "shape": list(tensor.shape)} for name, tensor in tensors.items()},
    }


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _told(file: TensorFile) -> Facts:
    """What a file says of itself; `stage` is None where cdmkit did not write it."""
    metadata = checkpoint.metadata_of(file)
    table, parent, data = (_table(metadata, key) for key in ("table", "parent", "data"))
    return {
        "stage": metadata.get("stage"),
        "step": metadata.get("step"),
        "resolution": table.get("resolution"),
        "classes": data.get("classes"),
        "images": data.get("fingerprint"),
        "crop": data.get("crop"),
        "downsample": data.get("downsample"),
        "versions": _table(metadata, "versions"),
        "origin": _table(metadata, "origin"),
        "table": table,
        "parent": parent,
    }


def _table(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = values.get(key)
    return value if isinstance(value, dict) else {}


def _checkpoint(path: Path) -> Facts:
    """Of a checkpoint, or of snapshots of averages: its state, what its files of weights say of themselves, and its files."""
    files = sorted(path.glob("*.safetensors"))
    told: list[Facts] = []
    for file in files:
        with contextlib.suppress(CheckpointError):  # its state tells
            told.append(_told(TensorFile(file)))
    return {
        "kind": "checkpoint",
        **next((each for each in told if each["stage"] is not None), {}),
        **_condition(path),
        "files": {file.name: file.stat().st_size for file in files},
    }


def _condition(path: Path) -> Facts:
    """The state of a checkpoint, and its own words on how far it is."""
    facts: Facts = {"path": str(path), "step": checkpoint.step_of(path), "state": "incomplete", "fault": None, "loss": None}
    if not checkpoint.is_complete(path):
        return facts
    try:
        found = checkpoint.load(path)
    except CheckpointError as error:
        return {**facts, "state": "damaged", "fault": str(error)}
    return {**facts, "state": "complete", "step": found.step, "loss": found.state.get("loss")}


def _checkpoints(run: Path) -> Iterator[Facts]:
    """The checkpoints of a run by stage, the newest first, then snapshots of averages; and what saves that were cut short left."""
    for stage in sorted((run / "stages").iterdir()):
        folders = (stage / "ckpt", stage / "averages")
        for path in (path for folder in folders for path in (*checkpoint.leftovers(folder), *checkpoint.saved(folder))):
            yield {"stage": stage.name, **_condition(path), "bytes": sum(file.stat().st_size for file in path.glob("*"))}
