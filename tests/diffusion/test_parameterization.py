"""What a network's output means: round trips, variances, and what it is told of the noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from cdmkit.builtin.schedules import Cosine
from cdmkit.diffusion import NoiseInput, Parameterization, Prediction, Variance
from cdmkit.diffusion.process import add_noise, at

PROCESS = Cosine(timesteps=60).process()
T = torch.tensor([1, 2, 30, 60])
GENERATOR = torch.Generator().manual_seed(0)
X0 = torch.rand(4, 3, 2, 2, dtype=torch.float64, generator=GENERATOR) * 2 - 1
EPSILON = torch.randn(4, 3, 2, 2, dtype=torch.float64, generator=GENERATOR)
ALPHA_BAR = at(PROCESS.alpha_bars, T, X0)
X_T = add_noise(X0, EPSILON, ALPHA_BAR)


def rows(values: Tensor) -> list[float]:
    """The value of each example of something that is constant in it."""
    assert bool((values.flatten(1) == values.flatten(1)[:, :1]).all())
    return values.flatten(1)[:, 0].tolist()


@pytest.mark.parametrize("prediction", Prediction)
def test_the_target_of_each_prediction_leads_back_to_the_clean_image(prediction: Prediction) -> None:
    """x0(target(x0, epsilon), x_t) = x0, at the first, the middle and the last timestep."""
    target = prediction.target(X0, EPSILON, ALPHA_BAR)
    torch.testing.assert_close(prediction.x0(target, X_T, ALPHA_BAR), X0, rtol=0, atol=1e-10)


def test_targets_are_epsilon_x0_and_the_velocity_on_the_circle() -> None:
    """The velocity v is the derivative of cos(phi) x_0 + sin(phi) epsilon (Salimans & Ho), here by finite differences."""
    assert torch.equal(Prediction.EPSILON.target(X0, EPSILON, ALPHA_BAR), EPSILON)
    assert torch.equal(Prediction.X0.target(X0, EPSILON, ALPHA_BAR), X0)
    phi, step = torch.acos(ALPHA_BAR.sqrt()), 1e-6
    ahead, behind = (torch.cos(p) * X0 + torch.sin(p) * EPSILON for p in (phi + step, phi - step))
    torch.testing.assert_close(Prediction.V.target(X0, EPSILON, ALPHA_BAR), (ahead - behind) / (2 * step), rtol=0, atol=1e-8)


def test_fixed_small_is_the_variance_of_the_posterior() -> None:
    """beta-tilde_t = (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) beta_t."""
    ab = PROCESS.alpha_bars.numpy()
    tilde = [(1 - ab[t - 1]) / (1 - ab[t]) * (1 - ab[t] / ab[t - 1]) for t in (2, 2, 30, 60)]
    found = rows(Parameterization(variance=Variance.FIXED_SMALL).log_variance(None, PROCESS, T, X0))
    np.testing.assert_allclose(np.exp(found), tilde, rtol=1e-9)


def test_fixed_large_is_beta_but_beta_tilde_at_the_last_step() -> None:
    """As DDPM's code has it: [beta-tilde_2, beta_2, ..., beta_T]."""
    ab = PROCESS.alpha_bars.numpy()
    expected = [1 - ab[t] / ab[t - 1] for t in (1, 2, 30, 60)]
    expected[0] = (1 - ab[1]) / (1 - ab[2]) * (1 - ab[2] / ab[1])
    found = rows(Parameterization(variance=Variance.FIXED_LARGE).log_variance(None, PROCESS, T, X0))
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-9)


@pytest.mark.parametrize("said", [-1.0, -0.3, 0.0, 0.5, 1.0, 1.7])
def test_learned_range_mixes_the_logs_of_the_recomputed_betas(said: float) -> None:
    """In a respaced chain the upper end is its own beta, not the full chain's at that timestep."""
    chain = Cosine(timesteps=400).process().respace(7)
    kept = chain.alpha_bars.numpy()
    v = (said + 1) / 2
    learned = Parameterization(variance=Variance.LEARNED_RANGE)
    for t in range(2, 8):
        beta = 1 - kept[t] / kept[t - 1]
        tilde = beta * (1 - kept[t - 1]) / (1 - kept[t])
        found = learned.log_variance(torch.full((1, 3, 2, 2), said, dtype=torch.float64), chain, torch.tensor([t]), X0[:1])
        assert rows(found) == pytest.approx([v * math.log(beta) + (1 - v) * math.log(tilde)], rel=1e-9)


def test_learned_range_is_learned_for_each_element() -> None:
    """The share of one pixel moves that pixel alone."""
    ranged = torch.zeros_like(X0)
    ranged[1, 2, 0, 1] = 0.5
    learned = Parameterization(variance=Variance.LEARNED_RANGE)
    moved = learned.log_variance(ranged, PROCESS, T, X0) != learned.log_variance(torch.zeros_like(X0), PROCESS, T, X0)
    assert moved.nonzero().tolist() == [[1, 2, 0, 1]]


def test_learned_range_without_an_output_for_it_is_refused() -> None:
    """A network of three channels cannot have learned it."""
    with pytest.raises(ValueError, match="second half of channels"):
        Parameterization(variance=Variance.LEARNED_RANGE).log_variance(None, PROCESS, T, X0)


@pytest.mark.parametrize(
    ("variance", "learned"), [(Variance.FIXED_SMALL, False), (Variance.FIXED_LARGE, False), (Variance.LEARNED_RANGE, True)]
)
def test_only_learned_range_needs_channels(variance: Variance, learned: bool) -> None:
    """What doubles a network's output."""
    assert variance.learned is learned


def test_the_network_is_told_the_timestep_or_the_alpha_bar() -> None:
    """The original timestep as it is, or 1000 sqrt(alpha_bar), in the dtype of the tables."""
    alpha_bar = PROCESS.alpha_bars[T]
    timestep = NoiseInput.TIMESTEP.level(T, alpha_bar)
    assert (timestep.tolist(), timestep.dtype) == ([1.0, 2.0, 30.0, 60.0], torch.float64)
    expected = [1000 * math.sqrt(float(a)) for a in alpha_bar]
    assert NoiseInput.ALPHA_BAR.level(T, alpha_bar).tolist() == pytest.approx(expected)
