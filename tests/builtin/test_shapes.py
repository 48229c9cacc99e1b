"""Drawn shapes: deterministic, balanced, the same picture at every resolution."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from cdmkit.builtin.shapes import Background, Shapes
from cdmkit.data.pixels import to_float
from cdmkit.data.resize import Resize

HARD: dict[str, Any] = {
    "classes": 10,
    "colours": 12,
    "min_size": 0.4,
    "jitter": 0.2,
    "rotation": 30.0,
    "background": Background.GRADIENT,
    "texture": 0.8,
}
FIRST = torch.arange(64)


def distinct(images: torch.Tensor) -> set[bytes]:
    """The different pictures (or pixels) of a batch."""
    return {image.numpy().tobytes() for image in images}


def test_images_and_labels() -> None:
    """uint8 pictures at the asked resolution, int64 labels."""
    images, labels = Shapes(resolution=16).render(torch.arange(5))
    assert (images.dtype, tuple(images.shape), images.is_contiguous()) == (torch.uint8, (5, 3, 16, 16), True)
    assert (labels.dtype, labels.tolist()) == (torch.int64, [0, 1, 2, 3, 4])


@pytest.mark.parametrize("options", [{}, HARD], ids=["easy", "hard"])
def test_a_picture_depends_on_its_index_alone(options: dict[str, Any]) -> None:
    """However pictures are batched and ordered, each is the same bytes."""
    shapes = Shapes(**options)
    whole, _ = shapes.render(FIRST)
    assert torch.equal(torch.cat([shapes.render(FIRST[k : k + 1])[0] for k in range(64)]), whole)
    assert torch.equal(shapes.render(FIRST.flip(0))[0].flip(0), whole)


def test_classes_are_balanced() -> None:
    """Every class has its equal share of an epoch."""
    _, labels = Shapes(count=8192).render(torch.arange(8192))
    assert torch.bincount(labels).tolist() == [1024] * 8


def test_pictures_differ() -> None:
    """No two of many pictures are equal."""
    images, _ = Shapes().render(torch.arange(512))
    assert len(distinct(images)) == 512


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"classes": 5},
        {"colours": 2},
        {"min_size": 0.3},
        {"max_size": 0.9},
        {"jitter": 0.3},
        {"rotation": 20.0},
        {"background": Background.VARIED},
        {"background": Background.GRADIENT},
        {"texture": 0.5},
    ],
    ids=str,
)
def test_every_option_changes_the_pictures(change: dict[str, Any]) -> None:
    """Each option alone makes other pictures, and another fingerprint."""
    easy, changed = Shapes(), Shapes(**change)
    assert not torch.equal(easy.render(FIRST)[0], changed.render(FIRST)[0])
    assert easy.card().fingerprint != changed.card().fingerprint


def test_options_are_independent() -> None:
    """Turning one option leaves what others decide: with another ground the figures stay where they are."""
    plain, varied = (Shapes(background=background).render(FIRST)[0] for background in (Background.PLAIN, Background.VARIED))
    same = (plain == varied).all(dim=1).flatten(1).double().mean(dim=1)
    assert same.min() > 0.07
    assert same.max() < 0.5


def test_colours() -> None:
    """Figures have the asked number of colours, each of them in use."""
    images, _ = Shapes(colours=4, classes=2, jitter=0.0).render(torch.arange(200))
    assert len(distinct(images[:, :, 16, 16])) == 4


@pytest.mark.parametrize("resolution", [8, 16])
@pytest.mark.parametrize("options", [{}, HARD], ids=["easy", "hard"])
def test_small_pictures_are_large_ones_shrunk(resolution: int, options: dict[str, Any]) -> None:
    """Below 32 pixels a picture is the area mean of the one at 32, up to rounding."""
    large = Resize.AREA(Shapes(resolution=32, **options).render(FIRST)[0].float(), resolution)
    small = Shapes(resolution=resolution, **options).render(FIRST)[0].float()
    assert (large - small).abs().max() <= 1


def test_antialiased() -> None:
    """A picture at 32 is close to the area mean of one at 128: outlines cover pixels by their share."""
    large = Resize.AREA(to_float(Shapes(resolution=128).render(FIRST)[0]), 32)
    small = to_float(Shapes(resolution=32).render(FIRST)[0])
    assert (large - small).abs().mean() < 0.005
    assert (large - small).abs().max() < 0.7  # at the tips of stars and crescents


@pytest.mark.parametrize("options", [{}, {"resolution": 8}, {"rotation": 20.0, "background": Background.VARIED}], ids=str)
def test_classes_can_be_told_apart(options: dict[str, Any]) -> None:
    """The nearest class mean of the outline, learnt on other pictures, names most pictures' class."""
    learn, hold_out = (Shapes(seed=seed, jitter=0.05, **options).render(torch.arange(800)) for seed in (0, 1))

    def outline(images: torch.Tensor) -> torch.Tensor:
        away = (images.float() - images[:, :, :1, :1]).norm(dim=1).flatten(1)
        return torch.nn.functional.normalize(away)

    means = torch.stack([outline(learn[0][learn[1] == label]).mean(dim=0) for label in range(8)])
    guessed = torch.cdist(outline(hold_out[0]), means).argmin(dim=1)
    assert (guessed == hold_out[1]).double().mean() > 0.85


def test_sizes_in_order() -> None:
    """A smallest size above the largest is an error that says both."""
    with pytest.raises(ValueError, match=r"min_size = 0\.9 is larger than max_size = 0\.75"):
        Shapes(min_size=0.9)


def test_card() -> None:
    """The card tells the options, and its fingerprint stays."""
    card = Shapes(resolution=16, count=100, classes=5).card()
    assert (card.resolution, card.count, card.classes) == (16, 100, 5)
    assert card == Shapes(resolution=16, count=100, classes=5).card()


def test_count_bounds_the_epoch() -> None:
    """Training draws from the first `count` pictures: each once an epoch."""
    shapes = Shapes(count=24, resolution=8)
    with shapes.open(batch=8, rank=0, world=1, seed=0, position=0) as batches:
        epoch = torch.cat([batch.images for batch in itertools.islice(batches, 3)])
    expected, _ = shapes.render(torch.arange(24))
    assert len(distinct(epoch)) == 24
    assert distinct(epoch) == distinct(expected)
