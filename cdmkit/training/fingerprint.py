"""Whether a trained stage still is what the recipe asks for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdmkit.files import write_json

_SAMPLING = {"sampler", "sampling_schedule", "condition", "threshold", "guidance"}
_COMPUTING = {"backend", "weights"}
_LEARNING = ("density", "loss", "label_dropout")
"""What decides which weights are learned, but not what they mean."""
_FREE = {*_SAMPLING, *_COMPUTING, *_LEARNING, "after", "low_res", "train"}


def fingerprint(
    name: str, stage: Mapping[str, Any], parent: Mapping[str, Any] | None, data: Mapping[str, Any], seed: int, weights: str = ""
) -> str:
    """A hex digest of all that determines the weights of a stage after a given number of steps.

    name: the stage's, which names its random draws. stage, parent: tables, as a recipe writes them, without what binds nothing. data: what
    the images are (fingerprint of the source, downsampling). weights: digest of those that training begins with, empty for none. Of the
    parent only the resolution and the schedule matter: stages train independently.
    """
    learning = [weights, *(stage.get(key) for key in _LEARNING)]
    text = json.dumps([name, lasting(stage, parent), learning, stage["train"], data, seed], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def lasting(stage: Mapping[str, Any], parent: Mapping[str, Any] | None) -> dict[str, Any]:
    """What of a stage cannot change when its weights are sampled: all that their meaning depends on. Tables as in `fingerprint`.

    Whether it enlarges a parent's images or real ones makes no difference to it; their chain does where they are augmented.
    """
    table = {key: value for key, value in stage.items() if key not in _FREE}
    enlarged = parent or ({"resolution": stage["low_res"], "schedule": stage["schedule"]} if stage.get("low_res") else None)
    if enlarged is None:
        return table
    matters = ("resolution", "schedule") if stage.get("augment") else ("resolution",)
    return {**table, "enlarges": {key: enlarged[key] for key in matters}}


def mark_done(folder: Path, digest: str, steps: int) -> None:
    """Note in a stage's folder that it is trained to `steps`."""
    write_json(folder / "done", {"fingerprint": digest, "steps": steps})


def is_done(folder: Path, digest: str, steps: int) -> bool:
    """Whether the stage in `folder` is trained as `digest` says for at least `steps`."""
    try:
        done = json.loads((folder / "done").read_text(encoding="utf-8"))
        return bool(done["fingerprint"] == digest and done["steps"] >= steps)
    except (OSError, ValueError, KeyError, TypeError):
        return False
