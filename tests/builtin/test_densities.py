"""Densities: how often each timestep is visited, and what is learned from losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cdmkit.builtin.densities import LogNormal, LossAware, Uniform
from cdmkit.builtin.schedules import Cosine, Linear
from cdmkit.draws import Draw, Stream
from cdmkit.kinds import Density, Timesteps

PROCESS = Cosine(timesteps=40).process()


def drawn(timesteps: Timesteps, count: int = 20_000) -> tuple[Tensor, Tensor | None]:
    return timesteps.draw(Draw(Stream.of(0, "timestep"), torch.arange(count)))


@pytest.mark.parametrize("density", [Uniform(), LogNormal(), LossAware()])
def test_a_draw_belongs_to_its_image(density: Density) -> None:
    """1 to T; the same image is noised to the same timestep in any batch."""
    timesteps = density.start(PROCESS)
    t, _ = drawn(timesteps, 100)
    again, _ = timesteps.draw(Draw(Stream.of(0, "timestep"), torch.tensor([71, 3])))
    assert (t.dtype, int(t.min()) >= 1, int(t.max()) <= 40) == (torch.int64, True, True)
    assert again.tolist() == [int(t[71]), int(t[3])]


@pytest.mark.parametrize("density", [Uniform(), LossAware()])
def test_all_timesteps_are_visited_alike_before_anything_is_learned(density: Density) -> None:
    """Each of 40 in a fortieth of the draws, within four standard errors, and with weight 1."""
    t, weight = drawn(density.start(PROCESS))
    share = t.bincount(minlength=41)[1:] / len(t)
    assert float((share - 1 / 40).abs().max()) < 4 * (1 / 40 / 20_000) ** 0.5
    assert weight is None or torch.equal(weight, torch.ones_like(weight))


def test_log_normal_visits_timesteps_as_often_as_its_draws_are_nearest() -> None:
    """Mean and deviation of log sigma are those asked for, on a chain fine enough to tell."""
    process = Linear(timesteps=4000).process()
    t, weight = drawn(LogNormal(mean=-0.5, deviation=0.8).start(process), 50_000)
    logs = process.sigmas[t].log()
    assert weight is None
    assert float(logs.mean()) == pytest.approx(-0.5, abs=0.02)
    assert float(logs.std()) == pytest.approx(0.8, abs=0.02)


def test_log_normal_chances_are_areas_under_the_bell() -> None:
    """Between the middles of neighbouring log sigmas, in a few thousandths."""
    t, _ = drawn(LogNormal().start(PROCESS), 100_000)
    logs = PROCESS.sigmas[1:].log()
    generator = torch.Generator().manual_seed(0)
    normal = -1.2 + 1.2 * torch.randn(100_000, dtype=torch.float64, generator=generator)
    nearest = (logs[:, None] - normal).abs().argmin(0) + 1
    shares = [each.bincount(minlength=41) / 100_000 for each in (t, nearest)]
    torch.testing.assert_close(shares[0], shares[1], rtol=0, atol=0.006)


class Reference:
    """Improved DDPM's history, an image at a time: the last losses of each timestep in lists."""

    def __init__(self, steps: int, history: int) -> None:
        self.history = history
        self.losses: list[list[float]] = [[] for _ in range(steps)]

    def learn(self, t: Tensor, losses: Tensor) -> None:
        for step, loss in zip(t.tolist(), losses.tolist(), strict=True):
            if np.isfinite(loss):
                self.losses[step - 1] = [*self.losses[step - 1], loss][-self.history :]

    def chances(self, uniform: float) -> list[float]:
        size = np.sqrt([np.mean(np.square(each)) for each in self.losses])
        return list((1 - uniform) * size / size.sum() + uniform / len(self.losses))


def learned(history: int = 3, uniform: float = 0.1) -> tuple[Timesteps, Reference]:
    """Both after twenty batches with repeats, more than `history` of some, and losses that are not finite."""
    timesteps, reference = LossAware(history=history, uniform=uniform).start(PROCESS), Reference(40, history)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        t = torch.randint(1, 41, (64,), generator=generator)
        t[:9] = 7
        losses = torch.rand(64, generator=generator) * t / 10
        losses[10] = torch.nan
        for each in (timesteps, reference):
            each.learn(t, losses)
    return timesteps, reference


def test_loss_aware_remembers_the_last_losses_of_each_timestep() -> None:
    """Chances are those of the published rule, image by image."""
    timesteps, reference = learned()
    t, weight = drawn(timesteps, 60_000)
    chances = torch.tensor(reference.chances(0.1))
    torch.testing.assert_close(t.bincount(minlength=41)[1:] / 60_000, chances, rtol=0, atol=0.005, check_dtype=False)
    assert weight is not None
    torch.testing.assert_close(weight, 1 / (40 * chances[t - 1]), rtol=1e-4, atol=0, check_dtype=False)


def test_weights_keep_the_mean_of_a_loss() -> None:
    """The weighted mean over its draws estimates that over uniform ones."""
    timesteps, _ = learned()
    t, weight = drawn(timesteps, 100_000)
    assert weight is not None
    assert float((weight * t).mean()) == pytest.approx(20.5, rel=0.02)


def test_loss_aware_waits_until_every_timestep_has_been_seen_often() -> None:
    """One timestep short of its history, all stay alike."""
    timesteps = LossAware(history=2).start(PROCESS)
    everything = torch.arange(1, 41)
    timesteps.learn(everything, everything.float())
    timesteps.learn(everything[:-1], everything[:-1].float())
    _, before = drawn(timesteps)
    timesteps.learn(everything[-1:], torch.ones(1))
    _, after = drawn(timesteps)
    assert before is not None
    assert after is not None
    assert torch.equal(before, torch.ones_like(before))
    assert float(after.max()) > 2


def test_what_is_learned_is_in_its_state() -> None:
    """A new drawer with the state of another draws as that one does; fixed densities have no state."""
    timesteps, _ = learned()
    again = LossAware(history=3, uniform=0.1).start(PROCESS)
    again.load_state_dict(timesteps.state_dict())
    assert torch.equal(drawn(again)[0], drawn(timesteps)[0])
    assert not torch.equal(drawn(again)[0], drawn(LossAware().start(PROCESS))[0])
    assert [dict(density.start(PROCESS).state_dict()) for density in (Uniform(), LogNormal())] == [{}, {}]
