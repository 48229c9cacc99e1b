"""The algebra beside an implementation of its own in NumPy: loops over pixels' formulas as the papers print them, t from 1 to T."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from cdmkit.builtin.losses import Hybrid, Vlb
from cdmkit.builtin.samplers import Ancestral, Ddim
from cdmkit.builtin.schedules import Cosine, Linear
from cdmkit.diffusion import (
    Condition,
    Denoiser,
    Noised,
    NoiseInput,
    Output,
    Parameterization,
    Prediction,
    Process,
    Variance,
    even_timesteps,
    full_bound,
)
from cdmkit.kinds import Sampler

Array = npt.NDArray[np.float64]

T, STEPS, SHAPE = 200, 50, (2, 3, 4, 4)
LEARNED = Parameterization(Prediction.EPSILON, Variance.LEARNED_RANGE, NoiseInput.TIMESTEP_FROM_0)
RANDOM = np.random.default_rng(0)
X0 = RANDOM.integers(0, 256, SHAPE) / 127.5 - 1
NOISES = RANDOM.standard_normal((T + 1, *SHAPE))


def network(x: Any, t: Any, tanh: Callable[[Any], Any], concatenate: Callable[[list[Any]], Any]) -> Any:
    """Something smooth in x and t, the same for either library: epsilon and the share of the variance range, six channels."""
    return concatenate([tanh(0.8 * x + 0.001 * t), tanh(0.3 * x - 0.002 * t)])


def in_torch(x_t: Tensor, level: Tensor, _condition: Condition) -> Tensor:
    said: Tensor = network(x_t, level.view(-1, 1, 1, 1), torch.tanh, lambda parts: torch.cat(parts, 1))
    return said


def in_numpy(x: Array, t: int) -> tuple[Array, Array]:
    """Epsilon and the share, told t - 1 as published networks are."""
    said = network(x, float(t - 1), np.tanh, lambda parts: np.concatenate(parts, 1))
    return said[:, :3], said[:, 3:]


class Chain:
    """A (respaced) chain by its betas: DDPM eq. 4 and 7, Improved DDPM eq. 15 and 19."""

    def __init__(self, betas: Array, kept: list[int]) -> None:
        bars = np.cumprod(1 - betas)
        self.t = [0, *kept]
        self.bar = np.array([1.0, *(bars[t - 1] for t in kept)])
        self.beta = np.array([0.0, *(1 - self.bar[k] / self.bar[k - 1] for k in range(1, len(self.bar)))])
        self.tilde = np.array([0.0, *((1 - self.bar[k - 1]) / (1 - self.bar[k]) * self.beta[k] for k in range(1, len(self.bar)))])

    def log_tilde(self, k: int) -> float:
        return math.log(self.tilde[max(k, 2)])

    def mean(self, x0: Array, x: Array, k: int) -> Array:
        a = math.sqrt(self.bar[k - 1]) * self.beta[k] / (1 - self.bar[k])
        b = math.sqrt(1 - self.beta[k]) * (1 - self.bar[k - 1]) / (1 - self.bar[k])
        mean: Array = a * x0 + b * x
        return mean

    def reverse(self, x: Array, k: int, clip: bool) -> tuple[Array, Array, Array]:
        """x_0, mean and log-variance of p(x_{k-1} | x_k)."""
        epsilon, share = in_numpy(x, self.t[k])
        x0 = (x - math.sqrt(1 - self.bar[k]) * epsilon) / math.sqrt(self.bar[k])
        x0 = np.clip(x0, -1, 1) if clip else x0
        v = (share + 1) / 2
        return x0, self.mean(x0, x, k), v * math.log(self.beta[k]) + (1 - v) * self.log_tilde(k)

    def term(self, x0: Array, noise: Array, k: int, clip: bool) -> Array:
        """L_{k-1} of each image in bits per dimension (DDPM eq. 5 and 13)."""
        x = math.sqrt(self.bar[k]) * x0 + math.sqrt(1 - self.bar[k]) * noise
        _, mean, log_variance = self.reverse(x, k, clip)
        if k == 1:
            cdf = np.vectorize(lambda z: (1 + math.erf(z / math.sqrt(2))) / 2)
            upper, lower = (cdf((x0 + side / 255 - mean) / np.exp(log_variance / 2)) for side in (1, -1))
            upper, lower = np.where(x0 > 0.999, 1.0, upper), np.where(x0 < -0.999, 0.0, lower)
            nats = -np.log(np.maximum(upper - lower, 1e-12))
        else:
            true, log_true = self.mean(x0, x, k), self.log_tilde(k)
            nats = 0.5 * (log_variance - log_true - 1 + np.exp(log_true - log_variance) + (true - mean) ** 2 / np.exp(log_variance))
        bits: Array = nats.mean((1, 2, 3)) / math.log(2)
        return bits


def cosine_betas() -> Array:
    f = [math.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(T + 1)]
    return np.array([min(1 - f[t] / f[t - 1], 0.999) for t in range(1, T + 1)])


def linear_betas() -> Array:
    return np.linspace(0.1 / T, 20 / T, T)


SCHEDULES = {"cosine": (Cosine(timesteps=T).process(), cosine_betas()), "linear": (Linear(timesteps=T).process(), linear_betas())}


@pytest.fixture(params=SCHEDULES)
def pair(request: pytest.FixtureRequest) -> tuple[Process, Array]:
    """A process of ours and the betas of its schedule."""
    return SCHEDULES[request.param]


def denoiser(clip: bool) -> Denoiser:
    return Denoiser(in_torch, LEARNED) if clip else Denoiser(in_torch, LEARNED, None)


@pytest.mark.parametrize("eta", [None, 0.0, 0.6])
def test_fifty_respaced_steps_give_the_same_samples(pair: tuple[Process, Array], eta: float | None) -> None:
    """Ancestral with a learned variance (eta None) and DDIM, from the same x_T with the same noise."""
    process, betas = pair
    chain = Chain(betas, even_timesteps(T, STEPS))
    x = NOISES[0]
    for k in range(STEPS, 0, -1):
        x0, mean, log_variance = chain.reverse(x, k, clip=True)
        if eta is None:
            deviation: Any = np.exp(log_variance / 2)
        else:
            deviation = eta * math.sqrt(chain.tilde[k])
            epsilon = (x - math.sqrt(chain.bar[k]) * x0) / math.sqrt(1 - chain.bar[k])
            mean = math.sqrt(chain.bar[k - 1]) * x0 + math.sqrt(1 - chain.bar[k - 1] - deviation**2) * epsilon
        x = mean + (deviation * NOISES[k] if k > 1 else 0)
    sampler: Sampler = Ancestral(steps=STEPS) if eta is None else Ddim(steps=STEPS, eta=eta)
    noises = torch.from_numpy(NOISES)
    found = sampler(denoiser(clip=True).bind(Condition()), noises[0], process, lambda k: noises[k])
    np.testing.assert_allclose(found.numpy(), x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("clip", [True, False])
def test_every_term_of_the_bound_is_the_same(pair: tuple[Process, Array], clip: bool) -> None:
    """All T of them, and their sum with the prior's."""
    process, betas = pair
    chain = Chain(betas, list(range(1, T + 1)))
    terms = np.stack([chain.term(X0, NOISES[k], k, clip) for k in range(1, T + 1)], 1)
    end = math.sqrt(chain.bar[-1]) * X0
    prior = 0.5 * (-1 - math.log(1 - chain.bar[-1]) + (1 - chain.bar[-1]) + end**2).mean((1, 2, 3)) / math.log(2)
    noises = torch.from_numpy(NOISES)
    found = full_bound(denoiser(clip).bind(Condition()), torch.from_numpy(X0), process, lambda k: noises[k])
    np.testing.assert_allclose(found.terms.numpy(), terms, rtol=1e-8, atol=1e-11)
    np.testing.assert_allclose(found.total.numpy(), terms.sum(1) + prior, rtol=1e-9)


@pytest.mark.parametrize("t", [1, 2, 77, T])
def test_hybrid_and_vlb_losses_and_their_gradients_are_the_same(pair: tuple[Process, Array], t: int) -> None:
    """The loss by its formula; the gradient of the variance's share by finite differences of that, the mean's that of the simple part."""
    process, betas = pair
    chain = Chain(betas, list(range(1, T + 1)))
    noised = Noised.of(torch.from_numpy(X0), torch.from_numpy(NOISES[t]), process.point(torch.tensor([t, t])))
    epsilon, share = in_numpy(noised.x_t.numpy(), t)
    output = Output(*(torch.from_numpy(part).requires_grad_() for part in (epsilon, share)))
    assert output.ranged is not None
    term = chain.term(X0, NOISES[t], t, clip=False)
    np.testing.assert_allclose(Vlb()(output, noised, LEARNED).detach().numpy(), T * term, rtol=1e-9)
    loss = Hybrid()(output, noised, LEARNED)
    np.testing.assert_allclose(loss.detach().numpy(), ((epsilon - NOISES[t]) ** 2).mean((1, 2, 3)) + 0.001 * T * term, rtol=1e-9)
    of_value, of_share = torch.autograd.grad(loss.sum(), (output.value, output.ranged))
    np.testing.assert_allclose(of_value.numpy(), 2 * (epsilon - NOISES[t]) / epsilon[0].size, rtol=1e-9, atol=1e-15)
    step = 1e-5
    ahead, behind = (Hybrid()(Output(output.value, output.ranged + side * step), noised, LEARNED) for side in (1, -1))
    np.testing.assert_allclose(of_share.sum((1, 2, 3)).numpy(), ((ahead - behind) / (2 * step)).detach().numpy(), rtol=1e-6, atol=1e-12)
