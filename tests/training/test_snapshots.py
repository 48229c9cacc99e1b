"""Averages beside the one that is sampled from, and the snapshots of them that are kept for good."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cdmkit.builtin.averages import Exponential, Power
from cdmkit.cascade import Stage
from cdmkit.errors import CheckpointError, Stopped
from cdmkit.events import CheckpointSaved, Event, Progress, Warned
from cdmkit.kinds import power_exponent
from cdmkit.training import StopRequest
from cdmkit.training.checkpoint import load, read_metadata
from cdmkit.training.snapshots import Snapshot, snapshots
from tests.training.components import Tiny, contents, make_stage, run
from tests.training.test_checkpoint import full_disk, truncate
from tests.training.test_ranks import all_well, train

AVERAGES = (Power(sigma_rel=0.1), Exponential(decay=0.8), Power(sigma_rel=0.25))


def averaging(**train: object) -> Stage:
    """A stage with three averages beside its own, and a snapshot every second step."""
    return make_stage({"averages": AVERAGES, "snapshot_every": 2, **train})


def files(folder: Path) -> dict[str, bytes]:
    """Every snapshot under a stage's folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("averages/*/*"))}


def test_averages_are_those_of_the_weights_of_every_step(tmp_path: Path) -> None:
    """Each by its formula, in the order of the recipe, from the weights that checkpoints of every step hold."""
    path, _ = run(averaging(checkpoint_every=1, keep=10), tmp_path)
    per_step = [load_file(tmp_path / "ckpt" / f"step-{step:08d}" / "weights.safetensors") for step in range(1, 7)]
    power = power_exponent(0.25) + 1
    shares = np.diff((np.arange(7) / 6) ** power)
    found = load_file(path / "average-3.safetensors")
    for name, tensor in found.items():
        expected = sum(share * weights[name].double() for share, weights in zip(shares.tolist(), per_step, strict=True))
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6)
    before, after = (load_file(tmp_path / "ckpt" / f"step-{step:08d}" / "average-2.safetensors") for step in (5, 6))
    for name, tensor in after.items():
        torch.testing.assert_close(tensor, 0.8 * before[name] + 0.2 * per_step[-1][name], rtol=1e-5, atol=1e-6)


def test_averages_do_not_disturb_training(tmp_path: Path) -> None:
    """Weights, optimizer and the average that is sampled from are the same bits without them."""
    plain, _ = run(make_stage(), tmp_path / "plain")
    path, _ = run(averaging(), tmp_path / "averaging")
    for name in ("weights", "ema", "optimizer"):
        one, other = (load_file(each / f"{name}.safetensors") for each in (plain, path))
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def test_a_bad_step_moves_no_average(tmp_path: Path) -> None:
    """Those that are kept beside the one that is sampled from stay finite, too."""
    path, _ = run(make_stage({"averages": AVERAGES, "steps": 4}, backbone=Tiny(nan_calls=(2,))), tmp_path)
    tensors = load(path).tensors
    assert {"ema", "average-1", "average-2", "average-3"} <= tensors.keys()
    assert all(bool(tensor.isfinite().all()) for each in tensors.values() for tensor in each.values())


def test_snapshots_are_those_of_the_power_averages(tmp_path: Path) -> None:
    """Every `snapshot_every` steps and at the end: what checkpoints of these steps hold, and the width; of no other average."""
    run(averaging(steps=5, checkpoint_every=1, keep=10), tmp_path)
    found = snapshots(tmp_path / "averages")
    assert [(each.step, each.sigma_rel, each.path.name) for each in found] == [
        (step, width, f"{name}.safetensors") for step in (2, 4, 5) for name, width in (("average-1", 0.1), ("average-3", 0.25))
    ]
    for each in found:
        one, other = load_file(each.path), load_file(tmp_path / "ckpt" / each.path.parent.name / each.path.name)
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
        assert read_metadata(each.path)["stage"] == {"name": "base"}
        assert read_metadata(tmp_path / "ckpt" / each.path.parent.name / each.path.name)["average"] == {
            "sigma_rel": each.sigma_rel,
            "copied": [],
        }


def test_resumed_run_has_the_same_averages_and_snapshots(tmp_path: Path) -> None:
    """Stopped twice and gone on with: every file is that of the undisturbed run, and no other is there."""
    whole, _ = run(averaging(), tmp_path / "whole")
    folder = tmp_path / "parts"
    for at in (2, 5):
        stop = StopRequest()

        def ask(event: Event, at: int = at, stop: StopRequest = stop) -> None:
            if isinstance(event, Progress) and event.step == at:
                stop.request("SIGTERM")

        with pytest.raises(Stopped):
            run(averaging(log_every=1), folder, emit=ask, stop=stop)
    path, _ = run(averaging(), folder)
    assert contents(path) == contents(whole)
    assert files(folder) == files(tmp_path / "whole")


def test_a_step_trained_again_makes_the_same_snapshot(tmp_path: Path) -> None:
    """Where a run ended between a snapshot and the checkpoint after it, however little of the snapshot is there."""
    path, _ = run(averaging(), tmp_path)
    before = files(tmp_path)
    shutil.rmtree(path)  # the checkpoint of step 6; that of step 3 stays
    partial = tmp_path / "averages" / "step-00000004"
    (partial / "average-1.safetensors").rename(partial / ".average-1.safetensors.partial")
    truncate(tmp_path / "averages" / "step-00000006" / "average-3.safetensors")
    run(averaging(), tmp_path)
    assert files(tmp_path) == before


def test_a_snapshot_stands_before_its_steps_checkpoint(tmp_path: Path) -> None:
    """So that no resumed run begins after a snapshot that is missing."""

    def look(event: Event) -> None:
        if isinstance(event, CheckpointSaved) and event.step % 2 == 0:
            assert (tmp_path / "averages" / f"step-{event.step:08d}" / "average-3.safetensors").exists()

    run(averaging(checkpoint_every=1), tmp_path, emit=look)


def test_processes_make_one_snapshot(tmp_path: Path) -> None:
    """The first writes it whole, though each holds a part of the average; a resumed run has the bits of an undisturbed one."""
    split = {"world": 2, "parallel": "fsdp"}
    goes = (
        {"world": 1, "folder": "alone"},
        {**split, "folder": "whole"},
        *({**split, "folder": "parts", "train": {"steps": n}} for n in (4, 6)),
    )
    assert all_well(train(tmp_path, *({**go, "averages": True, "dropout": 0.0} for go in goes)))
    assert files(tmp_path / "whole").keys() == files(tmp_path / "alone").keys()
    one, other = (load_file(tmp_path / name / "averages" / "step-00000004" / "average-1.safetensors") for name in ("alone", "whole"))
    for key, tensor in one.items():
        torch.testing.assert_close(tensor, other[key], rtol=1e-3, atol=1e-4)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    newest = Path("ckpt") / "step-00000006"
    assert contents(tmp_path / "parts" / newest) == contents(tmp_path / "whole" / newest)


def test_full_disk_costs_a_snapshot(tmp_path: Path) -> None:
    """It is warned of, leaves no trace, and training goes on."""
    warnings: list[str] = []

    def note(event: Event) -> None:
        if isinstance(event, Warned):
            warnings.append(event.message)

    with full_disk(), pytest.raises(CheckpointError, match="there is no checkpoint yet"):
        run(averaging(steps=2), tmp_path, emit=note)
    assert ["no snapshot of step 2" in text for text in warnings] == [True]
    assert files(tmp_path) == {}


def test_snapshots_bring_no_deleted_run_back(tmp_path: Path) -> None:
    """Where a run's folder is deleted while it trains, nothing is made in its place."""

    def delete(event: Event) -> None:
        if isinstance(event, CheckpointSaved):
            shutil.rmtree(tmp_path / "run")

    with pytest.raises(CheckpointError, match="is gone"):
        run(averaging(), tmp_path / "run", emit=delete)
    assert not (tmp_path / "run").exists()


def test_what_is_no_snapshot_is_told(tmp_path: Path) -> None:
    """By its name: a file that is damaged, and one that does not say how wide its average is."""
    path, _ = run(averaging(steps=2), tmp_path)
    with pytest.raises(CheckpointError, match=r"ema\.safetensors is no snapshot of an average"):
        Snapshot.read(path / "ema.safetensors")
    damaged = tmp_path / "averages" / "step-00000002" / "average-3.safetensors"
    truncate(damaged)
    with pytest.raises(CheckpointError, match=str(damaged)):
        snapshots(tmp_path / "averages")
