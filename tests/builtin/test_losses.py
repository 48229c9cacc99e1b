"""The losses: hand-worked values, gradients that must be zero, and one loss for each example."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cdmkit.builtin.losses import Hybrid, Norm, Simple, Vlb
from cdmkit.builtin.schedules import Cosine
from cdmkit.diffusion import Noised, Output, Parameterization, Prediction, Variance
from cdmkit.kinds import Loss

PROCESS = Cosine(timesteps=50).process()
LEARNED = Parameterization(variance=Variance.LEARNED_RANGE)


def noised(t: list[int]) -> Noised:
    generator = torch.Generator().manual_seed(0)
    shape = (len(t), 3, 4, 4)
    x0 = torch.randint(256, shape, generator=generator).double() / 127.5 - 1
    epsilon = torch.randn(shape, dtype=torch.float64, generator=generator)
    return Noised.of(x0, epsilon, PROCESS.point(torch.tensor(t)))


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    """The gradient of the batch's loss, 0 where the two are not connected."""
    (found,) = torch.autograd.grad(loss.sum(), of, retain_graph=True, materialize_grads=True)
    return found


@pytest.mark.parametrize("prediction", Prediction)
@pytest.mark.parametrize(("norm", "expected"), [(Norm.L2, [0.25, 4.0]), (Norm.L1, [0.5, 2.0])])
def test_simple_is_the_mean_distance_from_the_target(prediction: Prediction, norm: Norm, expected: list[float]) -> None:
    """Off by a half and by two everywhere: squared, or absolute."""
    batch = noised([3, 40])
    target = prediction.target(batch.x0, batch.epsilon, batch.point)
    output = Output(target + torch.tensor([0.5, -2.0], dtype=torch.float64).view(2, 1, 1, 1), None)
    assert Simple(norm=norm)(output, batch, Parameterization(prediction)).tolist() == pytest.approx(expected)


def test_vlb_estimates_the_sum_of_its_terms() -> None:
    """T times the term at t: here the KL of two Gaussians of equal variance, (difference of means)^2 / (2 variance), in bits."""
    batch = noised([20])
    output = Output(batch.x0 + 0.1, None)
    found = Vlb()(output, batch, Parameterization(Prediction.X0, Variance.FIXED_SMALL))
    difference = 0.1 * float(PROCESS.column("posterior_mean_x0")[20])
    expected = 50 * difference**2 / (2 * float(PROCESS.posterior_variances[20])) / math.log(2)
    assert found.tolist() == pytest.approx([expected])


@pytest.mark.parametrize("weight", [0.001, 0.5])
def test_hybrid_adds_weight_times_t_times_the_term(weight: float) -> None:
    """The weight is for the sum over T, not for one term (Improved DDPM eq. 16); here x_0 is exact, so that only the variance costs.

    KL of N(m, b) from N(m, B) is (log(B / b) - 1 + b / B) / 2.
    """
    t = 20
    batch = noised([t])
    output = Output(batch.epsilon, torch.ones_like(batch.x0))
    small, large = float(PROCESS.posterior_variances[t]), float(PROCESS.betas[t])
    bits = (math.log(large / small) - 1 + small / large) / 2 / math.log(2)
    found = Hybrid(vlb_weight=weight)(output, batch, LEARNED)
    assert found.tolist() == pytest.approx([weight * 50 * bits], rel=1e-9)


def test_hybrid_learns_the_mean_from_its_simple_part_alone() -> None:
    """The gradient through the bound to the mean's output is exactly zero; the variance learns from the bound alone."""
    batch = noised([1, 2, 25, 50])
    value, ranged = ((batch.epsilon * scale).requires_grad_() for scale in (0.8, 0.1))
    output = Output(value, ranged)
    hybrid, simple = Hybrid(vlb_weight=10.0)(output, batch, LEARNED), Simple()(output, batch, LEARNED)
    assert torch.equal(gradient(hybrid, value), gradient(simple, value))
    assert bool((gradient(hybrid, ranged).flatten(1).abs().amax(1)[1:] > 0).all())
    assert not bool(gradient(simple, ranged).any())


def test_vlb_alone_teaches_the_mean() -> None:
    """Nothing is frozen there."""
    batch = noised([2, 25])
    value = (batch.epsilon * 0.8).requires_grad_()
    loss = Vlb()(Output(value, torch.zeros_like(value)), batch, LEARNED)
    assert bool((gradient(loss, value).flatten(1).abs().amax(1) > 0).all())


def test_hybrid_measures_its_simple_part_by_its_norm() -> None:
    """With weight 0 it is L_simple."""
    batch = noised([7, 30])
    output = Output(batch.epsilon + 3, torch.zeros_like(batch.x0))
    for norm in Norm:
        expected = Simple(norm=norm)(output, batch, LEARNED)
        assert torch.equal(Hybrid(norm=norm, vlb_weight=0.0)(output, batch, LEARNED), expected)


@pytest.mark.parametrize("loss", [Simple(), Simple(norm=Norm.L1), Vlb(), Hybrid()])
def test_a_loss_belongs_to_one_example(loss: Loss) -> None:
    """[B], and what the network says of one image changes that one alone."""
    batch = noised([1, 9, 50])
    value, ranged = torch.zeros_like(batch.x0), torch.zeros_like(batch.x0)
    changed = value.clone()
    changed[1] += 0.3
    first, second = (loss(Output(said, ranged), batch, LEARNED) for said in (value, changed))
    assert first.shape == (3,)
    assert (first != second).tolist() == [False, True, False]


def test_losses_say_what_they_need() -> None:
    """What a recipe is checked by."""
    assert [(loss.needs_learned_variance, loss.discrete) for loss in (Simple, Vlb, Hybrid)] == [(False, False), (False, True), (True, True)]
