"""How fast a recipe's stages are on this machine: calls, training steps and sampling, measured on random images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import NamedTuple

import attrs
import torch
from torch import nn

from cdmkit.benching.instruments import PeakMemory, matmul_gflops, name, precision, seconds_per_step
from cdmkit.cascade import Stage
from cdmkit.cascade.memory import out_of_memory
from cdmkit.cascade.sampling import Renderer
from cdmkit.cascade.tracing import PASSES, example, forward_flops
from cdmkit.component import evolve
from cdmkit.kinds import Batch, Session
from cdmkit.planning import sampling_calls
from cdmkit.plugins import Plugins
from cdmkit.recipe import Recipe
from cdmkit.sampling import too_much as too_many
from cdmkit.training.learner import Learner
from cdmkit.training.loop import too_much
from cdmkit.training.step import Objective
from cdmkit.weights import guiding

Lap = Callable[[], None]


@attrs.frozen(kw_only=True)
class Speed:
    """How fast something is."""

    images: int
    """Worked on at once; by a training step, in `accumulate` parts one after another."""
    ms: float
    """Milliseconds it takes, the median."""
    images_per_second: float
    gflops: float
    """10^9 floating-point operations per second of the network's products; NaN where it cannot be traced."""
    utilization: float
    """`gflops` as a share of `matmul_gflops`."""
    peak_bytes: int | None
    """The most memory that was in use, the network's included: what was allocated on a CUDA device; by how much the resident memory of the
    process grew on a CPU; None where nobody counts.
    """


@attrs.frozen(kw_only=True)
class Measured:
    """The speed of one stage."""

    stage: str
    device: str
    """What it is called."""
    precision: str
    """The dtype of the network's products."""
    parameters: int
    forward_flops: float
    """Floating-point operations of one call of the network for one image; NaN where it cannot be traced."""
    matmul_gflops: float
    """10^9 operations per second of the fastest product of two matrices, measured before and after all else."""
    call: Speed
    """A call of the network without gradients, with as many images as it is trained on at once."""
    step: Speed | None
    """A training step: losses, gradients, optimizer and moving average, with three calls' operations. None where nothing is trained."""
    sampling: Speed
    """A step of the sampler, from one call of the network to the next, with one call's operations: what guidance asks beside is not
    counted. `images_per_second` are those of whole chains of this stage, without the stages before it.
    """
    calls: int
    """Steps of such a chain."""


class _Timed(NamedTuple):
    """What one step takes."""

    seconds: float
    peak_bytes: int | None


@attrs.frozen(eq=False, kw_only=True)
class Bench:
    """Measures stages of a recipe. Writes nothing and reads no data, nor weights: a file of `autoguidance` only says whose it is."""

    recipe: Recipe
    plugins: Plugins
    seconds: float
    """For each of the measurements; longer where three steps take longer."""
    tell: Callable[[str], None] = lambda _text: None
    """Told what is measured next."""

    @property
    def classes(self) -> int:
        """Labels of the data."""
        return self.recipe.data.classes

    def __call__(self, stage: Stage) -> Measured:
        """Measure a stage. Raises SetupError where its device is not there or has not enough memory, and CheckpointError where the file of
        its guidance is not there.
        """
        session, train = stage.backend.start(), stage.train
        flops, calls = forward_flops(stage, self.classes), sampling_calls(self.recipe.cascade, stage)
        self.tell(f"{stage.name}: products of matrices")
        before = matmul_gflops(session)
        call, parameters = self._call(stage, session)
        step = self._step(stage, session) if train.steps else None
        sampling = self._sampling(stage, session)
        peak = max(before, matmul_gflops(session))

        def speed(timed: _Timed, images: int, passes: int = 1, calls: int = 1) -> Speed:
            gflops = passes * flops * images / timed.seconds / 1e9
            return Speed(
                images=images,
                ms=1e3 * timed.seconds,
                images_per_second=images / (calls * timed.seconds),
                gflops=gflops,
                utilization=gflops / peak,
                peak_bytes=timed.peak_bytes,
            )

        return Measured(
            stage=stage.name,
            device=name(session.device),
            precision=str(precision(session)).removeprefix("torch."),
            parameters=parameters,
            forward_flops=flops,
            matmul_gflops=peak,
            call=speed(call, train.batch // train.accumulate),
            step=speed(step, train.batch, passes=PASSES) if step else None,
            sampling=speed(sampling, self.recipe.sample.batch, calls=calls),
            calls=calls,
        )

    def _call(self, stage: Stage, session: Session) -> tuple[_Timed, int]:
        """A call of the network; and its parameters."""
        self.tell(f"{stage.name}: calls of the network")
        memory = PeakMemory(session.device)
        with out_of_memory(too_much(stage)):
            network = self._network(stage, session)
            arguments = example(stage.network_spec(self.classes), stage.train.batch // stage.train.accumulate, session.device)

            def call(lap: Lap) -> None:
                with torch.inference_mode(), session.autocast():
                    network(*arguments)
                session.boundary()
                lap()

            timed = _Timed(seconds_per_step(call, session.device, self.seconds), memory.read())
            return timed, sum(parameter.numel() for parameter in network.parameters())

    def _step(self, stage: Stage, session: Session) -> _Timed:
        """A training step, as a run makes it once the batch is there."""
        self.tell(f"{stage.name}: training steps")
        memory, recipe = PeakMemory(session.device), self.recipe
        with out_of_memory(too_much(stage)):
            learner = Learner(evolve(stage, weights=None), classes=self.classes, seed=recipe.seed, session=session)
            objective = Objective.of(
                stage,
                recipe.cascade.parent(stage),
                learner.shared,
                learner.timesteps,
                classes=self.classes,
                downsample=recipe.data.downsample,
                seed=recipe.seed,
                session=session,
            )
            parts = self._parts(stage)

            def step(lap: Lap) -> None:
                learner.update(objective, parts)
                session.boundary()
                lap()

            return _Timed(seconds_per_step(step, session.device, self.seconds), memory.read())

    def _parts(self, stage: Stage) -> Iterator[Batch]:
        """Random images, the same again and again at new positions; as large as the largest stage's, since no data can be smaller."""
        size, many = max(each.resolution for each in self.recipe.cascade), stage.train.batch // stage.train.accumulate
        images = torch.randint(0, 256, (many, 3, size, size), dtype=torch.uint8)
        labels = self._labels(many)
        return (Batch(images, labels, torch.arange(start, start + many)) for start in count(0, many))

    def _sampling(self, stage: Stage, session: Session) -> _Timed:
        """A step of the sampler: chain after chain, left when there are enough steps."""
        self.tell(f"{stage.name}: steps of the sampler")
        memory, many, parent = PeakMemory(session.device), self.recipe.sample.batch, self.recipe.cascade.parent(stage)
        guide, enlarges = guiding(stage, parent, self.plugins), stage.enlarges(parent)
        with out_of_memory(too_many(many, stage, "Lower sample.batch.")):
            networks = {stage.name: self._network(stage, session)}
            guides = {} if guide is None else {stage.name: guide.denoiser(self._network(guide, session))}
            low_res = None if enlarges is None else 2 * torch.rand(many, 3, enlarges.resolution, enlarges.resolution) - 1
            indices, labels = torch.arange(many), self._labels(many)

            def chain(lap: Lap) -> None:
                renderer = Renderer(
                    (stage,),
                    networks,
                    {stage.name: session},
                    self.recipe.seed,
                    tick=lambda _stage: lap(),
                    guides=guides,
                    labeled=self.classes > 0,
                )
                renderer.stage(stage, parent, low_res, indices, labels)

            return _Timed(seconds_per_step(chain, session.device, self.seconds), memory.read())

    def _network(self, stage: Stage, session: Session) -> nn.Module:
        """A stage's network with its first weights, as it is sampled with."""
        return session.prepare(stage.backbone.build(stage.network_spec(self.classes))).eval()

    def _labels(self, many: int) -> torch.Tensor:
        return torch.randint(0, max(self.classes, 1), (many,))
