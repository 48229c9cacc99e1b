"""Samplers with exact denoisers: data whose posterior is known in closed form, so that samples' moments and convergence are, too."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from cdmkit.builtin.heun import Heun
from cdmkit.builtin.samplers import Ancestral, Ddim, DpmSolverPP
from cdmkit.builtin.schedules import Cosine, Linear, Regression
from cdmkit.builtin.spacings import LogSnr, PowerSigma, Sections, Stride
from cdmkit.diffusion import Condition, Denoise, Denoised, Denoiser, NoiseInput, Parameterization, Point, Prediction, Process, Variance
from cdmkit.draws import Stream
from cdmkit.kinds import Sampler, Spaced

MEAN, DEVIATION = 0.3, 0.5
"""The data: every pixel from N(MEAN, DEVIATION^2), on its own."""
PROCESS = Cosine(timesteps=200).process()
SHAPE = (3, 8, 8)


class ExactNetwork:
    """The best possible network for the data: E[x_0 | x_t], as the prediction asked for. Counts its calls."""

    def __init__(self, process: Process, prediction: Prediction) -> None:
        self.process = process
        self.prediction = prediction
        self.levels: list[float] = []

    def __call__(self, x_t: Tensor, level: Tensor, _condition: Condition) -> Tensor:
        self.levels.append(float(level[0]))
        ab = self.process.alpha_bars.to(x_t)[level.long()].view(-1, 1, 1, 1)
        variance = DEVIATION**2
        x0 = MEAN + ab.sqrt() * variance / (ab * variance + 1 - ab) * (x_t - ab.sqrt() * MEAN)
        return self.prediction.target(x0, (x_t - ab.sqrt() * x0) / (1 - ab).sqrt(), self.process.to("cpu", x_t.dtype).point(level.long()))


def exact(process: Process = PROCESS, prediction: Prediction = Prediction.EPSILON, variance: Variance = Variance.FIXED_SMALL) -> Denoise:
    """The exact denoiser, unclipped: the data is not bounded."""
    return Denoiser(ExactNetwork(process, prediction), Parameterization(prediction, variance), threshold=None).bind(Condition())


def sample(sampler: Sampler, count: int, stop_at: int = 0, process: Process = PROCESS, denoise: Denoise | None = None) -> Tensor:
    """`count` samples in float64, their noise from a stream."""
    stream, index = Stream.of(0, "samples"), torch.arange(count)

    def draw(k: int) -> Tensor:
        return stream.normal(index, SHAPE, step=k, dtype=torch.float64)

    return sampler(denoise or exact(process), draw(0), process, draw, stop_at)


def assert_moments(x: Tensor, mean: float, deviation: float, rel: float = 0.02) -> None:
    assert float(x.mean()) == pytest.approx(mean, abs=5 * deviation / math.sqrt(x.numel()) + 0.003)
    assert float(x.std()) == pytest.approx(deviation, rel=rel)


@pytest.mark.parametrize("prediction", Prediction)
def test_ancestral_sampling_over_the_full_chain_gives_the_data(prediction: Prediction) -> None:
    """Mean and deviation of the data, whatever the network predicts."""
    x = sample(Ancestral(steps=200), 150, denoise=exact(prediction=prediction))
    assert x.dtype == torch.float64
    assert_moments(x, MEAN, DEVIATION)


@pytest.mark.parametrize("variance", [Variance.FIXED_SMALL, Variance.FIXED_LARGE])
def test_ancestral_moments_follow_the_recursion_of_its_steps(variance: Variance) -> None:
    """Few steps distort the deviation: by exactly what the linear-Gaussian recursion of mean and variance says."""
    chain = PROCESS.respace(6)
    ab = chain.alpha_bars.tolist()
    mean, spread = 0.0, 1.0
    for k in range(6, 0, -1):
        beta = 1 - ab[k] / ab[k - 1]
        gain = math.sqrt(ab[k]) * DEVIATION**2 / (ab[k] * DEVIATION**2 + 1 - ab[k])
        from_x0 = math.sqrt(ab[k - 1]) * beta / (1 - ab[k])
        from_xt = math.sqrt(ab[k] / ab[k - 1]) * (1 - ab[k - 1]) / (1 - ab[k])
        tilde = beta * (1 - ab[k - 1]) / (1 - ab[k])
        added = 0.0 if k == 1 else tilde if variance is Variance.FIXED_SMALL else beta
        mean = from_x0 * (MEAN + gain * (mean - math.sqrt(ab[k]) * MEAN)) + from_xt * mean
        spread = (from_x0 * gain + from_xt) ** 2 * spread + added
    x = sample(Ancestral(steps=6), 300, denoise=exact(variance=variance))
    assert_moments(x, mean, math.sqrt(spread), rel=0.015)


def test_a_learned_variance_is_used_for_each_pixel() -> None:
    """One step from x_2 to x_1 with the share of the range set pixel by pixel."""
    chain = PROCESS.respace(2)
    ranged = torch.linspace(-1, 1, 3 * 8 * 8, dtype=torch.float64).view(1, *SHAPE)
    x0 = torch.zeros(1, *SHAPE, dtype=torch.float64)
    parameterization = Parameterization(Prediction.X0, Variance.LEARNED_RANGE)
    denoise = Denoiser(lambda *_: torch.cat((x0, ranged), dim=1), parameterization).bind(Condition())
    stop = int(chain.timesteps[1])
    x = Ancestral(steps=2)(denoise, torch.zeros_like(x0), PROCESS, lambda _k: torch.ones_like(x0), stop)
    beta, tilde = float(chain.betas[2]), float(chain.posterior_variances[2])
    share = (ranged + 1) / 2
    torch.testing.assert_close(x, (beta**share * tilde ** (1 - share)).sqrt())


def test_deterministic_ddim_converges_to_the_data_at_first_order() -> None:
    """The map from noise to sample is x_0 = MEAN + DEVIATION x_T; ten times the steps leave about a tenth of the error."""
    process = Cosine(timesteps=4000).process()
    noise = torch.linspace(-2, 2, 3 * 8 * 8, dtype=torch.float64).view(1, *SHAPE)

    def error(steps: int) -> float:
        x = Ddim(steps=steps)(exact(process), noise, process, lambda _k: noise)
        return float((x - (MEAN + DEVIATION * noise)).abs().max())

    coarse, middle, fine = error(10), error(100), error(1000)
    assert coarse > 5 * middle
    assert 7 < middle / fine < 13
    assert fine < 2e-3


@pytest.mark.parametrize("steps", [1, 3, 200])
def test_ddim_with_eta_one_is_ancestral_sampling_with_the_small_variance(steps: int) -> None:
    """The same noise gives the same samples (arXiv:2010.02502, sec. 4.1)."""
    torch.testing.assert_close(sample(Ddim(steps=steps, eta=1.0), 4), sample(Ancestral(steps=steps), 4), rtol=0, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_gives_the_data_at_every_eta(eta: float) -> None:
    """All of the family share their marginals."""
    assert_moments(sample(Ddim(steps=200, eta=eta), 150), MEAN, DEVIATION)


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_a_ddim_step_is_equation_12(eta: float) -> None:
    """Each of four steps against the equation as it is written, epsilon re-derived from a clipped x_0."""
    chain = PROCESS.respace(4)
    ab = chain.alpha_bars
    generator = torch.Generator().manual_seed(0)
    noises = torch.randn(5, 2, *SHAPE, dtype=torch.float64, generator=generator)
    said = torch.randn(2, *SHAPE, dtype=torch.float64, generator=generator)
    x = noises[0]
    for k in range(4, 0, -1):
        x0 = ((x - (1 - ab[k]).sqrt() * said) / ab[k].sqrt()).clamp(-1, 1)
        epsilon = (x - ab[k].sqrt() * x0) / (1 - ab[k]).sqrt()
        sigma = eta * ((1 - ab[k - 1]) / (1 - ab[k])).sqrt() * (1 - ab[k] / ab[k - 1]).sqrt()
        x = ab[k - 1].sqrt() * x0 + (1 - ab[k - 1] - sigma**2).sqrt() * epsilon + sigma * noises[k]
    denoise = Denoiser(lambda *_: said, Parameterization()).bind(Condition())
    torch.testing.assert_close(Ddim(steps=4, eta=eta)(denoise, noises[0], PROCESS, lambda k: noises[k]), x, rtol=1e-9, atol=1e-9)


def test_an_ancestral_step_is_algorithm_2_of_ddpm() -> None:
    """The full chain without clipping: x_{t-1} = (x_t - beta_t / sqrt(1 - alpha_bar_t) epsilon) / sqrt(alpha_t) + sigma_t z."""
    process = Linear(timesteps=30).process()
    generator = torch.Generator().manual_seed(0)
    noises = torch.randn(31, 2, *SHAPE, dtype=torch.float64, generator=generator)
    said = torch.randn(2, *SHAPE, dtype=torch.float64, generator=generator)
    x = noises[0]
    for t in range(30, 0, -1):
        beta, ab = process.betas[t], process.alpha_bars[t]
        x = (x - beta / (1 - ab).sqrt() * said) / (1 - beta).sqrt()
        if t > 1:
            x = x + beta.sqrt() * noises[t]
    denoise = Denoiser(lambda *_: said, Parameterization(variance=Variance.FIXED_LARGE), threshold=None).bind(Condition())
    torch.testing.assert_close(Ancestral(steps=30)(denoise, noises[0], process, lambda k: noises[k]), x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "sampler",
    [
        Ancestral(steps=200),
        Ddim(steps=200),
        Ddim(steps=200, eta=1.0),
        DpmSolverPP(steps=50),
        DpmSolverPP(steps=100, sde=True),
        Heun(steps=40, spacing=PowerSigma()),
    ],
)
@pytest.mark.parametrize("s", [50, 137])
def test_a_chain_that_stops_at_s_gives_noisy_data(sampler: Sampler, s: int) -> None:
    """z_s has the moments of q(z_s): mean sqrt(alpha_bar) m, variance alpha_bar d^2 + 1 - alpha_bar."""
    ab = float(PROCESS.alpha_bars[s])
    assert_moments(sample(sampler, 120, stop_at=s), math.sqrt(ab) * MEAN, math.sqrt(ab * DEVIATION**2 + 1 - ab))


@pytest.mark.parametrize("make", [Ancestral, Ddim, DpmSolverPP])
@pytest.mark.parametrize(
    ("steps", "stop_at", "expected"), [(1, 0, 1), (1, 60, 1), (7, 0, 7), (7, 60, 5), (200, 0, 200), (200, 60, 140), (5, 200, 0)]
)
def test_the_network_is_called_as_often_as_announced(make: Callable[..., Sampler], steps: int, stop_at: int, expected: int) -> None:
    """`calls` counts the points of the chain above stop_at, and the sampler keeps to it, from T downwards."""
    sampler, network = make(steps=steps), ExactNetwork(PROCESS, Prediction.EPSILON)
    sample(sampler, 1, stop_at, denoise=Denoiser(network, Parameterization(), threshold=None).bind(Condition()))
    assert sampler.calls(PROCESS, stop_at) == expected
    points = sampler.chain(PROCESS, stop_at).timesteps.tolist()
    assert network.levels == [float(t) for t in reversed(points) if t > stop_at]


@pytest.mark.parametrize(
    "sampler",
    [Ancestral(steps=1), Ddim(steps=1), Ddim(steps=1, eta=1.0), DpmSolverPP(steps=1), DpmSolverPP(steps=1, sde=True), Heun(steps=1)],
)
def test_one_step_gives_the_predicted_image(sampler: Sampler) -> None:
    """From x_T straight to x_0, with no noise added."""
    noise = torch.randn(2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = exact()(noise, PROCESS.point(torch.tensor([200]))).x0
    torch.testing.assert_close(sampler(exact(), noise, PROCESS, lambda _k: noise), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("sampler", [Ancestral(steps=5), Ddim(steps=5, eta=0.5), DpmSolverPP(steps=5, sde=True)])
def test_noise_is_drawn_once_for_each_step_but_the_last(sampler: Sampler) -> None:
    """draw(k) is asked for when index k is left, from K down to 2."""
    asked: list[int] = []

    def draw(k: int) -> Tensor:
        asked.append(k)
        return torch.zeros(1, *SHAPE)

    sampler(exact(), torch.zeros(1, *SHAPE), PROCESS, draw)
    assert asked == [5, 4, 3, 2]
    asked.clear()
    sampler(exact(), torch.zeros(1, *SHAPE), PROCESS, draw, 100)
    assert asked == [k for k, t in enumerate(sampler.chain(PROCESS, 100).timesteps.tolist()) if t > 100][::-1]


@pytest.mark.parametrize("sampler", [Ddim(steps=5), DpmSolverPP(steps=5), Heun(steps=5)])
def test_deterministic_samplers_draw_nothing(sampler: Sampler) -> None:
    """They ask for no noise at all."""

    def refuse(_k: int) -> Tensor:
        raise AssertionError

    x = sampler(exact(), torch.zeros(1, *SHAPE), PROCESS, refuse)
    assert bool(x.isfinite().all())


@pytest.mark.parametrize(
    "sampler", [Ancestral(steps=20), Ddim(steps=20), Ddim(steps=20, eta=1.0), DpmSolverPP(steps=20), Heun(steps=20, churn=9.0)]
)
def test_the_noise_given_is_not_written_to(sampler: Sampler) -> None:
    """x_T can be used again."""
    noise = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    before = noise.clone()
    sampler(exact(), noise, PROCESS, lambda _k: noise)
    assert torch.equal(noise, before)


@pytest.mark.parametrize(
    "sampler",
    [
        Ancestral(steps=50),
        Ddim(steps=50),
        Ddim(steps=50, eta=1.0),
        DpmSolverPP(steps=50),
        DpmSolverPP(steps=50, sde=True),
        Heun(steps=20, spacing=PowerSigma()),
    ],
)
def test_float32_samples_are_close_to_float64_ones(sampler: Sampler) -> None:
    """The same draws in single precision, tables rounded late."""
    noise = torch.randn(51, 2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def run(noise: Tensor) -> Tensor:
        return sampler(exact(), noise[0], PROCESS, lambda k: noise[k])

    single, double = run(noise.float()), run(noise)
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-4)


def moments(sampler: Sampler, process: Process, stop_at: int = 0) -> tuple[float, float]:
    """The exact mean and variance of a sampler's output for the exact denoiser, up to rounding: no draws.

    Each step is affine in x_T and in every noise it draws. So one image without any is the mean, and images with one of them set to 1 tell
    what each adds to the variance.
    """
    count = sampler.chain(process, stop_at).steps + 2

    def only(source: int) -> Tensor:
        return torch.eye(count, dtype=torch.float64)[source].view(-1, 1, 1, 1)

    x = sampler(exact(process), only(1), process, lambda k: only(k + 1), stop_at).flatten()
    return float(x[0]), float((x[1:] - x[0]).square().sum())


EVERY = [
    lambda steps: Ancestral(steps=steps),
    lambda steps: Ddim(steps=steps),
    lambda steps: Ddim(steps=steps, eta=0.5),
    lambda steps: Ddim(steps=steps, eta=1.0),
    lambda steps: DpmSolverPP(steps=steps),
    lambda steps: DpmSolverPP(steps=steps, sde=True),
    lambda steps: DpmSolverPP(steps=steps, spacing=LogSnr()),
    lambda steps: Heun(steps=steps, spacing=PowerSigma()),
    lambda steps: Heun(steps=steps, spacing=PowerSigma(), churn=steps / 4),
]
NAMES = ["ancestral", "ddim", "ddim 0.5", "ddim 1", "2m", "2m sde", "2m in log-snr", "heun", "heun with churn"]


@pytest.mark.parametrize("s", [0, 1300])
@pytest.mark.parametrize("make", EVERY, ids=NAMES)
def test_the_output_of_every_sampler_converges_to_the_datas_mean_and_variance(make: Callable[[int], Sampler], s: int) -> None:
    """Those of q(z_s) in closed form: sqrt(alpha_bar) m and alpha_bar d^2 + 1 - alpha_bar. Many steps are near, few are farther off."""
    process = Linear(timesteps=4000).process()
    ab = float(process.alpha_bars[s])
    mean, variance = math.sqrt(ab) * MEAN, ab * DEVIATION**2 + 1 - ab
    few, many = (moments(make(steps), process, s) for steps in (15, 240))
    assert list(many) == pytest.approx([mean, variance], rel=0.07)
    assert abs(many[1] - variance) < abs(few[1] - variance) / 3


@pytest.mark.parametrize("s", [0, 77])
@pytest.mark.parametrize("eta", [None, 0.0, 0.7, 1.0])
def test_mean_and_variance_follow_their_closed_recursion_exactly(eta: float | None, s: int) -> None:
    """For ancestral sampling (eta None) and DDIM: the affine map of mean and variance through each step, in plain numbers, to 1e-12."""
    sampler: Sampler = Ancestral(steps=12) if eta is None else Ddim(steps=12, eta=eta)
    chain = sampler.chain(PROCESS, s)
    ab, mean, variance = chain.alpha_bars.tolist(), 0.0, 1.0
    for k in range(chain.steps, chain.index_of(s), -1):
        here, to = ab[k], ab[k - 1]
        gain = math.sqrt(here) * DEVIATION**2 / (here * DEVIATION**2 + 1 - here)
        tilde = (1 - to) / (1 - here) * (1 - here / to)
        added = tilde if eta is None else eta**2 * tilde
        from_xt = math.sqrt((1 - to - (0.0 if k == 1 else added)) / (1 - here))
        from_x0 = math.sqrt(to) - from_xt * math.sqrt(here)
        mean = from_x0 * (MEAN + gain * (mean - math.sqrt(here) * MEAN)) + from_xt * mean
        variance = (from_x0 * gain + from_xt) ** 2 * variance + (0.0 if k == 1 else added)
    assert list(moments(sampler, PROCESS, s)) == pytest.approx([mean, variance], abs=1e-12)


FINE = Cosine(timesteps=4000).process()
NOISE = torch.linspace(-2, 2, 3 * 8 * 8, dtype=torch.float64).view(1, *SHAPE)


def _error(sampler: Sampler, process: Process = FINE) -> float:
    """How far a deterministic sampler is from the map of the probability flow, x_0 = MEAN + DEVIATION x_T."""
    x = sampler(exact(process), NOISE, process, lambda _k: NOISE)
    return float((x - (MEAN + DEVIATION * NOISE)).abs().max())


@pytest.mark.parametrize(
    ("make", "few", "order"),
    [
        (lambda steps: Ddim(steps=steps), 40, 1),
        (lambda steps: DpmSolverPP(steps=steps), 40, 2),
        (lambda steps: DpmSolverPP(steps=steps, spacing=LogSnr()), 40, 2),
        (lambda steps: Heun(steps=steps, spacing=LogSnr()), 40, 2),
    ],
    ids=["ddim", "dpm-solver-pp", "dpm-solver-pp in log-snr", "heun in log-snr"],
)
def test_deterministic_samplers_converge_at_their_order(make: Callable[[int], Sampler], few: int, order: int) -> None:
    """Twice the steps leave about a half, or a quarter, of the error."""
    errors = [_error(make(few * 2**doubling)) for doubling in range(3)]
    for coarse, fine in pairwise(errors):
        assert 2**order * 0.75 < coarse / fine < 2**order * 1.45


def test_second_order_samplers_need_fewer_calls() -> None:
    """At equal network calls they are closer than DDIM: DPM-Solver++ several times, Heun from some dozens of calls on."""
    calls = 80
    first = _error(Ddim(steps=calls))
    assert _error(DpmSolverPP(steps=calls, spacing=LogSnr())) < first / 6
    assert _error(Heun(steps=calls // 2, spacing=PowerSigma())) < first / 1.5


def test_the_flow_run_upwards_leads_back_to_the_noise() -> None:
    """Sampling, then inverting, gives x_T again, the closer the smaller the steps (first order)."""

    def error(steps: int) -> float:
        sampler = Ddim(steps=steps)
        x = sampler(exact(FINE), NOISE, FINE, lambda _k: NOISE)
        return float((sampler.invert(exact(FINE), x, FINE) - NOISE).abs().max())

    coarse, fine = error(100), error(400)
    assert fine < 0.02
    assert 3 < coarse / fine < 5


@pytest.mark.parametrize("steps", [2, 5, 40])
def test_a_first_order_sde_step_is_an_ancestral_one(steps: int) -> None:
    """With x_0 that does not change, SDE-DPM-Solver++ and ancestral sampling with the small variance take the same steps."""
    x0 = torch.linspace(-1, 1, 3 * 8 * 8, dtype=torch.float64).view(1, *SHAPE).expand(4, *SHAPE)
    denoise = Denoiser(lambda *_: x0, Parameterization(Prediction.X0)).bind(Condition())
    stop = 30
    theirs, ours = (sample(sampler, 4, stop, denoise=denoise) for sampler in (Ancestral(steps=steps), DpmSolverPP(steps=steps, sde=True)))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("sde", [False, True])
def test_a_dpm_solver_step_is_the_published_update(sde: bool) -> None:
    """Algorithm 2 of arXiv:2211.01095 and its SDE form, written in alpha, sigma, lambda and r."""
    chain = PROCESS.respace(4)
    alpha, sigma = chain.alpha_bars.sqrt(), (1 - chain.alpha_bars).sqrt()
    lam = torch.log(alpha / sigma)
    generator = torch.Generator().manual_seed(0)
    noises, said = (torch.randn(6, 2, *SHAPE, dtype=torch.float64, generator=generator) for _ in range(2))
    x, before = noises[0], None
    for k in range(4, 0, -1):
        x0 = said[k].clamp(-1, 1)
        h = lam[k - 1] - lam[k]
        if before is None or k == 1:
            d = x0
        else:
            r = (lam[k] - lam[k + 1]) / h
            d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before
        if sde:
            x = sigma[k - 1] / sigma[k] * torch.exp(-h) * x + alpha[k - 1] * (1 - torch.exp(-2 * h)) * d
            x = x + sigma[k - 1] * torch.sqrt(1 - torch.exp(-2 * h)) * noises[k]
        else:
            x = sigma[k - 1] / sigma[k] * x - alpha[k - 1] * (torch.exp(-h) - 1) * d
        before = x0

    def denoise(x_t: Tensor, point: Point) -> Denoised:
        return Denoised(said[int(point.k)].clamp(-1, 1), None, Variance.FIXED_SMALL, point)

    found = DpmSolverPP(steps=4, sde=sde)(denoise, noises[0], PROCESS, lambda k: noises[k])
    torch.testing.assert_close(found, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("churn", [0.0, 1.0, 100.0])
def test_a_heun_step_is_algorithm_2_of_edm(churn: float) -> None:
    """In EDM's own variables, x / signal and sigma, with the raised sigma at the nearest timestep of the full chain."""
    sampler = Heun(steps=4, spacing=PowerSigma(max_sigma=20.0), churn=churn, churn_min_sigma=0.05, churn_max_sigma=10.0, churn_noise=1.1)
    chain = sampler.chain(PROCESS)
    full = PROCESS.sigmas
    generator = torch.Generator().manual_seed(0)
    noises = torch.randn(6, 2, *SHAPE, dtype=torch.float64, generator=generator)

    def denoiser(x: Tensor, t: int) -> Tensor:
        return torch.sin(3 * x * PROCESS.alpha_bars[t].sqrt() + t)

    times = chain.timesteps.tolist()
    x = noises[0] / PROCESS.alpha_bars[times[-1]].sqrt()
    for k in range(chain.steps, 0, -1):
        sigma, high = full[times[k]], times[k]
        gamma = min(churn / chain.steps, math.sqrt(2) - 1) if 0.05 <= sigma <= 10 else 0.0
        if gamma:
            high = max(high, int((full[1:].log() - (sigma * (1 + gamma)).log()).abs().argmin()) + 1)
            x = x + (full[high] ** 2 - sigma**2).sqrt() * 1.1 * noises[k]
        slope = (x - denoiser(x, high)) / full[high]
        ahead = x + (full[times[k - 1]] - full[high]) * slope
        if times[k - 1]:
            again = (ahead - denoiser(ahead, times[k - 1])) / full[times[k - 1]]
            ahead = x + (full[times[k - 1]] - full[high]) * (slope + again) / 2
        x = ahead

    def denoise(x_t: Tensor, point: Point) -> Denoised:
        return Denoised(denoiser(x_t / point.signal, int(point.timestep)), None, Variance.FIXED_SMALL, point)

    found = sampler(denoise, noises[0], PROCESS, lambda k: noises[k])
    torch.testing.assert_close(found, x, rtol=1e-8, atol=1e-8)


def test_churn_keeps_the_data() -> None:
    """Noise that is added is taken away again: mean and deviation stay those of the data, also where the chain stops at s."""
    process = Cosine(timesteps=4000).process()
    churned = Heun(steps=80, spacing=PowerSigma(), churn=20.0)
    ab = float(process.alpha_bars[1500])
    assert_moments(sample(churned, 150, process=process), MEAN, DEVIATION, rel=0.03)
    assert_moments(sample(churned, 150, 1500, process), math.sqrt(ab) * MEAN, math.sqrt(ab * DEVIATION**2 + 1 - ab), rel=0.03)
    assert not torch.equal(sample(churned, 2, process=process), sample(Heun(steps=60, spacing=PowerSigma()), 2, process=process))


@pytest.mark.parametrize(("stop_at", "expected"), [(0, 9), (60, 6), (200, 0)])
def test_heun_calls_the_network_twice_a_step_but_the_last(stop_at: int, expected: int) -> None:
    """As announced; with a stop at s > 0, twice there too."""
    sampler, network = Heun(steps=5), ExactNetwork(PROCESS, Prediction.EPSILON)
    sample(sampler, 1, stop_at, denoise=Denoiser(network, Parameterization(), threshold=None).bind(Condition()))
    assert len(network.levels) == sampler.calls(PROCESS, stop_at) == expected


def test_heun_refuses_a_chain_that_begins_at_pure_noise() -> None:
    """Where signal is 0, noise / signal is infinite."""
    with pytest.raises(ValueError, match="infinite where this chain begins"):
        Heun(steps=1).chain(Regression().process())


@pytest.mark.parametrize("sampler", [Ancestral(steps=1), Ddim(steps=1), DpmSolverPP(steps=1)])
def test_a_regression_is_sampled_in_one_step(sampler: Sampler) -> None:
    """From noise that tells nothing to what the network says."""
    said = torch.full((2, *SHAPE), 0.25)
    denoise = Denoiser(lambda *_: said, Parameterization(Prediction.X0)).bind(Condition())
    assert torch.equal(sampler(denoise, torch.randn(2, *SHAPE), Regression().process(), lambda _k: said), said)


@pytest.mark.parametrize("sampler", [Ddim(steps=5), DpmSolverPP(steps=5), DpmSolverPP(steps=5, sde=True), Ancestral(steps=5)])
def test_chains_that_begin_at_pure_noise_can_be_sampled(sampler: Sampler) -> None:
    """With alpha_bar = 0 at T (v-prediction): finite, and with an exact network close to the data."""
    bars = torch.cat((Cosine(timesteps=40).alpha_bars()[:-1], torch.zeros(1, dtype=torch.float64)))
    process = Process.of(bars)
    x = sample(sampler, 50, process=process, denoise=exact(process, Prediction.V))
    assert bool(x.isfinite().all())
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.05)


@pytest.mark.parametrize("sampler", [Ancestral(steps=10, spacing=Stride()), Ddim(steps=10, spacing=Sections(counts=(7, 3)))])
def test_a_sampler_visits_the_timesteps_of_its_spacing(sampler: Sampler) -> None:
    """And a stop, if it is not below where the chain begins."""
    assert isinstance(sampler, Spaced)
    assert sampler.spacing is not None
    visited = sampler.spacing.timesteps(PROCESS, 10)
    assert sampler.chain(PROCESS).timesteps.tolist() == [0, *visited]
    assert sampler.chain(PROCESS, 77).timesteps.tolist() == sorted({0, 77, *visited})


def test_a_stop_above_where_the_chain_begins_is_refused() -> None:
    """A stride of 20 from 1 on ends at 181."""
    sampler = Ddim(steps=10, spacing=Stride())
    with pytest.raises(ValueError, match="cannot stop at timestep 190: the chain begins at 181"):
        sampler.chain(PROCESS, 190)


def test_sampling_may_follow_another_schedule_than_training() -> None:
    """A network told alpha_bar samples the data along a schedule it was not made for."""

    def network(x_t: Tensor, level: Tensor, _condition: Condition) -> Tensor:
        ab = (level / 1000).square().view(-1, 1, 1, 1)
        x0 = MEAN + ab.sqrt() * DEVIATION**2 / (ab * DEVIATION**2 + 1 - ab) * (x_t - ab.sqrt() * MEAN)
        return (x_t - ab.sqrt() * x0) / (1 - ab).sqrt()

    denoise = Denoiser(network, Parameterization(noise_input=NoiseInput.ALPHA_BAR), threshold=None).bind(Condition())
    process = Linear(timesteps=1000).process()
    assert_moments(sample(Ddim(steps=200), 150, process=process, denoise=denoise), MEAN, DEVIATION)


def test_more_steps_than_timesteps_are_refused() -> None:
    """By the chain, before anything is sampled."""
    with pytest.raises(ValueError, match="cannot respace 200 timesteps to 201"):
        Ancestral(steps=201).chain(PROCESS)
