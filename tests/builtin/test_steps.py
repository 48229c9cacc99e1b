"""What a step of sampling or training may not do: make the host wait, or allocate in proportion to the length of the chain."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cdmkit.builtin.densities import LogNormal, LossAware, Uniform
from cdmkit.builtin.guidances import ClassifierFree
from cdmkit.builtin.heun import Heun
from cdmkit.builtin.losses import Hybrid, Simple, Vlb
from cdmkit.builtin.samplers import Ancestral, Ddim, DpmSolverPP
from cdmkit.builtin.schedules import Linear
from cdmkit.builtin.spacings import PowerSigma
from cdmkit.builtin.thresholds import Dynamic, Static
from cdmkit.builtin.weightings import MinSnr
from cdmkit.diffusion import Condition, Denoised, Denoiser, NoiseInput, Parameterization, Point, Prediction, Variance
from cdmkit.draws import Stream
from cdmkit.kinds import Density, Loss, Sampler
from cdmkit.training.step import Objective
from tests.training.components import CLASSES, make_stage, random_batch

SHAPE = (2, 3, 8, 8)
WAITS = {"aten._local_scalar_dense", "aten.item", "aten.nonzero", "aten.is_nonzero", "aten.equal", "aten._assert_async"}
"""Operations whose result the host must wait for."""


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Keeps the names of all operations and the numbers that their fresh results hold, step by step."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[list[str]] = [[]]
        self.numbers: list[int] = [0]

    def next(self) -> None:
        """A step ends."""
        self.steps.append([])
        self.numbers.append(0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.steps[-1].append(str(func).rpartition(".")[0])
        known = {each.untyped_storage().data_ptr() for each in tree_leaves(args) if isinstance(each, Tensor)}
        fresh = [each for each in tree_leaves(out) if isinstance(each, Tensor) and each.untyped_storage().data_ptr() not in known]
        self.numbers[-1] += sum(each.numel() for each in fresh)
        return out


SAMPLERS = [
    Ancestral(steps=8),
    Ddim(steps=8),
    Ddim(steps=8, eta=1.0),
    DpmSolverPP(steps=8),
    DpmSolverPP(steps=8, sde=True),
    Heun(steps=8),
    Heun(steps=8, spacing=PowerSigma(), churn=5.0),
]


def watched(sampler: Sampler, timesteps: int, variance: Variance, threshold: Any, noise_input: NoiseInput, guided: bool) -> Watch:
    """Sample along a chain of `timesteps`; a step goes from one call of the network to the next."""
    noise = Stream.of(0, "noise").normal(torch.arange(2), SHAPE[1:])
    said = torch.zeros(4 if guided else 2, 6 if variance.learned else 3, 8, 8)
    denoiser = Denoiser(lambda *_: said, Parameterization(Prediction.EPSILON, variance, noise_input), threshold)
    condition = Condition(torch.tensor([0, 1]))
    denoise = denoiser.bind(condition, ClassifierFree(scale=3.0)(denoiser, condition, None) if guided else None)

    def counted(x_t: Tensor, point: Point) -> Denoised:
        watch.next()
        return denoise(x_t, point)

    watch = Watch()
    with watch:
        sampler(counted, noise, Linear(timesteps=timesteps).process(), lambda _k: noise)
    return watch


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    ("variance", "threshold", "guided"), [(Variance.LEARNED_RANGE, Dynamic(), True), (Variance.FIXED_LARGE, Static(), False)]
)
@pytest.mark.parametrize("noise_input", NoiseInput)
def test_no_step_of_sampling_makes_the_host_wait(
    sampler: Sampler, variance: Variance, threshold: Any, guided: bool, noise_input: NoiseInput
) -> None:
    """From the first call of the network to the image, whatever is thresholded, guided or learned."""
    steps = watched(sampler, 100, variance, threshold, noise_input, guided).steps[1:]
    assert len(steps) >= 7
    assert not WAITS & {name for step in steps for name in step}


@pytest.mark.parametrize("sampler", SAMPLERS[:-1])  # with churn, how many steps raise the noise depends on the chain
def test_no_step_allocates_with_the_length_of_the_chain(sampler: Sampler) -> None:
    """Ten times the timesteps: the same operations and the same numbers made, step by step but for the one that ends at x_0."""
    short, long = (watched(sampler, timesteps, Variance.LEARNED_RANGE, Static(), NoiseInput.TIMESTEP, False) for timesteps in (100, 1000))
    assert short.numbers[1:-1] == long.numbers[1:-1]
    assert short.steps[1:-1] == long.steps[1:-1]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_step_is_the_same_to_a_compiler(sampler: Sampler) -> None:
    """The same operations in the same order, but at the ends of the chain."""
    steps = watched(sampler, 100, Variance.LEARNED_RANGE, Static(), NoiseInput.TIMESTEP, False).steps[1:]
    if isinstance(sampler, Heun):
        steps = [a + b for a, b in zip(steps[:-1:2], steps[1::2], strict=True)][1:]
        steps = [step for step in steps if len(step) == max(map(len, steps))]  # those with churn
    assert len({tuple(step) for step in steps[2:-1]}) == 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_step_makes_nothing_but_images(sampler: Sampler) -> None:
    """No number of the chain is copied or computed: all that is new holds as many numbers as some images of the batch."""
    numbers = watched(sampler, 100, Variance.FIXED_SMALL, Static(), NoiseInput.TIMESTEP, False).numbers[1:]
    assert all(made % torch.Size(SHAPE).numel() == 0 for made in numbers)
    assert max(numbers) <= 5 * torch.Size(SHAPE).numel()


@pytest.mark.parametrize("density", [Uniform(), LogNormal(), LossAware()])
@pytest.mark.parametrize("loss", [Simple(weighting=MinSnr()), Vlb(), Hybrid()])
def test_no_loss_makes_the_host_wait(density: Density, loss: Loss) -> None:
    """From images to the loss of each, with withheld labels and flips."""
    stage = make_stage({"flip": True}, density=density, loss=loss, variance=Variance.LEARNED_RANGE, label_dropout=0.2)
    timesteps = stage.density.start(stage.process())
    said = torch.zeros(8, 6, 8, 8)
    session = stage.backend.start()
    downsample = next(iter(type(stage.upsample)))
    objective = Objective.of(stage, None, lambda *_: said, timesteps, classes=CLASSES, downsample=downsample, seed=0, session=session)
    batch = random_batch(torch.arange(8))
    with Watch() as watch:
        objective(batch)
    assert not WAITS & set(watch.steps[0])
