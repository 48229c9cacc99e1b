"""The variational bound against torch.distributions, math.erf, and values worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from cdmkit.builtin.schedules import Cosine
from cdmkit.diffusion import (
    Condition,
    Denoise,
    Denoised,
    Denoiser,
    Noised,
    Parameterization,
    Prediction,
    Process,
    Units,
    Variance,
    discretized_gaussian_log_likelihood,
    full_bound,
    normal_kl,
    prior_term,
    vlb_term,
)
from cdmkit.draws import Stream

PROCESS = Cosine(timesteps=30).process()
LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def noised(t: Tensor, dtype: torch.dtype = torch.float64) -> Noised:
    """8-bit images at the timesteps t of PROCESS."""
    generator = torch.Generator().manual_seed(0)
    x0 = LEVELS[torch.randint(256, (len(t), 3, 4, 4), generator=generator)].to(dtype)
    epsilon = torch.randn(x0.shape, dtype=torch.float64, generator=generator).to(dtype)
    return Noised.of(x0, epsilon, PROCESS.to("cpu", dtype).point(t))


def meant(
    batch: Noised,
    said: Tensor,
    ranged: Tensor | None = None,
    prediction: Prediction = Prediction.EPSILON,
    variance: Variance = Variance.FIXED_SMALL,
) -> Denoised:
    """What an output means for a noised batch."""
    return Denoised(prediction.x0(said, batch.x_t, batch.point), ranged, variance, batch.point)


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
    term = vlb_term(meant(batch, batch.x0, prediction=Prediction.X0), batch)
    torch.testing.assert_close(term, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("prediction", Prediction)
def test_a_term_is_the_divergence_of_two_gaussians_in_bits(prediction: Prediction) -> None:
    """KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), averaged over the image, against torch.distributions."""
    t = torch.tensor([2, 9, 30])
    batch = noised(t)
    said = torch.randn(batch.x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) / 5
    ranged = torch.full_like(said, 0.4)
    found = vlb_term(meant(batch, said, ranged, prediction, Variance.LEARNED_RANGE), batch)
    ab = PROCESS.alpha_bars
    for row, k in enumerate(t.tolist()):
        beta = 1 - ab[k] / ab[k - 1]
        tilde = beta * (1 - ab[k - 1]) / (1 - ab[k])
        x_t = batch.x_t[row]
        predicted = prediction.x0(said[row : row + 1], x_t[None], PROCESS.point(torch.tensor([k])))[0]
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
    found = vlb_term(meant(batch, batch.x0 + offset, prediction=Prediction.X0), batch)
    log_variance = batch.point.posterior_log_variance.expand_as(batch.x0)
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
    first, second = (vlb_term(meant(batch, value), batch) for value in (said, changed))
    assert (first != second).tolist() == [False, True, False]


def test_float32_terms_agree_with_float64_ones() -> None:
    """At every timestep, to a few parts in ten thousand."""
    t = torch.arange(1, 31)
    terms = []
    for dtype in (torch.float32, torch.float64):
        batch = noised(t, dtype)
        denoised = meant(batch, batch.epsilon * 0.9, torch.zeros_like(batch.x0), variance=Variance.LEARNED_RANGE)
        terms.append(vlb_term(denoised, batch).double())
    torch.testing.assert_close(terms[0], terms[1], rtol=5e-4, atol=1e-5)


def test_nats_are_bits_times_log_2() -> None:
    """The same term in either unit."""
    batch = noised(torch.tensor([1, 9]))
    denoised = meant(batch, batch.epsilon * 0.9)
    bits, nats = vlb_term(denoised, batch), vlb_term(denoised, batch, Units.NATS)
    torch.testing.assert_close(nats, bits * math.log(2), rtol=1e-12, atol=0)
    torch.testing.assert_close(prior_term(batch.x0, PROCESS, Units.NATS), prior_term(batch.x0, PROCESS) * math.log(2), rtol=1e-12, atol=0)


def test_the_prior_term_is_the_divergence_of_the_last_point_from_noise() -> None:
    """KL(N(sqrt(alpha_bar_T) x_0, 1 - alpha_bar_T) || N(0, 1)), against torch.distributions."""
    x0, ab = noised(torch.tensor([1, 2, 3])).x0, PROCESS.alpha_bars[20]
    chain = PROCESS.keep(range(1, 21))
    end = Normal(ab.sqrt() * x0, (1 - ab).sqrt().expand_as(x0))
    expected = kl_divergence(end, Normal(torch.zeros_like(x0), torch.ones_like(x0))).flatten(1).mean(1)
    torch.testing.assert_close(prior_term(x0, chain, Units.NATS), expected, rtol=1e-9, atol=0)


MEAN, DEVIATION = 0.1, 0.4


def exact(process: Process) -> Denoise:
    """E[x_0 | x_t] for pixels from N(MEAN, DEVIATION^2)."""

    def network(x_t: Tensor, level: Tensor, _condition: Condition) -> Tensor:
        ab = process.alpha_bars.to(x_t)[level.long()].view(-1, 1, 1, 1)
        return MEAN + ab.sqrt() * DEVIATION**2 / (ab * DEVIATION**2 + 1 - ab) * (x_t - ab.sqrt() * MEAN)

    return Denoiser(network, Parameterization(Prediction.X0), threshold=None).bind(Condition())


def draws(indices: Tensor) -> Callable[[int], Tensor]:
    """Noise for images by their number."""
    return lambda k: Stream.of(0, "bound").normal(indices, (3, 4, 4), step=k, dtype=torch.float64)


def test_the_terms_of_gaussian_data_have_their_closed_form() -> None:
    """E KL at k is w_k^2 Var[x_0 | x_k] / (2 beta-tilde_k) + nothing of the variance, w_k the weight of x_0 in the posterior mean."""
    x0 = MEAN + DEVIATION * Stream.of(1, "data").normal(torch.arange(400), (3, 4, 4), dtype=torch.float64)
    found = full_bound(exact(PROCESS), x0, PROCESS, draws(torch.arange(400)), Units.NATS)
    ab = PROCESS.alpha_bars
    left = DEVIATION**2 * (1 - ab) / (ab * DEVIATION**2 + 1 - ab)  # Var[x_0 | x_k]
    weight, tilde = PROCESS.column("posterior_mean_x0"), PROCESS.posterior_variances
    expected = (weight**2 * left / (2 * tilde))[2:]
    torch.testing.assert_close(found.terms.mean(0)[1:], expected, rtol=0.03, atol=0)
    torch.testing.assert_close(found.x0_error.mean(0), left[1:], rtol=0.03, atol=0)
    torch.testing.assert_close(found.epsilon_error.mean(0), (left * ab / (1 - ab))[1:], rtol=0.03, atol=0)


def test_the_full_bound_is_the_sum_of_its_terms_image_by_image() -> None:
    """In any order and any batch the same images have the same bound, and each term is `vlb_term`'s."""
    x0 = noised(torch.ones(5, dtype=torch.int64)).x0
    indices = torch.tensor([4, 2, 7, 1, 0])
    whole = full_bound(exact(PROCESS), x0, PROCESS, draws(indices))
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = full_bound(exact(PROCESS), x0[order], PROCESS, draws(indices[order]))
    single = full_bound(exact(PROCESS), x0[1:2], PROCESS, draws(indices[1:2]))
    torch.testing.assert_close(shuffled.total, whole.total[order], rtol=0, atol=1e-12)
    torch.testing.assert_close(single.terms, whole.terms[1:2], rtol=0, atol=1e-12)
    torch.testing.assert_close(whole.total, whole.terms.sum(1) + whole.prior, rtol=0, atol=0)
    k = 9
    batch = Noised.of(x0, draws(indices)(k), PROCESS.point(torch.tensor([k])))
    torch.testing.assert_close(whole.terms[:, k - 1], vlb_term(exact(PROCESS)(batch.x_t, batch.point), batch), rtol=0, atol=1e-12)


def test_the_bound_of_a_respaced_chain_has_a_term_for_each_of_its_steps() -> None:
    """And is not below that of the full chain, which leaves less to guess at each step."""
    x0 = MEAN + DEVIATION * Stream.of(1, "data").normal(torch.arange(200), (3, 4, 4), dtype=torch.float64)
    full = full_bound(exact(PROCESS), x0, PROCESS, draws(torch.arange(200)))
    short = full_bound(exact(PROCESS), x0, PROCESS.respace(6), draws(torch.arange(200)))
    assert short.terms.shape == (200, 6)
    assert float(short.total.mean()) > float(full.total.mean())
