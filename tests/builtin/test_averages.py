"""The built-in averages of weights."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from cdmkit.builtin.averages import Exponential, Power
from cdmkit.builtin.optimizers import Adam
from cdmkit.cascade import Training
from cdmkit.kinds import Average, power_exponent

WIDTHS = [0.01, 0.05, 0.1, 0.2, 0.28]


def counts(average: Average, steps: int) -> npt.NDArray[np.float64]:
    """How much the first weights, then those of each step, count in the average after so many steps; by its recursion."""
    share = np.zeros(steps + 1)
    share[0] = 1
    for step in range(steps):
        decay = average.decay_at(step)
        share *= decay
        share[step + 1] += 1 - decay
    return share


@pytest.mark.parametrize("sigma_rel", WIDTHS)
def test_a_power_average_has_the_power_profile(sigma_rel: float) -> None:
    """Step i counts as much as the profile tau^gamma has between i - 1 and i; the first weights do not count."""
    steps, power = 300, power_exponent(sigma_rel) + 1
    edges = (np.arange(steps + 1) / steps) ** power
    np.testing.assert_allclose(counts(Power(sigma_rel=sigma_rel), steps), [0, *np.diff(edges)], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("sigma_rel", WIDTHS)
def test_a_power_average_is_as_wide_as_asked(sigma_rel: float) -> None:
    """The standard deviation of the steps that count, over their number, is sigma_rel."""
    steps = 5000
    share, time = counts(Power(sigma_rel=sigma_rel), steps)[1:], (np.arange(steps) + 0.5) / steps
    mean = float(share @ time)
    assert float(share @ (time - mean) ** 2) ** 0.5 == pytest.approx(sigma_rel, rel=1e-3)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.2801, float("nan")])
def test_widths_that_no_power_has_are_refused(sigma_rel: float) -> None:
    """With the range that there is."""
    with pytest.raises(ValueError, match=r"> 0 and <= 0\.28"):
        Power(sigma_rel=sigma_rel)


@pytest.mark.parametrize("ramp", [False, True])
def test_an_exponential_average_is_what_is_sampled_from(ramp: bool) -> None:
    """`{ type = "ema" }` decays as `train.ema` does, and can be combined with no other."""
    train = Training(optimizer=Adam(), ema=0.99, ema_ramp=ramp, averages=(Exponential(decay=0.99, ramp=ramp),))
    sampled_from, beside = train.decays.values()
    assert [sampled_from(step) for step in (0, 9, 10**6)] == [beside(step) for step in (0, 9, 10**6)]
    assert beside(10**6) == 0.99
    assert beside(0) == (0.1 if ramp else 0.99)
    assert train.averages[0].sigma_rel is None


def test_snapshots_need_a_power_average() -> None:
    """Others cannot be combined, so that snapshots of them would be of no use."""
    with pytest.raises(ValueError, match=r'snapshot_every: .* add \{ type = "power"'):
        Training(optimizer=Adam(), averages=(Exponential(),), snapshot_every=100)
    train = Training(optimizer=Adam(), averages=(Power(sigma_rel=0.2), Exponential(), Power(sigma_rel=0.05)), snapshot_every=100)
    assert train.snapshots == {"average-1": 0.2, "average-3": 0.05}
