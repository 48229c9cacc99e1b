"""Averages made after training: by closed form, and beside averages that were tracked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from cdmkit.builtin.averages import Power
from cdmkit.errors import CheckpointError, SetupError, UsageError
from cdmkit.kinds import power_exponent
from cdmkit.training.checkpoint import Checkpoint, read_weights, save
from cdmkit.training.ema import Ema
from cdmkit.training.posthoc import LARGE_RESIDUAL, inner, reconstruct, weigh
from cdmkit.training.retention import Retention

TRACKED, WANTED = (0.05, 0.1), (0.04, 0.07, 0.15)
STEPS, EVERY = 400, 40
ONE = torch.ones(())


def profile(sigma: float, step: int, end: int, points: int = 200_000) -> npt.NDArray[np.float64]:
    """The profile of an average at `step`, at the middles of equal parts of [0, end]."""
    gamma, tau = power_exponent(sigma), (np.arange(points) + 0.5) * end / points
    density = (gamma + 1) * (np.minimum(tau, step) / step) ** gamma / step
    return np.where(tau <= step, density, 0.0)


def walk(folder: Path, network: nn.Module, *, steps: int = STEPS) -> dict[float, dict[str, Tensor]]:
    """Snapshots of `TRACKED` under `folder` while weights walk at random; the averages of all widths at the end, tracked directly."""
    averages = {sigma: Ema(network, Power(sigma_rel=sigma).decay_at) for sigma in (*TRACKED, *WANTED)}
    generator = torch.Generator().manual_seed(0)
    for step in range(1, steps + 1):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
            for buffer in network.buffers():
                buffer.add_(1)
        for each in averages.values():
            each.update(network, step - 1, ONE.to(torch.float64))
        if step % EVERY == 0:
            snapshot(folder, step, {sigma: averages[sigma].module for sigma in TRACKED})
    return {sigma: {name: tensor.clone() for name, tensor in each.module.state_dict().items()} for sigma, each in averages.items()}


def snapshot(folder: Path, step: int, modules: dict[float, nn.Module]) -> None:
    folder.mkdir(exist_ok=True)
    tensors, about = {}, {}
    for number, (sigma, module) in enumerate(modules.items(), 1):
        tensors[f"average-{number}"] = module.state_dict()
        about[f"average-{number}"] = {"average": {"sigma_rel": sigma, "copied": [name for name, _ in module.named_buffers()]}}
    metadata = {"stage": "base", "table": {"resolution": 8}}
    save(folder, Checkpoint(step=step, tensors=tensors, state={}, about=about), metadata, Retention(1, every=1))


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 20), nn.BatchNorm1d(20)).double()


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The relative distance of two sets of weights."""
    names = [name for name in one if "running" not in name and "num" not in name]
    first, second = (torch.cat([tensors[name].double().flatten() for name in names]) for tensors in (one, other))
    return float((first - second).norm() / second.norm())


@pytest.mark.parametrize(("a", "b"), [((0.05, 300), (0.1, 300)), ((0.2, 300), (0.1, 120)), ((0.28, 50), (0.07, 300))])
def test_inner_products_are_integrals(a: tuple[float, int], b: tuple[float, int]) -> None:
    """The closed form beside a sum over many points."""
    (sigma_a, t_a), (sigma_b, t_b) = a, b
    summed = float((profile(sigma_a, t_a, 300) * profile(sigma_b, t_b, 300)).mean()) * 300
    terms = [np.array(value, dtype=np.float64) for value in (power_exponent(sigma_a), t_a, power_exponent(sigma_b), t_b)]
    assert float(inner(*terms)) == pytest.approx(summed, rel=1e-4)


@pytest.mark.parametrize("sigma", [*TRACKED, *WANTED, 0.01, 0.28])
def test_shares_add_up_to_one_and_the_residual_is_what_is_left(sigma: float) -> None:
    """Also where the fit is poor; the residual beside profiles that are summed point by point."""
    known = [(width, step) for step in range(EVERY, STEPS + 1, EVERY) for width in TRACKED]
    shares, residual = weigh(known, sigma, STEPS)
    assert shares.sum() == pytest.approx(1, abs=1e-9)
    wanted = profile(sigma, STEPS, STEPS)
    made = sum(share * profile(width, step, STEPS) for share, (width, step) in zip(shares, known, strict=True))
    assert residual == pytest.approx(float(np.sqrt(((made - wanted) ** 2).mean() / (wanted**2).mean())), rel=1e-3, abs=1e-6)
    assert (residual > LARGE_RESIDUAL) == (sigma in (0.01, 0.28))


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("sigma", TRACKED)
def test_what_was_tracked_is_found_again(sigma: float, every: int) -> None:
    """Its snapshot has all of the share, also among many that are nearly alike."""
    known = [(width, step) for step in range(every, 601, every) for width in TRACKED]
    shares, residual = weigh(known, sigma, 600)
    wanted = np.array([float(each == (sigma, 600)) for each in known])
    np.testing.assert_allclose(shares, wanted, atol=1e-4)
    assert residual < 1e-5


def test_third_averages_are_those_that_were_tracked(tmp_path: Path) -> None:
    """On a random walk of weights, within 1 %, also outside of the widths that snapshots are of; those come back as they are."""
    tracked = walk(tmp_path, make_network())
    for sigma in (*TRACKED, *WANTED):
        made = reconstruct(tmp_path, sigma)
        tensors = dict(read_weights(made.path)[0])
        assert (made.step, made.snapshots) == (STEPS, 20)
        assert apart(tensors, tracked[sigma]) < (1e-6 if sigma in TRACKED else 0.01)
    assert apart(tracked[0.07], tracked[0.15]) > 0.05


def test_an_average_of_an_earlier_step_looks_at_no_later_one(tmp_path: Path) -> None:
    """It is what was tracked up to there."""
    walk(tmp_path / "long", make_network())
    tracked = walk(tmp_path / "short", make_network(), steps=240)
    made = reconstruct(tmp_path / "long", 0.07, 240)
    assert (made.step, made.snapshots) == (240, 12)
    assert apart(dict(read_weights(made.path)[0]), tracked[0.07]) < 0.01


def test_buffers_are_the_newest(tmp_path: Path) -> None:
    """They are no averages: running statistics and counts are as they were at the step, as in any average."""
    tracked = walk(tmp_path, make_network())
    tensors, _ = read_weights(reconstruct(tmp_path, 0.07).path)
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(tensors[name], tracked[0.07][name])
        assert tensors[name].dtype == tracked[0.07][name].dtype


def test_weights_that_never_moved_stay(tmp_path: Path) -> None:
    """To the last bit of float32, in spite of a poor fit."""
    network = nn.Linear(10, 10)
    for step in (100, 200):
        snapshot(tmp_path, step, dict.fromkeys(TRACKED, network))
    made = reconstruct(tmp_path, 0.28)
    assert made.residual > LARGE_RESIDUAL
    assert torch.equal(read_weights(made.path)[0]["weight"], network.weight)


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    """The stage, the step, and how it was made; by default it lies beside the snapshots, named by width and step."""
    snapshot(tmp_path, 100, dict.fromkeys(TRACKED, nn.Linear(2, 2)))
    made = reconstruct(tmp_path, 0.08)
    assert made.path == tmp_path / "sigma-0.080-step-00000100.safetensors"
    metadata = read_weights(made.path)[1]
    assert (metadata["stage"], metadata["table"], metadata["step"]) == ("base", {"resolution": 8}, 100)
    assert metadata["average"] == {"sigma_rel": 0.08, "snapshots": 2, "residual": made.residual}
    assert reconstruct(tmp_path, 0.0812).path.name == "sigma-0.0812-step-00000100.safetensors"
    assert reconstruct(tmp_path, 0.08, out=tmp_path / "mine.safetensors").path.read_bytes() == made.path.read_bytes()
    assert reconstruct(tmp_path, 0.08).snapshots == 2


def test_what_cannot_be_made_is_said(tmp_path: Path) -> None:
    """No snapshots, none of the step, no such width, no place to write to, snapshots of another network."""
    with pytest.raises(UsageError, match=r"no snapshots under .*snapshot_every"):
        reconstruct(tmp_path, 0.1)
    snapshot(tmp_path, 100, dict.fromkeys(TRACKED, nn.Linear(2, 2)))
    for step in (50, 200):
        with pytest.raises(UsageError, match=rf"no snapshot of step {step}; .*the nearest is of step 100"):
            reconstruct(tmp_path, 0.1, step)
    for sigma in (0.0, -0.1, 0.29, float("nan")):
        with pytest.raises(UsageError, match=r"out of range: it must be > 0 and <= 0\.28"):
            reconstruct(tmp_path, sigma)
    with pytest.raises(SetupError, match=r"cannot be written: .*--out"):
        reconstruct(tmp_path, 0.1, out=tmp_path / "nowhere" / "a.safetensors")
    for step in (50, 100):
        snapshot(tmp_path, step, dict.fromkeys(TRACKED, nn.Linear(step // 25, 2)))
    with pytest.raises(CheckpointError, match=r"step-00000050.*another network"):
        reconstruct(tmp_path, 0.1)


def test_a_damaged_snapshot_is_found_out(tmp_path: Path) -> None:
    """By its digest, though its tensors could be read."""
    snapshot(tmp_path, 100, dict.fromkeys(TRACKED, nn.Linear(20, 20)))
    damaged = tmp_path / "step-00000100" / "average-1.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x55")
    with pytest.raises(CheckpointError, match=r"average-1\.safetensors is damaged: its SHA-256"):
        reconstruct(tmp_path, 0.08)
