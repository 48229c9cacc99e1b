"""Sampling through cascades of real, small components."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from cdmkit.builtin.augmentations import GaussianBlur, GaussianNoise
from cdmkit.builtin.samplers import Ancestral, Ddim
from cdmkit.builtin.schedules import Cosine, Linear
from cdmkit.cascade import Cascade, Mode, Stage
from cdmkit.cascade.sampling import Renderer, stop_at
from cdmkit.data.resize import Resize
from cdmkit.draws import Draw, Stream
from cdmkit.errors import NumericsError
from tests.cascade.stages import Counting, Recording, handover, networks, stage

INDICES = torch.tensor([0, 1, 7, 2**33])
LABELS = torch.tensor([0, 1, 2, 3])


def two_stages(mode: Mode = Mode.NON_TRUNCATED, s: int = 0) -> list[Stage]:
    """A base stage of 20 timesteps and one after it with another schedule."""
    return [stage("base"), stage("sr", "base", schedule=Linear(timesteps=50), condition=handover(mode, s))]


def renderer(lineage: list[Stage], seed: int = 0, nan_label: int | None = None) -> tuple[Renderer, dict[str, Recording]]:
    made = networks(lineage, nan_label)
    return Renderer(lineage, made, {stage.name: Counting() for stage in lineage}, seed), made


def low_res_told(network: Recording) -> Tensor:
    """The low-resolution image a network was told, the same at each call."""
    images = [condition.low_res for _, _, condition in network.told]
    first = images[0]
    assert first is not None
    assert all(image is not None and torch.equal(image, first) for image in images)
    return first


def levels_told(network: Recording) -> list[list[float]]:
    """The augmentation levels a network was told."""
    levels = network.told[0][2].levels
    assert levels is not None
    found: list[list[float]] = levels.tolist()
    return found


@pytest.mark.parametrize(("mode", "s"), [(Mode.TRUNCATED, 8), (Mode.NON_TRUNCATED, 8), (Mode.NON_TRUNCATED, 0)])
def test_an_image_depends_on_its_index_and_label_alone(mode: Mode, s: int) -> None:
    """Not on the batch it is made in, nor on its place there."""
    render, _ = renderer(two_stages(mode, s))
    together = render(INDICES, LABELS)
    assert {name: tuple(images.shape) for name, images in together.items()} == {"base": (4, 3, 4, 4), "sr": (4, 3, 8, 8)}
    for row in range(4):
        alone = render(INDICES[row : row + 1], LABELS[row : row + 1])
        for name, images in alone.items():
            torch.testing.assert_close(together[name][row], images[0], rtol=0, atol=1e-5)


def test_another_index_seed_or_label_gives_another_image() -> None:
    """At every stage."""
    render, _ = renderer(two_stages())
    reference = render(INDICES[:1], LABELS[:1])
    others = [
        render(INDICES[1:2], LABELS[:1]),
        render(INDICES[:1], LABELS[1:2]),
        renderer(two_stages(), seed=1)[0](INDICES[:1], LABELS[:1]),
    ]
    for other in others:
        assert all(float((other[name] - reference[name]).abs().max()) > 1e-3 for name in reference)


def test_a_truncated_parent_stops_at_s() -> None:
    """It hands over z_s, in the words of its own sampler; the child is told s and gets it enlarged without more noise."""
    lineage = two_stages(Mode.TRUNCATED, 8)
    render, made = renderer(lineage)
    images = render(INDICES, LABELS)
    base = lineage[0]
    noise = Stream.of(0, "base", "sample", "noise")
    bound = base.denoiser(made["base"]).bind(made["base"].told[0][2])
    with torch.inference_mode():
        z_s = base.sampler(
            bound, noise.normal(INDICES, (3, 4, 4)), base.schedule.process(), lambda k: noise.normal(INDICES, (3, 4, 4), k), stop_at=8
        )
    torch.testing.assert_close(images["base"], z_s)
    torch.testing.assert_close(low_res_told(made["sr"]), Resize.BILINEAR(z_s, 8))
    assert levels_told(made["sr"]) == [[8.0]] * 4


def test_a_finished_parent_is_noised_to_s() -> None:
    """Along the parent's schedule, at low resolution, with noise of each image's own; the child is told s."""
    lineage = two_stages(Mode.NON_TRUNCATED, 8)
    render, made = renderer(lineage)
    z_0 = render(INDICES, LABELS)["base"]
    epsilon = Draw(Stream.of(0, "sr", "sample", "augment", 0), INDICES).normal((3, 4, 4), step=1)
    ab = float(Cosine(timesteps=20).alpha_bars()[8])
    torch.testing.assert_close(low_res_told(made["sr"]), Resize.BILINEAR(ab**0.5 * z_0 + (1 - ab) ** 0.5 * epsilon, 8))
    assert levels_told(made["sr"]) == [[8.0]] * 4


def test_without_noise_both_ways_agree() -> None:
    """With s = 0 the parent finishes, nothing is added, and 0 is told."""
    results = []
    for mode in Mode:
        render, made = renderer(two_stages(mode, 0))
        results.append(render(INDICES, LABELS))
        torch.testing.assert_close(low_res_told(made["sr"]), Resize.BILINEAR(results[-1]["base"], 8))
        assert levels_told(made["sr"]) == [[0.0]] * 4
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_a_parents_sample_is_the_same_for_every_s_of_a_finished_one() -> None:
    """So that it can be kept while s is searched for."""
    first, second = (renderer(two_stages(Mode.NON_TRUNCATED, s))[0](INDICES, LABELS) for s in (3, 15))
    assert torch.equal(first["base"], second["base"])
    assert float((first["sr"] - second["sr"]).abs().max()) > 1e-3


def test_siblings_share_their_parents_images() -> None:
    """Each branch of a cascade enlarges the same base images, in its own way."""
    cascade = Cascade.of([*two_stages(), stage("other", "base", upsample=Resize.BICUBIC), stage("top", "sr", resolution=16)])
    made = networks(cascade)
    sessions = {stage.name: Counting() for stage in cascade}
    top, other = (Renderer(cascade.lineage(leaf.name), made, sessions)(INDICES, LABELS) for leaf in cascade.leaves()[::-1])
    assert (list(top), list(other)) == (["base", "sr", "top"], ["base", "other"])
    assert torch.equal(top["base"], other["base"])
    assert top["top"].shape == (4, 3, 16, 16)
    torch.testing.assert_close(low_res_told(made["other"]), Resize.BICUBIC(other["base"], 8))
    torch.testing.assert_close(low_res_told(made["top"]), Resize.BILINEAR(top["sr"], 16))


@pytest.mark.parametrize(("mode", "s", "base_calls"), [(Mode.TRUNCATED, 8, 3), (Mode.NON_TRUNCATED, 8, 5), (Mode.TRUNCATED, 20, 0)])
def test_network_calls_are_counted_and_announced(mode: Mode, s: int, base_calls: int) -> None:
    """`calls` says beforehand what `tick` hears; each call ends a step of the session."""
    lineage = two_stages(mode, s)
    ticks: Counter[str] = Counter()
    made, sessions = networks(lineage), {stage.name: Counting() for stage in lineage}
    render = Renderer(lineage, made, sessions, tick=lambda name: ticks.update([name]))
    render(INDICES, LABELS)
    assert render.calls() == {"base": base_calls, "sr": 5}
    assert {name: ticks[name] for name in made} == render.calls()
    assert {name: session.boundaries for name, session in sessions.items()} == render.calls()
    assert {name: len(network.told) for name, network in made.items()} == render.calls()


@pytest.mark.parametrize("sampler", [Ancestral(steps=3), Ddim(steps=3)])
def test_a_sample_that_is_not_finite_is_an_error_that_names_it(sampler: Ancestral | Ddim) -> None:
    """Stage and image, so that it can be made again alone."""
    lineage = [stage("base", sampler=sampler, labels=False), stage("sr", "base", sampler=sampler)]
    render, _ = renderer(lineage, nan_label=2)
    with pytest.raises(NumericsError, match=r"stage 'sr': 1 of 4 samples are not finite \(images 7\)"):
        render(INDICES, LABELS)


def test_a_stage_without_labels_is_told_none() -> None:
    """`labels = false` keeps them from its network; a base stage is told of no low-resolution image."""
    render, made = renderer([stage("base", labels=False)])
    render(INDICES, LABELS)
    condition = made["base"].told[0][2]
    assert (condition.label, condition.low_res, condition.levels) == (None, None, None)


def test_levels_stand_in_the_order_of_the_augmentations() -> None:
    """Only of those that tell one; blur does nothing here."""
    augment = (GaussianNoise(), GaussianBlur(probability=1.0), GaussianNoise(max_s=9))
    render, made = renderer([stage("base"), stage("sr", "base", augment=augment, condition=handover(Mode.TRUNCATED, 4))])
    images = render(INDICES, LABELS)
    assert levels_told(made["sr"]) == [[4.0, 4.0]] * 4
    torch.testing.assert_close(low_res_told(made["sr"]), Resize.BILINEAR(images["base"], 8))


def test_samples_need_no_gradient() -> None:
    """Nor keep one of the networks' calls."""
    render, _ = renderer(two_stages())
    assert all(images.is_inference() for images in render(INDICES, LABELS).values())


def test_only_a_truncated_child_stops_its_parent() -> None:
    """At its s; else the chain ends clean."""
    assert stop_at(None) == 0
    assert stop_at(two_stages(Mode.NON_TRUNCATED, 8)[1]) == 0
    assert stop_at(two_stages(Mode.TRUNCATED, 8)[1]) == 8


def test_networks_of_data_without_classes_are_told_no_label() -> None:
    """As in training, whatever the labels."""
    base = stage("base")
    made = networks([base])
    made["base"].network = base.backbone.build(base.network_spec(0))
    Renderer([base], made, {"base": Counting()}, labeled=False)(INDICES, LABELS)
    assert all(condition.label is None for _, _, condition in made["base"].told)
