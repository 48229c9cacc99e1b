"""The variational bound against torch.distributions, math.erf, and values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from cdmkit.builtin.schedules import Cosine
from cdmkit.diffusion import Noised, Output, Parameterization, Prediction, Variance
from cdmkit.diffusion.bound import discretized_gaussian_log_likelihood, normal_kl, vlb_term
from cdmkit.diffusion.process import add_noise, at

PROCESS = Cosine(timesteps=30).process()
LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def noised(t: Tensor, dtype: torch.dtype = torch.float64) -> Noised:
    """8-bit images at the timesteps t of PROCESS."""
    generator = torch.Generator().manual_seed(0)
    x0 = LEVELS[torch.randint(256, (len(t), 3, 4, 4), generator=generator)].to(dtype)
    epsilon = torch.randn(x0.shape, dtype=torch.float64, generator=generator).to(dtype)
    alpha_bar = at(PROCESS.alpha_bars.to(dtype), t, x0)
    return Noised(x0=x0, epsilon=epsilon, x_t=add_noise(x0, epsilon, alpha_bar), t=t, alpha_bar=alpha_bar)


def test_kl_is_that_of_torch_distributions() -> None:
    """Element by element, also where the two are equal."""
    generator = torch.Generator().manual_seed(0)
    mean1, log1, mean2, log2 = torch.randn(4, 20, dtype=torch.float64, generator=generator)
    expected = kl_divergence(Normal(mean1, (log1 / 2).exp()), Normal(mean2, (log2 / 2).exp()))
    torch.testing.assert_close(normal_kl(mean1, log1, mean2, log2), expected)
    assert torch.equal(normal_kl(mean1, log1, mean1, log1), torch.zeros_like(mean1))


@pytest.mark.parametrize("mean", [-1.3, -1.0, -0.2, 0.7, 1.0])
@pytest.mark.parametrize("sigma", [0.01, 0.1, 1.0])
def test_the_likelihoods_of_all_levels_sum_to_one(mean: float, sigma: float) -> None:
    """The 256 bins cover the line: nothing is lost between them or at the ends."""
    log_variance = torch.full_like(LEVELS, 2 * math.log(sigma))
    total = discretized_gaussian_log_likelihood(LEVELS, torch.full_like(LEVELS, mean), log_variance).exp().sum()
    assert float(total) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("level", [0, 1, 100, 128, 254, 255])
def test_the_likelihood_of_a_level_is_an_integral_of_the_density(level: int) -> None:
    """DDPM eq. 13 with the error function; the outermost bins reach to infinity."""
    mean, sigma = 0.1, 0.4
    x = level / 127.5 - 1

    def cdf(z: float) -> float:
        return (1 + math.erf((z - mean) / sigma / math.sqrt(2))) / 2

    upper = 1.0 if level == 255 else cdf(x + 1 / 255)
    lower = 0.0 if level == 0 else cdf(x - 1 / 255)
    found = discretized_gaussian_log_likelihood(LEVELS[level : level + 1], torch.tensor([mean]), torch.tensor([2 * math.log(sigma)]))
    assert float(found) == pytest.approx(math.log(upper - lower), rel=1e-6)


def test_the_likelihood_of_the_darkest_level_stays_finite_far_from_the_mean() -> None:
    """There Phi(z) is 0 in floating point, but its log is about -z^2 / 2."""
    z = (-1 - 3 + 1 / 255) * 200
    found = discretized_gaussian_log_likelihood(LEVELS[:1], torch.tensor([3.0]), torch.tensor([-2 * math.log(200)]))
    assert float(found) == pytest.approx(-z * z / 2, rel=1e-4)


@pytest.mark.parametrize("mean", [-100.0, -1.0, 0.5, 0.52, 100.0])
def test_gradients_of_the_likelihood_are_finite_in_float32(mean: float) -> None:
    """However far a wild network is from the image."""
    x = torch.tensor([-1.0, 0.5, 1.0])
    means, log_variance = torch.full((3,), mean, requires_grad=True), torch.full((3,), -13.0, requires_grad=True)
    discretized_gaussian_log_likelihood(x, means, log_variance).sum().backward()  # type: ignore[no-untyped-call]  # torch's own
    assert means.grad is not None
    assert log_variance.grad is not None
    assert bool(means.grad.isfinite().all() & log_variance.grad.isfinite().all())


def test_the_true_mean_and_variance_cost_nothing() -> None:
    """With x_0 predicted exactly and the posterior's variance, every term with t > 1 is 0."""
    batch = noised(torch.tensor([2, 3, 15, 30]))
    term = vlb_term(Output(batch.x0, None), batch, Parameterization(Prediction.X0, Variance.FIXED_SMALL), PROCESS)
    torch.testing.assert_close(term, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("prediction", Prediction)
def test_a_term_is_the_divergence_of_two_gaussians_in_bits(prediction: Prediction) -> None:
    """KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), averaged over the image, against torch.distributions."""
    t = torch.tensor([2, 9, 30])
    batch = noised(t)
    said = torch.randn(batch.x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) / 5
    ranged = torch.full_like(said, 0.4)
    parameterization = Parameterization(prediction, Variance.LEARNED_RANGE)
    found = vlb_term(Output(said, ranged), batch, parameterization, PROCESS)
    ab = PROCESS.alpha_bars
    for row, k in enumerate(t.tolist()):
        beta = 1 - ab[k] / ab[k - 1]
        tilde = beta * (1 - ab[k - 1]) / (1 - ab[k])
        x_t = batch.x_t[row]
        predicted = prediction.x0(said[row], x_t, ab[k])
        means = [
            (ab[k - 1].sqrt() * beta * x0 + (ab[k] / ab[k - 1]).sqrt() * (1 - ab[k - 1]) * x_t) / (1 - ab[k])
            for x0 in (batch.x0[row], predicted)
        ]
        reverse = Normal(means[1], (beta**0.7 * tilde**0.3).sqrt())
        expected = kl_divergence(Normal(means[0], tilde.sqrt()), reverse).mean() / math.log(2)
        assert float(found[row]) == pytest.approx(float(expected), rel=1e-7)


def test_the_first_term_is_the_likelihood_of_the_image_in_bits() -> None:
    """At t = 1 the decoder's: about 0 bits for a sharp and right prediction, more than 8 for one that is off."""
    batch = noised(torch.tensor([1, 1]))
    offset = torch.tensor([0.0, 0.2], dtype=torch.float64).view(2, 1, 1, 1)
    parameterization = Parameterization(Prediction.X0)
    found = vlb_term(Output(batch.x0 + offset, None), batch, parameterization, PROCESS)
    log_variance = parameterization.log_variance(None, PROCESS, batch.t, batch.x0).expand_as(batch.x0)
    expected = -discretized_gaussian_log_likelihood(batch.x0, batch.x0 + offset, log_variance).flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(found, expected)
    assert float(found[0]) < 8 < float(found[1])


def test_a_term_belongs_to_one_example() -> None:
    """Another image in the batch changes nothing."""
    t = torch.tensor([1, 9, 30])
    batch = noised(t)
    said = torch.zeros_like(batch.x0)
    changed = said.clone()
    changed[1] += 0.3
    first, second = (vlb_term(Output(value, None), batch, Parameterization(), PROCESS) for value in (said, changed))
    assert (first != second).tolist() == [False, True, False]


def test_float32_terms_agree_with_float64_ones() -> None:
    """At every timestep, to a few parts in ten thousand."""
    t = torch.arange(1, 31)
    terms = []
    for dtype in (torch.float32, torch.float64):
        batch = noised(t, dtype)
        output = Output(batch.epsilon * 0.9, torch.zeros_like(batch.x0))
        terms.append(vlb_term(output, batch, Parameterization(variance=Variance.LEARNED_RANGE), PROCESS.to("cpu", dtype)).double())
    torch.testing.assert_close(terms[0], terms[1], rtol=5e-4, atol=1e-5)
