"""Spacings: the published rules, and what suits no chain."""

from __future__ import annotations

import math

import pytest
import torch

from cdmkit.builtin.schedules import Cosine, Linear, Regression
from cdmkit.builtin.spacings import Even, LogSnr, PowerSigma, Sections, Stride
from cdmkit.diffusion import Process, even_timesteps, sectioned_timesteps, strided_timesteps
from cdmkit.kinds import Spacing

PROCESS = Cosine(timesteps=1000).process()


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [
        (Even(), even_timesteps(1000, 30)),
        (Sections(counts=(10, 5, 15)), sectioned_timesteps(1000, [10, 5, 15])),
    ],
)
def test_the_published_rules_are_those_of_the_algebra(spacing: Spacing, expected: list[int]) -> None:
    """By name in a recipe."""
    assert spacing.timesteps(PROCESS, 30) == expected


def test_a_stride_is_that_of_the_algebra() -> None:
    """25 of 1000: every 40th."""
    assert Stride().timesteps(PROCESS, 25) == strided_timesteps(1000, 25)


@pytest.mark.parametrize("spacing", [Even(), Stride(), Sections(counts=(4, 4, 2)), PowerSigma(), PowerSigma(rho=3.0), LogSnr()])
@pytest.mark.parametrize("process", [PROCESS, Linear(timesteps=200).process()])
def test_timesteps_ascend_within_the_chain(spacing: Spacing, process: Process) -> None:
    """Each once, 1 to T, no more than asked for."""
    visited = spacing.timesteps(process, 10)
    assert visited == sorted(set(visited))
    assert 1 <= visited[0] <= visited[-1] <= process.steps
    assert 8 <= len(visited) <= 10


def test_power_sigma_is_equation_5_of_edm_at_the_nearest_timesteps() -> None:
    """(max^(1/rho) + i / (N - 1) (min^(1/rho) - max^(1/rho)))^rho; each timestep's log sigma is the nearest there is."""
    logs = PROCESS.sigmas[1:].log()
    wanted = [(80 ** (1 / 7) + i / 17 * (0.02 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    expected = {int((logs - math.log(sigma)).abs().argmin()) + 1 for sigma in wanted}
    assert PowerSigma(min_sigma=0.02).timesteps(PROCESS, 18) == sorted(expected)


def test_log_snr_steps_are_equal_and_reach_both_ends() -> None:
    """Between 1 and T, where timesteps are dense enough."""
    process = Linear(timesteps=20_000).process()
    visited = LogSnr().timesteps(process, 12)
    assert (visited[0], visited[-1], len(visited)) == (1, 20_000, 12)
    steps = process.sigmas[visited].log().diff()[3:]
    torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=0.02, atol=0)


@pytest.mark.parametrize("spacing", [Even(), PowerSigma(max_sigma=1e9), LogSnr()])
def test_one_step_is_taken_from_t(spacing: Spacing) -> None:
    """From the noisiest timestep there is."""
    assert spacing.timesteps(PROCESS, 1) == [1000]


@pytest.mark.parametrize(
    ("spacing", "steps", "process", "words"),
    [
        (Even(), 1001, PROCESS, "cannot respace 1000 timesteps to 1001"),
        (Stride(), 999, PROCESS, "no whole stride makes 999"),
        (Sections(counts=(3, 4)), 8, PROCESS, r"counts = \[3, 4\] add up to 7, but the sampler has steps = 8"),
        (PowerSigma(min_sigma=3.0, max_sigma=2.0), 5, PROCESS, "min_sigma = 3 is not below max_sigma = 2"),
        (LogSnr(), 5, Regression().process(), "alpha_bar = 0"),
    ],
)
def test_what_cannot_be_visited_is_refused(spacing: Spacing, steps: int, process: Process, words: str) -> None:
    """In words, with the numbers."""
    with pytest.raises(ValueError, match=words):
        spacing.timesteps(process, steps)
