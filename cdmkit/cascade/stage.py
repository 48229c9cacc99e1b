"""A stage: one diffusion model at one resolution, as frozen options and components."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import partial

import attrs

from cdmkit.component import Binds, evolve, option, table
from cdmkit.data.resize import Resize
from cdmkit.diffusion import Denoiser, Network, NoiseInput, Parameterization, Prediction, Process, Variance
from cdmkit.kinds import (
    Augmentation,
    Average,
    Backbone,
    Backend,
    Density,
    Guidance,
    Loss,
    LrSchedule,
    NetworkSpec,
    Optimizer,
    Sampler,
    Schedule,
    Threshold,
    exponential_decay,
)


class Mode(Enum):
    """Where a super-resolution stage's z_s comes from when sampling (CDM Algorithm 2)."""

    TRUNCATED = "truncated"
    """The parent's reverse chain stops at s and hands over z_s."""
    NON_TRUNCATED = "non-truncated"
    """The parent runs to z_0, which is noised to s: parents' samples can be kept for every s."""


@table
class Handover:
    """How a stage takes over its parent's sample (`condition` in a recipe). `s` is swept after training."""

    mode: Mode = option(Mode.NON_TRUNCATED, help="truncated: the parent stops at s; non-truncated: it finishes and is noised to s")
    s: int = option(0, help="truncation step, in timesteps of the parent's schedule; 0: no noise", ge=0)


@table
class Training:
    """How a stage is trained."""

    batch: int = option(64, help="images per optimizer step, over all devices", ge=1)
    steps: int = option(0, help="optimizer steps; 0: the stage's `weights` are sampled as they are", ge=0, binds=Binds.NOTHING)
    optimizer: Optimizer = option(help="how weights follow gradients")
    ema: float = option(0.9999, help="decay of the moving average of weights that is sampled from", ge=0, lt=1)
    ema_ramp: bool = option(False, help="let the decay grow as (1 + step) / (10 + step) up to `ema`, for short training")
    averages: tuple[Average, ...] = option((), help="further averages kept beside it, as average-1, average-2, ... of each checkpoint")
    snapshot_every: int = option(
        0,
        help="steps between two snapshots of the power averages, for `cdmkit ema`; kept for good, one at the end among them; 0: none",
        ge=0,
        binds=Binds.NOTHING,
    )
    lr_schedule: LrSchedule | None = option(None, help="how the learning rate changes; default: not at all, as `constant` has it")
    warmup: int = option(0, help="steps over which the learning rate rises linearly from 0", ge=0)
    clip_grad: float = option(0.0, help="largest gradient norm; larger ones are scaled down to it; 0: no limit", ge=0)
    bad_steps: int = option(
        3,
        help="steps in a row with a NaN or infinite loss or gradient at which training stops; fewer are left out and counted",
        ge=1,
        binds=Binds.NOTHING,
    )
    accumulate: int = option(1, help="parts that a batch is split into, one after another, to save memory", ge=1, binds=Binds.NOTHING)
    flip: bool = option(False, help="mirror half the images left to right")
    log_every: int = option(100, help="steps between two reports of progress", ge=1, binds=Binds.NOTHING)
    sample_every: int = option(0, help="steps between two sample grids; 0: none while training", ge=0, binds=Binds.NOTHING)
    checkpoint_every: int = option(1000, help="steps between two checkpoints; one is always saved at the end", ge=1, binds=Binds.NOTHING)
    keep: int = option(2, help="checkpoints kept, the newest; two, so that a damaged one is not the end", ge=1, binds=Binds.NOTHING)
    keep_every: int = option(
        0, help="checkpoints of steps that are multiples of this are kept as well, for good; 0: none", ge=0, binds=Binds.NOTHING
    )
    keep_best: int = option(
        0, help="so many checkpoints are kept as well: those before which the mean loss was lowest", ge=0, binds=Binds.NOTHING
    )

    def __attrs_post_init__(self) -> None:
        if self.batch % self.accumulate:
            raise ValueError(f"batch = {self.batch} cannot be split into accumulate = {self.accumulate} equal parts")
        if self.snapshot_every and not self.snapshots:
            raise ValueError('snapshot_every: there is nothing to make snapshots of: add { type = "power", sigma_rel = 0.1 } to averages')

    def lr_at(self, step: int) -> float:
        """The learning rate of optimizer step `step`, counted from 0: the optimizer's, by the schedule, by min(1, (step + 1) / warmup)."""
        factor = 1.0 if self.lr_schedule is None else self.lr_schedule.factor(step)
        return self.optimizer.lr * factor * (min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0)

    @property
    def decays(self) -> dict[str, Callable[[int], float]]:
        """Every average that is kept, by the name of its file: its decay at an optimizer step, counted from 0."""
        further = {f"average-{number}": average.decay_at for number, average in enumerate(self.averages, 1)}
        return {"ema": partial(exponential_decay, self.ema, self.ema_ramp), **further}

    @property
    def snapshots(self) -> dict[str, float]:
        """The averages that snapshots are made of, by the names of their files: the sigma_rel of each."""
        widths = zip(list(self.decays)[1:], (average.sigma_rel for average in self.averages), strict=True)
        return {name: sigma_rel for name, sigma_rel in widths if sigma_rel is not None}


@attrs.frozen
class LowRes:
    """What a super-resolution stage enlarges."""

    resolution: int
    schedule: Schedule
    """Its augmentations' s counts in: that of the stage which makes the images; the stage's own where they are real."""


@table
class Stage:
    """One diffusion model of a cascade."""

    name: str = attrs.field()
    resolution: int = option(help="height and width of its images, in pixels", ge=1, le=8192)
    after: str | None = option(None, help="the stage whose images it enlarges; none: a base stage")
    low_res: int | None = option(
        None, help="instead of `after`: resolution of the real images it enlarges, made from the data; super-resolution alone", ge=1
    )
    weights: str | None = option(None, help="safetensors file of cdmkit (`cdmkit import` writes them) whose weights it begins with")
    schedule: Schedule = option(help="how fast noise is added")
    sampling_schedule: Schedule | None = option(
        None, help='the schedule to sample along, when it differs from `schedule`; needs noise_input = "alpha-bar"'
    )
    prediction: Prediction = option(Prediction.EPSILON, help="what the network predicts")
    variance: Variance = option(Variance.FIXED_SMALL, help="variance of a reverse step")
    variance_floor: float | None = option(
        None, help="stands for the posterior's variance of 0 at t = 1 in logs, as diffusers' 1e-20; default: that of t = 2", gt=0, le=1
    )
    noise_input: NoiseInput = option(NoiseInput.TIMESTEP, help="how the network is told the noise level")
    density: Density = option(help="how often training visits each timestep")
    loss: Loss = option(help="what training minimises")
    backbone: Backbone = option(help="the network")
    sampler: Sampler = option(help="how the chain is run backwards")
    threshold: Threshold = option(help="how predicted images are kept within [-1, 1] when sampling")
    guidance: Guidance | None = option(None, help="how predictions are pushed when sampling")
    labels: bool = option(True, help="tell the network the class label, where the data has classes")
    label_dropout: float = option(0.0, help="share of training images whose label is withheld, for classifier-free guidance", ge=0, lt=1)
    upsample: Resize = option(Resize.BILINEAR, help="how the low-resolution image is enlarged to this stage's resolution")
    augment: tuple[Augmentation, ...] = option((), help="conditioning augmentation of the low-resolution image, in this order")
    condition: Handover = option(factory=Handover, help="how the parent's sample is taken over")
    backend: Backend = option(help="what computes")
    train: Training = option(help="how it is trained")

    def __attrs_post_init__(self) -> None:
        if self.sampling_schedule is not None and not self.noise_input.continuous:
            raise ValueError('sampling_schedule needs noise_input = "alpha-bar"')
        if self.loss.needs_learned_variance and not self.variance.learned:
            raise ValueError(f'loss "{self.loss.type_name}" needs variance = "learned-range"')
        if self.loss.discrete and self.noise_input.continuous:
            raise ValueError(f'loss "{self.loss.type_name}" needs whole timesteps: noise_input = "timestep"')
        if self.train.steps == 0 and self.weights is None:
            raise ValueError("train.steps is missing: how long it is trained (or name the `weights` that it is sampled with)")
        self._check_conditions()

    def _check_conditions(self) -> None:
        """Raise ValueError where options are of no use without others."""
        if self.after is not None and self.low_res is not None:
            raise ValueError(f"after and low_res: it enlarges either the images of {self.after!r} or real ones")
        if self.low_res is not None and self.condition.mode is Mode.TRUNCATED:
            raise ValueError('condition.mode = "truncated" is for stages with a parent, whose chain can stop at s')
        defaults = {"upsample": Resize.BILINEAR, "augment": (), "condition": Handover()}
        idle = [name for name, default in defaults.items() if getattr(self, name) != default]
        if idle and not self.enlarging:
            raise ValueError(f"{' and '.join(idle)}: for stages that enlarge images: set `after` or `low_res`, or remove it")
        if self.condition.s and not any(a.noises for a in self.augment):
            raise ValueError(f"condition.s = {self.condition.s} needs an augmentation that noises, such as gaussian-noise")
        if self.label_dropout and not self.labels:
            raise ValueError("label_dropout: the stage is told no labels")
        if self.guidance is not None and self.guidance.needs_unlabeled and not self.label_dropout:
            raise ValueError(
                f'guidance "{self.guidance.type_name}" compares with no label: train the stage with label_dropout, such as 0.1'
            )

    @property
    def parameterization(self) -> Parameterization:
        """The meaning of the network's output."""
        return Parameterization(self.prediction, self.variance, self.noise_input)

    @property
    def enlarging(self) -> bool:
        """Whether it enlarges images, of a parent or real ones."""
        return self.after is not None or self.low_res is not None

    def network_spec(self, classes: int) -> NetworkSpec:
        """The network this stage needs on data with `classes` labels."""
        return NetworkSpec(
            resolution=self.resolution,
            out_channels=6 if self.variance.learned else 3,
            classes=classes if self.labels else 0,
            unlabeled=classes > 0 and self.label_dropout > 0,
            low_res=self.enlarging,
            levels=sum(a.tells_level for a in self.augment),
        )

    def enlarges(self, parent: Stage | None) -> LowRes | None:
        """What it enlarges, where `parent` is the stage it is after; None for a base stage."""
        if parent is not None:
            return LowRes(parent.resolution, parent.schedule)
        return None if self.low_res is None else LowRes(self.low_res, self.schedule)

    def on_real_images(self) -> Stage:
        """The stage as it is where it enlarges real images, which are no z_s: non-truncated."""
        return evolve(self, condition=evolve(self.condition, mode=Mode.NON_TRUNCATED))

    def denoiser(self, network: Network) -> Denoiser:
        """The network with its meaning."""
        return Denoiser(network, self.parameterization, self.threshold)

    def process(self) -> Process:
        """The full chain to train along."""
        return self.schedule.process(self.variance_floor)

    def sampling_process(self) -> Process:
        """The full chain to sample along."""
        return (self.sampling_schedule or self.schedule).process(self.variance_floor)
