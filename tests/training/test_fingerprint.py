"""Finished stages are known by what determined their weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from cdmkit.training import fingerprint, is_done, lasting, mark_done

STAGE: dict[str, Any] = {
    "after": "base",
    "resolution": 64,
    "schedule": {"type": "cosine", "timesteps": 1000},
    "backbone": {"type": "unet", "channels": 64},
    "sampler": {"type": "ddim", "steps": 50},
    "condition": {"mode": "truncated", "s": 100},
    "threshold": {"type": "static"},
    "augment": [{"type": "gaussian-noise"}],
    "backend": {"type": "torch", "device": "auto"},
    "train": {"batch": 64, "optimizer": {"type": "adam", "lr": 1e-4}, "ema": 0.999},
}
PARENT: dict[str, Any] = {"resolution": 32, "schedule": {"type": "cosine", "timesteps": 4000}, "backbone": {"type": "unet", "channels": 32}}
DATA: dict[str, Any] = {"fingerprint": "abc", "downsample": "area"}


def changed(table: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with one key of a nested table changed."""
    made = copy.deepcopy(table)
    *parents, last = path.split(".")
    inner = made
    for key in parents:
        inner = inner[key]
    inner[last] = value
    return made


SAME = fingerprint("sr", STAGE, PARENT, DATA, 0)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("resolution", 128),
        ("schedule.timesteps", 999),
        ("backbone.channels", 65),
        ("train.batch", 65),
        ("train.optimizer.lr", 2e-4),
        ("train.ema", 0.99),
        ("density", {"type": "log-normal"}),
        ("loss", {"type": "vlb"}),
        ("label_dropout", 0.1),
    ],
)
def test_what_determines_the_weights_changes_it(path: str, value: object) -> None:
    """A change of the network, the objective or the training is another fingerprint."""
    assert fingerprint("sr", changed(STAGE, path, value), PARENT, DATA, 0) != SAME


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("sampler.steps", 10),
        ("condition.s", 0),
        ("threshold", {"type": "none"}),
        ("guidance", {"type": "classifier-free", "scale": 2.0}),
        ("backend.device", "cpu"),
    ],
)
def test_what_does_not_leaves_it(path: str, value: object) -> None:
    """Sampling and devices may change after training."""
    assert fingerprint("sr", changed(STAGE, path, value), PARENT, DATA, 0) == SAME


def test_name_seed_data_and_parent_count() -> None:
    """The name and the seed decide the draws; of the parent, its schedule and resolution matter and its network does not."""
    others = [
        fingerprint("other", STAGE, PARENT, DATA, 0),
        fingerprint("sr", STAGE, PARENT, DATA, 1),
        fingerprint("sr", STAGE, PARENT, changed(DATA, "fingerprint", "xyz"), 0),
        fingerprint("sr", STAGE, changed(PARENT, "schedule.timesteps", 1000), DATA, 0),
        fingerprint("sr", STAGE, changed(PARENT, "resolution", 16), DATA, 0),
        fingerprint("sr", STAGE, None, DATA, 0),
    ]
    assert len({SAME, *others}) == 1 + len(others)
    assert fingerprint("sr", STAGE, changed(PARENT, "backbone.channels", 1), DATA, 0) == SAME


def test_done_stage_is_known_again(tmp_path: Path) -> None:
    """A stage is done where its note has the same fingerprint and at least as many steps."""
    assert not is_done(tmp_path, SAME, 100)
    mark_done(tmp_path, SAME, 100)
    assert is_done(tmp_path, SAME, 100)
    assert is_done(tmp_path, SAME, 50)
    assert not is_done(tmp_path, SAME, 101)
    assert not is_done(tmp_path, "another", 100)
    (tmp_path / "done").write_text('{"fingerpr')
    assert not is_done(tmp_path, SAME, 100)


def test_weights_mean_the_same_whether_images_are_a_parents_or_real() -> None:
    """A super-resolution model trained by itself can stand after a stage of that resolution; with augmentation, of that schedule too."""
    own = {**STAGE, "schedule": PARENT["schedule"]}
    alone = {key: value for key, value in own.items() if key != "after"} | {"low_res": 32}
    assert lasting(alone, None) == lasting(own, PARENT)
    other = {**PARENT, "schedule": {"type": "linear"}}
    assert lasting(alone, None) != lasting(own, other)
    plain, plain_alone = ({**table, "augment": []} for table in (own, alone))
    assert lasting(plain_alone, None) == lasting(plain, other)
    assert lasting({**plain_alone, "low_res": 16}, None) != lasting(plain, PARENT)


@pytest.mark.parametrize("key", ["loss", "density", "label_dropout"])
def test_how_weights_were_learned_does_not_change_what_they_mean(key: str) -> None:
    """Sampling asks for the network and its parameterization only."""
    assert lasting(changed(STAGE, key, "other"), PARENT) == lasting(STAGE, PARENT)
