"""The forward process and its posterior against closed forms written in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cdmkit.builtin.schedules import Cosine, Linear
from cdmkit.diffusion import Process, respaced_timesteps
from cdmkit.diffusion.denoiser import drawn_alpha_bar
from cdmkit.diffusion.process import add_noise, at

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
        np.testing.assert_allclose(float(process.posterior_variance[t]), 1 / precision, rtol=1e-9)
        np.testing.assert_allclose(process.posterior_mean(x0, x_t, torch.tensor([t])).numpy(), mean, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_last_step_of_the_posterior_is_certain(process: Process) -> None:
    """At t = 1 it is x_0 itself, with no variance."""
    x0 = images(1)
    torch.testing.assert_close(process.posterior_mean(x0, images(1, seed=1), torch.tensor([1])), x0, rtol=1e-12, atol=1e-12)
    assert process.posterior_variance[1] == 0


@pytest.mark.parametrize("process", PROCESSES)
def test_the_posterior_log_variance_of_the_last_step_is_that_of_the_one_before(process: Process) -> None:
    """The log of 0 is replaced by its neighbour; every other entry is the log of the variance."""
    assert process.posterior_log_variance[1] == process.posterior_log_variance[2]
    torch.testing.assert_close(process.posterior_log_variance[2:].exp(), process.posterior_variance[2:], rtol=1e-12, atol=0)
    torch.testing.assert_close(process.log_betas[1:].exp(), process.betas[1:], rtol=1e-12, atol=0)


def test_a_chain_of_one_step_has_finite_tables() -> None:
    """K = 1: the posterior is x_0, and its log variance that of the only beta."""
    process = Cosine(timesteps=1000).process().respace(1)
    assert process.timesteps.tolist() == [0, 1000]
    assert [float(process.posterior_mean_x0[1]), float(process.posterior_mean_xt[1])] == [1.0, 0.0]
    assert float(process.posterior_log_variance[1]) == pytest.approx(float(process.log_betas[1]))
    assert all(
        bool(table.isfinite().all()) for table in (process.posterior_mean_x0, process.posterior_mean_xt, process.posterior_log_variance)
    )


def test_every_respacing_visits_each_end_with_the_number_of_calls_asked_for() -> None:
    """For all small T and S: ascending, 0 and T among them, S network calls (pitfall: "leading" spacing never visits T)."""
    for timesteps in range(1, 41):
        for steps in range(1, timesteps + 1):
            visited = respaced_timesteps(timesteps, steps)
            assert visited == sorted(set(visited))
            assert (visited[0], visited[-1], len(visited)) == (0, timesteps, steps + 1)


def test_respacing_is_equal_spacing_of_1_to_t() -> None:
    """K equally spaced reals in [1, T], rounded; all of T is the full chain."""
    assert respaced_timesteps(4000, 5) == [0, 1, 1001, 2000, 3000, 4000]
    assert respaced_timesteps(10, 4) == [0, 1, 4, 7, 10]
    assert respaced_timesteps(10, 10) == list(range(11))
    assert respaced_timesteps(10, 1) == [0, 10]


@pytest.mark.parametrize(("steps", "through", "expected"), [(1, 5, [0, 5, 10]), (4, 6, [0, 1, 4, 6, 7, 10]), (4, 4, [0, 1, 4, 7, 10])])
def test_respacing_goes_through_a_wanted_timestep(steps: int, through: int, expected: list[int]) -> None:
    """So that a truncated chain can stop exactly there; one that is visited anyway adds nothing."""
    assert respaced_timesteps(10, steps, through) == expected


@pytest.mark.parametrize(
    ("steps", "through", "words"), [(0, 0, "cannot respace"), (11, 0, "1 to 10"), (5, 11, "0 to 10"), (5, -1, "cannot stop")]
)
def test_an_impossible_respacing_is_refused(steps: int, through: int, words: str) -> None:
    """More steps than timesteps, or a stop that does not exist."""
    with pytest.raises(ValueError, match=words):
        respaced_timesteps(10, steps, through)


def test_a_respaced_chain_recomputes_its_betas() -> None:
    """1 - alpha_bar / alpha_bar of the point before it that is kept (Improved DDPM eq. 19), not the full chain's betas."""
    full = Cosine(timesteps=1000).process()
    chain = full.respace(10)
    kept = full.alpha_bars.numpy()[respaced_timesteps(1000, 10)]
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
    assert process.posterior_mean_x0.dtype == torch.float64
    assert torch.equal(single.posterior_mean_x0, process.posterior_mean_x0.float())
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


def test_a_table_is_read_per_example_and_broadcast() -> None:
    """`at` gives [B, 1, 1, 1]; `add_noise` is DDPM eq. 4."""
    table = torch.tensor([1.0, 0.64, 0.36], dtype=torch.float64)
    ab = at(table, torch.tensor([2, 1]), images(2))
    assert ab.shape == (2, 1, 1, 1)
    x, epsilon = images(2), images(2, seed=1)
    expected = torch.stack((0.6 * x[0] + 0.8 * epsilon[0], 0.8 * x[1] + 0.6 * epsilon[1]))
    torch.testing.assert_close(add_noise(x, epsilon, ab), expected)


def test_a_drawn_alpha_bar_lies_between_its_neighbours_evenly() -> None:
    """Uniform 0 gives that of t, towards 1 that of t - 1, one half the middle."""
    process = Linear(timesteps=50).process()
    ab = process.alpha_bars
    t = torch.tensor([1, 20, 50, 7])
    drawn = drawn_alpha_bar(process, t, torch.tensor([0.0, 0.5, 0.25, 0.999999]))
    expected = [float(ab[1]), float(ab[19] + ab[20]) / 2, float(0.25 * ab[49] + 0.75 * ab[50]), float(ab[6])]
    np.testing.assert_allclose(drawn.numpy(), expected, rtol=1e-7)
