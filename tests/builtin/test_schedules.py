"""Schedules against formulas written with `math`, and against figures of the papers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from cdmkit.builtin.schedules import Cosine, Linear, Regression, ShiftedCosine, Sigmoid
from cdmkit.kinds import Schedule


def cosine_in_python(timesteps: int, offset: float = 0.008, max_beta: float = 0.999) -> list[float]:
    """Improved DDPM eq. 17, each beta cut, one product at a time."""
    f = [math.cos((t / timesteps + offset) / (1 + offset) * math.pi / 2) ** 2 for t in range(timesteps + 1)]
    alpha_bars = [1.0]
    for t in range(1, timesteps + 1):
        alpha_bars.append(alpha_bars[-1] * (1 - min(1 - f[t] / f[t - 1], max_beta)))
    return alpha_bars


@pytest.mark.parametrize(
    "schedule",
    [
        Cosine(),
        Cosine(timesteps=1),
        Linear(),
        Linear(timesteps=4000),
        Linear(timesteps=50),
        Sigmoid(),
        ShiftedCosine(resolution=256),
        Regression(),
    ],
)
def test_alpha_bars_fall_strictly_from_one_in_float64(schedule: Schedule) -> None:
    """The contract of every schedule."""
    alpha_bars = schedule.alpha_bars()
    assert alpha_bars.dtype == torch.float64
    assert alpha_bars[0] == 1
    assert bool((alpha_bars.diff() < 0).all())
    assert float(alpha_bars[-1]) >= 0


@pytest.mark.parametrize("timesteps", [1, 2, 37, 1000, 4000])
def test_cosine_is_equation_17_with_betas_cut(timesteps: int) -> None:
    """Against plain Python."""
    np.testing.assert_allclose(Cosine(timesteps=timesteps).alpha_bars().numpy(), cosine_in_python(timesteps), rtol=1e-10)


def test_cosine_before_the_cut_is_the_closed_form() -> None:
    """alpha_bar_t = f(t) / f(0) at every timestep but the last."""
    alpha_bars = Cosine(timesteps=4000).alpha_bars().numpy()
    t = np.arange(4000) / 4000
    f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(alpha_bars[:-1], f / f[0], rtol=1e-9)


def test_the_last_beta_of_cosine_is_cut() -> None:
    """At max_beta, where the formula would reach 1."""
    assert float(Cosine(timesteps=1000).process().betas.max()) == pytest.approx(0.999, abs=1e-12)
    assert float(Cosine(timesteps=1000, max_beta=0.5).process().betas.max()) == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize(
    ("s", "sigma"), [(101, 0.050), (251, 0.109), (501, 0.206), (751, 0.300), (1001, 0.392), (1251, 0.479), (1501, 0.562)]
)
def test_truncation_steps_of_the_paper_have_these_noise_levels(s: int, sigma: float) -> None:
    """sqrt(1 - alpha_bar_s) of the cosine schedule with T = 4000, for the s that CDM tries."""
    assert math.sqrt(1 - float(Cosine(timesteps=4000).alpha_bars()[s])) == pytest.approx(sigma, abs=6e-4)


@pytest.mark.parametrize(
    ("start", "end", "timesteps", "terminal"),
    [
        (1e-6, 1e-2, 2000, 4.4e-5),
        (1e-4, 0.02, 1000, 4.0e-5),
        (1e-4, 0.1, 100, 5.6e-3),
        (1e-4, 0.09, 100, 9.6e-3),
        (1e-4, 0.19, 100, 3.8e-5),
        (1e-4, 0.09, 1000, 7e-21),
    ],
)
def test_linear_schedules_in_use_end_at_these_alpha_bars(start: float, end: float, timesteps: int, terminal: float) -> None:
    """Terminal alpha_bar of the schedules of DDPM, SR3's reimplementations and Palette."""
    schedule = Linear(timesteps=timesteps, beta_start=start, beta_end=end)
    assert float(schedule.alpha_bars()[-1]) == pytest.approx(terminal, rel=0.06)


def test_linear_is_the_running_product_of_equally_spaced_betas() -> None:
    """Against numpy, with both ends as given."""
    betas = np.linspace(1e-3, 0.3, 20)
    alpha_bars = Linear(timesteps=20, beta_start=1e-3, beta_end=0.3).alpha_bars().numpy()
    np.testing.assert_allclose(alpha_bars, np.concatenate(([1.0], np.cumprod(1 - betas))), rtol=1e-13)


@pytest.mark.parametrize("timesteps", [100, 1000, 4000])
def test_linear_betas_scale_with_the_number_of_steps(timesteps: int) -> None:
    """1e-4 to 0.02 at T = 1000, and 1000 / T times that elsewhere."""
    betas = Linear(timesteps=timesteps).process().betas
    assert float(betas[1]) == pytest.approx(1e-4 * 1000 / timesteps, rel=1e-9)
    assert float(betas[-1]) == pytest.approx(0.02 * 1000 / timesteps, rel=1e-9)


def test_one_end_may_be_given_alone() -> None:
    """The other keeps its default."""
    betas = Linear(timesteps=500, beta_end=0.1).process().betas
    assert [float(betas[1]), float(betas[-1])] == pytest.approx([2e-4, 0.1])


@pytest.mark.parametrize(("timesteps", "start", "end"), [(10, None, None), (100, 0.5, 0.1)])
def test_betas_that_leave_their_range_or_fall_are_refused(timesteps: int, start: float | None, end: float | None) -> None:
    """Too few timesteps for the scaled default, or ends the wrong way round."""
    with pytest.raises(ValueError, match="betas must rise within"):
        Linear(timesteps=timesteps, beta_start=start, beta_end=end)


@pytest.mark.parametrize(
    "changed",
    [Cosine(timesteps=49), Cosine(timesteps=50, offset=0.01), Cosine(timesteps=50, max_beta=0.9)],
    ids=["timesteps", "offset", "max_beta"],
)
def test_each_option_of_cosine_changes_the_chain(changed: Cosine) -> None:
    """No option is without effect."""
    assert changed.alpha_bars().tolist() != Cosine(timesteps=50).alpha_bars().tolist()


def test_sigmoid_is_the_published_function_of_time() -> None:
    """(sigmoid(end / tau) - sigmoid((t (end - start) + start) / tau)) over its range, t = 0..1 (arXiv:2301.10972, Algorithm 1)."""

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    found = Sigmoid(timesteps=50, start=-2.0, end=4.0, tau=1.5).alpha_bars()
    first, last = sigmoid(-2 / 1.5), sigmoid(4 / 1.5)
    expected = [(last - sigmoid((t / 50 * 6 - 2) / 1.5)) / (last - first) for t in range(50)]
    np.testing.assert_allclose(found[:-1].numpy(), expected, rtol=1e-12)
    assert (float(found[0]), float(found[-1])) == (1.0, 1e-9)


def test_shifted_cosine_is_cosine_moved_in_log_snr() -> None:
    """At the noise resolution it is cos^2(pi t / 2); at four times it, log-SNR is lower by 2 log 4 everywhere (arXiv:2301.11093)."""
    plain = ShiftedCosine(timesteps=1000, resolution=64).alpha_bars()
    angle = torch.linspace(0, 1, 1001, dtype=torch.float64) * math.pi / 2
    torch.testing.assert_close(plain[1:-1], (torch.cos(angle) ** 2)[1:-1], rtol=0, atol=2e-3)
    shifted = ShiftedCosine(timesteps=1000, resolution=256).alpha_bars()
    logs = [torch.logit(bars[1:]) for bars in (plain, shifted)]
    torch.testing.assert_close(logs[0] - logs[1], torch.full_like(logs[0], 2 * math.log(4)), rtol=1e-6, atol=0)


def test_shifted_cosine_stays_within_its_log_snr() -> None:
    """From max to min, before the shift; 0 is clean all the same."""
    bars = ShiftedCosine(timesteps=100, resolution=64, min_log_snr=-10.0, max_log_snr=12.0).alpha_bars()
    assert float(bars[0]) == 1
    assert float(torch.logit(bars[-1])) == pytest.approx(-10)
    assert float(torch.logit(bars[1])) < 12


def test_a_regression_is_one_step_from_noise_to_image() -> None:
    """Nothing of the image is left at t = 1."""
    process = Regression().process()
    assert (process.alpha_bars.tolist(), process.steps) == ([1.0, 0.0], 1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Sigmoid(start=3.0, end=3.0), "start = 3 is not below end = 3"),
        (lambda: ShiftedCosine(resolution=64, min_log_snr=5.0, max_log_snr=5.0), "min_log_snr = 5 is not below max_log_snr = 5"),
    ],
)
def test_schedules_that_do_not_fall_are_refused(make: Callable[[], object], words: str) -> None:
    """In words, with the numbers."""
    with pytest.raises(ValueError, match=words):
        make()
