"""A stage's options: what does not go together is refused in words, and what a network must be follows from them."""

from __future__ import annotations

from typing import Any

import pytest

from cdmkit.builtin.augmentations import GaussianBlur, GaussianNoise
from cdmkit.builtin.guidances import Autoguidance, ClassifierFree
from cdmkit.builtin.losses import Hybrid, Simple, Vlb
from cdmkit.builtin.optimizers import Adam
from cdmkit.builtin.schedules import Cosine, Linear
from cdmkit.builtin.thresholds import Unthresholded
from cdmkit.cascade import Handover, LowRes, Mode, Training
from cdmkit.data.resize import Resize
from cdmkit.diffusion import NoiseInput, Parameterization, Prediction, Variance
from cdmkit.kinds import NetworkSpec
from tests.cascade.stages import stage


@pytest.mark.parametrize(
    ("after", "options", "words"),
    [
        (None, {"sampling_schedule": Linear()}, 'sampling_schedule needs noise_input = "alpha-bar"'),
        (None, {"loss": Hybrid()}, 'loss "hybrid" needs variance = "learned-range"'),
        (None, {"loss": Vlb(), "noise_input": NoiseInput.ALPHA_BAR}, 'loss "vlb" needs whole timesteps'),
        (None, {"augment": (GaussianBlur(),)}, "augment: for stages that enlarge images"),
        (
            None,
            {"upsample": Resize.AREA, "condition": Handover(mode=Mode.TRUNCATED)},
            "upsample and condition: for stages that enlarge images",
        ),
        ("base", {"augment": (GaussianBlur(),), "condition": Handover(s=3)}, "condition.s = 3 needs an augmentation that noises"),
        (None, {"condition": Handover(s=3)}, "condition: for stages that enlarge images"),
        (None, {"resolution": 0}, "0 is out of range"),
        ("base", {"low_res": 2}, "after and low_res: it enlarges either the images of 'base' or real ones"),
        (None, {"low_res": 2, "condition": Handover(mode=Mode.TRUNCATED)}, "for stages with a parent, whose chain can stop at s"),
        (None, {"train": Training(optimizer=Adam())}, "train.steps is missing"),
        (None, {"labels": False, "label_dropout": 0.1}, "label_dropout: the stage is told no labels"),
        (None, {"guidance": ClassifierFree(scale=2.0)}, 'guidance "classifier-free" compares with no label'),
    ],
)
def test_options_that_do_not_go_together_are_refused(after: str | None, options: dict[str, Any], words: str) -> None:
    """The message names both."""
    with pytest.raises(ValueError, match=words):
        stage("any", after, **options)


@pytest.mark.parametrize(
    ("after", "options"),
    [
        (None, {"sampling_schedule": Linear(), "noise_input": NoiseInput.ALPHA_BAR}),
        (None, {"loss": Hybrid(), "variance": Variance.LEARNED_RANGE}),
        (None, {"loss": Vlb()}),
        ("base", {"condition": Handover(s=3)}),
        ("base", {"augment": (GaussianBlur(),)}),
        ("base", {"upsample": Resize.AREA, "condition": Handover(mode=Mode.TRUNCATED)}),
        (None, {"upsample": Resize.BILINEAR, "condition": Handover()}),
        (None, {"low_res": 2, "augment": (GaussianNoise(),), "condition": Handover(s=3)}),
        (None, {"train": Training(optimizer=Adam()), "weights": "some.safetensors"}),
        (None, {"guidance": ClassifierFree(scale=2.0), "label_dropout": 0.1}),
        (None, {"guidance": Autoguidance(scale=2.0, weights="some.safetensors")}),
    ],
)
def test_options_that_do_go_together_are_taken(after: str | None, options: dict[str, Any]) -> None:
    """The neighbours of what is refused."""
    made = stage("any", after, **options)
    assert all(getattr(made, name) == value for name, value in options.items())


@pytest.mark.parametrize(
    ("after", "options", "classes", "expected"),
    [
        (None, {}, 10, NetworkSpec(4, 3, classes=10)),
        (None, {}, 0, NetworkSpec(4, 3)),
        (None, {"labels": False}, 10, NetworkSpec(4, 3)),
        (None, {"label_dropout": 0.1}, 10, NetworkSpec(4, 3, classes=10, unlabeled=True)),
        (None, {"label_dropout": 0.1}, 0, NetworkSpec(4, 3)),
        (None, {"low_res": 2}, 0, NetworkSpec(4, 3, low_res=True)),
        (None, {"variance": Variance.LEARNED_RANGE, "loss": Hybrid()}, 0, NetworkSpec(4, 6)),
        ("base", {}, 2, NetworkSpec(8, 3, classes=2, low_res=True, levels=1)),
        ("base", {"augment": (GaussianBlur(),)}, 0, NetworkSpec(8, 3, low_res=True, levels=0)),
        ("base", {"augment": (GaussianBlur(), GaussianNoise(), GaussianNoise(max_s=3))}, 0, NetworkSpec(8, 3, low_res=True, levels=2)),
    ],
)
def test_the_network_follows_from_the_stage(after: str | None, options: dict[str, Any], classes: int, expected: NetworkSpec) -> None:
    """Labels, channels, the low-resolution input and the levels it is told."""
    assert stage("any", after, **options).network_spec(classes) == expected


def test_the_meaning_of_the_output_follows_from_the_stage() -> None:
    """Loss and sampler share it."""
    made = stage(
        "base", prediction=Prediction.V, variance=Variance.FIXED_LARGE, noise_input=NoiseInput.ALPHA_BAR, threshold=Unthresholded()
    )
    assert made.parameterization == Parameterization(Prediction.V, Variance.FIXED_LARGE, NoiseInput.ALPHA_BAR)
    denoiser = made.denoiser(lambda x_t, _level, _condition: x_t)
    assert (denoiser.parameterization, denoiser.threshold) == (made.parameterization, Unthresholded())


def test_sampling_follows_its_own_schedule_where_there_is_one() -> None:
    """Else the one of training."""
    own = stage("base", sampling_schedule=Linear(timesteps=30), noise_input=NoiseInput.ALPHA_BAR)
    assert own.sampling_process().steps == 30
    assert stage("base", schedule=Cosine(timesteps=70)).sampling_process().steps == 70


def test_equal_stages_are_equal() -> None:
    """A stage is a value, so that a finished one can be recognised."""
    assert stage("base") == stage("base")
    assert hash(stage("base")) == hash(stage("base"))
    assert stage("base") != stage("base", threshold=Unthresholded())


def test_by_default_a_parent_finishes_and_is_not_noised() -> None:
    """Non-truncated with s = 0."""
    assert (Handover().mode, Handover().s) == (Mode.NON_TRUNCATED, 0)


def test_a_batch_must_split_into_equal_parts() -> None:
    """Else the parts of a step would weigh differently."""
    with pytest.raises(ValueError, match="batch = 6 cannot be split into accumulate = 4 equal parts"):
        Training(batch=6, steps=1, optimizer=Adam(), accumulate=4)
    assert Training(batch=6, steps=1, optimizer=Adam(), accumulate=3).accumulate == 3


def test_a_loss_that_learns_no_variance_may_stand_beside_one() -> None:
    """Simple with learned range is odd but possible; the variance then stays where it starts."""
    assert stage("base", variance=Variance.LEARNED_RANGE, loss=Simple()).network_spec(0).out_channels == 6


def test_what_a_stage_enlarges_follows_from_its_parent_or_from_real_images() -> None:
    """Resolution and the schedule that s counts in: the parent's, or its own."""
    parent = stage("base", schedule=Cosine(timesteps=70))
    assert stage("fine", "base").enlarges(parent) == LowRes(4, Cosine(timesteps=70))
    assert stage("fine", low_res=2).enlarges(None) == LowRes(2, Cosine(timesteps=20))
    assert stage("base").enlarges(None) is None


def test_a_stages_chains_have_its_variance_floor() -> None:
    """In training and in sampling."""
    made = stage("base", variance_floor=1e-20)
    assert [chain.variance_floor for chain in (made.process(), made.sampling_process(), stage("base").process())] == [1e-20, 1e-20, None]
