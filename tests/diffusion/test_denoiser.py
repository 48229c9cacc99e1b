"""The denoiser: what the network is told, how its channels are read, clipping, precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cdmkit.builtin.schedules import Cosine
from cdmkit.diffusion import Condition, Denoiser, NoiseInput, Parameterization, Prediction, Variance
from cdmkit.diffusion.process import add_noise, at

FULL = Cosine(timesteps=100).process()
CHAIN = FULL.respace(5)
T = torch.tensor([5, 2])
X0 = torch.rand(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
EPSILON = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
X_T = add_noise(X0, EPSILON, at(CHAIN.alpha_bars, T, X0))


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
    network = Told(prediction.target(X0, EPSILON, at(CHAIN.alpha_bars, T, X0)))
    denoised = Denoiser(network, Parameterization(prediction)).denoise(X_T, T, CHAIN, Condition())
    torch.testing.assert_close(denoised.x0, X0, rtol=0, atol=1e-8)
    assert denoised.log_variance.dtype == torch.float64


def test_the_network_is_told_the_original_timestep_and_the_condition() -> None:
    """Index 2 of a respaced chain is timestep 26, not 2."""
    network, condition = Told(EPSILON), Condition(torch.tensor([3, 4]))
    Denoiser(network, Parameterization()).denoise(X_T, T, CHAIN, condition)
    ((x_t, level, told),) = network.calls
    assert x_t is X_T
    assert level.tolist() == [100.0, float(CHAIN.timesteps[2])]
    assert told is condition


def test_the_network_is_told_the_alpha_bar_of_the_chain() -> None:
    """With a continuous noise input the timestep plays no part."""
    network = Told(EPSILON)
    Denoiser(network, Parameterization(noise_input=NoiseInput.ALPHA_BAR)).denoise(X_T, T, CHAIN, Condition())
    torch.testing.assert_close(network.calls[0][1], 1000 * CHAIN.alpha_bars[T].sqrt())


def test_six_channels_are_a_value_and_a_share_of_the_range() -> None:
    """The first three are the prediction, the last three the variance."""
    ranged = torch.full_like(X0, 0.5)
    parameterization = Parameterization(Prediction.X0, Variance.LEARNED_RANGE)
    denoised = Denoiser(Told(torch.cat((X0, ranged), dim=1)), parameterization).denoise(X_T, T, CHAIN, Condition())
    assert torch.equal(denoised.x0, X0)
    assert torch.equal(denoised.log_variance, parameterization.log_variance(ranged, CHAIN, T, X0))


def test_a_predicted_image_is_clipped_only_if_asked() -> None:
    """To [-1, 1]."""
    said = torch.linspace(-3, 3, X0.numel(), dtype=torch.float64).view_as(X0)
    parameterization = Parameterization(Prediction.X0)
    clipped = Denoiser(Told(said), parameterization, clip=True).denoise(X_T, T, CHAIN, Condition())
    free = Denoiser(Told(said), parameterization, clip=False).denoise(X_T, T, CHAIN, Condition())
    assert torch.equal(clipped.x0, said.clamp(-1, 1))
    assert torch.equal(free.x0, said)


def test_what_is_said_in_half_precision_is_reckoned_with_in_full() -> None:
    """Under mixed precision the algebra, and the mix of variances above all, stays in the precision of x_t."""
    said = torch.cat((EPSILON, torch.full_like(X0, -0.98)), dim=1).bfloat16()
    denoiser = Denoiser(Told(said), Parameterization(variance=Variance.LEARNED_RANGE))
    output = denoiser.output(X_T, T, CHAIN.alpha_bars[T], Condition())
    assert output.ranged is not None
    assert (output.value.dtype, output.ranged.dtype) == (torch.float64, torch.float64)
    assert torch.equal(output.value, said[:, :3].double())


def test_bound_fills_in_the_condition() -> None:
    """What a sampler calls needs no condition."""
    network, condition = Told(EPSILON), Condition(torch.tensor([3, 4]))
    denoiser = Denoiser(network, Parameterization())
    assert torch.equal(denoiser.bind(condition)(X_T, T, CHAIN).x0, denoiser.denoise(X_T, T, CHAIN, condition).x0)
    assert network.calls[0][2] is condition
