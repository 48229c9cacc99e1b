"""Weightings: the published weights of each prediction, and errors that count the same whatever is predicted."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cdmkit.builtin.losses import Hybrid, Norm, Simple
from cdmkit.builtin.schedules import Cosine, Regression
from cdmkit.builtin.weightings import P2, MinSnr, Sigmoid
from cdmkit.diffusion import Noised, Output, Parameterization, Prediction, Variance
from cdmkit.kinds import Weighting

PROCESS = Cosine(timesteps=50).process()
T = torch.tensor([1, 10, 25, 40, 49])
SNR = (PROCESS.alpha_bars / (1 - PROCESS.alpha_bars))[T]


def batch() -> Noised:
    generator = torch.Generator().manual_seed(0)
    x0, epsilon = (torch.randn(len(T), 3, 4, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    return Noised.of(x0, epsilon, PROCESS.point(T))


def weight(weighting: Weighting, prediction: Prediction) -> Tensor:
    """What an error of 1 everywhere costs."""
    noised = batch()
    target = prediction.target(noised.x0, noised.epsilon, noised.point)
    return Simple(weighting=weighting)(Output(target + 1, None), noised, Parameterization(prediction))


def test_min_snr_is_the_published_weight_of_each_prediction() -> None:
    """min(SNR, 5) for x_0, over SNR for epsilon, over SNR + 1 for v (arXiv:2303.09556, section 3.4)."""
    clipped = SNR.clamp(max=5)
    expected = {Prediction.X0: clipped, Prediction.EPSILON: clipped / SNR, Prediction.V: clipped / (SNR + 1)}
    for prediction, each in expected.items():
        torch.testing.assert_close(weight(MinSnr(), prediction), each, rtol=1e-9, atol=0)


def test_min_snr_caps_what_is_nearly_clean_and_leaves_what_is_noisy() -> None:
    """The clamp is from above (pitfall: it was inverted elsewhere): with gamma = 1, x_0's weight never exceeds 1."""
    assert float(weight(MinSnr(gamma=1.0), Prediction.X0).max()) == pytest.approx(1)
    torch.testing.assert_close(weight(MinSnr(), Prediction.EPSILON)[-1], torch.tensor(1.0, dtype=torch.float64))


def test_p2_is_equation_8() -> None:
    """Epsilon's error over (k + SNR)^gamma; gamma = 0 is L_simple."""
    torch.testing.assert_close(weight(P2(gamma=0.5, k=2.0), Prediction.EPSILON), (2 + SNR) ** -0.5, rtol=1e-9, atol=0)
    torch.testing.assert_close(weight(P2(gamma=0.0), Prediction.EPSILON), torch.ones_like(SNR), rtol=1e-12, atol=0)


def test_sigmoid_is_one_half_at_its_bias() -> None:
    """sigmoid(b - log SNR), against torch's sigmoid."""
    torch.testing.assert_close(weight(Sigmoid(bias=-3.0), Prediction.EPSILON), torch.sigmoid(-3 - SNR.log()), rtol=1e-9, atol=0)
    assert float(Sigmoid(bias=2.0)(torch.tensor([math.exp(2)]))) == pytest.approx(0.5)


@pytest.mark.parametrize("weighting", [MinSnr(), P2(), Sigmoid()])
def test_the_same_error_counts_the_same_whatever_is_predicted(weighting: Weighting) -> None:
    """A wrong x_0, told as epsilon, x_0 or v."""
    noised = batch()
    wrong = noised.x0 + 0.3
    losses = []
    for prediction in Prediction:
        implied = (noised.x_t - noised.point.signal * wrong) / noised.point.noise
        said = prediction.target(wrong, implied, noised.point)
        losses.append(Simple(weighting=weighting)(Output(said, None), noised, Parameterization(prediction)))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-8, atol=0)
    torch.testing.assert_close(losses[2], losses[1], rtol=1e-8, atol=0)


@pytest.mark.parametrize("weighting", [MinSnr(), P2(), Sigmoid()])
def test_pure_noise_has_a_finite_weight(weighting: Weighting) -> None:
    """SNR = 0, where a schedule ends at alpha_bar = 0."""
    assert bool(weighting(torch.zeros(1)).isfinite().all())


def test_a_hybrids_simple_part_is_weighted_and_its_bound_is_not() -> None:
    """L_vlb stays what it is."""
    noised = batch()
    output = Output(noised.epsilon + 1, torch.zeros_like(noised.x0))
    learned = Parameterization(variance=Variance.LEARNED_RANGE)
    plain, weighted = (Hybrid(weighting=each)(output, noised, learned) for each in (None, MinSnr()))
    torch.testing.assert_close(plain - 1, weighted - weight(MinSnr(), Prediction.EPSILON), rtol=1e-9, atol=1e-12)


def test_absolute_errors_are_not_weighted() -> None:
    """The conversion between predictions is that of squares."""
    with pytest.raises(ValueError, match='weighting is for squared errors: it needs norm = "l2"'):
        Simple(norm=Norm.L1, weighting=MinSnr())


def test_a_schedule_that_leaves_no_signal_cannot_be_weighted() -> None:
    """Every weight would be 0, and nothing would be learned: along a regression."""
    with pytest.raises(ValueError, match="gives every timestep of this schedule a weight of 0"):
        Simple(weighting=MinSnr()).check(Regression().process())
    Simple(weighting=MinSnr()).check(PROCESS)
    Simple().check(Regression().process())
