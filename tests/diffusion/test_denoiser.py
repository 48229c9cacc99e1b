"""The denoiser: what the network is told, how its channels are read, clipping, precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cdmkit.builtin.schedules import Cosine
from cdmkit.diffusion import Condition, Denoiser, NoiseInput, Output, Parameterization, Prediction, Variance, add_noise

FULL = Cosine(timesteps=100).process()
CHAIN = FULL.respace(5)
T = torch.tensor([5, 2])
X0 = torch.rand(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
EPSILON = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
POINT = CHAIN.point(T)
X_T = add_noise(X0, EPSILON, POINT)


class Told:
    """A network that says what it is made with, and keeps what it was told."""

    def __init__(self, said: Tensor) -> None:
        self.said = said
        self.calls: list[tuple[Tensor, Tensor, Condition]] = []

    def __call__(self, x_t: Tensor, level: Tensor, condition: Condition) -> Tensor:
        self.calls.append((x_t, level, condition))
        return self.said


@pytest.mark.parametrize("prediction", Prediction)
def test_the_right_answer_gives_the_clean_image(prediction: Prediction) -> None:
    """Whatever the network predicts, in float64 throughout."""
    network = Told(prediction.target(X0, EPSILON, POINT))
    denoised = Denoiser(network, Parameterization(prediction)).denoise(X_T, POINT, Condition())
    torch.testing.assert_close(denoised.x0, X0, rtol=0, atol=1e-8)
    assert denoised.log_variance.dtype == torch.float64


def test_the_network_is_told_the_original_timestep_and_the_condition() -> None:
    """Index 2 of a respaced chain is timestep 26, not 2."""
    network, condition = Told(EPSILON), Condition(torch.tensor([3, 4]))
    Denoiser(network, Parameterization()).denoise(X_T, POINT, condition)
    ((x_t, level, told),) = network.calls
    assert x_t is X_T
    assert level.tolist() == [100.0, float(CHAIN.timesteps[2])]
    assert told is condition


def test_the_network_is_told_the_alpha_bar_of_the_chain() -> None:
    """With a continuous noise input the timestep plays no part."""
    network = Told(EPSILON)
    Denoiser(network, Parameterization(noise_input=NoiseInput.ALPHA_BAR)).denoise(X_T, POINT, Condition())
    torch.testing.assert_close(network.calls[0][1], 1000 * CHAIN.alpha_bars[T].sqrt())


def test_six_channels_are_a_value_and_a_share_of_the_range() -> None:
    """The first three are the prediction, the last three the variance."""
    ranged = torch.full_like(X0, 0.5)
    parameterization = Parameterization(Prediction.X0, Variance.LEARNED_RANGE)
    denoised = Denoiser(Told(torch.cat((X0, ranged), dim=1)), parameterization).denoise(X_T, POINT, Condition())
    assert torch.equal(denoised.x0, X0)
    assert torch.equal(denoised.log_variance, Variance.LEARNED_RANGE.log_variance(ranged, POINT))


def test_a_predicted_image_is_clipped_only_if_asked() -> None:
    """To [-1, 1]."""
    said = torch.linspace(-3, 3, X0.numel(), dtype=torch.float64).view_as(X0)
    parameterization = Parameterization(Prediction.X0)
    clipped = Denoiser(Told(said), parameterization).denoise(X_T, POINT, Condition())
    free = Denoiser(Told(said), parameterization, threshold=None).denoise(X_T, POINT, Condition())
    assert torch.equal(clipped.x0, said.clamp(-1, 1))
    assert torch.equal(free.x0, said)


def test_what_is_said_in_half_precision_is_reckoned_with_in_full() -> None:
    """Under mixed precision the algebra, and the mix of variances above all, stays in the precision of x_t."""
    said = torch.cat((EPSILON, torch.full_like(X0, -0.98)), dim=1).bfloat16()
    denoiser = Denoiser(Told(said), Parameterization(variance=Variance.LEARNED_RANGE))
    output = denoiser.output(X_T, POINT, Condition())
    assert output.ranged is not None
    assert (output.value.dtype, output.ranged.dtype) == (torch.float64, torch.float64)
    assert torch.equal(output.value, said[:, :3].double())


def test_bound_fills_in_the_condition() -> None:
    """What a sampler calls needs no condition."""
    network, condition = Told(EPSILON), Condition(torch.tensor([3, 4]))
    denoiser = Denoiser(network, Parameterization())
    assert torch.equal(denoiser.bind(condition)(X_T, POINT).x0, denoiser.denoise(X_T, POINT, condition).x0)
    assert network.calls[0][2] is condition


def test_one_place_for_all_images_is_told_to_each() -> None:
    """A sampler's point has one number; the network is told it for every image of the batch."""
    network = Told(EPSILON)
    Denoiser(network, Parameterization()).denoise(X_T, CHAIN.point(torch.tensor([5])), Condition())
    assert network.calls[0][1].tolist() == [100.0, 100.0]


def test_thresholding_comes_after_a_prediction_in_place_of_the_networks() -> None:
    """What guidance predicts is thresholded; the network itself is not asked."""
    network = Told(EPSILON)
    denoiser = Denoiser(network, Parameterization(Prediction.X0))
    guided = denoiser.bind(Condition(), lambda x_t, point: denoiser.meaning(Output(5 * X0, None), x_t, point))
    assert torch.equal(guided(X_T, POINT).x0, (5 * X0).clamp(-1, 1))
    assert network.calls == []


def test_a_condition_doubles_and_loses_its_labels() -> None:
    """What classifier-free guidance tells the network in one call."""
    condition = Condition(torch.tensor([3, 4]), X0, torch.tensor([[7.0], [8.0]]))
    both = condition.joined(condition.unlabeled())
    assert both.label is not None
    assert both.levels is not None
    assert (both.label.tolist(), both.levels.flatten().tolist()) == ([3, 4, -1, -1], [7, 8, 7, 8])
    assert both.low_res is not None
    assert torch.equal(both.low_res, torch.cat((X0, X0)))
    assert Condition().joined(Condition().unlabeled()) == Condition()
