"""What a network's output means: round trips, variances, and what it is told of the noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from cdmkit.builtin.schedules import Cosine
from cdmkit.diffusion import NoiseInput, Prediction, Variance, add_noise

PROCESS = Cosine(timesteps=60).process()
T = torch.tensor([1, 2, 30, 60])
GENERATOR = torch.Generator().manual_seed(0)
X0 = torch.rand(4, 3, 2, 2, dtype=torch.float64, generator=GENERATOR) * 2 - 1
EPSILON = torch.randn(4, 3, 2, 2, dtype=torch.float64, generator=GENERATOR)
POINT = PROCESS.point(T)
ALPHA_BAR = POINT.alpha_bar
X_T = add_noise(X0, EPSILON, POINT)


def rows(values: Tensor) -> list[float]:
    """The value of each example of something that is constant in it."""
    assert bool((values.flatten(1) == values.flatten(1)[:, :1]).all())
    return values.flatten(1)[:, 0].tolist()


@pytest.mark.parametrize("prediction", Prediction)
def test_the_target_of_each_prediction_leads_back_to_the_image_and_the_noise(prediction: Prediction) -> None:
    """x0(target(x0, epsilon), x_t) = x0 and epsilon(...) = epsilon, at the first, the middle and the last timestep."""
    target = prediction.target(X0, EPSILON, POINT)
    torch.testing.assert_close(prediction.x0(target, X_T, POINT), X0, rtol=0, atol=1e-10)
    torch.testing.assert_close(prediction.epsilon(target, X_T, POINT), EPSILON, rtol=0, atol=1e-10)


def test_targets_are_epsilon_x0_and_the_velocity_on_the_circle() -> None:
    """The velocity v is the derivative of cos(phi) x_0 + sin(phi) epsilon (Salimans & Ho), here by finite differences."""
    assert torch.equal(Prediction.EPSILON.target(X0, EPSILON, POINT), EPSILON)
    assert torch.equal(Prediction.X0.target(X0, EPSILON, POINT), X0)
    phi, step = torch.acos(ALPHA_BAR.sqrt()), 1e-6
    ahead, behind = (torch.cos(p) * X0 + torch.sin(p) * EPSILON for p in (phi + step, phi - step))
    torch.testing.assert_close(Prediction.V.target(X0, EPSILON, POINT), (ahead - behind) / (2 * step), rtol=0, atol=1e-8)


def test_fixed_small_is_the_variance_of_the_posterior() -> None:
    """beta-tilde_t = (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) beta_t."""
    ab = PROCESS.alpha_bars.numpy()
    tilde = [(1 - ab[t - 1]) / (1 - ab[t]) * (1 - ab[t] / ab[t - 1]) for t in (2, 2, 30, 60)]
    found = rows(Variance.FIXED_SMALL.log_variance(None, POINT))
    np.testing.assert_allclose(np.exp(found), tilde, rtol=1e-9)


def test_fixed_large_is_beta_but_beta_tilde_at_the_last_step() -> None:
    """As DDPM's code has it: [beta-tilde_2, beta_2, ..., beta_T]."""
    ab = PROCESS.alpha_bars.numpy()
    expected = [1 - ab[t] / ab[t - 1] for t in (1, 2, 30, 60)]
    expected[0] = (1 - ab[1]) / (1 - ab[2]) * (1 - ab[2] / ab[1])
    found = rows(Variance.FIXED_LARGE.log_variance(None, POINT))
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-9)


@pytest.mark.parametrize("said", [-1.0, -0.3, 0.0, 0.5, 1.0, 1.7])
def test_learned_range_mixes_the_logs_of_the_recomputed_betas(said: float) -> None:
    """In a respaced chain the upper end is its own beta, not the full chain's at that timestep."""
    chain = Cosine(timesteps=400).process().respace(7)
    kept = chain.alpha_bars.numpy()
    v = (said + 1) / 2
    for t in range(2, 8):
        beta = 1 - kept[t] / kept[t - 1]
        tilde = beta * (1 - kept[t - 1]) / (1 - kept[t])
        found = Variance.LEARNED_RANGE.log_variance(torch.full((1, 3, 2, 2), said, dtype=torch.float64), chain.point(torch.tensor([t])))
        assert rows(found) == pytest.approx([v * math.log(beta) + (1 - v) * math.log(tilde)], rel=1e-9)


def test_learned_range_is_learned_for_each_element() -> None:
    """The share of one pixel moves that pixel alone."""
    ranged = torch.zeros_like(X0)
    ranged[1, 2, 0, 1] = 0.5
    learned = Variance.LEARNED_RANGE
    moved = learned.log_variance(ranged, POINT) != learned.log_variance(torch.zeros_like(X0), POINT)
    assert moved.nonzero().tolist() == [[1, 2, 0, 1]]


def test_learned_range_without_an_output_for_it_is_refused() -> None:
    """A network of three channels cannot have learned it."""
    with pytest.raises(ValueError, match="second half of channels"):
        Variance.LEARNED_RANGE.log_variance(None, POINT)


@pytest.mark.parametrize(
    ("variance", "learned"), [(Variance.FIXED_SMALL, False), (Variance.FIXED_LARGE, False), (Variance.LEARNED_RANGE, True)]
)
def test_only_learned_range_needs_channels(variance: Variance, learned: bool) -> None:
    """What doubles a network's output."""
    assert variance.learned is learned


def test_the_ends_of_the_learned_range_are_the_fixed_variances() -> None:
    """-1 is fixed-small and 1 fixed-large, exactly, but for the last step, where fixed-large takes another."""
    low, high = (Variance.LEARNED_RANGE.log_variance(torch.full_like(X0, end), POINT) for end in (-1.0, 1.0))
    small, large = (fixed.log_variance(None, POINT).expand_as(X0) for fixed in (Variance.FIXED_SMALL, Variance.FIXED_LARGE))
    torch.testing.assert_close(low, small, rtol=0, atol=1e-12)
    torch.testing.assert_close(high[1:], large[1:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("variance", Variance)
def test_a_deviation_is_the_root_of_its_variance(variance: Variance) -> None:
    """Pixel by pixel where it is learned; the network's share of the range is not written to."""
    ranged = torch.linspace(-1.2, 1.2, X0.numel(), dtype=torch.float64).view_as(X0)
    before = ranged.clone()
    deviation = variance.deviation(ranged, POINT)
    torch.testing.assert_close(deviation.square().log(), variance.log_variance(ranged, POINT), rtol=1e-12, atol=1e-12)
    assert torch.equal(ranged, before)


@pytest.mark.parametrize(("floor", "first"), [(None, None), (1e-20, math.log(1e-20)), (1e-6, math.log(1e-6))])
def test_the_log_of_the_last_variance_is_its_neighbours_or_that_of_a_floor(floor: float | None, first: float | None) -> None:
    """beta-tilde_1 is 0: Improved DDPM's code takes beta-tilde_2's log, diffusers that of 1e-20; respacing keeps the choice."""
    full = Cosine(timesteps=60).process(floor)
    for chain in (full, full.respace(7)):
        logs = chain.column("posterior_log_variance")
        assert float(logs[1]) == pytest.approx(float(logs[2]) if first is None else first)
        assert float(chain.column("log_variance_large")[1]) == float(logs[1])


def test_the_network_is_told_the_timestep_or_the_alpha_bar() -> None:
    """The original timestep from 1 or from 0, as a part of 1000, or 1000 sqrt(alpha_bar), in the dtype of the tables."""
    told = {noise_input: noise_input.level(POINT) for noise_input in NoiseInput}
    assert {level.dtype for level in told.values()} == {torch.float64}
    assert told[NoiseInput.TIMESTEP].tolist() == [1, 2, 30, 60]
    assert told[NoiseInput.TIMESTEP_FROM_0].tolist() == [0, 1, 29, 59]
    assert told[NoiseInput.TIMESTEP_OF_1000].tolist() == pytest.approx([t / 60 * 1000 for t in (0, 1, 29, 59)])
    assert told[NoiseInput.ALPHA_BAR].tolist() == pytest.approx([1000 * math.sqrt(float(a)) for a in PROCESS.alpha_bars[T]])


def test_a_part_of_1000_is_that_of_the_full_chain() -> None:
    """A respaced chain tells the original timesteps as parts of the full T."""
    chain = Cosine(timesteps=4000).process().respace(5)
    assert NoiseInput.TIMESTEP_OF_1000.level(chain.point(torch.tensor([5, 2]))).tolist() == [3999 / 4, 1000 / 4]
