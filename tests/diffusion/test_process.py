"""The forward process and its posterior against closed forms written in numpy."""

from __future__ import annotations

from typing import get_type_hints

import numpy as np
import pytest
import torch
from torch import Tensor

from cdmkit.builtin.schedules import Cosine, Linear
from cdmkit.diffusion import Point, Prediction, Process, add_noise, between, even_timesteps, posterior_mean

PROCESSES = [Cosine(timesteps=40).process(), Linear(timesteps=100).process(), Cosine(timesteps=400).process().respace(17, 123)]


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("process", PROCESSES)
def test_noising_at_once_equals_noising_step_by_step(process: Process) -> None:
    """Mean and variance of q(x_t | x_0), against the recursion x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) z (DDPM eq. 2)."""
    signal, variance = 1.0, 0.0
    zero, one = torch.zeros(1, 3, 1, 1, dtype=torch.float64), torch.ones(1, 3, 1, 1, dtype=torch.float64)
    for t in range(process.steps + 1):
        beta = float(process.betas[t])
        signal, variance = signal * np.sqrt(1 - beta), (1 - beta) * variance + beta
        index = torch.tensor([t])
        np.testing.assert_allclose(process.noise(one, zero, index).numpy(), signal, rtol=1e-9)
        np.testing.assert_allclose(process.noise(zero, one, index).numpy() ** 2, variance, rtol=1e-9, atol=1e-15)


def test_timestep_zero_is_clean() -> None:
    """Timestep s = 0 adds nothing, bit for bit."""
    x = images(2)
    assert torch.equal(PROCESSES[0].noise(x, images(2, seed=1), torch.tensor([0, 0])), x)


def test_each_example_is_noised_to_its_own_timestep() -> None:
    """A batch of timesteps equals each alone."""
    x, epsilon, t = images(3), images(3, seed=1), torch.tensor([1, 40, 7])
    together = PROCESSES[0].noise(x, epsilon, t)
    for row in range(3):
        assert torch.equal(together[row], PROCESSES[0].noise(x[row : row + 1], epsilon[row : row + 1], t[row : row + 1])[0])


@pytest.mark.parametrize("process", PROCESSES)
def test_the_posterior_is_that_of_bayes_rule(process: Process) -> None:
    """q(x_{t-1} | x_t, x_0) from the product of q(x_t | x_{t-1}) and q(x_{t-1} | x_0), precisions added."""
    ab = process.alpha_bars.numpy()
    x0, x_t = images(1), images(1, seed=1)
    for t in range(2, process.steps + 1):
        alpha = ab[t] / ab[t - 1]
        precision = alpha / (1 - alpha) + 1 / (1 - ab[t - 1])
        mean = (np.sqrt(alpha) / (1 - alpha) * x_t.numpy() + np.sqrt(ab[t - 1]) / (1 - ab[t - 1]) * x0.numpy()) / precision
        found, variance, log_variance = process.posterior(x0, x_t, torch.tensor([t]))
        np.testing.assert_allclose(float(variance), 1 / precision, rtol=1e-9)
        np.testing.assert_allclose(float(log_variance), -np.log(precision), rtol=1e-9)
        np.testing.assert_allclose(found.numpy(), mean, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_last_step_of_the_posterior_is_certain(process: Process) -> None:
    """At t = 1 it is x_0 itself, with no variance."""
    x0 = images(1)
    torch.testing.assert_close(process.posterior(x0, images(1, seed=1), torch.tensor([1]))[0], x0, rtol=1e-12, atol=1e-12)
    assert process.posterior_variances[1] == 0


@pytest.mark.parametrize("process", PROCESSES)
def test_the_posterior_log_variance_of_the_last_step_is_that_of_the_one_before(process: Process) -> None:
    """The log of 0 is replaced by its neighbour; every other entry is the log of the variance."""
    logs = process.column("posterior_log_variance")
    assert logs[1] == logs[2]
    torch.testing.assert_close(logs[2:].exp(), process.posterior_variances[2:], rtol=1e-12, atol=0)
    torch.testing.assert_close(process.column("log_beta")[1:].exp(), process.betas[1:], rtol=1e-12, atol=0)


def test_a_chain_of_one_step_has_finite_tables() -> None:
    """K = 1: the posterior is x_0, and its log variance that of the only beta."""
    process = Cosine(timesteps=1000).process().respace(1)
    assert process.timesteps.tolist() == [0, 1000]
    assert [float(process.column(f"posterior_mean_{of}")[1]) for of in ("x0", "xt")] == [1.0, 0.0]
    assert float(process.column("posterior_log_variance")[1]) == pytest.approx(float(process.column("log_beta")[1]))
    assert bool(process.table.isfinite().all())


@pytest.mark.parametrize(("steps", "through", "expected"), [(1, 5, [0, 5, 10]), (4, 6, [0, 1, 4, 6, 7, 10]), (4, 4, [0, 1, 4, 7, 10])])
def test_respacing_goes_through_a_wanted_timestep(steps: int, through: int, expected: list[int]) -> None:
    """So that a truncated chain can stop exactly there; one that is visited anyway adds nothing."""
    assert Cosine(timesteps=10).process().respace(steps, through).timesteps.tolist() == expected


def test_any_timesteps_of_a_chain_can_be_kept() -> None:
    """0 always is; the order does not matter; respaced chains can be thinned further."""
    chain = Cosine(timesteps=10).process().keep([7, 3, 9])
    assert chain.timesteps.tolist() == [0, 3, 7, 9]
    assert chain.keep([9]).timesteps.tolist() == [0, 9]
    assert (chain.total, chain.index_of(7), chain.index_of(8)) == (10, 2, 3)


def test_a_respaced_chain_recomputes_its_betas() -> None:
    """1 - alpha_bar / alpha_bar of the point before it that is kept (Improved DDPM eq. 19), not the full chain's betas."""
    full = Cosine(timesteps=1000).process()
    chain = full.respace(10)
    kept = full.alpha_bars.numpy()[[0, *even_timesteps(1000, 10)]]
    np.testing.assert_allclose(chain.alpha_bars.numpy(), kept, rtol=0)
    np.testing.assert_allclose(chain.betas.numpy()[1:], 1 - kept[1:] / kept[:-1], rtol=1e-12)
    assert float(chain.betas[5]) > 20 * float(full.betas[chain.timesteps[5]])


def test_a_respaced_chain_remembers_the_original_timesteps() -> None:
    """They are what the network is told."""
    assert Cosine(timesteps=10).process().respace(4, 6).timesteps.tolist() == [0, 1, 4, 6, 7, 10]


def test_tables_are_made_in_float64_and_rounded_once() -> None:
    """`to` casts what float64 gave, and leaves timesteps whole."""
    process = Cosine(timesteps=50).process()
    single = process.to("cpu", torch.float32)
    assert process.table.dtype == torch.float64
    assert torch.equal(single.table, process.table.float())
    assert single.timesteps.dtype == torch.int64
    assert single.noise(images(1).float(), images(1).float(), torch.tensor([3])).dtype == torch.float32


@pytest.mark.parametrize(
    "alpha_bars",
    [[0.9, 0.5], [1.0, 0.5, 0.5], [1.0, 0.5, 0.6], [1.0], [1.0, -0.1], [[1.0, 0.5]], [1.0, float("nan")]],
    ids=["not clean", "flat", "rising", "too short", "negative", "matrix", "nan"],
)
def test_alpha_bars_that_are_no_chain_are_refused(alpha_bars: list[float]) -> None:
    """They must start at 1 and fall strictly."""
    with pytest.raises(ValueError, match="falls strictly"):
        Process.of(torch.tensor(alpha_bars))


def test_points_are_read_per_example_and_broadcast() -> None:
    """[B, 1, 1, 1]; `add_noise` is DDPM eq. 4."""
    point = Process.of(torch.tensor([1.0, 0.64, 0.36], dtype=torch.float64)).point(torch.tensor([2, 1]))
    numbers = list(get_type_hints(Point))[2:]
    assert {getattr(point, name).shape for name in numbers} == {(2, 1, 1, 1)}
    x, epsilon = images(2), images(2, seed=1)
    expected = torch.stack((0.6 * x[0] + 0.8 * epsilon[0], 0.8 * x[1] + 0.6 * epsilon[1]))
    torch.testing.assert_close(add_noise(x, epsilon, point), expected)
    torch.testing.assert_close(point.log_snr.flatten(), torch.tensor([0.36 / 0.64, 0.64 / 0.36], dtype=torch.float64).log())


def test_the_noise_of_the_first_timesteps_is_exact_in_float32() -> None:
    """sqrt(1 - alpha_bar) is made in float64: with alpha_bar rounded first it would be off by percents (betas from 1e-6)."""
    process = Linear(timesteps=2000, beta_start=1e-6, beta_end=1e-2).process()
    noise = process.to("cpu").point(torch.tensor([1])).noise
    assert float(noise) == pytest.approx(1e-3, rel=1e-6)


def test_walking_backwards_tells_the_host_where_it_is() -> None:
    """Indices from K down to the one after the stop, each with sigma = noise / signal as a number, in the images' dtype."""
    chain = Cosine(timesteps=100).process().respace(5, 40)
    walked = list(chain.backwards(images(1).float(), 40))
    assert [k for k, _ in walked] == [6, 5, 4]
    for k, point in walked:
        ab = float(chain.alpha_bars[k])
        assert point.sigma == pytest.approx(np.sqrt((1 - ab) / ab))
        assert (float(point.k), float(point.timestep), point.noise.dtype) == (k, float(chain.timesteps[k]), torch.float32)
    assert np.isnan(chain.point(torch.tensor([1, 2])).sigma)


def test_points_in_an_order_of_ones_own_are_read_at_its_places() -> None:
    """Index 1 of [0, 9, 4] is point 9: its numbers and its sigma; one that was read before stays what it was."""
    process, like = PROCESSES[1], images(1).float()
    point = process.points(like, torch.tensor([0, 9, 4]))
    nine, four = point(1), point(2)
    for found, k in ((nine, 9), (four, 4)):
        expected = process.to("cpu").point(torch.tensor([k]))
        assert all(float(getattr(found, name)) == float(getattr(expected, name)) for name in list(get_type_hints(Point))[2:])
        assert found.sigma == float(process.sigmas[k])


def test_a_drawn_alpha_bar_lies_between_its_neighbours_evenly() -> None:
    """Uniform 0 gives that of t, towards 1 that of t - 1, one half the middle; signal and noise are its roots."""
    process = Linear(timesteps=50).process()
    ab = process.alpha_bars
    t = torch.tensor([1, 20, 50, 7])
    point = between(process, t, torch.tensor([0.0, 0.5, 0.25, 0.999999]))
    expected = [float(ab[1]), float(ab[19] + ab[20]) / 2, float(0.25 * ab[49] + 0.75 * ab[50]), float(ab[6])]
    np.testing.assert_allclose(point.alpha_bar.flatten().numpy(), expected, rtol=1e-7)
    torch.testing.assert_close(point.signal.square(), point.alpha_bar, rtol=1e-12, atol=0)
    torch.testing.assert_close(point.noise.square(), 1 - point.alpha_bar, rtol=1e-9, atol=0)
    assert torch.equal(point.timestep.flatten(), t.double())
    x0, epsilon = images(4), images(4, seed=1)
    for prediction in Prediction:
        said = prediction.target(x0, epsilon, point)
        torch.testing.assert_close(prediction.x0(said, add_noise(x0, epsilon, point), point), x0, rtol=1e-9, atol=1e-9)


def test_what_formulas_are_given_is_not_written_to() -> None:
    """x_0, x_t and epsilon can be used again."""
    point = PROCESSES[0].point(torch.tensor([3, 9]))
    x0, other = images(2), images(2, seed=1)
    before = x0.clone(), other.clone()
    posterior_mean(x0, other, point)
    for prediction in Prediction:
        for made in (prediction.x0, prediction.epsilon, prediction.target):
            made(x0, other, point)
    assert (torch.equal(x0, before[0]), torch.equal(other, before[1])) == (True, True)


def test_variances_of_a_moved_chain_keep_their_precision() -> None:
    """Betas from 1e-6 in float32: read from logs that were made in float64, not from alpha_bars rounded to 1."""
    process = Linear(timesteps=2000, beta_start=1e-6, beta_end=1e-2).process()
    single = process.to("cpu")
    torch.testing.assert_close(single.betas.double(), process.betas, rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(single.posterior_variances.double(), process.posterior_variances, rtol=1e-5, atol=1e-12)
    _, variance, _ = single.posterior(images(2).float(), images(2).float(), torch.tensor([1, 2]))
    assert variance.flatten().tolist() == pytest.approx([0.0, float(process.posterior_variances[2])], rel=1e-5)


def test_timesteps_that_are_not_there_cannot_be_kept() -> None:
    """They are named."""
    with pytest.raises(ValueError, match="the chain has no timestep -1, 12: it has 10, up to 10"):
        Cosine(timesteps=10).process().keep([3, 12, -1])
