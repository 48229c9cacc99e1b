"""One optimizer step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cdmkit.builtin.densities import LossAware
from cdmkit.builtin.lr_schedules import InverseSqrt
from cdmkit.builtin.schedules import Cosine
from cdmkit.cascade import Stage
from cdmkit.component import component, option
from cdmkit.data.resize import Resize
from cdmkit.draws import Draw, Stream
from cdmkit.kinds import Batch, Optimizer
from cdmkit.training.learner import Learner, Update
from cdmkit.training.step import Objective
from tests.training.components import CLASSES, Tiny, make_stage, random_batch


@component("momentum")
class Momentum(Optimizer):
    """SGD without fused kernels: it cannot skip a step by itself."""

    lr: float = option(0.1, help="learning rate")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=self.lr, momentum=0.9)


def make_learner(stage: Stage, seed: int = 0) -> tuple[Learner, Objective]:
    session = stage.backend.start()
    learner = Learner(stage, classes=CLASSES, seed=seed, session=session)
    objective = Objective.of(
        stage, None, learner.network, learner.timesteps, classes=CLASSES, downsample=Resize.AREA, seed=seed, session=session
    )
    return learner, objective


def parts(stage: Stage) -> Iterator[Batch]:
    """The stage's stream of parts of batches."""
    size = stage.train.batch // stage.train.accumulate
    position = 0
    while True:
        yield random_batch(torch.arange(position, position + size))
        position += size


def bits(learner: Learner) -> list[Tensor]:
    """Copies of all that a step may change, but for the count."""
    checkpoint = learner.checkpoint()
    return [tensor.clone() for tensors in checkpoint.tensors.values() for tensor in tensors.values()]


def steps(stage: Stage, count: int) -> tuple[Learner, list[Update]]:
    learner, objective = make_learner(stage)
    stream = parts(stage)
    return learner, [learner.update(objective, stream) for _ in range(count)]


def test_training_lowers_the_loss() -> None:
    """A hundred steps bring the loss well below that of the untrained network."""
    _, updates = steps(make_stage({"batch": 16}), 100)
    losses = [float(update.loss) for update in updates]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_equal_seeds_make_equal_learners() -> None:
    """Initial weights are a function of the seed and the stage's name, whatever torch's generator is at, which stays where it was."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = bits(make_learner(make_stage())[0])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = bits(make_learner(make_stage())[0])
    other = bits(make_learner(make_stage(), seed=1)[0])
    renamed = bits(make_learner(make_stage(name="other"))[0])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], renamed[0])


@pytest.mark.parametrize("optimizer", [None, Momentum()])
def test_bad_step_moves_nothing(optimizer: Optimizer | None) -> None:
    """A NaN loss leaves weights, average and optimizer as they were, bit for bit, and is counted; the next good step ends the count."""
    train: dict[str, Any] = {"optimizer": optimizer} if optimizer else {}
    stage = make_stage(train, backbone=Tiny(nan_calls=(3, 4)))
    learner, objective = make_learner(stage)
    stream = parts(stage)
    learner.update(objective, stream)
    learner.update(objective, stream)
    before = bits(learner)
    for count in (1, 2):
        assert bool(learner.update(objective, stream).bad)
        assert int(learner.bad_steps) == count
        assert all(torch.equal(a, b) for a, b in zip(before, bits(learner), strict=True))
    assert not bool(learner.update(objective, stream).bad)
    assert int(learner.bad_steps) == 0
    assert int(learner.most_bad_steps) == 2
    assert not torch.equal(before[0], bits(learner)[0])


def test_warmup_rises_linearly() -> None:
    """At step n, from 0, the learning rate is lr min(1, (n + 1) / warmup), and it is what the optimizer uses."""
    learner, objective = make_learner(make_stage({"warmup": 4}))
    stream = parts(learner.stage)
    rates = []
    for _ in range(6):
        expected = learner.lr
        learner.update(objective, stream)
        assert learner.optimizer.param_groups[0]["lr"] == expected
        rates.append(expected)
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])


def test_the_optimizer_follows_the_schedule() -> None:
    """With and without a warm-up; the learning rate is that of the step, from 0."""
    learner, objective = make_learner(make_stage({"lr_schedule": InverseSqrt(after=1)}))
    stream = parts(learner.stage)
    rates = []
    for _ in range(5):
        learner.update(objective, stream)
        rates.append(learner.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.01, 0.01, 0.01 / 2**0.5, 0.01 / 3**0.5, 0.01 / 2])


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_add_up(parts: int) -> None:
    """A batch in parts gives the gradient step of the whole batch, but for rounding: with dropout, too, whose masks are the images'."""
    whole, _ = steps(make_stage({"batch": 8, "optimizer": Momentum()}, backbone=Tiny(dropout=0.5)), 3)
    split, _ = steps(make_stage({"batch": 8, "accumulate": parts, "optimizer": Momentum()}, backbone=Tiny(dropout=0.5)), 3)
    for one, other in zip(whole.network.parameters(), split.network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_gradients_are_clipped() -> None:
    """With clip_grad, plain gradient descent moves the weights by no more than lr clip_grad; the norm reported is that before clipping."""
    stage = make_stage({"clip_grad": 0.01, "optimizer": Momentum(lr=1.0)})
    learner, objective = make_learner(stage)
    before = [p.detach().clone() for p in learner.network.parameters()]
    update = learner.update(objective, parts(stage))
    after = [p.detach() for p in learner.network.parameters()]
    moved = sum(float((a - b).square().sum()) for a, b in zip(before, after, strict=True)) ** 0.5
    assert float(update.grad_norm) > 0.1
    assert moved == pytest.approx(0.01, rel=1e-3)


def lost(positions: Tensor, before: int) -> list[bool]:
    """Which features of the images at some positions dropout leaves out, after some draws from torch's generator."""
    learner, objective = make_learner(make_stage(backbone=Tiny(dropout=0.5)))
    seen: list[Tensor] = []
    learner.network.dropout.register_forward_hook(lambda _module, _inputs, out: seen.append(out == 0))  # type: ignore[union-attr]
    torch.rand(before)
    objective(random_batch(positions))
    gone: list[bool] = seen[0].flatten().tolist()
    return gone


def test_dropout_belongs_to_the_image() -> None:
    """Its masks are a function of seed, stage and the image's position, not of what torch's generator did, and differ between positions."""
    assert lost(torch.tensor([5, 3]), 0) == lost(torch.tensor([5]), 1) + lost(torch.tensor([3]), 2)
    assert lost(torch.tensor([5]), 0) != lost(torch.tensor([6]), 0)


def test_what_torch_draws_belongs_to_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The masks of torch's own dropout are a function of seed, stage and step, not of what its generator did, and differ between steps."""
    monkeypatch.setattr("tests.training.components.Dropout", nn.Dropout)
    stage = make_stage({"optimizer": Momentum(lr=0.0)}, backbone=Tiny(dropout=0.5))
    same_batch = random_batch(torch.arange(4))
    runs: list[list[float]] = []
    for disturbance in range(2):
        learner, objective = make_learner(stage)
        runs.append([])
        for _ in range(2):
            torch.manual_seed(disturbance)
            runs[-1].append(float(learner.update(objective, iter([same_batch])).loss))
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[0][1]


def test_what_a_density_learns_does_not_depend_on_how_a_batch_is_split() -> None:
    """Losses are told at the end of a step: its parts are drawn alike."""
    options: dict[str, Any] = {"density": LossAware(history=1), "schedule": Cosine(timesteps=4)}
    learners = [steps(make_stage({"batch": 8, "accumulate": parts}, **options), 5)[0] for parts in (1, 4)]
    first, second = (learner.timesteps.state_dict() for learner in learners)
    assert torch.equal(first["seen"], second["seen"])
    torch.testing.assert_close(first["losses"], second["losses"])


def test_a_density_learns_nothing_from_a_bad_step() -> None:
    """And is not thrown off by losses whose squares no float holds."""
    stage = make_stage({"batch": 8}, density=LossAware(history=1), schedule=Cosine(timesteps=4), backbone=Tiny(nan_calls=(2,)))
    learner, objective = make_learner(stage)
    stream = parts(stage)
    learner.update(objective, stream)
    before = {name: tensor.clone() for name, tensor in learner.timesteps.state_dict().items()}
    assert bool(learner.update(objective, stream).bad)
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.timesteps.state_dict().items())
    learner.timesteps.learn(torch.arange(1, 5), torch.tensor([1e25, 1.0, 1e25, 0.0]))
    t, weight = learner.timesteps.draw(Draw(Stream.of(0, "t"), torch.arange(1000)))
    assert weight is not None
    assert bool(weight.isfinite().all())
    assert set(t[:200].tolist()) >= {1, 3}
