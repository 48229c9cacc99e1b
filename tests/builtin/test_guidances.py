"""Guidance: mixes of two predictions, where they act, and what they cost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cdmkit.builtin.guidances import Autoguidance, ClassifierFree
from cdmkit.builtin.samplers import Ddim
from cdmkit.builtin.schedules import Cosine
from cdmkit.diffusion import Condition, Denoiser, Parameterization, Prediction, Variance
from cdmkit.kinds import Guidance

PROCESS = Cosine(timesteps=200).process()
LABEL = torch.tensor([2, 0, 1])
X_T = torch.randn(3, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
MIDDLE = dict(PROCESS.backwards(X_T))[100]


class Told:
    """Says its label + 1 everywhere, so 0 without one; counts calls and images."""

    def __init__(self, scale: float = 1.0, channels: int = 3) -> None:
        self.scale = scale
        self.channels = channels
        self.batches: list[int] = []

    def __call__(self, x_t: Tensor, _level: Tensor, condition: Condition) -> Tensor:
        assert condition.label is not None
        self.batches.append(len(x_t))
        said = self.scale * (condition.label.to(x_t.dtype) + 1).view(-1, 1, 1, 1).expand(-1, 3, *x_t.shape[2:])
        return said if self.channels == 3 else torch.cat((said, said / 10), 1)


def denoiser(network: Told, prediction: Prediction = Prediction.X0, variance: Variance = Variance.FIXED_SMALL) -> Denoiser:
    return Denoiser(network, Parameterization(prediction, variance), threshold=None)


def values(x: Tensor) -> list[float]:
    """The one value of each image."""
    return x.flatten(1).mean(1).tolist()


@pytest.mark.parametrize(("scale", "expected"), [(0.0, [0, 0, 0]), (1.0, [3, 1, 2]), (2.5, [7.5, 2.5, 5])])
def test_classifier_free_guidance_is_equation_6(scale: float, expected: list[float]) -> None:
    """Unconditional + scale (conditional - unconditional), scale = 1 + w; one call for both, and one of half the size without."""
    network = Told()
    said = ClassifierFree(scale=scale)(denoiser(network), Condition(LABEL), None)(X_T, MIDDLE)
    assert values(said.x0) == pytest.approx(expected)
    assert network.batches == [3 if scale == 1 else 6]


@pytest.mark.parametrize("prediction", Prediction)
def test_guidance_of_x0_is_guidance_of_what_is_predicted(prediction: Prediction) -> None:
    """The mix of x_0 is that of epsilons or vs at the same x_t."""
    guided = ClassifierFree(scale=3.0)(denoiser(Told(), prediction), Condition(LABEL), None)(X_T, MIDDLE)
    mixed = (3.0 * (LABEL + 1.0)).double().view(-1, 1, 1, 1).expand_as(X_T)
    torch.testing.assert_close(guided.x0, prediction.x0(mixed, X_T, MIDDLE), rtol=1e-9, atol=1e-9)


def test_the_variance_is_that_of_the_conditional_prediction() -> None:
    """Only x_0 is guided."""
    network = denoiser(Told(channels=6), variance=Variance.LEARNED_RANGE)
    guided = ClassifierFree(scale=3.0)(network, Condition(LABEL), None)(X_T, MIDDLE)
    assert torch.equal(guided.log_variance, network.predict(X_T, MIDDLE, Condition(LABEL)).log_variance)


def test_other_conditions_are_told_to_both_predictions() -> None:
    """The low-resolution image and the levels stay; the label goes."""
    told: list[Condition] = []

    def network(x_t: Tensor, _level: Tensor, condition: Condition) -> Tensor:
        told.append(condition)
        return x_t

    condition = Condition(LABEL, X_T, torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64))
    ClassifierFree(scale=2.0)(Denoiser(network, Parameterization()), condition, None)(X_T, MIDDLE)
    (both,) = told
    assert both.label is not None
    assert both.low_res is not None
    assert both.levels is not None
    assert both.label.tolist() == [2, 0, 1, -1, -1, -1]
    assert torch.equal(both.low_res, torch.cat((X_T, X_T)))
    assert both.levels.flatten().tolist() == [1, 2, 3, 1, 2, 3]


def test_a_stage_that_is_told_no_label_is_not_guided_by_it() -> None:
    """Data without classes."""
    plain = Denoiser(lambda x_t, _level, _condition: x_t, Parameterization(Prediction.X0), threshold=None)
    assert torch.equal(ClassifierFree(scale=9.0)(plain, Condition(), None)(X_T, MIDDLE).x0, X_T)


def test_autoguidance_pushes_away_from_the_worse_network() -> None:
    """Weak + scale (strong - weak) (arXiv:2406.02507, eq. 4)."""
    strong, weak = Told(), Told(0.5)
    guidance = Autoguidance(scale=3.0, weights="weak.safetensors")
    said = guidance(denoiser(strong), Condition(LABEL), denoiser(weak))(X_T, MIDDLE)
    assert values(said.x0) == pytest.approx([0.5 * n + 3 * 0.5 * n for n in (3, 1, 2)])
    assert (guidance.guide, ClassifierFree(scale=2.0).guide) == ("weak.safetensors", None)
    with pytest.raises(ValueError, match="needs the network that guides"):
        guidance(denoiser(strong), Condition(LABEL), None)


@pytest.mark.parametrize("make", [ClassifierFree, lambda **options: Autoguidance(weights="w", **options)], ids=["classifier-free", "auto"])
def test_outside_its_interval_guidance_costs_nothing(make: type[ClassifierFree]) -> None:
    """Only steps whose noise / signal lies in (min_sigma, max_sigma] make the second prediction."""
    sampler, low, high = Ddim(steps=10), 0.3, 4.0
    network, weak = Told(), Told(0.5)
    guidance: Guidance = make(scale=2.0, min_sigma=low, max_sigma=high)
    bound = denoiser(network)
    sampler(bound.bind(Condition(LABEL), guidance(bound, Condition(LABEL), denoiser(weak))), X_T, PROCESS, lambda _k: X_T)
    sigmas = sampler.chain(PROCESS).sigmas[1:].tolist()
    inside = sum(low < sigma <= high for sigma in sigmas)
    assert 0 < inside < 10
    assert sum(network.batches) + sum(weak.batches) == 3 * (10 + inside)


def test_guided_images_are_thresholded() -> None:
    """After the mix, not before it."""
    strict = Denoiser(Told(), Parameterization(Prediction.X0))
    denoise = strict.bind(Condition(LABEL), ClassifierFree(scale=5.0)(strict, Condition(LABEL), None))
    assert float(denoise(X_T, MIDDLE).x0.max()) == 1.0


def test_an_interval_that_is_empty_is_refused() -> None:
    """It would never guide."""
    with pytest.raises(ValueError, match=r"min_sigma = 5 is not below max_sigma = 0\.3"):
        ClassifierFree(scale=2.0, min_sigma=5.0, max_sigma=0.3)
