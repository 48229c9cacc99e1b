"""Whether a file of weights is what a stage takes it for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdmkit import training
from cdmkit.cascade import Cascade, Stage
from cdmkit.component import Binds
from cdmkit.data.resize import Resize
from cdmkit.errors import CheckpointError
from cdmkit.files import digest
from cdmkit.plugins import Plugins
from cdmkit.recipe import diff, loose, read_stage, to_table, without

_TOLD = ("resolution", "enlarges", "labels", "upsample", "augment")
"""What a guiding network must be told alike; and the schedule, where it is told timesteps."""


def check_weights(stage: Stage, parent: Stage | None, plugins: Plugins) -> None:
    """Raise CheckpointError where a file of weights that a stage names is not there or not of such a stage."""
    if stage.weights is not None:
        check_trained_as_is(stage, parent, Path(stage.weights))
    guiding(stage, parent, plugins)


def digests(cascade: Cascade) -> dict[str, str]:
    """The SHA-256 of each stage's `weights`, by stage. Raises CheckpointError where one cannot be read."""
    found = {}
    for stage in cascade:
        if stage.weights is not None:
            try:
                found[stage.name] = digest(Path(stage.weights))
            except OSError as error:
                raise CheckpointError(f"stage {stage.name!r}: {stage.weights} cannot be read: {error.strerror}") from error
    return found


def guiding(stage: Stage, parent: Stage | None, plugins: Plugins) -> Stage | None:
    """What the weights file of a stage's guidance holds, or None where there is none. Raises CheckpointError where it cannot guide."""
    path = stage.guidance and stage.guidance.guide
    if not path:
        return None
    told = _told(stage, Path(path))
    guide = read_stage(told, plugins.catalog)
    if guide is None:
        raise CheckpointError(f"{path} does not say what stage it is of: guidance needs a weights file that cdmkit wrote")
    theirs, ours = training.lasting(told["table"], told.get("parent")), training.lasting(to_table(stage), to_table(parent))
    alike = _TOLD if guide.noise_input.continuous else (*_TOLD, "schedule")
    if differ := [name for name in alike if theirs.get(name) != ours.get(name)]:
        raise CheckpointError(f"{path} cannot guide stage {stage.name!r}: it was trained with another {' and '.join(differ)}")
    return guide


def check_trained_as_is(stage: Stage, parent: Stage | None, path: Path) -> None:
    """Raise CheckpointError where the weights in a file mean something else than this stage takes them for."""
    told = _told(stage, path)
    if "table" not in told:  # weights that say nothing of themselves are refused if they do not fit
        return
    before = training.lasting(told["table"], told["parent"])
    now, lean = (training.lasting(to_table(stage, defaults), to_table(parent, defaults)) for defaults in (True, False))
    free = set(loose(stage, Binds.MEANING))
    tables: list[Mapping[str, Any]] = [{"stage": {stage.name: without(table, free)}} for table in (before, now, lean)]
    if changes := diff(*tables):
        listed = "\n  ".join(changes)
        raise CheckpointError(
            f"stage {stage.name!r} was trained as another one ({path}):\n  {listed}\nTake the change back, or train it so first."
        )


def check_seen_alike(stage: Stage, path: Path, downsample: Resize, crop: str) -> None:
    """Raise CheckpointError where the weights in a file were trained on images that were made in another way than those they are to be
    shown: cropped, or made smaller. What either does not tell is let pass.
    """
    data = _told(stage, path).get("data", {})
    for what, key, now in (("cropped", "crop", crop), ("made smaller", "downsample", downsample.value)):
        before = data.get(key)
        if before and now and before != now:
            raise CheckpointError(
                f"stage {stage.name!r} was trained on images {what} by {before!r} ({path}), but these are {what} by {now!r}: "
                "what it makes of them would tell nothing. Prepare both alike, or train it so first."
            )


def _told(stage: Stage, path: Path) -> dict[str, Any]:
    """What a file of weights says of itself. Raises CheckpointError where there is none."""
    if not path.is_file():
        raise CheckpointError(
            f"stage {stage.name!r}: there is no file {path}. It is to hold weights as cdmkit writes them: ema.safetensors of a checkpoint, "
            "or what `cdmkit import` makes of published ones."
        )
    return training.read_metadata(path)


def check_begun_as_is(stage: Stage, path: Path) -> None:
    """Raise CheckpointError where a stage names other `weights` than those that its checkpoint at `path` began with."""
    told = _told(stage, path)
    began = told.get("table", {}).get("weights")
    if stage.train.steps and "table" in told and stage.weights != began:
        raise CheckpointError(
            f"stage {stage.name!r}: its checkpoint {path} began with weights = {began}, not {stage.weights}. "
            "Take the change back; or set train.steps = 0, too, to sample that file as it is."
        )
